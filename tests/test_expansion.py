"""Tangents of Pareto sets: closed forms, degenerate cases, and steps as an optax chain."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtl_jax
from mtl_jax import pareto
from mtl_jax.data.zdt2 import zdt2_losses, zdt2_sample
from mtl_jax.solvers import krylov
from tests.references import zdt2
from tests.references.quadratics import (
    SHEET,
    SPHERES,
    losses_fn_of,
    quadratic_losses,
    random_quadratics,
)

THREE = random_quadratics(0, 3, 4)
HALVES = np.array([0.5, 0.5])
E1, E2 = np.eye(2)


@functools.cache
def tangents_of(which, *options):
    """Jitted: point, beta, damping and more arguments of the losses to tangents.

    One program for all of ``options``, pairs of names and values, with one tangent each.
    """
    losses_fn = {"quadratic": quadratic_losses, "zdt2": zdt2_losses}[which]

    @jax.jit
    def compute(x, beta, damping, *args):
        losses, task_grads = mtl_jax.value_and_task_grads(losses_fn)(x, *args)
        alpha = pareto.stationarity(task_grads).value
        matvec = pareto.hvp(losses_fn, x, alpha, *args)
        found = [
            pareto.tangent(
                matvec, task_grads, beta, alpha=alpha, damping=damping, **dict(each)
            )
            for each in options
        ]
        return found, losses, task_grads

    return compute


def solve(problem, x, beta, damping=0.0, dtype=jnp.float64, options=()):
    """The tangents at a point of quadratics, the losses and the gradients."""
    options = options or ((("tol", 1e-14),),)
    arrays = (x, beta, damping, problem.matrices, problem.centres)
    arrays = [jnp.asarray(array, dtype) for array in arrays]
    return tangents_of("quadratic", *options)(*arrays)


def solution_of(found):
    """The solution of the linear system, before it was scaled to one."""
    return np.asarray(found.direction * found.length, np.float64)


# -- closed forms ----------------------------------------------------------------------


def check_sheet(dtype, tolerance):
    x = SHEET.point(HALVES)
    np.testing.assert_allclose(x, [0.75, 0.2])
    (found,), _, task_grads = solve(SHEET, x, E1, dtype=dtype)
    np.testing.assert_allclose(found.alpha, HALVES, atol=tolerance)
    np.testing.assert_allclose(task_grads, [[0.75, 0.8], [-0.75, -0.8]], atol=tolerance)
    np.testing.assert_allclose(solution_of(found), [0.375, 0.32], atol=tolerance)
    (damped,), _, _ = solve(SHEET, x, E1, 0.1, dtype=dtype)
    np.testing.assert_allclose(
        solution_of(damped), [0.75 / 2.1, 0.8 / 2.6], atol=tolerance
    )
    np.testing.assert_allclose(solution_of(damped), [0.357143, 0.307692], atol=1e-5)
    assert found.ok and found.stationarity < 10 * tolerance
    assert found.hvps == found.info.iterations <= 2
    # The change of the losses, to first order, is J v.
    np.testing.assert_allclose(
        task_grads @ solution_of(found), [0.53725, -0.53725], atol=tolerance
    )
    # dx/d alpha_1 = (-0.75, -0.64) is parallel to the solution for e_1.
    np.testing.assert_allclose(
        found.direction, np.array([0.75, 0.64]) / np.hypot(0.75, 0.64), atol=tolerance
    )
    # The end of the front: alpha = beta = e_1.
    (end,), _, _ = solve(SHEET, SHEET.centres[0], E1, dtype=dtype)
    np.testing.assert_array_equal(end.alpha, [1, 0])
    assert not end.ok and end.length == 0
    (back,), _, _ = solve(SHEET, SHEET.centres[0], E2, dtype=dtype)
    assert back.ok
    # The null direction, with the rounding of this dtype.
    for weight in (0.5, 0.3, 0.83):
        alpha = np.array([weight, 1 - weight])
        (null,), _, _ = solve(SHEET, SHEET.point(alpha), alpha, dtype=dtype)
        assert not null.ok
        np.testing.assert_array_equal(null.direction, [0, 0])


def test_sheet_float32():
    check_sheet(jnp.float32, 1e-5)


def test_sheet_float64(x64):
    check_sheet(jnp.float64, 1e-10)


def test_three_objectives_against_dense_solves(x64):
    rng = np.random.default_rng(1)
    for _ in range(3):
        alpha = rng.dirichlet(np.ones(3))
        beta, damping = rng.normal(size=3), rng.uniform(0, 0.5)
        (found,), _, task_grads = solve(THREE, THREE.point(alpha), beta, damping)
        np.testing.assert_allclose(found.alpha, alpha, atol=1e-10)
        expected = THREE.tangent(alpha, beta, damping)
        np.testing.assert_allclose(solution_of(found), expected, atol=1e-10)
        np.testing.assert_allclose(jnp.linalg.norm(found.direction), 1, rtol=1e-14)
        # Tangent to the front, whatever beta, at damping 0.
        (found,), _, _ = solve(THREE, THREE.point(alpha), beta)
        tangential = alpha @ np.asarray(task_grads) @ np.asarray(found.direction)
        np.testing.assert_allclose(tangential, 0, atol=1e-12)


def test_unit_matrices_span_the_triangle(x64):
    x = SPHERES.point(np.array([0.2, 0.3, 0.5]))
    edges = SPHERES.centres[1:] - SPHERES.centres[0]
    for betas in (np.asarray(pareto.independent_directions(3)), np.eye(3)):
        rows = [solve(SPHERES, x, beta)[0][0].direction for beta in betas]
        assert np.linalg.matrix_rank(np.stack(rows), tol=1e-9) == 2
        assert np.linalg.matrix_rank(np.vstack([edges, *rows]), tol=1e-9) == 2


def test_null_direction_and_shifts_by_it(x64):
    alpha = np.array([0.2, 0.3, 0.5])
    x, beta = THREE.point(alpha), np.array([1.0, 0.0, 0.0])
    for null in (alpha, -3 * alpha, np.zeros(3)):
        (found,), _, _ = solve(THREE, x, null)
        assert not found.ok and found.length == 0 and found.hvps == 0
        np.testing.assert_array_equal(found.direction, np.zeros(4))
    (base,), _, _ = solve(THREE, x, beta)
    for shift in (-2.0, 0.7):
        (moved,), _, _ = solve(THREE, x, beta + shift * alpha)
        np.testing.assert_allclose(moved.direction, base.direction, atol=1e-10)
        np.testing.assert_allclose(moved.length, base.length, rtol=1e-10)


def test_distance_to_the_front_is_of_second_order(x64):
    for weight in (0.3, 0.5):
        x = SHEET.point(np.array([weight, 1 - weight]))
        direction = np.asarray(solve(SHEET, x, E1)[0][0].direction)
        sizes = 0.1 * 0.5 ** np.arange(5)
        distances = [SHEET.distance(x - size * direction) for size in sizes]
        slope = np.polyfit(np.log(sizes), np.log(distances), 1)[0]
        assert abs(slope - 2) < 0.1
        ratios = np.array(distances[:-1]) / distances[1:]
        np.testing.assert_allclose(ratios, 4, rtol=0.1)


def test_steps_lower_one_objective_and_raise_another(x64):
    for alpha in np.random.default_rng(2).dirichlet(np.ones(3), size=3):
        x = THREE.point(alpha)
        for i, beta in enumerate(np.eye(3)):
            moved = x - 0.01 * np.asarray(solve(THREE, x, beta)[0][0].direction)
            change = THREE.losses(moved) - THREE.losses(x)
            assert change[i] < 0 < change.max()


def test_zdt2_closed_forms(x64):
    compute = tangents_of(
        "zdt2", (("maxiter", 2),), (("maxiter", 1),), (("solver", "cg"),)
    )
    for seed in (42, 0, 5):
        x = zdt2_sample(seed)
        expected = zdt2.on_front(x)
        beta = np.random.default_rng(seed).normal(size=2)
        (found, rough, by_cg), losses, task_grads = compute(x, beta, 0.0)
        np.testing.assert_allclose(losses[1], 1 - losses[0] ** 2, atol=1e-14)
        np.testing.assert_allclose(task_grads, expected.gradients, atol=1e-12)
        np.testing.assert_allclose(found.alpha, expected.alpha, atol=1e-12)
        solution = zdt2.tangent(x, beta)
        np.testing.assert_allclose(solution_of(found), solution, atol=1e-9)
        np.testing.assert_allclose(found.direction, np.sign(solution), atol=1e-12)
        assert found.ok and found.hvps == 2
        # The line along e_1 stays on the front.
        line = x + np.linspace(-0.1, 0.1, 21)[:, None] * np.asarray(found.direction)
        values = np.stack([zdt2.losses(point) for point in line])
        np.testing.assert_allclose(values[:, 1], 1 - values[:, 0] ** 2, atol=1e-12)
        if seed == 42:
            rough = np.asarray(rough.direction) * np.sign(rough.direction[1])
            np.testing.assert_allclose(rough, [-0.2715, 0.9167, -0.2933], atol=1e-4)
        # H is indefinite: CG finds out in its second iteration and keeps the first.
        assert by_cg.info.stop == krylov.NEGATIVE_CURVATURE
        assert by_cg.hvps == 2 and not by_cg.ok
        along = expected.gradients[0] / np.linalg.norm(expected.gradients[0])
        np.testing.assert_allclose(abs(along @ by_cg.direction), 1, rtol=1e-12)


# -- degenerate cases ------------------------------------------------------------------


def test_corrected_gradients_cancel(x64):
    rng = np.random.default_rng(3)
    task_grads = {"a": rng.normal(size=(3, 5)), "b": np.ones((3, 2, 2))}
    task_grads = jax.tree.map(jnp.asarray, task_grads)

    @jax.jit
    def compute(task_grads, beta):
        alpha = pareto.stationarity(task_grads).value
        corrected = pareto.correct_gradients(task_grads, alpha)
        found = pareto.tangent(lambda v: v, task_grads, beta, alpha=alpha)
        solution = jax.tree.map(lambda leaf: leaf * found.length, found.direction)
        combined = mtl_jax.tree.combine(beta, corrected)
        return corrected, mtl_jax.tree.combine(alpha, corrected), solution, combined

    corrected, cancelled, solution, combined = compute(task_grads, rng.normal(size=3))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:]), task_grads)
    chex.assert_trees_all_close(cancelled, zeros, atol=1e-12)
    chex.assert_trees_all_equal_shapes_and_dtypes(task_grads, corrected)
    # What tangents solve for is the corrected gradients, combined.
    chex.assert_trees_all_close(solution, combined, atol=1e-12)


def test_a_start_away_from_the_front(x64):
    options = ((("tol", 1e-14),), (("tol", 1e-14), ("correction", False)))
    x = SHEET.point(HALVES) + np.array([0.1, -0.2])
    (exact, plain), _, task_grads = solve(SHEET, x, E1, options=options)
    alpha, task_grads = np.asarray(exact.alpha), np.asarray(task_grads)
    assert exact.ok and plain.ok and 0.05 < exact.stationarity <= 1
    # To first order the gradient that is left, J' alpha, does not change.
    rate = SHEET.hessian(alpha) @ solution_of(exact)
    np.testing.assert_allclose(rate, task_grads.T @ (E1 - alpha), atol=1e-9)
    # Without correction Newton's step on the weighted loss is added.
    newton = np.linalg.solve(SHEET.hessian(alpha), alpha @ task_grads)
    difference = solution_of(plain) - solution_of(exact)
    np.testing.assert_allclose(difference, newton, atol=1e-9)
    (null, alone), _, _ = solve(SHEET, x, alpha, options=options)
    np.testing.assert_allclose(solution_of(alone), newton, atol=1e-9)
    assert alone.ok and not null.ok
    # At an exact Pareto point it makes no difference.
    x = SHEET.point(HALVES)
    (_, plain), _, _ = solve(SHEET, x, E1, options=options)
    np.testing.assert_allclose(solution_of(plain), [0.375, 0.32], atol=1e-10)
    (_, plain), _, _ = solve(SHEET, x, HALVES, options=options)
    assert not plain.ok


CONFLICT = np.array([[1.0, 2, 0], [-1, 1, 0]])


@pytest.mark.parametrize(
    ("rows", "factor"),
    [
        (np.zeros((2, 3)), 1.0),
        (np.array([[1.0, np.nan, 0], [0, 1, 0]]), 1.0),
        (np.array([[1.0, np.inf, 0], [0, 1, 0]]), 1.0),
        (CONFLICT, np.nan),
        (CONFLICT, 0.0),
    ],
    ids=["zeros", "nan", "inf", "nan Hessian", "zero Hessian"],
)
def test_never_nan(rows, factor):
    for found in both_solvers(rows, factor):
        assert not found.ok
        np.testing.assert_array_equal(found.direction, np.zeros(3))
        numbers = (found.length, found.alpha, found.stationarity, found.residual)
        chex.assert_tree_all_finite(numbers)


def test_cg_without_an_iterate():
    by_minres, by_cg = both_solvers(CONFLICT, -1.0)
    assert by_minres.ok
    assert by_cg.info.stop == krylov.NEGATIVE_CURVATURE
    assert not by_cg.ok and by_cg.length == 0
    np.testing.assert_array_equal(by_cg.direction, np.zeros(3))


def both_solvers(rows, factor):
    return _both_solvers(jnp.asarray(rows, jnp.float32), jnp.float32(factor))


@jax.jit
def _both_solvers(task_grads, factor):
    beta = jnp.array([1.0, 0.0])
    return [
        pareto.tangent(lambda v: factor * v, task_grads, beta, solver=solver)
        for solver in ("minres", "cg")
    ]


def test_warm_starts():
    beta = np.array([0.3, -1.0])

    @jax.jit
    def compute(task_grads, x0):
        hessian = jnp.array([2.0, 2.5])
        return [
            pareto.tangent(
                lambda v: hessian * v,
                task_grads,
                jnp.asarray(beta, jnp.float32),
                x0=each,
                correction=False,
            )
            for each in (x0, "mean", "minus_mean")
        ]

    task_grads = np.array([[0.75, 0.8], [-0.5, 0.2]])
    solution = beta @ task_grads / np.array([2.0, 2.5])
    found = compute(
        *(jnp.asarray(each, jnp.float32) for each in (task_grads, solution))
    )
    for each in found:
        np.testing.assert_allclose(solution_of(each), solution, atol=1e-4)
        assert each.hvps == each.info.iterations + 1
    assert found[0].hvps == 1
    for each, sign in zip(found[1:], (1, -1), strict=True):
        x0 = sign * task_grads.mean(axis=0)
        first = np.linalg.norm((solution - x0) * np.array([2.0, 2.5]))
        np.testing.assert_allclose(each.info.residual_norms[0], first, rtol=1e-5)


def test_bad_arguments():
    def tangent(shape=(2, 3), beta=(2,), **options):
        # Traced only: nothing is computed.
        jax.eval_shape(
            lambda rows, beta: pareto.tangent(lambda v: v, rows, beta, **options),
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(beta, jnp.float32),
        )

    for options, message in (
        ({"shape": (1, 3), "beta": (1,)}, "nothing to expand"),
        ({"beta": (3,)}, r"expected \(3, \.\.\.\)"),
        ({"beta": (2, 2)}, "one entry per objective"),
        ({"alpha": np.ones(3)}, "alpha must have beta's shape"),
        ({"solver": "lu"}, "solver must be one of"),
        ({"x0": "ones"}, "x0 must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            tangent(**options)
    with pytest.raises(ValueError, match="nothing to expand"):
        pareto.independent_directions(1)
    wrong: list[tuple[int, dict[str, Any], str]] = [
        (1, {"beta": np.ones(1)}, "nothing to expand"),
        (2, {"beta": np.ones(3)}, "one entry per objective"),
        (2, {"beta": np.array([1.0, np.nan])}, "beta must be finite"),
        (2, {"beta": np.ones(2), "momentum": 1.0}, "momentum must lie in"),
        (2, {"beta": np.ones(2), "x0": "ones"}, "x0 must be one of"),
    ]
    for num_tasks, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            pareto.pareto_expansion(num_tasks, **options)
    tx = pareto.pareto_expansion(2, beta=jnp.array([1.0, 0.0]))
    rows = jnp.ones((2, 3))
    for params, extra, message in (
        (rows[0], {}, "pass either hvp= "),
        (rows[0], {"hvp": lambda a: lambda v: v, "losses_fn": lambda x: x}, "either"),
        (None, {"losses_fn": lambda x: x}, "needs params="),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(
                lambda rows, p=params, e=extra: tx.update(
                    rows, tx.init(rows[0]), p, **e
                ),
                rows,
            )


# -- as a transformation ---------------------------------------------------------------


PARAMS = {"a": np.array([0.75], np.float32), "b": {"c": np.array([[0.2]], np.float32)}}


def flat(params):
    """(..., 2) from a stack of PARAMS."""
    return np.concatenate([params["a"], params["b"]["c"][..., 0]], axis=-1)


def test_chain_of_steps():
    losses_fn = losses_fn_of(SHEET)
    tx = optax.chain(
        pareto.pareto_expansion(2, beta=np.array([1.0, 0.0])),
        optax.sgd(optax.constant_schedule(0.02)),
    )
    traces = []

    @jax.jit
    def steps(params, state):
        traces.append(1)

        def step(carry, _):
            params, state = carry
            losses, task_grads = mtl_jax.value_and_task_grads(losses_fn)(params)
            updates, state = tx.update(task_grads, state, params, losses_fn=losses_fn)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, losses, optax.tree.get(state, "weights"))

        return jax.lax.scan(step, (params, state), None, length=10)

    state = tx.init(PARAMS)
    np.testing.assert_array_equal(optax.tree.get(state, "weights"), [1, 1])
    (last, state), (params, losses, weights) = steps(PARAMS, state)
    path = np.vstack([flat(PARAMS), flat(params)])
    moves = np.linalg.norm(np.diff(path, axis=0), axis=1)
    np.testing.assert_allclose(moves, 0.02, rtol=1e-5)
    assert np.all(np.diff(losses[:, 0]) < 0) and np.all(np.diff(losses[:, 1]) > 0)
    assert np.all(np.diff(weights[:, 0]) > 0)
    assert max(SHEET.distance(x) for x in path) < 5e-3
    assert optax.tree.get(state, "fallbacks") == 0
    assert optax.tree.get(state, "iterations") == 2
    assert optax.tree.get(state, "residual") < 1e-4
    assert optax.tree.get(state, "stationarity") < 2e-2
    steps(last, state)
    assert len(traces) == 1


def test_momentum_averages_gradients_and_weights(x64):
    rng = np.random.default_rng(4)
    tx = pareto.pareto_expansion(2, beta=E1, momentum=0.9)
    hessian = np.array([2.0, 1.0, 3.0])
    state = tx.init(np.zeros(3))

    @jax.jit
    def update(task_grads, state):
        new = pareto.stationarity(task_grads).value
        direction, state = tx.update(
            task_grads, state, hvp=lambda alpha: lambda v: alpha[0] * hessian * v
        )
        return direction, state, new

    mean = weights = None
    for step in range(4):
        rows = rng.normal(size=(2, 3))
        if step == 2:
            broken, state, _ = update(np.full((2, 3), np.nan), state)
            chex.assert_tree_all_finite((broken, state))
        direction, state, new = update(rows, state)
        mean = rows if mean is None else 0.9 * mean + 0.1 * rows
        weights = new if weights is None else 0.9 * weights + 0.1 * new
        corrected = mean - np.asarray(weights) @ mean
        np.testing.assert_allclose(weights @ corrected, 0, atol=1e-12)
        solution = corrected[0] / (weights[0] * hessian)
        expected = solution / np.linalg.norm(solution)
        np.testing.assert_allclose(direction, expected, atol=1e-10)
        np.testing.assert_allclose(optax.tree.get(state, "weights"), weights)
    assert optax.tree.get(state, "fallbacks") == 1


def test_heads_are_held_fixed():
    def is_head(path):
        return path.startswith("b/")

    tx = pareto.pareto_expansion(2, beta=np.array([1.0, 0.0]), heads=is_head)
    losses_fn = losses_fn_of(SHEET)

    @jax.jit
    def both(params):
        updates = []
        for heads in (None, is_head):  # stacked and already summed
            source = mtl_jax.value_and_task_grads(losses_fn, heads=heads)
            task_grads = source(params)[1]
            state = tx.init(params)
            updates.append(tx.update(task_grads, state, params, losses_fn=losses_fn)[0])
        return updates

    for updates in both(PARAMS):
        np.testing.assert_array_equal(updates["b"]["c"], [[0]])
        np.testing.assert_allclose(updates["a"], [1])
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, PARAMS)


def test_nothing_to_do_counts_a_fallback():
    tx = pareto.pareto_expansion(2, beta=np.array([1.0, 0.0]))
    update = jax.jit(lambda g, state: tx.update(g, state, hvp=lambda a: lambda v: v))
    state = tx.init(np.ones(3))
    for count in (1, 2):
        updates, state = update(np.zeros((2, 3)), state)
        np.testing.assert_array_equal(updates, np.zeros(3))
        assert optax.tree.get(state, "fallbacks") == count


def test_directions():
    for m in (2, 3, 5):
        betas = np.asarray(pareto.independent_directions(m), np.float64)
        np.testing.assert_allclose(betas @ betas.T, np.eye(m - 1), atol=1e-6)
        np.testing.assert_allclose(betas.sum(axis=1), 0, atol=1e-6)
        # Independent of the weights, also on the edges of the front.
        for alpha in np.eye(m):
            assert np.linalg.matrix_rank(np.vstack([betas, alpha])) == m
    both = pareto.both_ways(pareto.independent_directions(3))
    np.testing.assert_array_equal(both[:2], -both[2:])
