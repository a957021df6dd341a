"""Imports go only down the layers of the design."""

import ast
import pathlib

import mtl_jax

ROOT = pathlib.Path(mtl_jax.__file__).parent
# Each layer may import itself and those before it.
LAYERS = (
    ("_types",),
    ("tree",),
    ("storage",),
    ("solvers",),
    ("gradients", "stacking", "pullback", "layers", "separable", "features", "sources"),
    ("weighting",),
    ("transforms",),
    ("combined",),
    ("pareto", "sparsity"),
    ("registry", "registry_table"),
    ("train", "sharding"),
)
LEAVES = ("metrics", "models", "data")  # import no method
MEASURED = {"pareto": "metrics"}  # imports a leaf: dominance is defined in one place
HEAVY = {
    "jaxopt": "solvers/qp.py",
    "flax": "models/",
    "tensorflow_datasets": "data/",
    "mlxtend": "data/",
    "moocore": "metrics/",
    "orbax": "storage.py",
    "PIL": "data/",
    "sklearn": "sparsity/clusters.py",
}


def imports_of(path):
    """All imported module names of a file, lazy ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
    return [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]


def rank(name):
    return next((i for i, layer in enumerate(LAYERS) if name in layer), None)


def test_imports_go_down_the_layers():
    names = {name for layer in LAYERS for name in layer} | set(LEAVES)
    for path in files():
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        assert own in names, f"{path} belongs to no layer"
        for module in imports_of(path):
            if not module.startswith("mtl_jax."):
                continue
            other = module.split(".")[1]
            if other not in names:
                continue  # a name of the package itself, such as mtl_jax.tree.gram
            if own in LEAVES:
                assert other == own or other in ("_types", "tree"), f"{path}: {module}"
            else:
                if MEASURED.get(own) == other:
                    continue
                assert other not in LEAVES, f"{path}: {module}"
                assert rank(other) <= rank(own), f"{path}: {module}"


def test_heavy_packages_stay_where_they_belong():
    for path in files():
        relative = path.relative_to(ROOT).as_posix()
        for module in imports_of(path):
            home = HEAVY.get(module.split(".")[0])
            assert home is None or relative.startswith(home), f"{path}: {module}"
        assert not any(m.split(".")[0] == "tensorflow" for m in imports_of(path))
