"""Reads QM9 from an ``npz`` file or from tensorflow-datasets, and checks what it read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.molecule_graphs import ELEMENTS
from mtl_jax.data.tfds_builders import find_prepared

FILE = "qm9.npz"
MAX_ATOMS = 29
TARGETS = {
    "mu": "D",
    "alpha": "bohr^3",
    "homo": "meV",
    "lumo": "meV",
    "r2": "bohr^2",
    "zpve": "meV",
    "u0": "meV",
    "u": "meV",
    "h": "meV",
    "g": "meV",
    "cv": "cal/(mol K)",
}
"""The eleven targets in the order of Nash-MTL's tables, and the units of their errors;
``u0`` to ``g`` are atomisation energies."""
MEV = 27_211.386
"""meV in a Hartree."""
ATOM_ENERGIES = {  # H, C, N, O, F
    "u0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "u": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "h": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "g": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}
"""Hartree, B3LYP/6-31G(2df,p): the set's ``atomref.txt``."""
_COLUMNS = {"u": "u298", "h": "h298", "g": "g298"}
_FIELDS = ("n_atoms", "z", "pos", "targets", "target_names", "smiles_utf8")
_TFDS = {"r2": "r2", "u0": "U0", "u": "U", "h": "H", "g": "G", "cv": "Cv"}


class Molecules(NamedTuple):
    """Molecules as they were found."""

    numbers: np.ndarray
    """Atomic numbers uint8 (M, N), 0 where there is no atom."""
    positions: np.ndarray
    """float32 (M, N, 3), Å."""
    smiles: list[str]
    targets: np.ndarray
    """float64 (M, 11), units as in ``TARGETS``."""


def read_npz(data_dir: Path) -> Molecules:
    """Reads ``qm9.npz`` in ``data_dir/qm9`` or ``data_dir``.

    Its arrays: ``n_atoms (M,)``; ``z (A,)`` and ``pos (A, 3)`` of all atoms one molecule
    after the other; ``targets (M, K)`` in QM9's own units (D, bohr^3, Hartree, bohr^2,
    cal/(mol K)), total energies, with ``target_names (K,)``; ``smiles_utf8``, the bytes
    of one SMILES a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file, missing fields, other elements, targets that are no
            finite numbers.
    """
    folders = (data_dir / "qm9", data_dir)
    paths = [folder / FILE for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"QM9 was not found in {folders[0]} or {folders[1]}: put {FILE} there, or "
            "pass source='tfds' to let tensorflow-datasets download it"
        )
    try:
        with path.open("rb") as file, np.load(file) as saved:
            fields = {name: saved[name] for name in saved.files if name in _FIELDS}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no complete npz file ({error}): get it again"
        ) from None
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}, expected the fields "
            f"{', '.join(_FIELDS)}: it is another file"
        )
    counts = fields["n_atoms"].astype(np.int64)
    smiles = bytes(fields["smiles_utf8"]).decode().split("\n")
    smiles = smiles[:-1] if smiles[-1] == "" else smiles
    lengths = {len(counts), len(smiles), len(fields["targets"])}
    atoms = {int(counts.sum()), len(fields["z"]), len(fields["pos"])}
    if len(lengths) > 1 or len(atoms) > 1:
        raise ValueError(
            f"{path} holds {len(counts)} molecules with {counts.sum()} atoms, but "
            f"{len(smiles)} SMILES, {len(fields['targets'])} rows of targets and "
            f"{len(fields['z'])} atomic numbers: get it again"
        )
    if len(counts) and not 1 <= counts.min() <= counts.max() <= MAX_ATOMS:
        raise ValueError(
            f"{path} holds molecules of {counts.min()} to {counts.max()} atoms, expected "
            f"1 to {MAX_ATOMS}: it is not QM9"
        )
    inside = np.arange(MAX_ATOMS)[None] < counts[:, None]
    numbers = np.zeros(inside.shape, np.uint8)
    positions = np.zeros((*inside.shape, 3), np.float32)
    numbers[inside], positions[inside] = fields["z"], fields["pos"]
    names = [str(name) for name in fields["target_names"]]
    targets = _targets(names, fields["targets"].astype(np.float64), numbers, str(path))
    return checked(Molecules(numbers, positions, smiles, targets), str(path))


def _targets(
    names: list[str], columns: np.ndarray, numbers: np.ndarray, origin: str
) -> np.ndarray:
    """The eleven columns in their units; total energies become atomisation energies."""
    wanted = [_COLUMNS.get(name, name) for name in TARGETS]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(
            f"{origin} has no target {', '.join(missing)}, expected {', '.join(wanted)}"
        )
    targets = columns[:, [names.index(name) for name in wanted]]
    atoms = np.stack([(numbers == z).sum(1) for z in ELEMENTS.values()], 1)
    for k, (name, unit) in enumerate(TARGETS.items()):
        if name in ATOM_ENERGIES:
            targets[:, k] -= atoms @ np.array(ATOM_ENERGIES[name])
        if unit == "meV":
            targets[:, k] *= MEV
    return targets


def checked(molecules: Molecules, origin: str) -> Molecules:
    """Returns the molecules if every number in them is what it should be.

    Raises:
        ValueError: naming the first molecule that has an unknown element, or a target or
            a position that is not finite.
    """
    numbers, positions, _, targets = molecules
    known = np.isin(numbers, [0, *ELEMENTS.values()])
    if not known.all():
        row, place = np.argwhere(~known)[0]
        raise ValueError(
            f"molecule {row + 1} of {origin} has an atom of number "
            f"{numbers[row, place]}, expected one of {list(ELEMENTS.values())} "
            f"({', '.join(ELEMENTS)})"
        )
    if not np.isfinite(targets).all():
        row, column = np.argwhere(~np.isfinite(targets))[0]
        raise ValueError(
            f"the target {list(TARGETS)[column]!r} of molecule {row + 1} of {origin} is "
            f"{targets[row, column]}, expected a finite number: leave the molecule out"
        )
    if not np.isfinite(positions).all():
        row = np.argwhere(~np.isfinite(positions))[0][0]
        raise ValueError(
            f"a position of molecule {row + 1} of {origin} is not finite: leave the "
            "molecule out"
        )
    return molecules


def read_tfds(data_dir: Path | None) -> Molecules:
    """Reads tensorflow-datasets' ``qm9/original``, after preparing it if it is missing.

    Preparing it downloads 86 MB and needs pandas; a set that is there needs neither.

    Raises:
        ModuleNotFoundError: tensorflow-datasets (or, to prepare, pandas) is missing.
        ValueError: as :func:`read_npz`.
    """
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "source='tfds' needs tensorflow-datasets, which is not installed: install "
            f"tensorflow-datasets and array_record, or pass data_dir= with {FILE}"
        ) from error
    prepared = None if data_dir is None else find_prepared(data_dir / "qm9", "original")
    if prepared is not None:
        builder: Any = tfds.builder_from_directory(str(prepared))
    else:
        builder = tfds.builder(
            "qm9/original",
            data_dir=None if data_dir is None else str(data_dir),
            file_format="array_record",
        )
        builder.download_and_prepare()
    return from_examples(builder.as_data_source(split="train"))


def from_examples(examples: Any) -> Molecules:
    """Molecules from a sequence of tensorflow-datasets' examples.

    Raises:
        ValueError: as :func:`read_npz`.
    """
    rows = [examples[k] for k in range(len(examples))]
    names = [_TFDS.get(name, name) for name in TARGETS]
    # Energies in float32 would be off by 0.4 meV, so the atomisation energies are taken.
    stored = [
        f"{name}_atomization" if name in ("U0", "U", "H", "G") else name
        for name in names
    ]
    wanted = ["charges", "positions", "SMILES", *stored]
    missing = [name for name in wanted if rows and name not in rows[0]]
    if missing or not rows:
        raise ValueError(
            f"the examples of tensorflow-datasets have no {', '.join(missing) or 'rows'}"
            f", expected {', '.join(wanted)}: update it"
        )
    numbers = np.stack([row["charges"] for row in rows]).astype(np.uint8)
    positions = np.stack([row["positions"] for row in rows]).astype(np.float32)
    smiles = [_text(row["SMILES"]) for row in rows]
    columns = [np.array([row[name] for row in rows], float) for name in stored]
    targets = np.stack(columns, 1)
    in_mev = [unit == "meV" for unit in TARGETS.values()]
    targets[:, in_mev] *= MEV
    return checked(
        Molecules(numbers, positions, smiles, targets), "tensorflow-datasets' qm9"
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
