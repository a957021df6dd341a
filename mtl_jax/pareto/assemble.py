"""What a front is made of: the checks of its parts, and the parts that a trace gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree
from mtl_jax.pareto import mesh


class Parts(NamedTuple):
    """Arguments of ``ParetoFront``."""

    params: ArrayTree
    losses: Any
    simplices: Any
    preferences: Any = None


def check_parts(parts: Parts) -> None:
    """Raises ``ValueError`` unless the parts are those of a front."""
    params, losses, simplices, preferences = parts
    values, corners = np.asarray(losses), np.asarray(simplices)
    if values.ndim != 2 or values.shape[1] < 2 or not len(values):
        raise ValueError(
            "losses must have shape (n, m) with n >= 1 points and m >= 2 objectives, got "
            f"shape {values.shape}"
        )
    if not jnp.issubdtype(values.dtype, jnp.floating) or not np.isfinite(values).all():
        raise ValueError(
            "losses must be finite floating point numbers: leave points that diverged out"
        )
    count = len(values)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params has no leaves")
    for path, leaf in leaves:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if not shape or shape[0] != count or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"leaf {tree.path_name(path) or '(the whole tree)'!r} of params has shape "
                f"{shape} and dtype {dtype}, expected floating point ({count}, ...): the "
                "points' parameters stacked on axis 0, as many as rows of losses"
            )
    if corners.ndim != 2 or corners.shape[1] not in (2, 3) or not len(corners):
        raise ValueError(
            "simplices must be (e, 2) for edges or (e, 3) for triangles, e >= 1, got shape "
            f"{corners.shape}"
        )
    integers = np.issubdtype(corners.dtype, np.integer)
    if not integers or corners.min() < 0 or corners.max() >= count:
        raise ValueError(
            f"simplices must hold integers from 0 to {count - 1}, the numbers of the "
            f"points, got {corners.dtype} from {corners.min()} to {corners.max()}"
        )
    if preferences is not None and np.shape(preferences) != values.shape:
        raise ValueError(
            f"preferences must have the shape of losses, {values.shape}, got "
            f"{np.shape(preferences)}"
        )


def parts_of_trace(
    trace: Any, join: bool, neighbours: Sequence[tuple[int, int]] | None
) -> Parts:
    """Implements ``ParetoFront.from_trace``."""
    losses = np.asarray(trace.losses)
    _check_trace(trace.params, losses)
    num_objectives = losses.shape[3]
    if join and num_objectives != 2:
        raise ValueError("join=True needs two objectives, got three")
    if neighbours is not None and num_objectives != 3:
        raise ValueError("neighbours is for three objectives, got two")

    if num_objectives == 2:
        simplices = (mesh.joined_edges if join else mesh.chain_edges)(losses)
    else:
        pairs = _neighbours(trace.params, losses, neighbours)
        simplices = mesh.fan_triangles(losses, pairs)
    nodes, simplices = mesh.compact(simplices)

    def pick(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf.reshape((-1, *leaf.shape[3:]))[nodes]

    alphas = getattr(trace, "alphas", None)
    return Parts(
        jax.tree.map(pick, trace.params),
        pick(trace.losses),
        simplices,
        None if alphas is None else pick(alphas),
    )


def _check_trace(params: ArrayTree, losses: np.ndarray) -> None:
    if losses.ndim != 4 or losses.shape[2] < 2:
        raise ValueError(
            "trace.losses must have shape (starts, directions, steps + 1, m) with at least "
            f"one step, got shape {losses.shape}"
        )
    if losses.shape[3] not in (2, 3):
        raise ValueError(
            f"a trace of 2 or 3 objectives can be joined, got {losses.shape[3]}: build "
            "ParetoFront(params, losses, simplices) yourself"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.shape(leaf)[:3] != losses.shape[:3]:
            raise ValueError(
                f"leaf {tree.path_name(path) or '(the whole tree)'!r} of trace.params has "
                f"shape {jnp.shape(leaf)}, expected {losses.shape[:3]} first, like "
                "trace.losses"
            )
    if not np.isfinite(losses[:, 0, 0]).all(-1).any():
        raise ValueError("no start of the trace has finite losses")


def _neighbours(
    params: ArrayTree, losses: np.ndarray, given: Sequence[tuple[int, int]] | None
) -> list[Sequence[tuple[int, int]]]:
    """Pairs of directions for each start."""
    starts, directions = losses.shape[:2]
    if given is not None:
        pairs = np.asarray(given)
        shaped = pairs.ndim == 2 and pairs.shape[1] == 2
        integers = np.issubdtype(pairs.dtype, np.integer)
        if not shaped or not integers or pairs.min() < 0 or pairs.max() >= directions:
            raise ValueError(
                f"neighbours must be pairs of directions from 0 to {directions - 1}, got "
                f"{given!r}"
            )
        return [[(int(one), int(two)) for one, two in pairs]] * starts
    found = []
    for start in range(starts):
        steps = jax.tree.map(
            lambda leaf, start=start: leaf[start, :, 1] - leaf[start, :, 0], params
        )
        found.append(mesh.fan_neighbours(np.asarray(tree.gram(steps), float)))
    if not any(found):
        raise ValueError(
            "no triangles: three objectives need two or more directions from a start that "
            "do not lie on one line"
        )
    return found
