"""Weighted Chebyshev: closed forms, multipliers, the dual program, preference grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtl_jax
from mtl_jax import pareto
from mtl_jax.pareto.chebyshev_parts import make_objectives
from mtl_jax.solvers import simplex_qp
from tests.helpers import slow_but
from tests.references.simplex_qp import by_enumeration

METHODS = ("chebyshev", "chebyshev_al")


def convex_losses(x):
    return jnp.stack([x**2, (x - 1) ** 2])


def concave_losses(x):
    bulge = 0.5 * x * (1 - x)
    return jnp.stack([x + bulge, 1 - x + bulge])


def convex_solution(k):
    """x, t and multipliers."""
    roots = np.sqrt(k)
    total = roots.sum()
    return roots[1] / total, k[0] * k[1] / total**2, roots[::-1] / total


def concave_solution(k, c=0.5):
    d = (k[0] - k[1]) * c
    x = 0.5 if d == 0 else ((1 + d) - np.sqrt((1 + d) ** 2 - 4 * d * k[1])) / (2 * d)
    slopes = k * np.array([1 + c * (1 - 2 * x), -1 + c * (1 - 2 * x)])
    multipliers = np.array([-slopes[1], slopes[0]]) / (slopes[0] - slopes[1])
    return x, k[0] * (x + c * x * (1 - x)), multipliers


@functools.cache
def solver_of(method, losses_fn):
    """``run(importances (N, 2), epsilon, starts (N,)) -> (x, state)``, vmapped.

    Importance and epsilon are traced: one compilation serves all problems of a size.
    """

    def transformation(importance, epsilon):
        if method == "linear":
            return optax.chain(
                mtl_jax.aggregate(mtl_jax.weighting.ls(2, weights=importance)),
                optax.sgd(0.02),
            )
        if method == "chebyshev":
            made = mtl_jax.chebyshev(
                2, importance=importance, epsilon=epsilon, step_size=0.2
            )
            return optax.chain(made, optax.sgd(0.2))
        made = mtl_jax.chebyshev_al(2, importance=importance, epsilon=epsilon, every=60)
        return optax.chain(made, optax.sgd(0.02))

    def run(importance, epsilon, x):
        tx = transformation(importance, epsilon)

        def step(carry, _):
            x, state = carry
            losses, grads = mtl_jax.value_and_task_grads(losses_fn)(x)
            updates, state = tx.update(grads, state, x, losses=losses)
            # The box is that of the concave problem; the convex one never meets it.
            return (jnp.clip(optax.apply_updates(x, updates), 0, 1), state), None

        (x, state), _ = jax.lax.scan(step, (x, tx.init(x)), length=900)
        return x, state

    return jax.jit(jax.vmap(run, in_axes=(0, None, 0)))


def solve(method, losses_fn, importances, starts, epsilon=0.0):
    importances, starts = (jnp.asarray(a, jnp.float32) for a in (importances, starts))
    return solver_of(method, losses_fn)(importances, jnp.float32(epsilon), starts)


def check_solutions(method, state, solutions, tolerance):
    """The state's multipliers and bounds, given ``(x, t, multipliers)`` of each."""
    np.testing.assert_allclose(
        optax.tree.get(state, "multipliers"),
        [s[2] for s in solutions],
        atol=10 * tolerance,
    )
    if method == "chebyshev_al":
        t = optax.tree.get(state, "t")
        np.testing.assert_allclose(t, [s[1] for s in solutions], atol=tolerance)


@pytest.mark.parametrize("method", slow_but(("chebyshev_al",), METHODS))
def test_convex_front(method):
    importances = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    solutions = [convex_solution(k) for k in importances]
    assert solutions[0][0] == pytest.approx(0.66667, abs=1e-5)
    assert solutions[0][1] == pytest.approx(0.088889, abs=1e-6)
    found, state = solve(method, convex_losses, importances, [0.1] * 3)
    np.testing.assert_allclose(found, [s[0] for s in solutions], atol=2e-4)
    check_solutions(method, state, solutions, 2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_concave_front_where_linear_weighting_fails(method):
    published = {0.8: 0.159734, 0.5: 0.5, 0.3: 0.738613}
    importances = np.array([[k, 1 - k] for k in published for _ in range(2)])
    solutions = [concave_solution(k) for k in importances]
    xs = [s[0] for s in solutions]
    np.testing.assert_allclose(xs[::2], list(published.values()), atol=1e-6)
    starts = [0.05, 0.95] * 3
    found, state = solve(method, concave_losses, importances, starts)
    np.testing.assert_allclose(found, xs, atol=5e-4)
    check_solutions(method, state, solutions, 5e-4)
    ends, _ = solve("linear", concave_losses, importances, starts)
    assert np.isin(ends, [0.0, 1.0]).all()


def paper_run(losses_fn, k, steps=400):
    tx = optax.chain(
        mtl_jax.chebyshev_al(2, importance=k, mode="paper", every=100, epsilon=0.0),
        optax.sgd(0.1),
    )

    @jax.jit
    def run(x):
        def step(carry, _):
            x, state = carry
            losses, grads = mtl_jax.value_and_task_grads(losses_fn)(x)
            updates, state = tx.update(grads, state, x, losses=losses)
            return (jnp.clip(optax.apply_updates(x, updates), 0, 1), state), None

        return jax.lax.scan(step, (x, tx.init(x)), length=steps)[0]

    return run(jnp.float32(0.3))


def test_paper_mode_is_linear_weighting():
    x, state = paper_run(convex_losses, (0.2, 0.8))
    assert float(x) == pytest.approx(0.8, abs=1e-3)  # not 0.6667
    assert float(optax.tree.get(state, "penalty")) == pytest.approx(16 * 2.5e-8)
    x, _ = paper_run(concave_losses, (0.5, 0.5))
    assert float(x) in (0.0, 1.0)


def test_paper_mode_follows_the_equality_lagrangian():
    """Two steps by hand: m = lambda + mu H, t by Adam, sums of H in the outer update."""
    weighting = pareto.chebyshev_al_weighting(
        3, importance=(0.2, 0.3, 0.5), mode="paper", penalty=0.5, every=2, seed=3,
        epsilon=0.1,
    )  # fmt: skip
    state, update = weighting.init(), jax.jit(weighting.update)
    k, multipliers = np.array([0.2, 0.3, 0.5]), np.full(3, 1 / 3)
    t, mean, square, total = float(state.t), 0.0, 0.0, np.zeros(3)
    assert abs(t) > 1e-3
    for count, losses in enumerate(np.array([[1.0, 2.0, 0.5], [0.5, 1.0, 1.5]]), 1):
        h = k * (losses + 0.1 * losses.sum()) - t
        m = multipliers + 0.5 * h
        expected = m * k + 0.1 * (m @ k)
        statistics = mtl_jax.Statistics(losses=jnp.asarray(losses, jnp.float32))
        weights, state = update(statistics, state)
        np.testing.assert_allclose(weights, expected, rtol=1e-5)
        slope = 1 - m.sum()
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        corrected = mean / (1 - 0.9**count)
        t -= 2.5e-3 * corrected / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)
        total += h
        assert float(state.t) == pytest.approx(t, rel=1e-5)
    np.testing.assert_allclose(state.multipliers, multipliers + 0.5 * total, rtol=1e-5)
    assert float(state.penalty) == 1.0 and not np.asarray(state.total).any()


def test_paper_mode_keeps_t_where_an_objective_is_dropped():
    """Its constraint 0 - t = 0 stays: the multipliers add up to 1 and t does not drift."""
    weighting = pareto.chebyshev_al_weighting(
        3, importance=(0.0, 0.5, 0.5), mode="paper", epsilon=0.0, t_learning_rate=0.1
    )
    statistics = mtl_jax.Statistics(losses=jnp.array([7.0, 3.0, 3.0]))

    def step(state, _):
        weights, state = weighting.update(statistics, state)
        return state, weights

    run = jax.jit(lambda s: jax.lax.scan(step, s, length=90))  # no outer update
    state, weights = run(weighting.init())
    np.testing.assert_allclose(weights[-1], [0, 1 / 6, 1 / 6], rtol=1e-5)
    # Else its slope would be 1/3, and t would fall by 0.1 in every step.
    assert abs(float(state.t - weighting.init().t)) < 1


def test_outer_updates_average_capped():
    weighting = pareto.chebyshev_al_weighting(
        2, importance=(0.5, 0.5), epsilon=0.0, every=2, penalty=0.5, max_penalty=0.75
    )
    state, update = weighting.init(), jax.jit(weighting.update)
    for losses in ([1.0, 0.0], [0.0, 0.6]):
        statistics = mtl_jax.Statistics(losses=jnp.asarray(losses))
        weights, state = update(statistics, state)
    # The second step: lambda + mu h = (0.5, 0.65), less 0.075, times k.
    np.testing.assert_allclose(weights, [0.2125, 0.2875], rtol=1e-6)
    assert float(state.t) == pytest.approx(0.15)
    # Mean h = (0.25, 0.15).
    np.testing.assert_allclose(state.multipliers, [0.525, 0.475], rtol=1e-6)
    assert float(state.penalty) == 0.75


@pytest.mark.parametrize("method", METHODS)
def test_objectives_without_importance_are_dropped(method):
    """Whatever the third loss and gradient are, epsilon included."""
    make = getattr(pareto, f"{method}_weighting")
    three = make(3, importance=(0.3, 0.0, 0.7), epsilon=0.05)
    two = make(2, importance=(0.3, 0.7), epsilon=0.05)
    rows = np.random.default_rng(0).normal(size=(3, 5))
    gram = jnp.asarray(rows @ rows.T, jnp.float32)
    keep = np.array([0, 2])

    @jax.jit
    def both(losses):
        weights, _ = three.update(mtl_jax.Statistics(gram, losses), three.init())
        statistics = mtl_jax.Statistics(gram[keep][:, keep], losses[keep])
        return weights, two.update(statistics, two.init())[0]

    for other in (0.01, 300.0):
        weights, expected = both(jnp.array([0.4, other, 0.3]))
        assert weights[1] == 0
        np.testing.assert_allclose(weights[keep], expected, atol=1e-6)
        assert (np.asarray(expected) > 0).any()


def test_epsilon_leaves_weakly_optimal_points_out():
    """Where the worst loss is flat, only epsilon looks at the other one."""

    def losses_fn(x):
        return jnp.stack([1 + 0 * x, x])

    run = functools.partial(solve, "chebyshev", losses_fn, [[0.5, 0.5]], [0.6])
    assert float(run()[0][0]) == pytest.approx(0.6)
    assert float(run(epsilon=0.05)[0][0]) < 0.4


def test_quarter_circle_formula():
    """At the optimum of f = (sin, cos) the two constraints are equal, epsilon included."""
    k, epsilon = np.array([0.3, 0.7]), 0.1
    ratio = (k[0] * (1 + epsilon) - k[1] * epsilon) / (
        k[1] * (1 + epsilon) - k[0] * epsilon
    )
    first = 1 / np.sqrt(1 + ratio**2)
    losses = np.array([first, ratio * first])
    objectives = make_objectives(2, k, 0.0, epsilon)
    m = jnp.array([0.6, 0.4])

    @jax.jit
    def numbers(losses):
        h = objectives.values(losses)
        gradient = jax.grad(lambda losses: jnp.sum(m * objectives.values(losses)))(
            losses
        )
        rows = objectives.jacobian(jnp.float32)
        return h, gradient, objectives.task_weights(m), jnp.sum(rows * m[:, None], 0)

    h, expected, weights, product = numbers(jnp.asarray(losses, jnp.float32))
    assert float(h[0]) == pytest.approx(float(h[1]), rel=1e-6)
    # The weights are the gradient of m'h in the losses.
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_allclose(product, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    slow_but([("pairs", 1e-6)], [("pairs", 1e-6), ("jaxopt", 1e-5)]),
)
def test_dual_program_equals_enumeration(solver, tolerance):
    rng = np.random.default_rng(1)
    solve_qp = jax.jit(functools.partial(simplex_qp, solver=solver))
    for case in range(40):
        rows = rng.normal(size=(4, 9)) * 10 ** rng.uniform(-1, 1, (4, 1))
        if case % 4 == 1:
            rows[2] = rows[1]  # duplicates
        if case % 4 == 2:
            rows[3] = 0  # a zero gradient
        matrix, linear = rows @ rows.T, rng.normal(size=4) * 10 ** rng.uniform(-1, 2)
        exact = by_enumeration(matrix, linear)
        scale = np.abs(matrix).max() + np.ptp(linear)
        solution = solve_qp(
            jnp.asarray(matrix, jnp.float32), jnp.asarray(linear, jnp.float32)
        )
        weights = np.asarray(solution.value, np.float64)
        assert weights.min() >= 0 and weights.sum() == pytest.approx(1, abs=1e-6)
        values = [0.5 * w @ matrix @ w - linear @ w for w in (weights, exact)]
        assert values[0] - values[1] <= tolerance * scale
        assert solution.ok or solver == "jaxopt"


def test_dual_program_at_the_edges():
    run = jax.jit(simplex_qp)
    zero = jnp.zeros((2, 2))
    np.testing.assert_allclose(run(zero, jnp.array([1.0, 3.0])).value, [0, 1])
    np.testing.assert_allclose(run(zero, jnp.zeros(2)).value, [0.5, 0.5])
    big = run(1e30 * jnp.eye(2), jnp.array([0.0, 1e30]))
    np.testing.assert_allclose(big.value, [0, 1], atol=1e-6)
    broken = run(jnp.nan * jnp.eye(2), jnp.zeros(2))
    np.testing.assert_allclose(broken.value, [0.5, 0.5])
    assert not broken.ok
    with pytest.raises(ValueError, match="must have shape"):
        simplex_qp(jnp.eye(3), jnp.zeros(2))
    with pytest.raises(ValueError, match="solver must be one of"):
        simplex_qp(jnp.eye(2), jnp.zeros(2), solver="osqp")


def test_preference_grids():
    grid = pareto.mdmtn_preferences()
    assert grid.shape == (90, 3) and len(np.unique(grid.round(9), axis=0)) == 90
    np.testing.assert_allclose(grid.sum(axis=1), 1, atol=1e-15)
    assert (grid >= 0).all()
    counts = [int((grid[:, 0] == k0).sum()) for k0 in (0, 0.1, 1e-2, 1e-3, 1e-4)]
    assert counts == [19, 17, 18, 18, 18]
    assert (np.abs(grid - [1e-3, 0.2, 0.799]).max(axis=1) < 1e-12).any()
    draws = pareto.dirichlet_preferences(2000, 3, concentration=2.0)
    np.testing.assert_allclose(draws.mean(axis=0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(draws.var(axis=0), 2 / (9 * 7), rtol=0.1)
    with pytest.raises(ValueError, match="concentration must lie"):
        pareto.dirichlet_preferences(3, 2, concentration=0.0)


@pytest.mark.parametrize("method", METHODS)
def test_bad_input(method):
    make = getattr(mtl_jax, method)
    with pytest.raises(ValueError, match=r"must lie on the simplex.*sum 1.5"):
        make(2, importance=[0.5, 1.0])
    with pytest.raises(ValueError, match="must lie on the simplex"):
        make(2, importance=[-0.5, 1.5])
    with pytest.raises(ValueError, match="2 finite numbers"):
        make(2, importance=[1.0])
    with pytest.raises(ValueError, match="epsilon must lie in"):
        make(2, epsilon=-1.0)
    tx = make(2, reference=[0.0, 0.5])
    params = jnp.zeros(3)
    losses = jnp.array([1.0, 0.3])
    with pytest.raises(ValueError, match="reference must lie below every loss"):
        tx.update(jnp.ones((2, 3)), tx.init(params), params, losses=losses)
    _, state = jax.jit(tx.update)(
        jnp.ones((2, 3)), tx.init(params), params, losses=losses
    )
    assert optax.tree.get(state, "below_reference") == 1
    with pytest.raises(ValueError, match="needs the task losses"):
        tx.update(jnp.ones((2, 3)), tx.init(params), params)


def test_bad_options():
    with pytest.raises(ValueError, match="step_size must lie in"):
        mtl_jax.chebyshev(2, step_size=0.0)
    with pytest.raises(ValueError, match="solver must be one of"):
        mtl_jax.chebyshev(2, solver="osqp")
    with pytest.raises(ValueError, match="mode must be one of"):
        mtl_jax.chebyshev_al(2, mode="equality")
    with pytest.raises(ValueError, match="every must be"):
        mtl_jax.chebyshev_al(2, every=0)
    with pytest.raises(ValueError, match="max_penalty must lie in"):
        mtl_jax.chebyshev_al(2, penalty=5.0, max_penalty=1.0)
