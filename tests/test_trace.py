"""Traced fronts: closed forms, loops and devices that agree, exact counts."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

import mtl_jax
from mtl_jax import pareto
from mtl_jax.data.zdt2 import zdt2_losses, zdt2_sample
from mtl_jax.metrics import non_dominated
from mtl_jax.solvers import krylov
from tests.references.quadratics import SHEET, SPHERES, losses_fn_of, random_quadratics

STEPS = 3
BETAS = np.array([[1.0, 0.0], [-1.0, 0.0]])
WEIGHTS = np.array([[0.5, 0.5], [0.3, 0.7]])
SHEET_LOSSES = losses_fn_of(SHEET)
CORRECTOR = optax.chain(mtl_jax.mgda(2), optax.sgd(0.4))
CORRECTION = {"corrector": CORRECTOR, "corrector_steps": 6}


def starts_of():
    """Two points of the sheet's Pareto set, as trees of two leaves."""
    points = np.stack([SHEET.point(alpha) for alpha in WEIGHTS]).astype(np.float32)
    return {"a": points[:, :1], "b": points[:, 1]}


def flat(params):
    """(S, K, steps + 1, 2)."""
    return np.concatenate([params["a"], np.asarray(params["b"])[..., None]], axis=-1)


def trace_of(losses_fn=SHEET_LOSSES, starts=None, betas: Any = BETAS, **options: Any):
    options = {"steps": STEPS, "step_size": 0.05, "tol": 1e-6, **options}
    starts = starts_of() if starts is None else starts
    return pareto.trace_front(losses_fn, starts, betas, **options)


sheet_trace = functools.cache(trace_of)


def distances(points):
    shape = points.shape[:-1]
    return np.array([SHEET.distance(x) for x in points.reshape(-1, 2)]).reshape(shape)


def test_quadratics():
    trace = sheet_trace()
    points = flat(trace.params)
    assert points.shape == (2, 2, STEPS + 1, 2)
    moves = np.diff(points, axis=2)
    np.testing.assert_allclose(np.linalg.norm(moves, axis=-1), 0.05, rtol=1e-5)
    # Both directions from one start are opposite, also in their losses.
    np.testing.assert_allclose(moves[:, 0, 0], -moves[:, 1, 0], atol=1e-6)
    tangent = SHEET.tangent(WEIGHTS[0], np.array([1.0, 0.0]))
    expected = -0.05 * tangent / np.linalg.norm(tangent)
    np.testing.assert_allclose(moves[0, 0, 0], expected, atol=1e-5)
    change = np.diff(trace.losses, axis=2)
    assert np.all(change[:, 0, :, 0] < 0) and np.all(change[:, 0, :, 1] > 0)
    assert np.all(change[:, 1, :, 0] > 0) and np.all(change[:, 1, :, 1] < 0)
    np.testing.assert_allclose(trace.losses, SHEET.losses(points), rtol=1e-4)
    for direction in range(2):
        np.testing.assert_allclose(trace.alphas[:, direction, 0], WEIGHTS, atol=1e-5)
    assert distances(points).max() < 0.01
    assert trace.ok.all() and np.all(trace.residuals < 1e-4)
    assert np.all(trace.iterations == 2)
    assert np.all(trace.stationarity[:, :, 0] < 1e-5)
    chex.assert_shape((trace.residuals, trace.iterations, trace.ok), (2, 2, STEPS))
    assert trace.counts.hvps.dtype == trace.iterations.dtype == jnp.int32


def test_dominance_report():
    # Long steps leave the front: some points are dominated.
    for trace in (sheet_trace(), sheet_trace(step_size=0.3)):
        kept = non_dominated(np.asarray(trace.losses, np.float64).reshape(-1, 2))
        np.testing.assert_array_equal(~np.asarray(trace.dominated).ravel(), kept)
    assert trace.dominated.any() and not trace.dominated.all()


@pytest.mark.slow  # compiles for two devices; test_batches runs vmap
def test_sharded_starts_equal_map():
    mesh = mtl_jax.sharding.make_mesh(jax.devices()[:2])
    starts = jax.device_put(starts_of(), NamedSharding(mesh, PartitionSpec("data")))
    trace = trace_of(starts=starts, loop="vmap")
    assert trace.params["a"].sharding.device_set == set(mesh.devices.ravel())
    chex.assert_trees_all_close(jax.device_get(trace), sheet_trace(), atol=1e-5)


def test_corrector_returns_to_the_front():
    plain = sheet_trace(step_size=0.2)
    corrected = sheet_trace(step_size=0.2, **CORRECTION)
    before, after = (
        distances(flat(trace.params)[:, :, 1:]) for trace in (plain, corrected)
    )
    assert np.all(after < 0.2 * before)
    for trace, evaluations in ((plain, STEPS + 1), (corrected, 7 * STEPS + 1)):
        assert np.all(trace.counts.functions == evaluations)
        assert np.all(trace.counts.gradients == evaluations)
        np.testing.assert_array_equal(trace.counts.hvps, trace.iterations.sum(axis=2))


def test_counts_are_what_is_called_and_nothing_is_compiled_again():
    calls, traces = [], []

    def losses_fn(x):
        traces.append(1)
        jax.debug.callback(lambda: calls.append(1))
        return SHEET_LOSSES(x)

    options = {"corrector": CORRECTOR, "corrector_steps": 2, "x0": "mean"}
    trace = jax.block_until_ready(trace_of(losses_fn, **options))
    jax.effects_barrier()
    # Every step linearises the gradient once for its products.
    assert len(calls) == np.sum(trace.counts.functions) + 2 * 2 * STEPS
    products = np.sum(trace.iterations, axis=2) + STEPS
    np.testing.assert_array_equal(trace.counts.hvps, products)
    count = len(traces)
    numbers = {"step_size": 0.1, "seed": 3, "damping": 0.1, "tol": 1e-4}
    starts = jax.tree.map(lambda leaf: leaf + np.float32(0.01), starts_of())
    other = trace_of(losses_fn, starts, -BETAS, **numbers, **options)
    assert len(traces) == count
    assert not np.allclose(flat(trace.params), flat(other.params), atol=1e-3)
    jax.effects_barrier()


def test_products_are_counted_exactly():
    calls = []
    task_grads = np.array([[0.75, 0.8], [-0.75, -0.8]], np.float32)

    @jax.jit
    def solve(task_grads, beta):
        def matvec(v, sign=1):
            jax.debug.callback(lambda: calls.append(1))
            return v * jnp.array([2.0, sign * 2.5])

        run = functools.partial(pareto.tangent, task_grads=task_grads, beta=beta)
        return (
            run(matvec),
            run(matvec, x0="minus_mean", maxiter=1),
            run(matvec, solver="cg", x0=jnp.ones(2)),
            run(functools.partial(matvec, sign=-1), solver="cg"),
        )

    found = solve(task_grads, np.array([1.0, 0.0], np.float32))
    jax.effects_barrier()
    assert [int(each.hvps) for each in found[:2]] == [2, 2]
    assert found[3].info.stop == krylov.NEGATIVE_CURVATURE
    assert len(calls) == sum(int(each.hvps) for each in found)


# -- batches ---------------------------------------------------------------------------


def batch_losses(x, shifts, scale=1.0):
    """Means over a batch of shifted copies of the sheet's losses."""
    each = jax.vmap(lambda shift: SHEET_LOSSES({"a": x["a"] + shift, "b": x["b"]}))
    return scale * each(shifts).mean(axis=0)


def drawn(shifts, noise, key):
    """All shifts, mixed, in batches; the gradients' ones with more noise."""
    mixed = jax.random.permutation(key, shifts.ravel()).reshape(shifts.shape)
    return (mixed + noise * jax.random.normal(key, mixed.shape),), (mixed[:2],)


@pytest.mark.slow
def test_batches():
    shifts = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    # With mean zero they change the losses by constants only.
    shifts = 0.1 * (shifts - shifts.mean())

    def run(noise, seed=0, **options):
        batches = Partial(drawn, shifts, np.float32(noise))
        return trace_of(
            batch_losses, batches=batches, seed=seed, **CORRECTION, **options
        )

    exact, expected = run(0), sheet_trace(**CORRECTION)
    chex.assert_trees_all_close(exact.params, expected.params, atol=1e-5)
    chex.assert_trees_all_close(exact.alphas, expected.alphas, atol=1e-4)
    chex.assert_trees_all_equal(exact.counts, expected.counts)
    first, again, other = run(0.1), run(0.1), run(0.1, seed=1)
    chex.assert_trees_all_equal(first, again)
    assert not np.allclose(first.losses, other.losses, atol=1e-3)
    # All chains see the same batches in a step, and other ones in the next step.
    np.testing.assert_allclose(first.losses[:, 0, 0], first.losses[:, 1, 0], rtol=1e-6)
    assert not np.allclose(
        first.losses - exact.losses, (first.losses - exact.losses)[:, :, :1], atol=1e-4
    )
    chex.assert_trees_all_close(first, run(0.1, loop="vmap"), atol=1e-5)


def test_mean_task_grads(x64):
    rng = np.random.default_rng(1)
    shifts, scales = rng.normal(size=(4, 3)), np.full(4, 2.0)
    x = {"a": rng.normal(size=1), "b": rng.normal(size=())}

    @jax.jit
    def compute(x, shifts, scales):
        one = (shifts.reshape(1, 12), scales[:1])
        return (
            mtl_jax.value_and_task_grads(batch_losses)(x, shifts.ravel(), scales[0]),
            pareto.mean_task_grads(batch_losses, x, (shifts, scales)),
            pareto.mean_task_grads(batch_losses, x, one),
        )

    whole, mean, single = compute(x, shifts, scales)
    chex.assert_trees_all_close(mean, whole, rtol=1e-12)
    chex.assert_trees_all_close(single, whole, rtol=1e-12)
    chex.assert_trees_all_equal_shapes_and_dtypes(mean, whole)


def test_inside_a_larger_program():
    @jax.jit
    def program(shifts, starts):
        return trace_of(lambda x: batch_losses(x, shifts), starts, steps=1)

    program.lower(jnp.ones(3), starts_of())  # closing over what is traced is fine


# -- more than two objectives, momentum, heads -----------------------------------------


def test_three_objectives_in_all_directions(x64):
    losses_fn = losses_fn_of(SPHERES, jnp.float64)
    start = SPHERES.point(np.array([0.3, 0.3, 0.4]))[None]
    betas = pareto.both_ways(pareto.independent_directions(3))
    trace = trace_of(losses_fn, start, betas, steps=2, step_size=0.1)
    points = np.asarray(trace.params)
    assert points.shape == (1, 4, 3, 4)
    # The Pareto set is flat: traces stay in the triangle, whatever the step.
    offsets = points.reshape(-1, 4) - SPHERES.centres[0]
    edges = SPHERES.centres[1:] - SPHERES.centres[0]
    inside, residual = np.linalg.lstsq(edges.T, offsets.T)[:2]
    np.testing.assert_allclose(residual, 0, atol=1e-20)
    assert np.all(inside > 0) and np.all(inside.sum(axis=0) < 1)
    ends = points[0, :, -1] - points[0, 0, 0]
    assert np.linalg.matrix_rank(ends, tol=1e-9) == 2
    assert not trace.dominated.any()
    np.testing.assert_allclose(trace.stationarity, 0, atol=1e-9)


def test_zdt2_stays_on_the_front(x64):
    starts = np.stack([zdt2_sample(seed) for seed in (0, 42)])
    trace = trace_of(zdt2_losses, starts, steps=2, step_size=0.1, maxiter=2)
    losses = np.asarray(trace.losses)
    np.testing.assert_allclose(losses[..., 1], 1 - losses[..., 0] ** 2, atol=1e-12)
    moved = np.abs(np.diff(np.asarray(trace.params), axis=2))
    np.testing.assert_allclose(moved[..., 0], 0.1, atol=1e-9)
    assert np.all(trace.counts.hvps == 4) and np.all(trace.counts.gradients == 3)
    assert not trace.dominated.any()


def test_momentum_is_that_of_the_transformation():
    trace = sheet_trace(momentum=0.9)
    tx = optax.chain(
        pareto.pareto_expansion(2, beta=BETAS[1], momentum=0.9, tol=1e-6),
        optax.sgd(0.05),
    )

    @jax.jit
    def step(x, state):
        task_grads = mtl_jax.value_and_task_grads(SHEET_LOSSES)(x)[1]
        updates, state = tx.update(task_grads, state, x, losses_fn=SHEET_LOSSES)
        return optax.apply_updates(x, updates), state

    x = jax.tree.map(lambda leaf: leaf[0], starts_of())
    state = tx.init(x)
    for number in range(1, STEPS + 1):
        x, state = step(x, state)
        traced = jax.tree.map(lambda leaf, n=number: leaf[0, 1, n], trace.params)
        chex.assert_trees_all_close(x, traced, atol=1e-6)
    assert not np.allclose(flat(trace.params), flat(sheet_trace().params), atol=1e-4)


def test_heads_stay():
    starts = {
        "shared": np.ones((1, 2), np.float32),
        "heads": np.ones((1, 1), np.float32),
    }
    decay = optax.add_decayed_weights(0.1)
    trace = trace_of(
        losses_fn_of(random_quadratics(1, 2, 3)),
        starts,
        steps=2,
        heads={"shared": False, "heads": True},
        corrector=optax.chain(mtl_jax.mgda(2), decay, optax.sgd(0.1)),
        corrector_steps=2,
    )
    np.testing.assert_array_equal(trace.params["heads"], np.ones((1, 2, 3, 1)))
    assert not np.allclose(trace.params["shared"], 1)
    assert trace.ok.all()


# -- degenerate cases ------------------------------------------------------------------


def test_chains_without_a_tangent_stay():
    betas = np.stack([WEIGHTS[0], BETAS[0]])  # the first is alpha of the first start
    trace = trace_of(betas=betas)
    np.testing.assert_array_equal(trace.ok[:, :, 0], [[False, True], [True, True]])
    still = flat(trace.params)[0, 0]
    np.testing.assert_array_equal(
        still[1:], np.broadcast_to(still[:1], still[1:].shape)
    )
    assert np.all(trace.counts.hvps[0, 0] == 0)
    chex.assert_tree_all_finite(trace)


def test_what_is_not_finite_stays_where_it_is():
    starts = starts_of()
    starts["a"][1] = np.nan
    trace = trace_of(starts=starts)
    reports = trace._replace(params=trace.params["b"], losses=trace.losses[0])
    chex.assert_tree_all_finite(reports)
    assert trace.ok[0].all() and not trace.ok[1].any()
    assert trace.dominated[1].all() and not trace.dominated[0].any()
    np.testing.assert_array_equal(trace.params["b"][1], starts["b"][1])


def test_bad_arguments():
    starts = starts_of()
    for changes, message in (
        ({"betas": np.ones((1, 1))}, "nothing to expand"),
        ({"betas": np.ones(2)}, "one right-hand side per row"),
        ({"betas": np.ones((1, 3))}, "3 entries per row, but losses_fn returned 2"),
        ({"steps": 0}, "steps must be a Python integer >= 1"),
        ({"corrector_steps": 3}, "needs a corrector"),
        ({"corrector": optax.sgd(0.1), "corrector_steps": 1}, "begin with a method"),
        ({"starts": {**starts, "b": np.ones(3)}}, "share a leading axis"),
        ({"starts": {"a": np.ones((2, 1), int)}}, "floating point"),
        ({"loop": "scan"}, "loop must be one of"),
        ({"solver": "lu"}, "solver must be one of"),
        ({"x0": "ones"}, "x0 must be one of"),
        ({"momentum": 1.0}, "momentum must lie in"),
        ({"heads": lambda path: True}, "marks every parameter"),
        ({"batches": lambda key: ([key], [key])}, "must be a tuple"),
        ({"batches": lambda key: ((jnp.ones(()),), ())}, "share a leading axis"),
    ):
        with pytest.raises(ValueError, match=message):
            trace_of(**changes)
