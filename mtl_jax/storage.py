"""Trees of arrays on disk by orbax, imported lazily, and its failures in one line."""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtl_jax import tree
from mtl_jax._types import ArrayTree


def write_arrays(folder: str | os.PathLike, arrays: ArrayTree) -> None:
    """Writes a pytree of arrays into a new folder.

    Orbax writes a temporary folder beside it and renames that: whatever happens, the
    folder is either complete or not there.

    Args:
        folder: must not exist yet; its parents are made.
        arrays: pytree of arrays, any dtypes and shapes.

    Raises:
        ValueError: if the folder exists.
        OSError: if it cannot be written.
        ImportError: without ``orbax-checkpoint``.
    """
    ocp, path = _orbax(), Path(folder).absolute()
    if path.exists():
        raise ValueError(f"{path} exists: choose another folder, or delete it first")

    def write() -> None:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(path, jax.tree.map(np.asarray, arrays))

    _, reason = quietly(write)
    if reason is not None:
        for unfinished in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"could not write {path}: {reason}")


def read_arrays(folder: str | os.PathLike) -> ArrayTree:
    """Reads what :func:`write_arrays` wrote.

    Args:
        folder: the folder.

    Returns:
        NumPy arrays in nested dictionaries and lists; other containers are not restored.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if its content is damaged or not orbax's.
        ImportError: without ``orbax-checkpoint``.
    """
    ocp, path = _orbax(), Path(folder).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")

    def load() -> ArrayTree:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(path)

    found, reason = quietly(load)
    if found is None or reason is not None:
        raise ValueError(f"{path} is damaged or foreign: {reason}")
    return found


def match(found: ArrayTree, like: ArrayTree) -> ArrayTree:
    """Arranges arrays by their paths in the structure of another tree.

    Args:
        found: arrays, for example from :func:`read_arrays`.
        like: a tree with the same paths, for example with tuples or dataclasses where
            ``found`` has lists or dictionaries; only its structure matters.

    Raises:
        ValueError: if the paths differ.

    Examples:
        >>> match({"a": [1, 2]}, {"a": (0, 0)})
        {'a': (1, 2)}
    """
    arrays = {
        tree.path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    }
    wanted, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [tree.path_name(path) for path, _ in wanted]
    if set(names) != set(arrays):
        raise ValueError(
            f"the parameters stored are {sorted(arrays)}, and those asked for are "
            f"{sorted(names)}"
        )
    return jax.tree.unflatten(structure, [arrays[name] for name in names])


def quietly(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """Runs orbax; returns its result or ``None``, and in one line why it failed.

    After a failure orbax logs tracebacks, and its remaining tasks report to a closed
    event loop: to asyncio's logger when they are collected, and from threads of
    tensorstore to ``sys.unraisablehook``. None of it says more than the first error.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    try:
        try:
            return function(), None
        except Exception as error:  # orbax raises whatever its storage layers raise
            reason = _reason(error)
        gc.collect()
        time.sleep(0.2)  # for the threads
        return None, reason
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: Exception) -> str:
    """The operating system's words where there are any, else the start of orbax's."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code is not None:
        return os.strerror(int(code[1]))
    text = error.strerror if isinstance(error, OSError) else None
    return text or " ".join(str(error).split())[:200]


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError:
        raise ImportError(
            "saving and loading need the package orbax-checkpoint: "
            "pip install orbax-checkpoint"
        ) from None
    return orbax.checkpoint
