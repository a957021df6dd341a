"""MINRES and CG: SciPy's iterates, stops, scales, singular systems, bad input."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

from mtl_jax.solvers import cg, minres
from mtl_jax.solvers.krylov import (
    CONVERGED,
    LEAST_SQUARES,
    MAXITER,
    NEGATIVE_CURVATURE,
    NOT_FINITE,
)
from tests.helpers import slow_but
from tests.jaxprs import loops, primitives

N = 8
MAXITERS = 12
METHODS = {"minres": minres, "cg": cg}
SPECTRA = {
    "definite": [0.5, 1, 1.5, 2, 3, 4, 6, 8],
    "clustered": [1, 1, 1, 2, 2, 2, 5, 5],
    "indefinite": [-4, -2, -1, 0.7, 1, 2, 3, 5],
    "singular": [0, 0, -2, 1, 1.5, 2, 3, 4],
}


def symmetric(spectrum, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(len(spectrum), len(spectrum))))[0]
    matrix = (basis * np.asarray(spectrum, float)) @ basis.T
    return (matrix + matrix.T) / 2


def system(name, seed=0):
    """A symmetric matrix and a right-hand side in its range."""
    matrix = symmetric(SPECTRA[name], seed)
    return matrix, matrix @ np.random.default_rng(seed + 1).normal(size=N)


@functools.cache
def compiled(method, warm, maxiter=MAXITERS):
    """One program for all systems of a size: everything but ``maxiter`` is traced."""

    def run(matrix, b, x0, damping, tol):
        return METHODS[method](
            lambda v: jnp.matmul(matrix, v, precision="highest"),
            b,
            x0=x0 if warm else None,
            damping=damping,
            maxiter=maxiter,
            tol=tol,
        )

    return jax.jit(run)


def solve(matrix, b, method="minres", *, x0=None, damping=0.0, tol=1e-5, dtype=None):
    dtype = dtype or jnp.float32
    b = jnp.asarray(b, dtype)
    start = jnp.zeros_like(b) if x0 is None else jnp.asarray(x0, dtype)
    matrix = jnp.asarray(matrix, dtype)
    return compiled(method, x0 is not None)(
        matrix, b, start, jnp.asarray(damping, dtype), jnp.asarray(tol, dtype)
    )


def scipy_iterate(method, matrix, b, k, x0=None):
    if method == "minres":
        return scipy.sparse.linalg.minres(matrix, b, x0=x0, rtol=0, maxiter=k)[0]
    return scipy.sparse.linalg.cg(matrix, b, x0=x0, rtol=0, atol=0, maxiter=k)[0]


@functools.cache
def batched(method, maxiter, warm=False):
    def run(matrix, b, x0):
        x, info = METHODS[method](
            lambda v: matrix @ v, b, x0=x0 if warm else None, maxiter=maxiter, tol=0
        )
        return x, info, jnp.linalg.norm(b - matrix @ x)

    return jax.jit(jax.vmap(run))


@functools.cache
def cases(method):
    names = SPECTRA if method == "minres" else ("definite", "clustered")
    systems = [system(name, seed) for name in names for seed in range(3)]
    return systems, *(np.stack(part) for part in zip(*systems, strict=True))


@pytest.mark.parametrize(
    "method, k",
    slow_but(
        [("minres", 1), ("minres", 3), ("minres", N), ("cg", 3)],
        [(method, k) for method in METHODS for k in range(1, N + 1)],
    ),
)
def test_every_iterate_is_scipys(x64, method, k):
    systems, matrices, rhs = cases(method)
    x, info, true = batched(method, k)(matrices, rhs, rhs)
    for i, (matrix, b) in enumerate(systems):
        expected = scipy_iterate(method, matrix, b, k)
        np.testing.assert_allclose(x[i], expected, atol=1e-8, err_msg=f"system {i}")
    chex.assert_shape(info.residual_norms, (len(systems), k + 1))
    np.testing.assert_allclose(info.residual_norm, true, atol=1e-11)
    if method == "minres":
        assert np.all(np.diff(info.residual_norms, axis=1) <= 0)
    if k < 3:  # the clustered spectrum has three eigenvalues
        assert np.all(info.stop == MAXITER) and np.all(info.iterations == k)
    if k == N:
        assert np.all(true <= 1e-9)


@pytest.mark.slow
def test_warm_iterates_are_scipys(x64):
    rng = np.random.default_rng(5)
    systems = [system(name) for name in ("definite", "indefinite")]
    matrices, rhs = (np.stack(part) for part in zip(*systems, strict=True))
    starts = rng.normal(size=rhs.shape)
    x, info, _ = batched("minres", 4, warm=True)(matrices, rhs, starts)
    for i, (matrix, b) in enumerate(systems):
        expected = scipy_iterate("minres", matrix, b, 4, starts[i])
        np.testing.assert_allclose(x[i], expected, atol=1e-8)
        np.testing.assert_allclose(
            info.residual_norms[i, 0], np.linalg.norm(b - matrix @ starts[i])
        )


@pytest.mark.parametrize("name", SPECTRA)
def test_minres_history(x64, name):
    matrix, b = system(name)
    x, info = solve(matrix, b, tol=0, dtype=jnp.float64)
    history = np.asarray(info.residual_norms)
    assert np.all(np.diff(history) <= 0)
    np.testing.assert_allclose(history[0], np.linalg.norm(b))
    np.testing.assert_allclose(history[-1], np.linalg.norm(b - matrix @ x), atol=1e-12)
    np.testing.assert_array_equal(history[int(info.iterations) :], info.residual_norm)
    # Least norm, as the right-hand side lies in the range and the start is zero.
    np.testing.assert_allclose(x, np.linalg.lstsq(matrix, b)[0], atol=1e-10)
    # In exact arithmetic one iteration for each distinct nonzero eigenvalue.
    distinct = len(set(SPECTRA[name]) - {0})
    assert history[distinct] <= 1e-12 and info.iterations <= distinct + 2
    assert info.stop == CONVERGED
    assert bool(info.negative_curvature) == (min(SPECTRA[name]) < 0)


@pytest.mark.parametrize("name", SPECTRA)
def test_minres_in_float32(name):
    matrix, b = system(name)
    x, info = solve(matrix, b)
    residual = np.linalg.norm(b - matrix @ np.asarray(x, float))
    assert info.stop == CONVERGED
    assert np.all(np.diff(info.residual_norms) <= 0)
    assert residual <= 2e-5 * np.linalg.norm(b)
    assert x.dtype == info.residual_norm.dtype == jnp.float32
    assert info.iterations.dtype == info.stop.dtype == jnp.int32


@pytest.mark.parametrize("method", METHODS)
def test_stops(method):
    matrix, b = system("definite")
    loose = solve(matrix, b, method, tol=0.1)[1]
    tight = solve(matrix, b, method, tol=1e-4)[1]
    assert loose.stop == tight.stop == CONVERGED
    assert loose.iterations < tight.iterations
    b_norm = np.linalg.norm(b)
    assert loose.residual_norm <= 0.1 * b_norm < loose.residual_norms[0]
    assert loose.residual_norms[int(loose.iterations) - 1] > 0.1 * b_norm


@pytest.mark.parametrize("method", METHODS)
def test_damping_is_a_shifted_matrix(x64, method):
    matrix, b = system("definite")
    damped = solve(matrix, b, method, damping=0.7, dtype=jnp.float64)
    shifted = solve(matrix + 0.7 * np.eye(N), b, method, dtype=jnp.float64)
    np.testing.assert_allclose(damped[0], shifted[0], rtol=1e-9)
    np.testing.assert_allclose(
        damped[1].residual_norms[:7], shifted[1].residual_norms[:7], rtol=1e-9
    )
    matrix, b = system("indefinite")
    x, info = solve(matrix, b, method, damping=4.5, tol=1e-12, dtype=jnp.float64)
    np.testing.assert_allclose(matrix @ x + 4.5 * x, b, atol=1e-10)
    assert not info.negative_curvature


@pytest.mark.parametrize("method", METHODS)
def test_warm_starts(method):
    matrix, b = system("definite")
    exact = np.linalg.solve(matrix, b)
    x, info = solve(matrix, b, method, x0=exact)
    assert info.iterations == 0 and info.stop == CONVERGED
    np.testing.assert_array_equal(x, exact.astype(np.float32))
    near, info = solve(matrix, b, method, x0=exact + 1e-2)
    assert 0 < info.iterations <= N
    np.testing.assert_allclose(near, exact, atol=1e-4)
    # Zeros given are zeros by default.
    chex.assert_trees_all_close(
        solve(matrix, b, method, x0=np.zeros(N)), solve(matrix, b, method), rtol=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_zero_right_hand_side(method):
    matrix, _ = system("definite")
    for x0 in (None, np.ones(N)):
        x, info = solve(matrix, np.zeros(N), method, x0=x0)
        np.testing.assert_array_equal(x, 0)
        np.testing.assert_array_equal(info.residual_norms, 0)
        assert info.iterations == 0 and info.stop == CONVERGED


@pytest.mark.parametrize("method", METHODS)
def test_breakdown_at_an_eigenvector(method):
    # beta is zero after one step: the next Lanczos vector does not exist.
    b = np.zeros(N)
    b[1] = 6
    x, info = solve(np.diag(np.arange(2.0, N + 2)), b, method, tol=0)
    np.testing.assert_allclose(x, b / 3, rtol=1e-6)
    assert info.iterations == 1 and info.stop == CONVERGED
    assert info.residual_norm <= 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_of_an_inconsistent_system(x64, seed):
    matrix, b = system("singular", seed)
    values, basis = np.linalg.eigh(matrix)
    null = basis[:, np.argmin(np.abs(values))]
    exact = np.linalg.pinv(matrix, rcond=1e-10) @ b
    for dtype, tol, atol in (
        (jnp.float64, 0, 1e-8),
        (jnp.float64, 1e-6, 1e-4),
        (jnp.float32, 1e-3, 1e-2),
    ):
        x, info = solve(matrix, b + 2 * null, tol=tol, dtype=dtype)
        assert info.stop == LEAST_SQUARES and info.iterations <= 7
        np.testing.assert_allclose(info.residual_norm, 2, rtol=1e-6)
        # A part along the residual, here 2 null, stays in MINRES's solution.
        least = x - (null @ x) * null
        np.testing.assert_allclose(least, exact, atol=atol)
        residual = b + 2 * null - matrix @ x
        lifted = x - (residual @ x) / (residual @ residual) * residual
        np.testing.assert_allclose(lifted, exact, atol=atol)
    # Rounding hides it from a smaller tolerance, but the iterates do not run away.
    x, info = solve(matrix, b + 2 * null, tol=0)
    assert info.stop == LEAST_SQUARES
    assert np.linalg.norm(x) <= 1e6 * np.linalg.norm(b)
    x, info = solve(np.zeros((N, N)), b, dtype=jnp.float64)
    np.testing.assert_array_equal(x, 0)
    assert info.stop == LEAST_SQUARES and info.iterations == 1


def test_cg_at_zero_curvature():
    # The second direction lies in the null space.
    b = np.zeros(N)
    b[:2] = [1, 2]
    x, info = solve(np.diag([2.0] + [0.0] * (N - 1)), b, "cg")
    assert info.stop == NEGATIVE_CURVATURE and info.negative_curvature
    chex.assert_tree_all_finite((x, info))


def test_cg_returns_the_iterate_before_negative_curvature(x64):
    matrix, b = system("indefinite")
    x, info = solve(matrix, b, "cg", dtype=jnp.float64)
    assert info.stop == NEGATIVE_CURVATURE and info.negative_curvature
    steps = int(info.iterations) - 1
    expected = scipy_iterate("cg", matrix, b, steps) if steps else np.zeros(N)
    np.testing.assert_allclose(x, expected, atol=1e-12)
    np.testing.assert_allclose(info.residual_norm, np.linalg.norm(b - matrix @ x))
    x, info = solve(-np.eye(N), b, "cg", x0=np.ones(N), dtype=jnp.float64)
    np.testing.assert_array_equal(x, 1)
    assert info.iterations == 1 and info.negative_curvature


def zdt2(x):
    """Hessian and Jacobian of the ZDT2 variant at a Pareto point, in closed form."""
    u, c = (1 + np.sin(x[0] + np.pi)) / 2, np.cos(x[0] + np.pi)
    w, r = np.array([1, 2 * x[1], 2 * x[2]]), np.array([0, 2 * x[1], 2 * x[2]])
    hessian = 4.5 * (1 + u**2) * np.outer(r, r) - c**2 / 2 * np.outer(w, w)
    return hessian / (1 + 2 * u), np.stack([c * w / 2, -u * c * w])


def test_zdt2_tangent(x64):
    x0 = np.array([-3.53573649, -1.68814502, 0.54014723])
    hessian, jacobian = zdt2(x0)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(hessian), [-0.28856, 0, 35.0228], rtol=1e-4, atol=1e-7
    )
    run = jax.jit(
        lambda b: [s(lambda v: hessian @ v, b, maxiter=2) for s in (minres, cg)]
    )
    for beta in ([1.0, 0.0], [0.0, 1.0], [-1.3, 0.4]):
        (x, info), (last, failed) = run(beta @ jacobian)
        direction = np.asarray(x) / np.linalg.norm(x)
        np.testing.assert_allclose(np.abs(direction), [1, 0, 0], atol=1e-12)
        assert info.iterations == 2 and info.negative_curvature
        assert info.stop == CONVERGED
        assert failed.stop == NEGATIVE_CURVATURE and failed.iterations == 2
        assert failed.negative_curvature
        chex.assert_tree_all_finite(last)


@pytest.mark.parametrize("method", slow_but(("minres",), METHODS))
def test_right_hand_sides_by_vmap(method):
    matrix, b = system("definite")
    eigenvector = np.linalg.eigh(matrix)[1][:, 3]
    # Different numbers of iterations, down to none.
    rhs = np.stack([b, 0 * b, 1e-15 * eigenvector, 1e10 * b]).astype(np.float32)
    matrix = jnp.asarray(matrix, jnp.float32)

    @jax.jit
    @jax.vmap
    def together(b):
        matvec = lambda v: jnp.matmul(matrix, v, precision="highest")  # noqa: E731
        return METHODS[method](matvec, b, maxiter=MAXITERS, tol=1e-3)

    x, info = together(rhs)
    for i, b in enumerate(rhs):
        single, single_info = solve(matrix, b, method, tol=1e-3)
        assert info.iterations[i] == single_info.iterations
        assert info.stop[i] == single_info.stop
        scale = max(np.abs(single).max(), 1e-30)
        np.testing.assert_allclose(x[i] / scale, single / scale, atol=1e-5)
    np.testing.assert_array_equal(x[1], 0)


@pytest.mark.parametrize("exponent", [-100, -50, 50, 100])
@pytest.mark.parametrize("method", METHODS)
def test_scale_of_the_right_hand_side(method, exponent):
    # Powers of two, about 1e15 and 1e30, scale without any rounding.
    matrix, b = system("definite")
    base, info = solve(matrix, b, method)
    scaled, scaled_info = solve(matrix, b * 2.0**exponent, method)
    scale = np.float32(2.0**exponent)
    np.testing.assert_allclose(scaled / scale, base, rtol=1e-6)
    np.testing.assert_allclose(
        scaled_info.residual_norms / scale, info.residual_norms, rtol=1e-6
    )
    assert info.iterations == scaled_info.iterations
    assert info.stop == scaled_info.stop == CONVERGED


@pytest.mark.parametrize("exponent", [-50, 50])
@pytest.mark.parametrize("method", METHODS)
def test_scale_of_the_matrix(method, exponent):
    matrix, b = system("definite")
    base, info = solve(matrix, b, method)
    scaled, scaled_info = solve(matrix * 2.0**exponent, b, method)
    np.testing.assert_allclose(scaled * np.float32(2.0**exponent), base, rtol=1e-6)
    assert info.iterations == scaled_info.iterations
    assert info.stop == scaled_info.stop == CONVERGED


def test_solution_out_of_range():
    matrix, b = system("definite")
    x, info = solve(matrix * 1e-15, b * 1e30)
    chex.assert_tree_all_finite((x, info))
    assert info.stop == NOT_FINITE
    np.testing.assert_array_equal(x, 0)
    assert info.residual_norm == info.residual_norms[0]


@functools.cache
def chain(method):
    """From e_1 the Krylov vectors reach entry 2, which breaks it, in the third product."""
    matrix = np.diag(np.full(N, 4.0)) + np.diag(np.ones(N - 1), 1)
    matrix = jnp.asarray(matrix + np.diag(np.ones(N - 1), -1), jnp.float32)

    @jax.jit
    def run(bad):
        def matvec(v):
            return matrix @ v + jnp.where(jnp.abs(v[2]) > 1e-6, bad, 0)

        return METHODS[method](matvec, jnp.zeros(N).at[0].set(1), maxiter=6)

    return run


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_matvec_that_breaks(method, bad):
    x, info = chain(method)(bad)
    assert info.stop == NOT_FINITE and info.iterations == 3
    chex.assert_tree_all_finite((x, info))
    # The iterate of the second iteration, in the span of e_1 and e_2, and its residual.
    residual = np.array([1 - 4 * x[0] - x[1], -x[0] - 4 * x[1], -x[1]])
    np.testing.assert_allclose(info.residual_norm, np.linalg.norm(residual), rtol=1e-4)
    np.testing.assert_array_equal(info.residual_norms[2:], info.residual_norm)
    assert np.all(x[:2] != 0) and np.all(x[2:] == 0)
    whole = chain(method)(0.0)[1]
    np.testing.assert_allclose(whole.residual_norms[2], info.residual_norm, rtol=1e-6)
    assert whole.residual_norm < 0.1 * info.residual_norm


@pytest.mark.parametrize("method", METHODS)
def test_input_that_is_not_finite(method):
    matrix, b = system("definite")
    broken = np.where(np.arange(N) == 3, np.nan, b)
    x, info = solve(matrix, broken, method, x0=np.ones(N))
    np.testing.assert_array_equal(x, 1)
    assert info.stop == NOT_FINITE and info.iterations == 0
    assert np.all(np.isposinf(info.residual_norms))
    for arguments in (dict(b=b, x0=broken), dict(b=broken), dict(b=b, damping=np.nan)):
        x, info = solve(matrix, arguments.pop("b"), method, **arguments)
        np.testing.assert_array_equal(x, 0)
        assert info.stop == NOT_FINITE and not np.isnan(info.residual_norm)
    x, info = solve(matrix * np.nan, b, method, x0=b)
    np.testing.assert_array_equal(x, b.astype(np.float32))
    assert info.stop == NOT_FINITE


def tree_of(vector, dtype=jnp.float32):
    vector = jnp.asarray(vector, dtype)
    return {"a": vector[:6].reshape(2, 3), "b": (vector[6], [vector[7:]])}


def flat_of(tree):
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves)


@pytest.mark.parametrize("method", slow_but(("minres",), METHODS))
def test_pytrees(method):
    matrix, b = system("definite")
    weak = jnp.asarray(matrix, jnp.float32)

    @jax.jit
    def run(b, x0):
        return METHODS[method](
            lambda v: tree_of(weak @ flat_of(v)), b, x0=x0, maxiter=MAXITERS
        )

    x, info = run(tree_of(b), tree_of(np.ones(N)))
    flat, flat_info = solve(matrix, b, method, x0=np.ones(N))
    assert jax.tree.structure(x) == jax.tree.structure(tree_of(b))
    np.testing.assert_allclose(flat_of(x), flat, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        info.residual_norms[:6], flat_info.residual_norms[:6], rtol=1e-3
    )


@pytest.mark.parametrize("method", slow_but(("minres",), METHODS))
def test_low_precision_leaves(method):
    size = 3000
    diagonal = jnp.linspace(1, 2, size, dtype=jnp.bfloat16)
    b = {"w": jnp.ones(size, jnp.bfloat16), "s": jnp.ones((), jnp.float16)}
    seen = []

    def matvec(v):
        seen.append(v["w"].dtype)
        return {"w": diagonal * v["w"], "s": v["s"]}

    x, info = jax.jit(lambda b: METHODS[method](matvec, b, maxiter=4, tol=1e-2))(b)
    assert x["w"].dtype == seen[0] == jnp.bfloat16 and x["s"].dtype == jnp.float16
    assert info.residual_norm.dtype == jnp.float32
    # A bfloat16 sum of 3000 ones would stop at 256.
    np.testing.assert_allclose(info.residual_norms[0], 3001**0.5, rtol=1e-6)
    np.testing.assert_allclose(
        x["w"].astype(np.float32), 1 / diagonal.astype(np.float32), rtol=2e-2
    )
    assert info.stop == CONVERGED


def test_mixed_widths(x64):
    b = {"single": jnp.ones(3, jnp.float32), "double": jnp.ones(2, jnp.float64)}
    double = functools.partial(jax.tree.map, lambda leaf: 2 * leaf)
    x, info = jax.jit(lambda b: minres(double, b, maxiter=3))(b)
    assert x["single"].dtype == jnp.float32 and x["double"].dtype == jnp.float64
    assert info.residual_norm.dtype == jnp.float64
    chex.assert_trees_all_close(x, jax.tree.map(lambda leaf: leaf / 2, b))


@pytest.mark.parametrize("method", METHODS)
def test_no_host_round_trip(method):
    matrix, b = system("definite")
    matrix, b = jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32)

    def run(b, tol, damping):
        return METHODS[method](
            lambda v: matrix @ v, b, tol=tol, damping=damping, maxiter=5
        )

    jaxpr = jax.make_jaxpr(run)(b, 1e-3, 0.1).jaxpr
    names = primitives(jaxpr)
    assert not [n for n in names if "callback" in n or "feed" in n or "print" in n]
    assert names.count("while") == 1 and len(loops(jaxpr)) == 1
    assert primitives(loops(jaxpr)[0]).count("dot_general") == 1


def test_one_program_for_all_tolerances():
    matrix, b = system("definite")
    solve(matrix, b)
    before = compiled("minres", False)._cache_size()
    solve(2 * matrix, -b, damping=0.3, tol=1e-2)
    assert compiled("minres", False)._cache_size() == before


@hypothesis.given(
    entries=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2 * N, max_size=2 * N),
    rank=st.integers(0, N),
    damping=st.sampled_from([0.0, 0.1, -1.0]),
)
def test_never_nan(entries, rank, damping):
    spectrum = np.where(np.arange(N) < rank, entries[:N], 0)
    for method in METHODS:
        for x0 in (None, np.asarray(entries[N:][::-1])):
            x, info = solve(
                symmetric(spectrum), entries[N:], method, x0=x0, damping=damping
            )
            chex.assert_tree_all_finite((x, info))
            assert CONVERGED <= info.stop <= NEGATIVE_CURVATURE
            if method == "minres":
                assert np.all(np.diff(info.residual_norms) <= 0)


def test_bad_arguments():
    b = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    for method in METHODS.values():

        def solver(*args, method=method, **options):
            jax.eval_shape(lambda: method(*args, **options))  # tracing is enough

        with pytest.raises(
            ValueError, match=r"leaf 'a' of matvec\(b\) has shape \(3, 2\)"
        ):
            solver(lambda v: {**v, "a": v["a"].T}, b)
        with pytest.raises(ValueError, match="lacks the leaf 'b' of b"):
            solver(lambda v: {"a": v["a"]}, b)
        with pytest.raises(ValueError, match="a leaf 'c' that b lacks"):
            solver(lambda v: {**v, "c": v["b"]}, b)
        with pytest.raises(ValueError, match=r"leaf 'b' of x0 has shape \(4,\)"):
            solver(lambda v: v, b, x0={**b, "b": jnp.ones(4)})
        with pytest.raises(ValueError, match="leaf 'b' of b has dtype int32"):
            solver(lambda v: v, {**b, "b": jnp.ones(3, jnp.int32)})
        with pytest.raises(ValueError, match=r"leaf 'a' of matvec\(b\) has dtype bool"):
            solver(lambda v: {**v, "a": v["a"] > 0}, b)
        with pytest.raises(ValueError, match="structure"):
            solver(lambda v: list(v), (jnp.ones(3),))
        with pytest.raises(ValueError, match="b has no leaves"):
            solver(lambda v: v, {})
        for maxiter in (0, -1, 2.5, None):
            with pytest.raises(ValueError, match="maxiter must be a Python integer"):
                solver(lambda v: v, b, maxiter=maxiter)
        for tol in (-1e-9, float("nan")):
            with pytest.raises(ValueError, match="tol must lie in"):
                solver(lambda v: v, b, tol=tol)
