"""Made-up molecules with made-up properties, in the format of QM9."""

from __future__ import annotations

import numpy as np

from mtl_jax.data.molecule_graphs import ELEMENTS
from mtl_jax.data.qm9_files import MEV, Molecules

_HEAVY = (3, 6)  # fewest and most heavy atoms
_PLACES = 20  # six heavy atoms have at most 14 hydrogens
_VALENCE = {6: 4, 7: 3, 8: 2, 9: 1}
_LENGTHS = {1: 1.45, 2: 1.3, 3: 1.18}  # Å, by the bond's order
_SYMBOLS = {number: symbol for symbol, number in ELEMENTS.items()}
_MARKS = {1: "", 2: "=", 3: "#"}


def molecules(count: int, rng: np.random.Generator) -> Molecules:
    """Draws branched chains of C, N, O and F, filled up with hydrogens.

    Positions are laid out along the chain in random directions, and the eleven targets
    are formulas of composition, bonds and distances with some noise: roughly as large as
    QM9's, the energies much alike, the others unlike them. Nothing is of any chemistry.

    Args:
        count: number of molecules.
        rng: source of all draws.
    """
    numbers = np.zeros((count, _PLACES), np.uint8)
    positions = np.zeros((count, _PLACES, 3), np.float32)
    smiles, targets = [], np.empty((count, 11))
    for k in range(count):
        heavy, bonds = _chain(rng)
        z, orders, where = _with_hydrogens(heavy, bonds, rng)
        numbers[k, : len(z)], positions[k, : len(z)] = z, where
        smiles.append(_smiles(heavy, bonds))
        targets[k] = _properties(z, orders, where)
    noise = rng.normal(size=targets.shape) * 0.02 * targets.std(0, keepdims=True)
    return Molecules(numbers, positions, smiles, targets + noise)


Bonds = list[tuple[int, int, int]]
"""Parent, child and order, parents first."""


def _chain(rng: np.random.Generator) -> tuple[list[int], Bonds]:
    count = int(rng.integers(_HEAVY[0], _HEAVY[1] + 1))
    heavy: list[int] = [6]
    bonds: Bonds = []
    free = [4]
    while len(heavy) < count:
        new = int(rng.choice([6, 7, 8, 9], p=[0.68, 0.15, 0.14, 0.03]))
        open_ends = [k for k, left in enumerate(free) if left > 0]
        if not open_ends:
            break
        parent = int(rng.choice(open_ends))
        most = min(free[parent], _VALENCE[new], 3)
        order = min(int(rng.choice([1, 1, 1, 1, 2, 2, 3])), most)
        bonds.append((parent, len(heavy), order))
        heavy.append(new)
        free[parent] -= order
        free.append(_VALENCE[new] - order)
    return heavy, bonds


def _with_hydrogens(
    heavy: list[int], bonds: Bonds, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atomic numbers (n,), sums of bond orders between heavy atoms (n,), positions."""
    used = np.zeros(len(heavy), int)
    where = np.zeros((len(heavy), 3))
    for parent, child, order in bonds:
        used[[parent, child]] += order
        where[child] = _free_place(where[:child], where[parent], _LENGTHS[order], rng)
    numbers, orders = list(heavy), list(used)
    for k, number in enumerate(heavy):
        for _ in range(_VALENCE[number] - used[k]):
            place = _free_place(where, where[k], 1.09, rng)
            where = np.concatenate([where, place[None]])
            numbers.append(1)
            orders.append(0)
    return np.array(numbers), np.array(orders), where


def _free_place(
    taken: np.ndarray, start: np.ndarray, length: float, rng: np.random.Generator
) -> np.ndarray:
    """Of sixteen places at that distance from ``start`` the farthest from other atoms."""
    directions = rng.normal(size=(16, 3))
    directions /= np.sqrt(np.square(directions).sum(1, keepdims=True))
    places = start[None] + length * directions
    others = taken[np.square(taken - start[None]).sum(1) > 0]
    if not len(others):
        return places[0]
    gaps = np.square(places[:, None] - others[None]).sum(-1)
    return places[gaps.min(1).argmax()]


def _smiles(heavy: list[int], bonds: Bonds) -> str:
    """The chain as text, atoms in their order: each bond is a pair of equal digits.

    Dots keep neighbours in the text apart, as in ``C1=2.C1.O2`` for acetaldehyde.
    """
    ends = [""] * len(heavy)
    for label, (parent, child, order) in enumerate(bonds, 1):
        ends[parent] += f"{_MARKS[order]}{label}"
        ends[child] += str(label)
    return ".".join(_SYMBOLS[z] + end for z, end in zip(heavy, ends, strict=True))


def _properties(z: np.ndarray, orders: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The eleven targets of one molecule."""
    centred = where - where.mean(0, keepdims=True)
    charge = np.array([0.15, 0.05, -0.2, -0.3, -0.25])[
        np.searchsorted([1, 6, 7, 8, 9], z)
    ]
    spread = np.square(centred).sum(1)
    heavy, hydrogens = (z > 1).sum(), (z == 1).sum()
    extra = (orders - 1).clip(0)[z > 1].sum() / 2
    hetero = (z > 6).sum()
    gaps = np.linalg.norm(where[:, None] - where[None], axis=-1)
    attraction = np.exp(-gaps[z > 1][:, z > 1]).sum() - heavy
    binding = -0.13 * hydrogens - 0.15 * heavy - 0.08 * extra - 0.05 * attraction
    volume = 3 * hydrogens + 9 * heavy + 2 * extra
    mu = 4 * np.linalg.norm(charge @ centred)
    homo = -0.27 + 0.015 * extra - 0.01 * hetero - 0.02 * charge @ spread / len(z)
    lumo = 0.08 - 0.03 * extra - 0.01 * hetero + 0.004 * np.sqrt(spread.mean())
    r2 = 3.57 * (z * spread).sum()
    zpve = 0.008 * heavy + 0.0102 * hydrogens + 0.002 * extra
    heat = 1.2 * len(z) + 0.4 * np.sqrt(spread.mean()) - 0.5 * extra
    thermal = 0.0006 * len(z)
    energies = binding - np.array([0, 1, 1.4, -1.5]) * thermal
    in_mev = MEV * np.array([homo, lumo, zpve, *energies])
    return np.array([mu, volume, *in_mev[:2], r2, *in_mev[2:], heat])
