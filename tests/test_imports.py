"""What ``import mtl_jax`` loads."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "statement", ["import mtl_jax", "import mtl_jax; mtl_jax.mgda(3)"]
)
def test_heavy_packages_are_imported_lazily(statement):
    heavy = ["flax", "jaxopt", "tensorflow", "tensorflow_datasets", "orbax", "mlxtend"]
    heavy += ["moocore", "sklearn"]
    code = f"{statement}\nimport sys\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
