"""Settings of the suite: 8 host devices, quick compiles, strict ranks, seeds."""

import os
from pathlib import Path

# Most of the suite's time is XLA's: code that runs once need not be optimised.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,  # the same examples on every run
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("default")


# Linux allows a process 65,530 memory maps; every compiled program holds several.
MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000


@pytest.fixture(autouse=True)
def few_programs():
    """Forgets compiled programs before XLA runs out of memory maps, and crashes."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Runs the test under 64-bit mode."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the full data sets, ``$MTL_JAX_DATA``; skips the test without it."""
    folder = os.environ.get("MTL_JAX_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no full data sets: set MTL_JAX_DATA to the folder that holds them")
    return Path(folder)
