"""Min-norm point on the simplex: exact references, closed forms, degenerate inputs."""

import functools
import itertools
import subprocess
import sys

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.solvers import min_norm_point
from mtl_jax.solvers.qp import nonnegative_qp
from tests.helpers import slow_but
from tests.references import simplex as reference

EXACT = ("active_set", "closed_form")
ALL = ("active_set", "closed_form", "jaxopt", "frank_wolfe")
# float32 rounds the Gramian, so the update keeps about 1e-6 on these problems; float64
# leaves 1e-14. The bounds are what the library promises.
TOLERANCE = {jnp.float32: 1e-4, jnp.float64: 1e-8}


def gramian(jacobian):
    return jnp.matmul(jacobian, jacobian.T, precision="highest")


@functools.cache
def solver_of(name):
    return jax.jit(functools.partial(min_norm_point, solver=name))


def solve(jacobian, solver="active_set", dtype=jnp.float32):
    return solver_of(solver)(gramian(jnp.asarray(jacobian, dtype)))


def update_error(jacobian, weights, expected):
    """Relative error of the combined update, computed in float64."""
    jacobian = np.asarray(jacobian, np.float64)
    update, exact = (np.asarray(w, np.float64) @ jacobian for w in (weights, expected))
    return np.linalg.norm(update - exact) / max(np.linalg.norm(exact), 1e-300)


def check_simplex(weights):
    chex.assert_tree_all_finite(weights)
    assert np.all(weights >= 0)
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-5)


def check_well_posed(dtype, solver, seed, tolerance, sizes=(1, 2, 3, 5, 10, 40)):
    for name, jacobian in reference.well_posed_problems(seed, sizes):
        jacobian = jnp.asarray(jacobian, dtype)
        solution = solve(jacobian, solver, dtype)
        check_simplex(solution.value)
        assert solution.ok, name
        assert solution.value.dtype == dtype
        expected = reference.min_norm_point(jacobian)
        weights = np.asarray(solution.value)
        # The update in the precision of the gradients, as a training step forms it.
        update = np.asarray(solution.value @ jacobian, np.float64)
        exact = expected @ np.asarray(jacobian, np.float64)
        scale = np.linalg.norm(exact)
        assert np.linalg.norm(update - exact) <= tolerance * scale, name
        if scale > 0:
            assert reference.kkt_residual(jacobian, weights) <= tolerance, name


SIZES = {"active_set": (1, 2, 3, 5, 10, 40), "closed_form": (1, 2)}


@pytest.mark.parametrize("solver", EXACT)
def test_well_posed_float32(solver):
    check_well_posed(jnp.float32, solver, 0, TOLERANCE[jnp.float32], SIZES[solver])


@pytest.mark.parametrize("solver", slow_but(("closed_form",), EXACT))
def test_well_posed_float64(solver, x64):
    check_well_posed(jnp.float64, solver, 1, TOLERANCE[jnp.float64], SIZES[solver])


def test_jaxopt_agrees_with_exact(x64):
    # ADMM stops at 1e-10 on the scaled problem: 2e-10 was seen on the update.
    check_well_posed(jnp.float64, "jaxopt", 2, 1e-8, sizes=(2, 10))


def test_jaxopt_float32():
    # Stops at 1e-6; 1.2e-4 was seen at T = 40 (conflicts, norms over 1e-3..1e3).
    check_well_posed(jnp.float32, "jaxopt", 3, 1e-3, sizes=(1, 3, 10))


def test_references_agree():
    for seed in range(2):
        for name, jacobian in reference.well_posed_problems(seed, (1, 2, 3, 5)):
            error = update_error(
                jacobian,
                reference.min_norm_by_enumeration(jacobian),
                reference.min_norm_point(jacobian),
            )
            # Bad scaling costs lstsq some digits of its float64.
            assert error < 1e-10, (name, error)


@pytest.mark.parametrize(
    "solver, sizes",
    [
        ("active_set", (2, 3, 5, 10, 40)),
        ("closed_form", (2,)),
        ("jaxopt", (3, 10)),
        ("frank_wolfe", (3, 10)),
    ],
)
def test_hard_problems_stay_finite(solver, sizes):
    for name, jacobian in reference.hard_problems(sizes=sizes):
        solution = solve(jacobian, solver)
        check_simplex(solution.value)
        if solver in EXACT:
            assert solution.ok, name
            # Within a small part of the shortest gradient of the best there is. The
            # Gramian resolves sqrt(eps) = 3e-4 of the weighted gradients' lengths.
            jacobian = np.asarray(jnp.asarray(jacobian, jnp.float32), np.float64)
            best = np.linalg.norm(reference.min_norm_point(jacobian) @ jacobian)
            weights = np.asarray(solution.value, np.float64)
            lengths = weights @ np.linalg.norm(jacobian, axis=1)
            assert np.linalg.norm(weights @ jacobian) <= best + 1e-3 * lengths, name


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    num_tasks=st.sampled_from([2, 3, 5]),
    dimension=st.integers(1, 5),
    spread=st.sampled_from([0, 1, 3]),
)
def test_random_integers_match_enumeration(seed, num_tasks, dimension, spread, x64):
    # Small integers give ties, parallel rows, zero rows and stationary points.
    rng = np.random.default_rng(seed)
    jacobian = rng.integers(-2, 3, size=(num_tasks, dimension)).astype(float)
    jacobian *= 10.0 ** rng.integers(-spread, spread + 1, size=(num_tasks, 1))
    solution = solve(jacobian, dtype=jnp.float64)
    check_simplex(solution.value)
    assert solution.ok
    expected = reference.min_norm_by_enumeration(jacobian)
    shortest = np.linalg.norm(jacobian, axis=1).min()
    error = (np.asarray(solution.value) - expected) @ jacobian
    # At a stationary point the norm is zero only to sqrt(eps) of the lengths summed.
    lengths = np.asarray(solution.value) @ np.linalg.norm(jacobian, axis=1)
    stationary = np.linalg.norm(expected @ jacobian) < 1e-9 * shortest
    bound = 1e-6 * lengths if stationary else 1e-9 * shortest
    assert np.linalg.norm(error) <= bound


GOLDEN = [
    ([[-4, 1, 1], [6, 1, 1]], [0.6, 0.4]),
    (
        [[1, 2, 0, -1], [-2, 1, 0.5, 0], [0.5, -0.5, 3, 1]],
        [0.386207, 0.372414, 0.241379],
    ),
    # Frank-Wolfe and the released code never stop on this one,
    ([[3, 3, 1], [-4, 2, -2], [3, 4, -1]], [0.54237, 0.45763, 0]),
    # and the released projected gradient stops at 0.0972 instead of 0.0405 here.
    (
        [[-4, 1, 3, 4], [0, -2, -2, -1], [4, -3, 0, -1], [4, 3, 1, -1]],
        [0.232414, 0.512662, 0, 0.254924],
    ),
    ([[1, 0], [0, 2**0.5], [0, 0]], [0, 0, 1]),
    ([[3, 0], [0, 1]], [0.1, 0.9]),
    ([[1, 0], [2, 1]], [1, 0]),
    ([[1, 0], [-1, 0]], [0.5, 0.5]),
]


@pytest.mark.parametrize("solver", ["auto", "active_set", "jaxopt"])
@pytest.mark.parametrize("jacobian, expected", GOLDEN)
def test_golden(jacobian, expected, solver):
    solution = solve(jacobian, solver)
    np.testing.assert_allclose(solution.value, expected, atol=2e-5)
    assert solution.ok


def test_golden_norm():
    jacobian = np.array(GOLDEN[3][0], float)
    update = np.asarray(solve(jacobian).value) @ jacobian
    np.testing.assert_allclose(update @ update, 0.0405, atol=5e-5)


@pytest.mark.parametrize("solver", ["active_set", "jaxopt", "frank_wolfe"])
def test_orthogonal_rows(solver):
    squares = jnp.array([1.0, 2.0, 4.0])
    solution = solver_of(solver)(jnp.diag(squares))
    np.testing.assert_allclose(solution.value, np.array([4, 2, 1]) / 7, atol=2e-3)
    if solver != "frank_wolfe":
        np.testing.assert_allclose(solution.value, np.array([4, 2, 1]) / 7, atol=1e-5)


@hypothesis.given(
    a=st.floats(1e-3, 1e3), b=st.floats(1e-3, 1e3), cosine=st.floats(-0.999, 0.999)
)
def test_two_tasks(a, b, cosine):
    first = (b * b - a * b * cosine) / (a * a + b * b - 2 * a * b * cosine)
    first = np.clip(first, 0, 1)
    gram = jnp.array([[a * a, a * b * cosine], [a * b * cosine, b * b]])
    for solver in EXACT:
        # Near-parallel rows of equal length lose digits in float32's 1 - cosine.
        np.testing.assert_allclose(
            solver_of(solver)(gram).value, [first, 1 - first], atol=3e-4
        )


@pytest.mark.parametrize("exponent", [-30, -12, 12, 30])
@pytest.mark.parametrize("solver", ["auto", "active_set", "jaxopt", "frank_wolfe"])
@pytest.mark.parametrize("num_tasks", [2, 3])
def test_common_scale_changes_nothing(exponent, solver, num_tasks):
    jacobian = np.random.default_rng(0).normal(size=(num_tasks, 8))
    gram = gramian(jnp.asarray(jacobian, jnp.float32))
    scaled = gram * jnp.float32(10.0**exponent)
    base, other = solver_of(solver)(gram), solver_of(solver)(scaled)
    np.testing.assert_allclose(base.value, other.value, atol=2e-5)
    assert base.ok == other.ok


@pytest.mark.parametrize("solver", ["auto", "active_set", "jaxopt", "frank_wolfe"])
def test_conventions(solver):
    solve_gram = solver_of(solver)
    one = solve_gram(jnp.array([[4.0]]))
    np.testing.assert_array_equal(one.value, [1])
    zeros = solve_gram(jnp.zeros((2, 2)))
    np.testing.assert_allclose(zeros.value, 1 / zeros.value.shape[0], rtol=1e-6)
    two_zero = solve_gram(jnp.diag(jnp.array([0.0, 4.0, 0.0])))
    np.testing.assert_array_equal(two_zero.value, [0.5, 0, 0.5])
    assert one.ok and zeros.ok and two_zero.ok


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("solver", ["auto", "active_set", "jaxopt", "frank_wolfe"])
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_non_finite_gives_uniform(bad, solver, num_tasks):
    solution = solver_of(solver)(jnp.eye(num_tasks).at[0, 0].set(bad))
    np.testing.assert_allclose(solution.value, 1 / num_tasks, rtol=1e-6)
    assert not solution.ok


@pytest.mark.parametrize(
    "gram", [[[1, 5], [5, 1]], [[-1, 0], [0, 1]], [[1, -9], [9, 1]]]
)
def test_no_gramian_at_all_stays_finite(gram):
    for solver in ALL:
        check_simplex(solver_of(solver)(jnp.asarray(gram, jnp.float32)).value)


def test_duplicates_share_equally():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3, 9)) + 0.3
    solution = solve(np.vstack([rows, rows[1:2], rows[1:2]]))
    distinct = solve(rows)
    assert distinct.value[1] > 0.1
    for index in (1, 3, 4):
        np.testing.assert_allclose(
            solution.value[index], distinct.value[1] / 3, rtol=5e-2
        )


@pytest.mark.parametrize("num_tasks", [3, 5])
def test_permutation_equivariance(num_tasks):
    for name, jacobian in reference.well_posed_problems(5, (num_tasks,)):
        if "low-rank" in name:
            continue  # more tasks than dimensions: the weights are not unique
        weights = np.asarray(solve(jacobian).value)
        for order in itertools.islice(itertools.permutations(range(num_tasks)), 1, 6):
            order = np.array(order)
            permuted = solve(jacobian[order]).value
            # Duplicates share their weight only to a few per cent.
            atol = 2e-2 if "duplicates" in name else 2e-5
            np.testing.assert_allclose(
                permuted, weights[order], atol=atol, err_msg=name
            )


def test_rotation_invariance():
    rng = np.random.default_rng(2)
    jacobian = rng.normal(size=(5, 7))
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    np.testing.assert_allclose(
        solve(jacobian).value, solve(jacobian @ rotation).value, atol=1e-5
    )


def test_ok_is_a_certificate():
    # Three steps of Frank-Wolfe are far from the optimum, and of the active set not.
    gram = gramian(jnp.asarray(GOLDEN[2][0], jnp.float32))
    assert not min_norm_point(gram, solver="frank_wolfe", max_iterations=3).ok
    short = min_norm_point(gram, solver="active_set", max_iterations=2)
    assert short.ok and short.iterations == 2
    # Rescaling one task must not hide the error of the others.
    scales = jnp.array([1.0, 1.0, 1e6])
    gram = gram * scales[:, None] * scales[None, :]
    assert not min_norm_point(gram, solver="frank_wolfe", max_iterations=3).ok


def test_frank_wolfe_converges():
    # Interior optimum: linear rate.
    jacobian = np.array(GOLDEN[1][0], float)
    solution = solve(jacobian, "frank_wolfe")
    np.testing.assert_allclose(solution.value, GOLDEN[1][1], atol=1e-5)
    assert solution.ok and solution.iterations <= 250


@pytest.mark.parametrize("solver", ["active_set", "jaxopt", "frank_wolfe"])
def test_transformations(solver):
    grams = jnp.stack(
        [
            gramian(jax.random.normal(key, (3, 6)))
            for key in jax.random.split(jax.random.key(0), 5)
        ]
    )
    one_by_one = [solver_of(solver)(gram) for gram in grams]
    values = jnp.stack([solution.value for solution in one_by_one])
    plain = functools.partial(min_norm_point, solver=solver)
    batched = jax.jit(jax.vmap(plain))(grams)
    scanned = jax.jit(
        lambda g: jax.lax.scan(lambda _, m: (None, plain(m)), None, g)[1]
    )(grams)
    for other in (batched, scanned):
        chex.assert_trees_all_close(other.value, values, atol=1e-5)
        assert jnp.all(other.ok == jnp.stack([solution.ok for solution in one_by_one]))


def test_jit_equals_eager():
    jacobian = reference.hard_problems(sizes=(3,))
    for name, rows in itertools.islice(jacobian, 2):
        gram = gramian(jnp.asarray(rows, jnp.float32))
        for solver in ("active_set", "frank_wolfe"):
            eager = min_norm_point(gram, solver=solver)
            weights = solver_of(solver)(gram).value
            np.testing.assert_allclose(eager.value, weights, atol=1e-4, err_msg=name)


def test_low_precision_and_integer_inputs():
    gram = jnp.array([[52, -22], [-22, 38]])
    for dtype in (jnp.int32, jnp.bfloat16, jnp.float16):
        solution = min_norm_point(gram.astype(dtype))
        assert solution.value.dtype == jnp.float32
        np.testing.assert_allclose(solution.value, [60 / 134, 74 / 134], rtol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"shape \(T, T\)"):
        min_norm_point(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="solver must be one of"):
        min_norm_point(jnp.eye(2), solver="newton")
    with pytest.raises(ValueError, match="T = 3"):
        min_norm_point(jnp.eye(3), solver="closed_form")
    with pytest.raises(ValueError, match="max_iterations"):
        min_norm_point(jnp.eye(3), max_iterations=0)


def test_nonnegative_qp():
    matrix = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    free = nonnegative_qp(matrix, jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(free.value, [2 / 3, 2 / 3], atol=1e-4)
    bound = nonnegative_qp(matrix, jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(bound.value, [1, 0], atol=1e-4)
    assert free.ok and bound.ok
    broken = nonnegative_qp(matrix * jnp.nan, jnp.ones(2))
    np.testing.assert_array_equal(broken.value, [0, 0])
    assert not broken.ok


@pytest.mark.slow
def test_jaxopt_is_imported_late_and_quietly():
    code = (
        "import sys, jax, jax.numpy as jnp\n"
        "jax.config.update('jax_numpy_rank_promotion', 'raise')\n"
        "from mtl_jax.solvers import min_norm_point\n"
        "assert 'jaxopt' not in sys.modules\n"
        "min_norm_point(jnp.eye(3), solver='jaxopt')\n"
        "assert 'jaxopt' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
