"""Hessian-vector products: exactness, batches, heads, and what a solve repeats."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mtl_jax.pareto import batched_hvp, hvp
from mtl_jax.solvers import cg, minres
from mtl_jax.solvers.krylov import CONVERGED
from tests.jaxprs import equations, loops, primitives
from tests.networks import is_head, mlp

TASKS = 2
WEIGHTS = (0.3, 0.7)


def weights():
    return jnp.array(WEIGHTS)


def weighted(losses):
    return jnp.array(WEIGHTS, losses.dtype) @ losses


@functools.cache
def problem(dtype):
    """Parameters, a batch, losses, and the Hessian of the weighted loss ``(P, P)``."""
    params, batch, losses_fn = mlp(TASKS, examples=6, inputs=3, width=4, dtype=dtype)
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def hessian(flat, batch):
        return jax.hessian(lambda p: weighted(losses_fn(unravel(p), batch)))(flat)

    return params, batch, losses_fn, flat, unravel, hessian


@functools.cache
def product(dtype, heads=None):
    """Jitted ``v -> H v`` on flat vectors."""
    params, batch, losses_fn, _, unravel, _ = problem(dtype)

    @jax.jit
    def run(v):
        matvec = hvp(losses_fn, params, weights(), batch, heads=heads)
        return ravel_pytree(matvec(unravel(v)))[0]

    return run


def directions(flat, count=3, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, *flat.shape)), flat.dtype)


def split_batch(batch, count):
    """Cuts the examples into ``count`` equal batches on a leading axis."""
    return {
        "x": batch["x"].reshape(count, -1, batch["x"].shape[-1]),
        "y": jnp.moveaxis(batch["y"].reshape(TASKS, count, -1), 1, 0),
    }


def test_equals_the_hessian(x64):
    _, batch, _, flat, _, hessian = problem("float64")
    exact = hessian(flat, batch)
    for v in directions(flat):
        np.testing.assert_allclose(product("float64")(v), exact @ v, atol=1e-12)


def test_float32_equals_the_hessian():
    _, batch, _, flat, _, hessian = problem("float32")
    exact = hessian(flat, batch)
    v = directions(flat)[0]
    image = product("float32")(v)
    assert image.dtype == jnp.float32
    np.testing.assert_allclose(image, exact @ v, rtol=1e-4, atol=1e-4)


def test_equals_central_differences(x64):
    _, batch, losses_fn, flat, unravel, _ = problem("float64")
    gradient = jax.jit(jax.grad(lambda p: weighted(losses_fn(unravel(p), batch))))
    v, step = directions(flat)[0], 1e-5
    difference = (gradient(flat + step * v) - gradient(flat - step * v)) / (2 * step)
    np.testing.assert_allclose(product("float64")(v), difference, rtol=1e-6, atol=1e-7)


def test_linear_and_symmetric(x64):
    flat = problem("float64")[3]
    u, v, w = directions(flat)
    run = product("float64")
    np.testing.assert_allclose(run(2 * u - 3 * v), 2 * run(u) - 3 * run(v), atol=1e-11)
    np.testing.assert_allclose(w @ run(v), v @ run(w), rtol=1e-12)
    np.testing.assert_array_equal(run(0 * u), 0)


def test_vmap_over_directions():
    flat = problem("float32")[3]
    v = directions(flat)
    run = product("float32")
    np.testing.assert_allclose(jax.vmap(run)(v), [run(row) for row in v], atol=1e-4)


@pytest.mark.parametrize("heads", [None, is_head])
def test_batches_average_to_the_full_data(x64, heads):
    params, batch, losses_fn, flat, unravel, _ = problem("float64")

    @jax.jit
    def run(v):
        return [
            ravel_pytree(matvec(unravel(v)))[0]
            for matvec in (
                batched_hvp(
                    losses_fn,
                    params,
                    weights(),
                    (split_batch(batch, count),),
                    heads=heads,
                )
                for count in (1, 2, 6)
            )
        ]

    v = directions(flat)[0]
    for image in run(v):
        np.testing.assert_allclose(image, product("float64", heads)(v), atol=1e-12)


def test_heads_held_fixed(x64):
    params, batch, _, flat, unravel, hessian = problem("float64")
    moving = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full_like(leaf, path[0].key != "heads"), params
    )
    keep = ravel_pytree(moving)[0]
    v = directions(flat)[0]
    expected = keep * (hessian(flat, batch) @ (keep * v))
    image = product("float64", is_head)(v)
    np.testing.assert_allclose(image, expected, atol=1e-12)
    np.testing.assert_array_equal(image[keep == 0], 0)
    chex.assert_trees_all_equal_structs(unravel(image), params)


def test_heads_as_a_mask():
    params, batch, losses_fn, flat, unravel, _ = problem("float32")
    mask = {"encoder": False, "heads": True}
    v = directions(flat)[0]
    image = jax.jit(
        lambda v: hvp(losses_fn, params, weights(), batch, heads=mask)(unravel(v))
    )(v)
    expected = unravel(product("float32", is_head)(v))
    chex.assert_trees_all_close(image, expected, rtol=1e-4, atol=1e-5)


def test_a_solve_runs_the_network_once():
    params, batch, losses_fn, *_ = problem("float32")

    def run(params, b):
        return minres(hvp(losses_fn, params, weights(), batch), b, maxiter=20)

    whole = jax.make_jaxpr(run)(params, params).jaxpr
    (body,) = loops(whole)
    # Two layers, two activations: none of them is evaluated in the loop ...
    assert primitives(whole).count("tanh") == 2
    assert "tanh" not in primitives(body)
    # ... whose matrix products are those of the linear map alone.
    _, linear = jax.linearize(jax.grad(lambda p: weighted(losses_fn(p, batch))), params)
    tangent = jax.make_jaxpr(linear)(params).jaxpr
    assert count_products(body) == count_products(tangent)
    assert "scan" not in primitives(whole)


def count_products(jaxpr):
    return primitives(jaxpr).count("dot_general")


def test_batches_keep_no_activations():
    """Between products nothing as large as all batches' activations is kept."""
    params, batch, losses_fn = mlp(TASKS, examples=40, inputs=3, width=16)
    batches = (split_batch(batch, 8),)

    def run(params, b):
        matvec = batched_hvp(losses_fn, params, weights(), batches)
        return minres(matvec, b, maxiter=20)

    jaxpr = jax.make_jaxpr(run)(params, params).jaxpr
    largest = max(
        variable.aval.size
        for equation in equations(jaxpr)
        for variable in equation.outvars
        if equation.primitive.name not in ("while", "scan", "jit")
    )
    assert largest < 40 * 16  # the data and parameters are smaller, one layer is not
    assert primitives(jaxpr).count("scan") == 1


def test_low_precision_parameters():
    params, batch, losses_fn = mlp(TASKS, dtype="bfloat16")
    batches = (jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), batch),)
    v = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)

    @jax.jit
    def run(v):
        one = hvp(losses_fn, params, weights(), batch)
        return one(v), batched_hvp(losses_fn, params, weights(), batches)(v)

    for image in run(v):
        chex.assert_trees_all_equal_shapes_and_dtypes(image, params)
        chex.assert_tree_all_finite(image)


MATRICES = np.array([[[1.0, 0], [0, 4]], [[3, 0], [0, 1]]])
CENTRES = np.array([[0.0, 0], [1, 1]])


def quadratics(x):
    shift = x[None] - CENTRES.astype(x.dtype)
    return jnp.einsum("ti,tij,tj->t", shift, MATRICES.astype(x.dtype), shift) / 2


@jax.jit
def tangents(x, alpha, betas, damping):
    """Solves ``H v = J' beta`` for every beta by both solvers; also H and J."""
    matvec = hvp(quadratics, x, alpha)
    jacobian = jax.jacobian(quadratics)(x)

    def solve(solver):
        options = dict(damping=damping, maxiter=4, tol=0)
        return jax.vmap(lambda beta: solver(matvec, beta @ jacobian, **options))(betas)

    hessian = jax.vmap(matvec)(jnp.eye(2, dtype=x.dtype))
    return solve(minres), solve(cg), hessian, jacobian


def check_quadratics(dtype, atol):
    x, half = jnp.array([0.75, 0.2], dtype), jnp.full(2, 0.5, dtype)
    # alpha itself asks for no motion, and may be added to any beta.
    betas = jnp.array([[1, 0], [2.5, 1.5], [0.5, 0.5]], dtype)
    *solutions, hessian, jacobian = tangents(x, half, betas, jnp.zeros((), dtype))
    np.testing.assert_allclose(hessian, np.diag([2, 2.5]), atol=atol)
    np.testing.assert_allclose(jacobian, [[0.75, 0.8], [-0.75, -0.8]], atol=atol)
    for v, info in solutions:
        expected = np.array([[0.375, 0.32], [0.375, 0.32], [0, 0]])
        np.testing.assert_allclose(v, expected, atol=atol)
        np.testing.assert_allclose(jacobian @ v[0], [0.53725, -0.53725], atol=atol)
        assert info.iterations[0] == 2 and info.stop[0] == CONVERGED
        assert not info.negative_curvature.any()
    damped = tangents(x, half, betas, jnp.asarray(0.1, dtype))[:2]
    for v, _ in damped:
        np.testing.assert_allclose(v[0], [0.75 / 2.1, 0.8 / 2.6], atol=atol)


def test_quadratics_in_float32():
    check_quadratics(jnp.float32, 1e-5)


def test_quadratics_in_float64(x64):
    check_quadratics(jnp.float64, 1e-10)


def test_bad_arguments():
    params, batch, losses_fn, *_ = problem("float32")
    with pytest.raises(ValueError, match=r"shape of the losses, \(2,\), got \(3,\)"):
        hvp(losses_fn, params, jnp.ones(3), batch)
    with pytest.raises(ValueError, match="losses of shape"):
        hvp(lambda p: p["encoder"]["a"].sum(), params, weights())
    with pytest.raises(ValueError, match="leaf 'n' of params has dtype int32"):
        hvp(losses_fn, {"n": jnp.arange(3)}, weights())
    matvec = hvp(losses_fn, params, weights(), batch)
    with pytest.raises(ValueError, match="v lacks the leaf 'heads/b' of params"):
        matvec({**params, "heads": {"w": params["heads"]["w"]}})
    with pytest.raises(ValueError, match=r"leaf 'encoder/b' of v has shape \(2,\)"):
        matvec({**params, "encoder": {**params["encoder"], "b": jnp.ones(2)}})
    with pytest.raises(ValueError, match="heads marks every parameter"):
        hvp(losses_fn, params, weights(), batch, heads=lambda path: True)


def test_bad_batches():
    params, batch, losses_fn, *_ = problem("float32")
    halves = split_batch(batch, 2)
    for batches, message in (
        (halves, "batches must be a tuple"),
        ((), "batches has no arrays"),
        (
            ({**halves, "x": halves["x"][:1]},),
            r"leaf '0/y' .* expected \(n, ...\) with n = 1",
        ),
        (({**halves, "x": jnp.ones(())},), r"leaf '0/x' .* n >= 1"),
        (jax.tree.map(lambda leaf: leaf[:0], (halves,)), "n >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            batched_hvp(losses_fn, params, weights(), batches)
