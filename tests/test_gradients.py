"""Task gradients against jax.jacrev, for every strategy and signature."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from mtl_jax.stacking import STRATEGIES, choose_strategy

KEY = jax.random.key(0)
PARAMS = {
    "kernel": jax.random.normal(KEY, (3, 4)),
    "heads": jax.random.normal(jax.random.fold_in(KEY, 1), (2, 4)),
}
X = jax.random.normal(jax.random.fold_in(KEY, 2), (8, 3))


def losses_fn(params, x, shift=0.0):
    hidden = jnp.tanh(x @ params["kernel"])
    return jnp.mean((hidden @ params["heads"].T - shift) ** 2, axis=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("jitted", [False, True])
def test_strategies_equal_jacrev(strategy, jitted):
    source = mtl_jax.value_and_task_grads(losses_fn, strategy=strategy)
    losses, grads = (jax.jit(source) if jitted else source)(PARAMS, X, shift=0.5)
    np.testing.assert_allclose(losses, losses_fn(PARAMS, X, 0.5), rtol=1e-6)
    expected = jax.jacrev(losses_fn)(PARAMS, X, 0.5)
    chex.assert_trees_all_close(grads, expected, rtol=1e-5, atol=1e-6)


def test_argnums_and_aux_mirror_value_and_grad():
    def with_aux(scale, params, x):
        losses = scale * losses_fn(params, x)
        return losses, {"mean": losses.mean()}

    def total(*args):
        losses, aux = with_aux(*args)
        return losses.sum(), aux

    for argnums in (0, 1, (1,), (0, 1)):
        ours = mtl_jax.value_and_task_grads(with_aux, argnums, has_aux=True)
        theirs = jax.value_and_grad(total, argnums, has_aux=True)
        (losses, aux), grads = ours(2.0, PARAMS, X)
        (_, aux_expected), grads_expected = theirs(2.0, PARAMS, X)
        chex.assert_shape(losses, (2,))
        chex.assert_trees_all_close(aux, aux_expected)
        summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), grads)
        chex.assert_trees_all_close(summed, grads_expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_heads_come_back_summed(strategy):
    source = mtl_jax.value_and_task_grads(
        losses_fn, strategy=strategy, heads={"kernel": False, "heads": True}
    )
    _, grads = jax.jit(source)(PARAMS, X)
    expected = jax.jacrev(losses_fn)(PARAMS, X)
    chex.assert_shape(grads["heads"], (1, 2, 4))
    chex.assert_trees_all_close(
        grads["kernel"], expected["kernel"], rtol=1e-5, atol=1e-6
    )
    chex.assert_trees_all_close(
        grads["heads"][0], expected["heads"].sum(axis=0), rtol=1e-5, atol=1e-6
    )


def test_heads_with_several_arguments_mask_the_tuple():
    source = mtl_jax.value_and_task_grads(
        lambda kernel, heads, x: losses_fn({"kernel": kernel, "heads": heads}, x),
        argnums=(0, 1),
        heads=(False, True),
    )
    _, (kernel, heads) = source(PARAMS["kernel"], PARAMS["heads"], X)
    chex.assert_shape(kernel, (2, 3, 4))
    chex.assert_shape(heads, (1, 2, 4))


def test_auto_chooses_by_backend_and_convolutions():
    def conv(w):
        out = jax.lax.conv(jnp.ones((1, 1, 4, 4)), w, (1, 1), "VALID")
        return jnp.stack([out.sum(), (out**2).sum()])

    def chosen(fn, w):
        losses, pullback = jax.vjp(fn, w)
        return choose_strategy(pullback, losses)

    on_cpu = jax.default_backend() == "cpu"
    assert chosen(conv, jnp.ones((1, 1, 2, 2))) == ("unroll" if on_cpu else "vmap")
    assert chosen(jax.jit(conv), jnp.ones((1, 1, 2, 2))) == chosen(
        conv, jnp.ones((1, 1, 2, 2))
    )
    plain = chosen(lambda p: losses_fn(p, X), PARAMS)
    assert plain == ("map" if on_cpu else "vmap")


def test_bad_losses_are_named():
    cases = {
        "one array of shape": lambda p, x: [losses_fn(p, x)[0], losses_fn(p, x)[1]],
        r"got shape \(\)": lambda p, x: losses_fn(p, x).sum(),
        r"got shape \(2, 1\)": lambda p, x: losses_fn(p, x)[:, None],
        "dtype int32": lambda p, x: jnp.ones(2, jnp.int32),
    }
    for message, bad in cases.items():
        with pytest.raises(ValueError, match=message):
            mtl_jax.value_and_task_grads(bad)(PARAMS, X)
    with pytest.raises(ValueError, match="strategy must be one of"):
        mtl_jax.value_and_task_grads(losses_fn, strategy="fast")


def test_differentiates_again():
    """jvp of the task gradients: Hessian-vector products of every task."""

    def grads_of(kernel):
        source = mtl_jax.value_and_task_grads(losses_fn)
        return source(PARAMS | {"kernel": kernel}, X)[1]["kernel"]

    direction = jnp.ones((3, 4))
    _, products = jax.jvp(grads_of, (PARAMS["kernel"],), (direction,))
    hessians = jax.hessian(lambda k: losses_fn(PARAMS | {"kernel": k}, X))(
        PARAMS["kernel"]
    )
    expected = jnp.einsum("tijkl,kl->tij", hessians, direction)
    chex.assert_trees_all_close(products, expected, rtol=1e-4, atol=1e-5)
