"""Atoms and positions of molecules, and their SMILES, become graphs with features.

The features are those that PyTorch Geometric computes of QM9 by RDKit. Here bonds come from
the SMILES, whose heavy atoms stand in the order of the positions, and hydrogens belong to
the nearest heavy atom; no chemistry package is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data.aromatic import aromatic_bonds

ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
"""Symbols and atomic numbers of the elements in QM9."""
NODE_FEATURES = (
    *ELEMENTS,
    "atomic number",
    "aromatic",
    "sp",
    "sp2",
    "sp3",
    "hydrogens",
)
BONDS = ("none", "single", "double", "triple", "aromatic")
"""What the numbers 0 to 4 in ``bonds`` mean."""
AROMATIC = 4
_RADII = {1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66, 9: 0.57}  # Å, covalent
_STRETCH = 1.3  # bonds are shorter than so many times the sum of the radii
_TOKEN = re.compile(r"\[[^\]]*\]|%\d\d|[A-Za-z]|\d|[=#:().-]")
_ORDERS = {"-": 1, "=": 2, "#": 3, ":": AROMATIC}
_CHUNK = 2000

Bond = tuple[int, int, int]
"""Two atoms and the kind of their bond, an index of ``BONDS``."""


class Graphs(NamedTuple):
    """Molecules as padded arrays, ``N`` places each."""

    nodes: np.ndarray
    """int8 (M, N, 11): see ``NODE_FEATURES``; zeros where there is no atom."""
    bonds: np.ndarray
    """uint8 (M, N, N): see ``BONDS``; symmetric."""
    unmatched: int
    """Molecules whose SMILES does not fit their positions."""


def molecular_graphs(
    numbers: np.ndarray, positions: np.ndarray, smiles: Sequence[str]
) -> Graphs:
    """Computes node features and bonds.

    Where a SMILES fits the positions in neither direction, heavy atoms that are close
    enough get single bonds (7 molecules of 130,831).

    Args:
        numbers: atomic numbers uint8 (M, N), 0 where there is no atom.
        positions: float32 (M, N, 3), Å.
        smiles: of each molecule, Kekulé or with aromatic (small) letters.

    Returns:
        The features of PyTorch Geometric's QM9. Differs from RDKit's perception at its
        edges: aromatic are rings of five or six atoms (or two fused ones) with 4n + 2
        electrons; an atom is ``sp2`` if it has a double or aromatic bond, or if it is N
        or O beside one that has.
    """
    count, size = numbers.shape
    bonds = np.zeros((count, size, size), np.uint8)
    unmatched = 0
    for k in range(count):
        heavy = np.flatnonzero(numbers[k] > 1)
        found = _match(numbers[k, heavy], positions[k, heavy], smiles[k])
        if found is None:
            unmatched += 1
            found = _close(numbers[k, heavy], positions[k, heavy])
        found = aromatic_bonds(numbers[k, heavy], found)
        for first, second, kind in found:
            first, second = heavy[first], heavy[second]
            bonds[k, first, second] = bonds[k, second, first] = kind
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        _attach_hydrogens(numbers[part], positions[part], bonds[part])
    return Graphs(_features(numbers, bonds), bonds, unmatched)


def parse_smiles(text: str) -> tuple[list[int], list[Bond]]:
    """Atomic numbers and bonds of the heavy atoms in a SMILES.

    Raises:
        ValueError: naming an element that is not in QM9, or what cannot be read.

    >>> parse_smiles("C=O")
    ([6, 8], [(0, 1, 2)])
    """
    atoms: list[int] = []
    small: list[bool] = []
    bonds: list[Bond] = []
    branches: list[int] = []
    rings: dict[str, tuple[int, int]] = {}
    last, order = -1, 0

    def kind(one: int, two: int, written: int) -> int:
        return written or (AROMATIC if small[one] and small[two] else 1)

    try:
        for token in _TOKEN.findall(text):
            if token == "(":
                branches.append(last)
            elif token == ")":
                last = branches.pop()
            elif token == ".":
                last = -1
            elif token in _ORDERS:
                order = _ORDERS[token]
            elif token[0].isdigit() or token[0] == "%":
                if token in rings:
                    other, written = rings.pop(token)
                    bonds.append((other, last, kind(other, last, order or written)))
                else:
                    rings[token] = last, order
                order = 0
            else:
                symbol = re.search("[A-Za-z]", token)
                letter = symbol.group() if symbol else token
                if letter == "H" and token[0] == "[":
                    continue
                atoms.append(ELEMENTS[letter.upper()])
                small.append(letter.islower())
                if last >= 0:
                    bonds.append(
                        (last, len(atoms) - 1, kind(last, len(atoms) - 1, order))
                    )
                last, order = len(atoms) - 1, 0
    except KeyError as error:
        raise ValueError(
            f"the SMILES {text!r} has the element {error.args[0]}, expected only "
            f"{', '.join(ELEMENTS)}"
        ) from None
    except IndexError:
        branches = [0]
    if rings or branches:
        raise ValueError(f"the SMILES {text!r} has a ring or branch with one end")
    return atoms, bonds


def _match(numbers: np.ndarray, positions: np.ndarray, text: str) -> list[Bond] | None:
    """The SMILES' bonds between the heavy atoms, which stand in its order or reversed."""
    atoms, bonds = parse_smiles(text)
    if len(atoms) != len(numbers):
        return None
    last = len(atoms) - 1
    for turned in (bonds, [(last - a, last - b, kind) for a, b, kind in bonds]):
        order = atoms if turned is bonds else atoms[::-1]
        if order != numbers.tolist():
            continue
        if not turned:
            return turned
        one, two, _ = np.array(turned).T
        lengths = np.sqrt(np.square(positions[one] - positions[two]).sum(1))
        if (lengths < _reach(numbers[one], numbers[two])).all():
            return turned
    return None


def _close(numbers: np.ndarray, positions: np.ndarray) -> list[Bond]:
    distances = _distances(positions)
    near = distances < _reach(numbers[:, None], numbers[None, :])
    return [
        (int(a), int(b), 1) for a, b in zip(*np.nonzero(np.triu(near, 1)), strict=True)
    ]


def _reach(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    radii = np.zeros(10, np.float32)
    radii[list(_RADII)] = list(_RADII.values())
    return _STRETCH * (radii[one] + radii[two])


def _distances(positions: np.ndarray) -> np.ndarray:
    differences = positions[..., :, None, :] - positions[..., None, :, :]
    return np.sqrt(np.square(differences).sum(-1))


def _attach_hydrogens(
    numbers: np.ndarray, positions: np.ndarray, bonds: np.ndarray
) -> None:
    """Bonds every hydrogen to the nearest heavy atom, in place."""
    distances = _distances(positions)
    heavy = numbers > 1
    distances += np.where(heavy, 0, np.inf)[:, None, :]
    nearest = distances.argmin(-1)
    molecule, hydrogen = np.nonzero((numbers == 1) & heavy.any(1, keepdims=True))
    owner = nearest[molecule, hydrogen]
    bonds[molecule, hydrogen, owner] = bonds[molecule, owner, hydrogen] = 1


def _features(numbers: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    nodes = np.zeros((*numbers.shape, len(NODE_FEATURES)), np.int8)
    for k, number in enumerate(ELEMENTS.values()):
        nodes[..., k] = numbers == number
    doubles = (bonds == 2).sum(-1)
    triple = (bonds == 3).any(-1)
    aromatic = (bonds == AROMATIC).any(-1)
    unsaturated = (doubles > 0) | triple | aromatic
    beside = ((bonds > 0) & unsaturated[:, None, :]).any(-1)
    heavy = numbers > 1
    sp = heavy & (triple | (doubles > 1))
    conjugated = ((numbers == 7) | (numbers == 8)) & beside
    sp2 = heavy & ~sp & (unsaturated | conjugated)
    hydrogens = ((bonds > 0) & (numbers == 1)[:, None, :]).sum(-1)
    rest = (numbers, aromatic, sp, sp2, heavy & ~sp & ~sp2, hydrogens)
    for k, column in enumerate(rest, len(ELEMENTS)):
        nodes[..., k] = column
    return nodes
