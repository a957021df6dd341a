"""Which points of a traced front are joined to edges and triangles, in NumPy.

Simplices are rows of node numbers: two for an edge, three for a triangle. A row that
names one node only, ``(i, i)``, is a single point: one that nothing is joined to.

Traced points are numbered as in the flattened axes ``(starts, directions, steps + 1)``;
all directions of a start share the number of its first one's point 0. A chain ends before
the first point whose losses are not finite.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtl_jax.metrics import non_dominated


def chain_edges(losses: np.ndarray) -> np.ndarray:
    """Edges along the traced chains of two objectives.

    Two directions from one start are one chain, from the end of the first through the
    start to the end of the second; any other number of directions are chains of their
    own. Each chain runs so that loss 1 rises from its first to its last point, and the
    chains are in the order of their mean loss 1.

    Args:
        losses: ``(S, K, N + 1, m)``.

    Returns:
        int ``(e, 2)``.
    """
    numbers, valid = _numbers(losses)
    first = losses[..., 0].reshape(-1)
    chains = []
    for ids, ok in zip(numbers, valid, strict=True):
        arms = [row[good] for row, good in zip(ids, ok, strict=True)]
        if len(arms) == 2:
            arms = [np.concatenate([arms[0][:0:-1], arms[1]])]
        chains += [arm for arm in arms if len(arm) > 1]
    chains = [c if first[c[0]] <= first[c[-1]] else c[::-1] for c in chains]
    chains.sort(key=lambda chain: first[chain].mean())
    return add_points(_links(chains), numbers[valid], 2)


def joined_edges(losses: np.ndarray) -> np.ndarray:
    """Edges of one chain through all starts: its points not dominated, by loss 1.

    Args:
        losses: ``(S, K, N + 1, 2)``.

    Returns:
        int ``(e, 2)``.
    """
    numbers, valid = _numbers(losses)
    nodes, points = np.unique(numbers[valid]), losses.reshape(-1, losses.shape[-1])
    nodes = nodes[non_dominated(points[nodes])]
    chain = nodes[np.lexsort((points[nodes, 1], points[nodes, 0]))]
    return add_points(_links([chain]), nodes, 2)


def fan_triangles(
    losses: np.ndarray, neighbours: Sequence[Sequence[tuple[int, int]]]
) -> np.ndarray:
    """Triangles between neighbouring directions of each start.

    The start and the first steps of two neighbours are a triangle; after that, step
    ``n`` and step ``n + 1`` of both are two triangles.

    Args:
        losses: ``(S, K, N + 1, m)``.
        neighbours: pairs of directions for each start, see :func:`fan_neighbours`.

    Returns:
        int ``(e, 3)``.
    """
    numbers, valid = _numbers(losses)
    rows = [np.zeros((0, 3), np.int64)]
    for ids, ok, pairs in zip(numbers, valid, neighbours, strict=True):
        for one, two in pairs:
            inner = np.stack([ids[one, :-1], ids[one, 1:], ids[two, :-1]], axis=1)
            outer = np.stack([ids[one, 1:], ids[two, 1:], ids[two, :-1]], axis=1)
            # At the start both chains are one point: the inner triangle is an edge.
            inner_ok = ok[one, 1:] & ok[two, :-1]
            inner_ok[0] = False
            outer_ok = ok[one, 1:] & ok[two, 1:]
            both = np.stack([inner, outer], axis=1).reshape(-1, 3)
            rows.append(both[np.stack([inner_ok, outer_ok], axis=1).reshape(-1)])
    return add_points(np.concatenate(rows), numbers[valid], 3)


def fan_neighbours(gram: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of directions that are next to each other around a start.

    In three objectives the tangents of the front fill a plane. The directions are
    ordered by their angle in it, in the basis of the two leading principal components of
    the unit steps; two are neighbours if no other lies between them and the angle from
    one to the other is less than half a turn. Directions that did not move have no
    neighbours, and two that moved alike are none of each other's.

    Args:
        gram: inner products of the first steps in parameter space, ``(K, K)``.

    Returns:
        Pairs ``(k, l)``; none if the steps are all on one line.
    """
    norms = np.sqrt(np.diag(gram))
    moving = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    if len(moving) < 2:
        return []
    scale = norms[moving]
    values, vectors = np.linalg.eigh(
        gram[np.ix_(moving, moving)] / (scale[:, None] * scale[None, :])
    )
    if values[-2] <= 1e-6 * values[-1]:
        return []
    # A linear map of the plane keeps the cyclic order: no need to undo its scaling.
    angles = np.arctan2(vectors[:, -1], vectors[:, -2])
    order = np.argsort(angles)
    following = np.roll(order, -1)
    gaps = np.mod(angles[following] - angles[order], 2 * np.pi)
    near = (gaps > 1e-3) & (gaps < np.pi - 1e-3)
    return [
        (int(moving[one]), int(moving[two]))
        for one, two in zip(order[near], following[near], strict=True)
    ]


def refine(
    simplices: np.ndarray, per_simplex: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts every edge into ``per_simplex`` equal parts, and triangles alike.

    Args:
        simplices: int ``(e, d)``, edges or triangles.
        per_simplex: parts of an edge, ``k``; a triangle becomes ``k^2`` of them.

    Returns:
        For each point of the finer mesh, those that simplices share only once, the
        simplex that it is taken from, ``(N,)``, and its barycentric weights, ``(N, d)``;
        and the finer simplices in numbers of these points, ``(E, d)``.
    """
    lattice, parts = _lattice(simplices.shape[1], per_simplex)
    points: dict[tuple, int] = {}
    origin, weights, finer = [], [], []
    for simplex, nodes in enumerate(simplices.tolist()):
        local = np.empty(len(lattice), np.int64)
        for place, counts in enumerate(lattice.tolist()):
            shares: dict[int, int] = {}
            for node, count in zip(nodes, counts, strict=True):
                if count:
                    shares[node] = shares.get(node, 0) + count
            number = points.setdefault(tuple(sorted(shares.items())), len(points))
            if number == len(origin):
                origin.append(simplex)
                weights.append(counts)
            local[place] = number
        # A single point is cut into nothing but itself.
        finer.append(local[parts] if len(set(local.tolist())) > 1 else local[None, :1])
    width = simplices.shape[1]
    finer = [np.broadcast_to(f, (len(f), width)) for f in finer]
    return (
        np.array(origin, np.int64),
        np.array(weights, float).reshape(-1, width) / per_simplex,
        np.concatenate(finer),
    )


def keep_nodes(
    simplices: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Drops the simplices with a corner that is not kept, and renumbers the rest.

    Args:
        simplices: int ``(e, d)``.
        keep: the nodes to keep, bool ``(n,)``.

    Returns:
        As :func:`compact`; all kept nodes are there, lonely ones as single points.
    """
    good = simplices[keep[simplices].all(1)]
    return compact(add_points(good, np.flatnonzero(keep), simplices.shape[1]))


def add_points(simplices: np.ndarray, nodes: np.ndarray, width: int) -> np.ndarray:
    """Appends those ``nodes`` that are in no simplex as single points ``(i, ..., i)``."""
    simplices = np.asarray(simplices, np.int64).reshape(-1, width)
    lonely = np.setdiff1d(nodes, simplices)
    return np.concatenate([simplices, np.repeat(lonely[:, None], width, axis=1)])


def compact(simplices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumbers the used nodes ``0, 1, ...`` in the order of their first use.

    Returns:
        The old numbers of the nodes ``(n,)``, and the simplices in new ones.
    """
    flat = simplices.reshape(-1)
    used, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return used[order], rank[inverse.reshape(-1)].reshape(simplices.shape)


def _numbers(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the traced points, and which are good, both ``(S, K, N + 1)``."""
    numbers = np.arange(losses[..., 0].size).reshape(losses.shape[:3])
    valid = np.asarray(np.isfinite(losses).all(axis=-1))
    numbers[:, :, 0], valid[:, :, 0] = numbers[:, :1, 0], valid[:, :1, 0]
    return numbers, np.logical_and.accumulate(valid, axis=2)


def _links(chains: Sequence[np.ndarray]) -> np.ndarray:
    rows = [np.stack([chain[:-1], chain[1:]], axis=1) for chain in chains]
    return np.concatenate([np.zeros((0, 2), np.int64), *rows])


def _lattice(width: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Points with integer weights of sum ``parts``, and the small simplices of them."""
    if width == 2:
        steps = np.arange(parts + 1)
        points = np.stack([parts - steps, steps], axis=1)
        return points, np.stack([steps[:-1], steps[1:]], axis=1)
    points = [
        (parts - i - j, i, j) for i in range(parts + 1) for j in range(parts + 1 - i)
    ]
    place = {point[1:]: number for number, point in enumerate(points)}
    pieces = []
    for i, j in place:
        if i + j < parts:
            pieces.append((place[i, j], place[i + 1, j], place[i, j + 1]))
        if i + j < parts - 1:
            pieces.append((place[i + 1, j], place[i + 1, j + 1], place[i, j + 1]))
    return np.array(points), np.array(pieces)
