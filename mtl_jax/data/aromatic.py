"""Which bonds of a small molecule are aromatic: Hückel's rule on its rings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

AROMATIC = 4
_CARBON, _NITROGEN, _OXYGEN = 6, 7, 8


def aromatic_bonds(
    numbers: Sequence[int], bonds: list[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """Marks aromatic bonds of a Kekulé structure.

    A ring of five or six atoms, or two such rings with a common bond as a whole, is
    aromatic if every atom lends electrons and their number is 6, 10 or 14: one from an
    atom with a double bond inside, two from a nitrogen or oxygen without double bonds,
    none from a carbon whose double bond goes out to nitrogen or oxygen.

    Args:
        numbers: atomic numbers of the heavy atoms.
        bonds: ``(atom, atom, kind)``, kinds 1 single, 2 double, 3 triple, 4 aromatic.

    Returns:
        The same bonds, those of aromatic rings with kind 4.

    >>> ring = [(i, (i + 1) % 6, 1 + i % 2) for i in range(6)]  # benzene
    >>> {kind for *_, kind in aromatic_bonds([6] * 6, ring)}
    {4}
    """
    doubles = {(a, b) for a, b, kind in bonds if kind == 2}
    if len(doubles) < 2 or len(bonds) < len(numbers):
        return bonds  # no ring, or too few electrons
    neighbours: dict[int, dict[int, int]] = {k: {} for k in range(len(numbers))}
    for a, b, kind in bonds:
        neighbours[a][b] = neighbours[b][a] = kind
    rings = _rings(neighbours)
    systems = [{ring} for ring in rings]
    for one, two in itertools.combinations(rings, 2):
        if len(set(one) & set(two)) == 2:
            systems.append({one, two})
    marked: set[frozenset[int]] = set()
    for system in systems:
        atoms = set(itertools.chain.from_iterable(system))
        electrons = [_lends(a, numbers, neighbours, atoms) for a in atoms]
        if None not in electrons and sum(map(int, filter(None, electrons))) in (
            6,
            10,
            14,
        ):
            for ring in system:
                pairs = zip(ring, (*ring[1:], ring[0]), strict=True)
                marked |= {frozenset(pair) for pair in pairs}
    return [
        (a, b, AROMATIC if frozenset((a, b)) in marked else kind)
        for a, b, kind in bonds
    ]


def _lends(
    atom: int,
    numbers: Sequence[int],
    neighbours: dict[int, dict[int, int]],
    ring: set[int],
) -> int | None:
    """Electrons of an atom for its ring; ``None`` if it interrupts the system."""
    around = neighbours[atom]
    partners = [other for other, kind in around.items() if kind == 2]
    if 3 in around.values() or len(partners) > 1:
        return None
    if not partners:
        lone_pair = numbers[atom] in (_NITROGEN, _OXYGEN) and len(around) < 4
        return 2 if lone_pair else None
    if partners[0] in ring:
        return 1
    outside = numbers[partners[0]] in (_NITROGEN, _OXYGEN)
    return 0 if outside and numbers[atom] == _CARBON else None


def _rings(neighbours: dict[int, dict[int, int]]) -> list[tuple[int, ...]]:
    """Cycles of five and six atoms, each once."""
    found: list[tuple[int, ...]] = []

    def walk(path: list[int]) -> None:
        for other in neighbours[path[-1]]:
            if other == path[0] and len(path) in (5, 6) and path[1] < path[-1]:
                found.append(tuple(path))
            elif other > path[0] and other not in path and len(path) < 6:
                walk([*path, other])

    for start in neighbours:
        walk([start])
    return found
