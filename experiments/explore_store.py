"""Finished parts of a long run on disk, so that ``--resume`` need not repeat them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import records, toy_table
from mtl_jax import tree


def open_folder(folder: Path, study: str, config: Any, *, resume: bool) -> Path:
    """The folder, with ``config.json`` and without an earlier run's ``summary.json``.

    Args:
        folder: of the run.
        study: its name.
        config: the dataclass to write, or to find there on resuming.
        resume: whether to go on with the run that is there.

    Raises:
        ValueError: if the run there had other settings.
        records.StorageError: if the folder cannot be written.
    """
    if resume:
        records.open_run(folder, study, config, resume=True)
    else:
        records.start_run(folder, study, config)
    with records.writing(folder):
        (folder / "summary.json").unlink(missing_ok=True)
    return folder


class Store(NamedTuple):
    """Records ``parts/NAME.json`` with, for some, the arrays ``parts/NAME.npz``."""

    folder: Path
    resume: bool
    """Whether parts that are there are used; else they are computed anew."""

    def part(
        self, name: str, make: Callable[[], dict[str, Any] | tuple[dict[str, Any], Any]]
    ) -> dict[str, Any]:
        """The record of a part: the one on disk, or else that of ``make()``, written.

        Args:
            name: of the part.
            make: returns the record, or record and a pytree of arrays. The arrays are
                written first: a part whose record is there is complete.

        Raises:
            records.StorageError: if it cannot be written.
            ValueError: if the record on disk is damaged.
        """
        path = self._path(name, "json")
        if self.resume and path.exists():
            return records.read_json(path)
        made = make()
        entry, arrays = made if isinstance(made, tuple) else (made, None)
        with records.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # of an earlier run, whose arrays go now
        if arrays is not None:
            records.write_bytes(self._path(name, "npz"), _as_npz(arrays))
        records.write_json(path, entry)
        return entry

    def arrays(self, name: str, like: Any) -> Any:
        """The arrays of a finished part, NumPy, in the structure of ``like``.

        Raises:
            ValueError: if the file is damaged, or holds other arrays.
        """
        path = self._path(name, "npz")
        wanted = {key: np.shape(leaf) for key, leaf in _named(like)}
        try:
            with path.open("rb") as file, np.load(file) as saved:
                found = {key: saved[key] for key in saved.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is damaged or missing ({error}): delete "
                f"{self._path(name, 'json')} and resume"
            ) from None
        if {key: value.shape for key, value in found.items()} != wanted:
            raise ValueError(
                f"{path} holds other arrays than this run's: delete {path.parent}"
            )
        leaves = [found[key] for key in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / "parts" / f"{name}.{suffix}"


def _named(arrays: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return [(tree.path_name(path).replace("/", "."), leaf) for path, leaf in leaves]


def _as_npz(arrays: Any) -> bytes:
    return toy_table.as_npz(**{name: np.asarray(leaf) for name, leaf in _named(arrays)})
