"""The last training state of a run on disk (orbax), written atomically."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments import records
from mtl_jax import tree
from mtl_jax.storage import quietly

FOLDER = "checkpoint"


def save(folder: Path, state: Any) -> None:
    """Replaces the run's checkpoint by ``state``, a pytree of arrays.

    Orbax writes into a temporary folder and renames it; the old checkpoint is there
    until the new one is complete.

    Raises:
        records.StorageError: if it cannot be written; the old checkpoint stays.
    """
    path = (folder / FOLDER / f"{int(state.step):08d}").absolute()
    if path.exists():
        return  # the same run after the same step
    _remove_unfinished(folder)

    def write() -> None:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(path, to_dict(state))

    _, reason = quietly(write)
    if reason is not None:
        _remove_unfinished(folder)
        raise records.StorageError(path, reason)
    for old in _complete(folder):
        if old != path:
            shutil.rmtree(old)


def exists(folder: Path) -> bool:
    """Whether the run has a checkpoint."""
    return bool(_complete(folder))


def restore(folder: Path, like: Any) -> Any:
    """Reads the run's checkpoint.

    Args:
        folder: of the run.
        like: a state of the same structure, whose dtypes and shardings are taken over.

    Raises:
        ValueError: if the checkpoint is damaged or of another structure.
    """
    path, found = read(folder)
    shapes = {name: leaf.shape for name, leaf in to_dict(like).items()}
    if shapes != {name: np.shape(leaf) for name, leaf in found.items()}:
        raise ValueError(
            f"the checkpoint {path} holds other arrays than this method's state: "
            f"{_advice(folder)}"
        )
    return _from_dict(found, like)


def read(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Path and content of the run's checkpoint: arrays by their paths in the state.

    Raises:
        ValueError: if it is damaged.
    """
    path = _complete(folder)[-1].absolute()

    def load() -> dict[str, np.ndarray]:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(path)

    found, reason = quietly(load)
    if found is None or reason is not None:
        raise ValueError(
            f"the checkpoint {path} is damaged or foreign ({reason}): {_advice(folder)}"
        )
    return path, found


def _advice(folder: Path) -> str:
    return f"delete {folder / FOLDER} and resume to start this run again"


def _complete(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first; orbax's temporary ones have a suffix."""
    return sorted(p for p in (folder / FOLDER).glob("*") if p.name.isdigit())


def _remove_unfinished(folder: Path) -> None:
    for path in (folder / FOLDER).glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def to_dict(state: Any) -> dict[str, np.ndarray]:
    """One flat dictionary of NumPy arrays by path; typed keys as their integers."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        tree.path_name(path).replace("/", "."): np.asarray(
            jax.random.key_data(leaf) if _is_key(leaf) else leaf
        )
        for path, leaf in leaves
    }


def _from_dict(found: dict[str, Any], like: Any) -> Any:
    def place(leaf: Any, name: str) -> Any:
        value = found[name]
        if _is_key(leaf):
            value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
        else:
            value = np.asarray(value, leaf.dtype)
        return jax.device_put(value, leaf.sharding)

    leaves, structure = jax.tree.flatten(like)
    names = list(to_dict(like))
    placed = [place(leaf, name) for leaf, name in zip(leaves, names, strict=True)]
    return jax.tree.unflatten(structure, placed)
