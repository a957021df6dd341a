"""QM9: eleven properties of small molecules, from their atoms and positions."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtl_jax._types import check_choice
from mtl_jax.data import qm9_files, qm9_synthetic
from mtl_jax.data.molecule_graphs import molecular_graphs
from mtl_jax.data.qm9_files import MAX_ATOMS, TARGETS, Molecules

SOURCES = ("auto", "synthetic", "npz", "tfds")
SYNTHETIC_SIZES = (320, 80, 80)
HELD_OUT = (10_000, 10_000)


class MoleculeInputs(NamedTuple):
    """Molecules padded to ``N`` atoms; small numbers, ready to lie on a device."""

    nodes: np.ndarray
    """int8 (M, N, 11): one-hot element (H, C, N, O, F), atomic number, aromatic, sp, sp2,
    sp3, number of hydrogens."""
    bonds: np.ndarray
    """uint8 (M, N, N): 0 no bond, 1 single, 2 double, 3 triple, 4 aromatic."""
    positions: np.ndarray
    """float32 (M, N, 3), Å."""
    mask: np.ndarray
    """bool (M, N): where there is an atom; atoms come first."""


class MoleculeSplit(NamedTuple):
    """Molecules and what is asked of them."""

    inputs: MoleculeInputs
    targets: np.ndarray
    """float32 (M, 11), standardised."""


class MoleculeData(NamedTuple):
    """A set with eleven regression tasks."""

    train: MoleculeSplit
    validation: MoleculeSplit
    test: MoleculeSplit
    source: str
    """Where the molecules come from, in one sentence."""
    task_names: tuple[str, ...]
    units: tuple[str, ...]
    """Units of a target before it was standardised: ``mean + std * target``."""
    mean: np.ndarray
    """float64 (11,), of the training split."""
    std: np.ndarray
    """float64 (11,), of the training split."""


def load_qm9(
    data_dir: str | Path | None = None,
    *,
    source: str = "auto",
    sizes: tuple[int, int, int] | None = None,
    max_atoms: int | None = None,
    seed: int = 0,
) -> MoleculeData:
    r"""Loads QM9; with no ``data_dir``, made-up molecules of the same format.

    The eleven tasks of Nash-MTL, in its order and units (an error in them is the published
    one): dipole moment (D), polarisability (bohr³), HOMO, LUMO (meV), spatial extent
    (bohr²), zero-point energy, atomisation energies :math:`U_0, U, H, G` (meV) and heat
    capacity (cal/(mol K)). Nodes have PyTorch Geometric's eleven features, pairs of atoms
    a bond and, by the positions, a distance: the inputs of
    :class:`mtl_jax.models.MPNN`.

    Molecules are padded to the most atoms of any chosen one and lie in dense arrays of
    small integers. Targets are standardised by mean and deviation of the training split;
    the code released with Nash-MTL takes them from all molecules, the test split
    included.

    Args:
        data_dir: folder with ``qm9.npz``, in itself or in ``qm9``, see
            :func:`mtl_jax.data.qm9_files.read_npz`; or that of tensorflow-datasets.
        source: ``"npz"``, ``"tfds"`` (prepared there, or downloaded), ``"synthetic"``, or
            ``"auto"``: synthetic without a ``data_dir``, else ``"npz"``.
        sizes: molecules in (train, validation, test), drawn at random without
            replacement. Default: 10,000 for validation, 10,000 for the test and all others
            (published: 110,831); of made-up ones 320, 80 and 80.
        max_atoms: leave out larger molecules before the draw.
        seed: of the split, and of made-up molecules.

    Returns:
        Inputs int8, uint8, float32 and bool, targets float32 (M, 11), for each split, in
        random order.

    Raises:
        FileNotFoundError: ``data_dir`` has no QM9.
        ModuleNotFoundError: ``source="tfds"`` without tensorflow-datasets.
        ValueError: a damaged file, missing fields, unknown elements, targets that are not
            finite; or arguments that do not fit.

    References:
        Ramakrishnan, Dral, Rupp and von Lilienfeld 2014, Scientific Data 1, 140022; the
        tasks: Navon et al. 2022, arXiv:2202.01017

    >>> data = load_qm9()
    >>> data.train.inputs.nodes.shape, data.train.targets.shape
    ((320, 20, 11), (320, 11))
    >>> print(data.source[:33])
    320 + 80 + 80 SYNTHETIC molecules
    """
    _check(source, sizes, max_atoms)
    synthetic = source == "synthetic" or (source == "auto" and data_dir is None)
    if synthetic:
        count = max(sum(SYNTHETIC_SIZES), sum(sizes or ()))
        molecules = qm9_synthetic.molecules(count, np.random.default_rng([seed, 1]))
        note = f"drawn with seed {seed} and formulas for targets: no chemistry, pass "
        note += "data_dir= for QM9"
    else:
        molecules, note = _read(data_dir, source)
    atoms = (molecules.numbers > 0).sum(1)
    kept = np.flatnonzero(atoms <= (max_atoms or MAX_ATOMS))
    small = f" of at most {max_atoms} atoms" if max_atoms else ""
    chosen = _sizes(sizes, synthetic, len(kept), small)
    order = np.random.default_rng([seed, 0]).permutation(kept)[: sum(chosen)]
    splits, mean, std, unmatched = _build(molecules, order, chosen)
    kind = "SYNTHETIC molecules" if synthetic else f"of {len(kept):,} molecules of QM9"
    if unmatched:
        note += f"; {unmatched} whose SMILES does not fit have single bonds"
    counts = " + ".join(f"{size:,}" for size in chosen)
    return MoleculeData(
        *splits,
        source=f"{counts} {kind}{small} (train + validation + test, split by seed "
        f"{seed}), {note}.",
        task_names=tuple(TARGETS),
        units=tuple(TARGETS.values()),
        mean=mean,
        std=std,
    )


def _check(
    source: str, sizes: tuple[int, int, int] | None, max_atoms: int | None
) -> None:
    check_choice("source", source, SOURCES)
    if sizes is not None and (len(sizes) != 3 or min(sizes) < 0 or sizes[0] < 2):
        raise ValueError(
            "sizes must be three counts (train, validation, test), at least two to train "
            f"on, got {sizes!r}"
        )
    if max_atoms is not None and max_atoms < 1:
        raise ValueError(f"max_atoms must be at least 1 or None, got {max_atoms}")


def _read(data_dir: str | Path | None, source: str) -> tuple[Molecules, str]:
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if source == "tfds":
        return qm9_files.read_tfds(folder), "from tensorflow-datasets"
    if folder is None:
        raise ValueError("source='npz' needs data_dir=, the folder that holds qm9.npz")
    return qm9_files.read_npz(folder), f"from {qm9_files.FILE}"


def _sizes(
    sizes: tuple[int, int, int] | None, synthetic: bool, total: int, small: str
) -> tuple[int, int, int]:
    if sizes is None:
        validation, test = SYNTHETIC_SIZES[1:] if synthetic else HELD_OUT
        sizes = total - validation - test, validation, test
    if sum(sizes) > total or sizes[0] < 2:
        raise ValueError(
            f"sizes={sizes} do not fit: there are {total:,} molecules{small}, of which "
            "at least two must be left to train on"
        )
    return sizes


def _build(
    molecules: Molecules, order: np.ndarray, sizes: tuple[int, int, int]
) -> tuple[list[MoleculeSplit], np.ndarray, np.ndarray, int]:
    numbers = molecules.numbers[order]
    width = int((numbers > 0).sum(1).max())
    numbers, positions = numbers[:, :width], molecules.positions[order, :width]
    graphs = molecular_graphs(numbers, positions, [molecules.smiles[k] for k in order])
    inputs = MoleculeInputs(graphs.nodes, graphs.bonds, positions, numbers > 0)
    targets = molecules.targets[order]
    mean, std = targets[: sizes[0]].mean(0), targets[: sizes[0]].std(0)
    if not (std > 0).all():
        name = list(TARGETS)[int(np.flatnonzero(std == 0)[0])]
        raise ValueError(
            f"the target {name!r} is the same for all {sizes[0]} training molecules: "
            "expected some variation, take more"
        )
    scaled = ((targets - mean[None]) / std[None]).astype(np.float32)
    cuts = np.cumsum([0, *sizes])
    splits = []
    for start, stop in itertools.pairwise(cuts):
        part = MoleculeInputs(*(leaf[start:stop] for leaf in inputs))
        splits.append(MoleculeSplit(part, scaled[start:stop]))
    return splits, mean, std, graphs.unmatched
