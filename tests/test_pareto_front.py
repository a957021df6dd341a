"""Continuous fronts: interpolation, pruning, preferences and storage, on quadratics."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from mtl_jax import metrics, storage
from mtl_jax.pareto import ParetoFront, mesh
from mtl_jax.pareto.trace import trace_front

# f_i = (x - c_i)' A_i (x - c_i) / 2; the Pareto set is a curve from c_1 to c_2.
SCALES = np.array([[1.0, 4.0], [3.0, 1.0]])
CENTRES = np.array([[0.0, 0.0], [1.0, 1.0]])
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


class FakeTrace(NamedTuple):
    params: Any
    losses: Any


class FakeTraceWithAlphas(NamedTuple):
    params: Any
    losses: Any
    alphas: Any


def distances(params, scales, centres):
    x = params["x"]
    squares = jnp.square(x[None, :] - jnp.asarray(centres, x.dtype))
    return 0.5 * jnp.sum(squares * jnp.asarray(scales, x.dtype), axis=1)


def curved(params):
    return distances(params, SCALES, CENTRES)


def round_(params):
    """Squared distances from two points: the Pareto set is the segment between them."""
    return distances(params, np.ones((2, 2)), CORNERS[:2])


def triangular(params):
    """Squared distances from three points: the Pareto set is their triangle."""
    return distances(params, np.ones((3, 2)), CORNERS)


def pareto_set(alphas):
    """``x(alpha) = (sum alpha_i A_i)^-1 sum alpha_i A_i c_i``, ``(n, 2)``."""
    weights = np.stack([alphas, 1 - np.asarray(alphas)], axis=-1)
    return (weights @ (SCALES * CENTRES)) / (weights @ SCALES)


def losses_at(function, x):
    """NumPy twin of the three functions above: no compilation for every shape."""
    scales, centres = {
        curved: (SCALES, CENTRES),
        round_: (np.ones((2, 2)), CORNERS[:2]),
        triangular: (np.ones((3, 2)), CORNERS),
    }[function]
    squares = np.square(np.asarray(x)[..., None, :] - centres)
    return (0.5 * squares * scales).sum(-1)


def chain(function, x, dtype=np.float32):
    x = np.asarray(x, dtype)
    edges = np.stack([np.arange(len(x) - 1), np.arange(1, len(x))], axis=1)
    return ParetoFront({"x": x}, losses_at(function, x).astype(dtype), edges)


def trace_of(function, x, kind=FakeTrace, **fields):
    """A trace through the points ``x (S, K, N + 1, 2)``."""
    x = np.asarray(x, np.float32)
    losses = losses_at(function, x).astype(np.float32)
    return kind({"x": jnp.asarray(x)}, jnp.asarray(losses), **fields)


def curved_trace(steps=3, directions=2):
    """Two starts on the curve; the directions lower and raise loss 1 in turn."""
    signs = np.array([1.0, -1.0] * directions)[:directions]
    alphas = np.array([0.3, 0.72])[:, None, None] + (
        0.05 * signs[None, :, None] * np.arange(steps + 1)[None, None, :]
    )
    return trace_of(curved, pareto_set(alphas))


# -- interpolation


def distance_to_curve(points):
    """Distances from the polyline through 20,001 points of the Pareto set."""
    nodes = pareto_set(np.linspace(0, 1, 20001))
    nearest = np.linalg.norm(points[:, None] - nodes[None], axis=2).argmin(1)
    distances = []
    for point, index in zip(points, np.clip(nearest, 1, 19999), strict=True):
        ends = []
        for a, b in ((index - 1, index), (index, index + 1)):
            way = nodes[b] - nodes[a]
            share = np.clip((point - nodes[a]) @ way / (way @ way), 0, 1)
            ends.append(np.linalg.norm(point - nodes[a] - share * way))
        distances.append(min(ends))
    return np.array(distances)


def gap_in_losses(losses):
    """How far losses are beyond the convex front's supporting lines."""
    alphas = np.linspace(0, 1, 20001)
    weights = np.stack([alphas, 1 - alphas], axis=1)
    support = (weights * losses_at(curved, pareto_set(alphas))).sum(1)
    return (losses @ weights.T - support[None, :]).min(1)


def test_interpolation_is_of_second_order_and_losses_of_fourth(x64):
    spans = (0.4, 0.2, 0.1)
    offsets, gaps = [], []
    for span in spans:
        nodes = pareto_set(np.linspace(0.5 - span, 0.5 + span, 5))
        front = chain(curved, nodes, np.float64)
        offsets.append(distance_to_curve(np.asarray(front.sample(8)["x"])).max())
        gaps.append(gap_in_losses(np.asarray(front.evaluate(curved, 8))).max())
    assert offsets[0] > 1e-3
    orders = np.log2(np.array(offsets)[:-1] / offsets[1:])
    np.testing.assert_allclose(orders, 2, atol=0.1)
    orders = np.log2(np.array(gaps)[:-1] / gaps[1:])
    np.testing.assert_allclose(orders, 4, atol=0.2)


def test_front_of_t_goes_along_the_chain_by_arc_length():
    nodes = pareto_set(np.array([0.9, 0.5, 0.45, 0.1]))
    front = chain(curved, nodes)
    ends = np.cumsum(np.linalg.norm(np.diff(nodes, axis=0), axis=1))
    np.testing.assert_allclose(front.ends, ends, rtol=1e-6)
    ts = np.linspace(0, 1, 33)
    expected = [
        np.interp(ts * ends[-1], np.append(0, ends), nodes[:, axis]) for axis in (0, 1)
    ]
    found = jax.jit(lambda front, ts: jax.vmap(front)(ts))(front, jnp.asarray(ts))
    np.testing.assert_allclose(found["x"], np.stack(expected, 1), atol=1e-6)
    # The ends are the points themselves, bit for bit.
    for t, index in ((0, 0), (1, 3), (np.float32(0), 0), (1.0, 3)):
        np.testing.assert_array_equal(front(t)["x"], front.params["x"][index])


def test_front_of_t_is_compiled_once_and_clips_arrays():
    front = chain(curved, pareto_set(np.array([0.9, 0.5, 0.45, 0.1])))
    call = jax.jit(chex.assert_max_traces(front.__call__, n=1))
    for t, same in ((-1.0, 0.0), (2.0, 1.0), (0.3, 0.3)):
        chex.assert_trees_all_equal(call(jnp.float32(t)), call(jnp.float32(same)))


def test_single_points_are_passed_over():
    x = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [9.0, 9.0]], np.float32)
    losses = losses_at(round_, x)
    front = ParetoFront({"x": x}, losses, [[0, 1], [1, 1], [1, 2], [3, 3]])
    found = jax.vmap(front)(jnp.linspace(0, 1, 9))
    np.testing.assert_allclose(found["x"][:, 0], np.linspace(0, 1, 9), atol=1e-6)
    np.testing.assert_array_equal(front(1.0)["x"], [1, 0])
    # Nothing but points: each has an equal share of the way.
    front = ParetoFront({"x": x}, losses, [[3, 3], [0, 0]])
    np.testing.assert_array_equal(front(0.4)["x"], [9, 9])
    np.testing.assert_array_equal(front(0.6)["x"], [0, 0])


def test_at_a_triangle_and_dtypes():
    x = jnp.asarray(CORNERS, jnp.bfloat16)
    scale = jnp.arange(3.0)
    losses = losses_at(triangular, CORNERS)
    front = ParetoFront({"x": x, "scale": scale}, losses, [[0, 1, 2]])
    assert repr(front) == "ParetoFront(3 points, 1 triangles, 3 objectives)"
    params = jax.jit(front.at)(0, jnp.array([0.25, 0.5, 0.25]))
    assert params["x"].dtype == jnp.bfloat16 and params["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(params["x"].astype(float), [0.5, 0.25])
    np.testing.assert_array_equal(params["scale"], 1.0)
    for vertex in range(3):
        found = front.at(0, np.eye(3)[vertex])
        np.testing.assert_array_equal(found["x"], x[vertex])


# -- grids


def test_a_grid_counts_shared_points_once():
    origin, weights, finer = mesh.refine(np.array([[0, 1], [1, 2], [4, 4]]), 4)
    assert len(origin) == 9 + 1
    np.testing.assert_array_equal(finer, [*([i, i + 1] for i in range(8)), [9, 9]])
    np.testing.assert_allclose(weights.sum(1), 1)
    triangles = np.array([[0, 1, 2], [2, 1, 3], [5, 5, 5]])
    origin, weights, finer = mesh.refine(triangles, 3)
    assert len(origin) == 10 + 10 - 4 + 1
    assert finer.shape == (9 + 9 + 1, 3)
    # The small triangles tile the large ones: equal areas, all turned alike.
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0], [2, 2]], float)
    points = np.einsum("nd,ndx->nx", weights, corners[triangles[origin]])
    sides = points[finer[:-1]]
    areas = np.linalg.det(sides[:, 1:] - sides[:, :1]) / 2
    np.testing.assert_allclose(np.abs(areas), 1 / 18)
    assert len(np.unique(np.sort(finer, axis=1), axis=0)) == 19


def test_sample_and_evaluate_agree_with_at():
    front = chain(curved, pareto_set(np.array([0.9, 0.5, 0.45, 0.1])))
    params, losses = front.sample(3), front.evaluate(curved, 3)
    chex.assert_shape(losses, (10, 2))
    np.testing.assert_allclose(losses, losses_at(curved, params["x"]), rtol=1e-5)
    np.testing.assert_array_equal(params["x"][::3], front.params["x"])
    np.testing.assert_array_equal(params["x"][4], front.at(1, [2 / 3, 1 / 3])["x"])
    # In batches that do not divide the number, and with the data as an argument.
    bound = Partial(lambda scale, params: scale * curved(params), jnp.float32(2))
    np.testing.assert_allclose(
        front.evaluate(bound, 3, batch_size=4), 2 * losses, rtol=1e-6
    )
    np.testing.assert_array_equal(front.sample(3, batch_size=4)["x"], params["x"])


# -- removal of dominated parts


def test_dominated_parts_are_removed_exactly():
    # The Pareto set is the segment from (0, 0) to (1, 0). The edges begin before it,
    # leave it in the middle, and end behind it.
    x = np.array([[-0.5, 0], [0.5, 0], [0.5, 0.4], [0.75, 0], [1.5, 0]], np.float32)
    edges = [[0, 1], [1, 2], [3, 4]]
    front = ParetoFront({"x": x}, losses_at(round_, x).astype(np.float32), edges)
    pruned = front.without_dominated(round_, 6)
    points = np.asarray(pruned.params["x"])
    assert (points[:, 1] == 0).all()
    expected = [0, 1 / 6, 2 / 6, 3 / 6, 6 / 8, 7 / 8, 1]
    np.testing.assert_allclose(np.sort(points[:, 0]), expected, atol=1e-6)
    # Two pieces are left, each cut as before.
    assert pruned.simplices.shape == (5, 2)
    lengths = np.diff(np.append(0, pruned.ends))
    np.testing.assert_allclose(lengths, [1 / 6] * 3 + [1 / 8] * 2, rtol=1e-5)
    np.testing.assert_allclose(pruned(0)["x"], [0, 0], atol=1e-6)
    np.testing.assert_allclose(pruned(1)["x"], [1, 0], atol=1e-6)
    np.testing.assert_allclose(pruned.losses, losses_at(round_, points), atol=1e-6)
    # What the front dominates is what its grid dominates.
    reference = [1.0, 1.0]
    assert metrics.hypervolume(pruned.losses, reference) == pytest.approx(
        metrics.hypervolume(front.evaluate(round_, 6), reference), rel=1e-6
    )


def test_lonely_points_stay_as_points():
    # Three Pareto points, and a long way through bad ones between them.
    x = [[0, 0], [0, 3], [0.5, 0], [0.5, -3], [1, 0]]
    front = chain(round_, x)
    pruned = front.without_dominated(round_, 1)
    np.testing.assert_allclose(pruned.params["x"][:, 0], [0, 0.5, 1])
    np.testing.assert_array_equal(pruned.simplices, [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(pruned(0.5)["x"], pruned.params["x"][1])
    again = pruned.without_dominated(round_, 5)
    np.testing.assert_array_equal(again.simplices, pruned.simplices)


def test_non_finite_losses_count_as_dominated():
    def broken(params):
        losses = round_(params)
        return jnp.where(params["x"][0] > 0.6, jnp.nan, losses)

    front = chain(round_, [[0, 0], [1, 0]])
    pruned = front.without_dominated(broken, 4)
    np.testing.assert_allclose(pruned.params["x"][:, 0], [0, 0.25, 0.5])
    with pytest.raises(ValueError, match="non-finite losses everywhere"):
        front.without_dominated(lambda params: jnp.full(2, jnp.nan), 4)


def test_triangles_outside_the_pareto_set_go():
    front = ParetoFront.from_trace(hexagon())
    count = 3
    grid = np.asarray(front.sample(count)["x"])
    losses = front.evaluate(triangular, count)
    pruned = front.without_dominated(triangular, count)
    kept = np.asarray(pruned.params["x"])
    assert pruned.simplices.shape[1] == 3 and len(kept) < len(grid)
    # Inside the triangle of the centres nothing is dominated, and all of it stays.
    barycentric = np.concatenate([1 - grid.sum(1, keepdims=True), grid], axis=1)
    inside = barycentric.min(1) > 1e-6
    assert 20 < inside.sum() < len(grid)
    np.testing.assert_array_equal(
        metrics.non_dominated(losses)[inside], np.ones(inside.sum(), bool)
    )
    for point in grid[inside]:
        assert np.abs(kept - point).max(1).min() < 1e-6
    # Others stay only where no point of the grid happens to dominate them: nearby.
    assert kept.min() > -0.15 and kept.sum(1).max() < 1.15


# -- from traces


def test_both_ways_from_a_start_are_one_chain():
    front = ParetoFront.from_trace(curved_trace())
    chex.assert_shape(front.losses, (2 * 7, 2))
    chex.assert_shape(front.simplices, (2 * 6, 2))
    chex.assert_shape(front.params["x"], (14, 2))
    assert front.preferences is None
    # Loss 1 rises along each chain, and the first chain is the one where it is less.
    for part in (front.losses[:7, 0], front.losses[7:, 0]):
        assert (np.diff(part) > 0).all()
    assert front.losses[3, 0] < front.losses[10, 0]
    np.testing.assert_array_equal(front.simplices[:6, 0], np.arange(6))
    np.testing.assert_allclose(
        front.params["x"][:7], pareto_set(np.linspace(0.87, 0.57, 7)), rtol=1e-5
    )
    np.testing.assert_array_equal(front(0)["x"], front.params["x"][0])
    np.testing.assert_array_equal(front(1)["x"], front.params["x"][-1])


@pytest.mark.parametrize("directions", [1, 3])
def test_other_numbers_of_directions_are_chains_of_their_own(directions):
    front = ParetoFront.from_trace(curved_trace(directions=directions))
    chex.assert_shape(front.losses, (2 * (1 + 3 * directions), 2))
    chex.assert_shape(front.simplices, (2 * 3 * directions, 2))
    rises = np.diff(np.asarray(front.losses)[np.asarray(front.simplices), 0], axis=1)
    assert (rises > 0).all()


def test_alphas_become_preferences_and_are_interpolated():
    trace = curved_trace()
    alphas = jnp.asarray(np.random.default_rng(0).uniform(size=trace.losses.shape))
    trace = FakeTraceWithAlphas(*trace, alphas)
    front = ParetoFront.from_trace(trace)
    np.testing.assert_array_equal(front.preferences[0], alphas[1, 0, 3])
    np.testing.assert_array_equal(front.preferences[3], alphas[1, 0, 0])
    pruned = front.without_dominated(curved, 2)
    # All of it is on one convex front: nothing is dominated, and the middles are new.
    chex.assert_shape(pruned.preferences, (26, 2))
    middle = 0.5 * (front.preferences[0] + front.preferences[1])
    np.testing.assert_allclose(pruned.preferences[1], middle, rtol=1e-6)


def test_joined_chains_are_one_sorted_chain():
    trace = curved_trace(steps=5)  # the two starts' chains overlap
    spoiled = np.array(trace.params["x"])
    spoiled[0, 0, 1:3] += 0.3  # two points off the front
    trace = trace_of(curved, spoiled)
    front = ParetoFront.from_trace(trace, join=True)
    assert metrics.non_dominated(front.losses).all()
    assert (np.diff(front.losses[:, 0]) > 0).all()
    count = len(front.losses)
    np.testing.assert_array_equal(
        front.simplices, np.stack([np.arange(count - 1), np.arange(1, count)], 1)
    )
    unique = np.unique(np.asarray(trace.losses).reshape(-1, 2), axis=0)
    assert count == metrics.non_dominated(unique).sum() == len(unique) - 2
    best = jax.tree.map(lambda leaf: leaf[:1, :1, :2], trace)
    best = best._replace(losses=jnp.array([[[[1.0, 1.0], [2.0, 2.0]]]]))
    assert repr(ParetoFront.from_trace(best, join=True)) == (
        "ParetoFront(1 points, 1 edges, 2 objectives)"
    )


def test_chains_end_where_losses_are_not_finite():
    trace = curved_trace()
    losses = np.array(trace.losses)
    losses[0, 0, 2] = np.nan  # so steps 2 and 3 go
    losses[1, 1, 1, 0] = np.inf  # so all three go
    front = ParetoFront.from_trace(trace._replace(losses=jnp.asarray(losses)))
    assert len(front.losses) == 14 - 2 - 3 and len(front.simplices) == 12 - 2 - 3
    losses[0, :, 1:] = np.nan  # a start alone: a single point, at the end
    front = ParetoFront.from_trace(trace._replace(losses=jnp.asarray(losses)))
    assert len(front.losses) == 1 + 4 and len(front.simplices) == 1 + 3
    np.testing.assert_array_equal(front.simplices[-1], [4, 4])
    losses[0, 0, 0] = np.nan  # a start that diverged takes its chains along
    front = ParetoFront.from_trace(trace._replace(losses=jnp.asarray(losses)))
    assert len(front.losses) == 4


def hexagon(steps=4, order=(1, 2, 3, 4, 5, 6)):
    """From the triangle's centroid towards the six binary betas, straight on."""
    betas = np.array([[number >> 2, number >> 1, number] for number in order]) & 1
    ways = betas @ (CORNERS - CORNERS.mean(0))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    lengths = 0.15 * np.arange(steps + 1)
    x = CORNERS.mean(0) + lengths[None, :, None] * ways[:, None, :]
    return trace_of(triangular, x[None])


def area_of(front):
    sides = np.asarray(front.params["x"], float)[np.asarray(front.simplices)]
    return np.abs(np.linalg.det(sides[:, 1:] - sides[:, :1])).sum() / 2


@pytest.mark.parametrize("order", [(1, 2, 3, 4, 5, 6), (6, 2, 1, 5, 4, 3)])
def test_a_fan_of_triangles_tiles_the_plane_around_its_start(order):
    trace = hexagon(order=order)
    front = ParetoFront.from_trace(trace)
    chex.assert_shape(front.params["x"], (1 + 6 * 4, 2))
    chex.assert_shape(front.simplices, (6 * (1 + 2 * 3), 3))
    ends = np.asarray(trace.params["x"], float)[0, :, -1]
    middle = ends - CORNERS.mean(0)
    ends = ends[np.argsort(np.arctan2(middle[:, 1], middle[:, 0]))]
    x, y = ends.T
    hull = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    assert area_of(front) == pytest.approx(hull, rel=1e-5)
    with pytest.raises(ValueError, match=r"front\.at\(simplex, weights\)"):
        front(0.5)


def test_a_front_traced_by_tangents():
    starts = {"x": jnp.asarray(pareto_set(np.array([0.3, 0.72])), jnp.float32)}
    betas = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    trace = trace_front(curved, starts, betas, steps=4, step_size=0.05, maxiter=4)
    front = ParetoFront.from_trace(trace)
    chex.assert_shape(front.preferences, (2 * 9, 2))
    losses = np.asarray(front.evaluate(curved, 4), float)
    assert gap_in_losses(losses).max() < 1e-3
    # Raw steps drift off the front, so only the joined chain is free of dominated points.
    joined = ParetoFront.from_trace(trace, join=True)
    assert metrics.non_dominated(joined.losses).all()
    assert joined.losses[0, 0] == front.losses[:, 0].min()


def test_neighbours_can_be_given_and_half_turns_are_left_open():
    trace = hexagon()
    front = ParetoFront.from_trace(trace, neighbours=[(0, 1), (2, 5)])
    assert front.simplices.shape == (2 * 7 + 2 * 4, 3)  # and two directions' points
    # Two directions, a quarter turn apart: one sector, and nothing on the other side.
    quarter = jax.tree.map(lambda leaf: leaf[:, np.array([0, 1])], trace)
    assert ParetoFront.from_trace(quarter).simplices.shape == (7, 3)
    # Three directions within half a turn: two sectors.
    gram = np.array([[1, 0.5, -0.5], [0.5, 1, 0.5], [-0.5, 0.5, 1]])
    pairs = {frozenset(pair) for pair in mesh.fan_neighbours(gram)}
    assert pairs == {frozenset((0, 1)), frozenset((1, 2))}
    # One that did not move, and one that equals another.
    gram = np.diag([1.0, 0.0, 1.0, 0.0])
    gram[0, 3] = gram[3, 0] = gram[3, 3] = 1
    assert mesh.fan_neighbours(gram) in ([(0, 2)], [(2, 0)], [(3, 2)], [(2, 3)])
    assert mesh.fan_neighbours(np.array([[1.0, -2.0], [-2.0, 4.0]])) == []


def test_triangles_end_where_losses_are_not_finite():
    trace = hexagon()
    losses = np.array(trace.losses)
    losses[0, 0, 2:] = np.nan
    front = ParetoFront.from_trace(trace._replace(losses=jnp.asarray(losses)))
    # Both sectors beside direction 0 keep their first triangles only.
    assert len(front.losses) == 25 - 3
    assert np.isfinite(front.losses).all()
    assert 42 - 2 * 6 < len(front.simplices) < 42


# -- preferences


def test_nearest_to_a_preference():
    count = 31
    x = np.stack([np.linspace(0, 1, count), np.zeros(count)], axis=1)
    front = chain(round_, x)  # losses x^2 / 2 and (1 - x)^2 / 2
    np.testing.assert_allclose(front.nearest([1, 1])["x"], [0.5, 0], atol=1e-6)
    np.testing.assert_allclose(front.nearest([5, 0])["x"], [0, 0])
    np.testing.assert_allclose(front.nearest([0, 1])["x"], [1, 0])
    # r1 x^2 = r2 (1 - x)^2 for (4, 1) at x = 1/3; the scales of the losses are divided out
    scaled = ParetoFront(front.params, front.losses * jnp.array([[1.0, 1e4]]), [[0, 1]])
    for one in (front, scaled):
        assert one.nearest_index([4, 1]) == 10
    # Dominated points neither are chosen nor set the scale.
    worse = np.concatenate([x, [[3.0, 3.0]]])
    assert chain(round_, worse).nearest_index([4, 1]) == 10


# -- storage


def front_to_save():
    rng = np.random.default_rng(0)
    params = {
        "trunk": {"kernel": jnp.asarray(rng.normal(size=(5, 3, 2)), jnp.float32)},
        "scale": jnp.asarray(rng.normal(size=(5,)), jnp.bfloat16),
    }
    losses = jnp.asarray(rng.uniform(size=(5, 2)), jnp.float32)
    edges = [[0, 1], [1, 2], [3, 4]]
    return ParetoFront(params, losses, edges, preferences=losses[::-1])


def check_equal(one, two):
    chex.assert_trees_all_equal_structs(one, two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_saved_fronts_come_back_bit_for_bit(tmp_path):
    front = front_to_save()
    front.save(tmp_path / "a" / "front")
    loaded = ParetoFront.load(str(tmp_path / "a" / "front"))
    check_equal(front, loaded)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["front"]
    check_equal(front(0.3), loaded(0.3))
    with pytest.raises(ValueError, match="exists: choose another folder"):
        front.save(tmp_path / "a" / "front")


def test_other_containers_come_back_with_like(tmp_path):
    front = front_to_save()
    leaves = jax.tree.leaves(front.params)
    tupled = ParetoFront(
        FakeTrace((leaves[0],), leaves[1]), front.losses, front.simplices
    )
    tupled.save(tmp_path / "front")
    loaded = ParetoFront.load(tmp_path / "front", like=FakeTrace((0,), 0))
    check_equal(tupled, loaded)
    with pytest.raises(ValueError, match="those asked for are"):
        ParetoFront.load(tmp_path / "front", like={"w": 0})


def test_what_cannot_be_loaded_is_said_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        ParetoFront.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="damaged or foreign"):
        ParetoFront.load(tmp_path / "empty")
    storage.write_arrays(tmp_path / "other", {"w": np.ones(3)})
    with pytest.raises(ValueError, match="holds no Pareto front"):
        ParetoFront.load(tmp_path / "other")
    wrong = {"params": np.ones((2, 3)), "losses": np.ones((2, 2))}
    storage.write_arrays(tmp_path / "wrong", wrong | {"simplices": np.array([[0, 9]])})
    with pytest.raises(ValueError, match="integers from 0 to 1"):
        ParetoFront.load(tmp_path / "wrong")
    front_to_save().save(tmp_path / "front")
    for path in sorted((tmp_path / "front").rglob("*")):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged or foreign") as caught:
        ParetoFront.load(tmp_path / "front")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="could not write") as caught:
        front_to_save().save(tmp_path / "file" / "front")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- errors


def test_bad_parts_are_named():
    x, losses, edges = np.ones((3, 2)), np.ones((3, 2)), [[0, 1], [1, 2]]
    build = functools.partial(ParetoFront, {"x": x}, losses)
    cases = [
        (lambda: ParetoFront({"x": x}, np.ones(3), edges), r"shape \(n, m\)"),
        (lambda: ParetoFront({"x": x}, np.ones((3, 1)), edges), "m >= 2"),
        (lambda: ParetoFront({"x": x}, losses * np.nan, edges), "must be finite"),
        (lambda: ParetoFront({}, losses, edges), "no leaves"),
        (lambda: ParetoFront({"x": x[:2]}, losses, edges), "leaf 'x' of params"),
        (lambda: ParetoFront(x.astype(int), losses, edges), "dtype int"),
        (lambda: build([[0], [1]]), r"\(e, 2\) for edges"),
        (lambda: build(np.zeros((0, 2), int)), "e >= 1"),
        (lambda: build([[0, 3]]), "from 0 to 2"),
        (lambda: build([[0.0, 1.0]]), "got float64"),
        (lambda: build(edges, losses[:2]), "shape of losses"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_bad_calls_are_named():
    front = chain(curved, pareto_set(np.array([0.9, 0.5, 0.45, 0.1])))
    cases = [
        (lambda: front(1.5), r"t must lie in \[0, 1\]"),
        (lambda: front(jnp.zeros(3)), r"jax\.vmap\(front\)"),
        (lambda: front(np.zeros(3)), r"jax\.vmap\(front\)"),
        (lambda: front.at(3, [0.5, 0.5]), r"lie in 0 \.\. 2"),
        (lambda: front.at(0, [0.5, 0.5, 0]), r"shape \(2,\)"),
        (lambda: front.sample(0), "integer >= 1"),
        (lambda: front.evaluate(curved, 2.0), "integer >= 1"),
        (lambda: front.evaluate(lambda p: p["x"][:1], 1), "2 objectives"),
        (lambda: front.evaluate(lambda p: p["x"].sum(), 1), r"shape \(T,\)"),
        (lambda: front.nearest([1, 2, 3]), "one number per objective"),
        (lambda: front.nearest([0, 0]), "not all zero"),
        (lambda: front.nearest([-1, 2]), "not negative"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_bad_traces_are_named():
    trace, fan = curved_trace(), hexagon()
    straight = jax.tree.map(lambda leaf: leaf[:, :1], fan)
    x, losses = trace
    four = FakeTrace({"x": np.ones((1, 1, 2, 4))}, np.ones((1, 1, 2, 4)))
    cases = [
        (FakeTrace(x, losses[0]), {}, r"shape \(starts, directions"),
        (FakeTrace(x, losses[:, :, :1]), {}, "at least one step"),
        (FakeTrace(x, losses[:1]), {}, "leaf 'x' of trace.params"),
        (FakeTrace(x, losses * jnp.nan), {}, "no start of the trace"),
        (four, {}, "2 or 3 objectives can be joined, got 4"),
        (fan, {"join": True}, "needs two objectives"),
        (trace, {"neighbours": [(0, 1)]}, "is for three objectives"),
        (straight, {}, "two or more directions"),
        (fan, {"neighbours": [(0, 6)]}, "from 0 to 5"),
        (fan, {"neighbours": [0, 1]}, "pairs of directions"),
    ]
    for bad, options, message in cases:
        with pytest.raises(ValueError, match=message):
            ParetoFront.from_trace(bad, **options)
