"""Models: the two forms of the convolution, LeNet, the flax adapters, the losses."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from mtl_jax.models import (
    Encoder,
    Heads,
    LeNet,
    accuracy,
    as_functional,
    conv_pool,
    cross_entropy,
)

KEY = jax.random.key(0)
SMALL = jax.random.normal(jax.random.key(1), (4, 28, 28, 1))


def leaf_count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def built(num_tasks, variant):
    """A LeNet and its parameters; compiled once for all tests that share it."""
    model = as_functional(LeNet(num_tasks, variant=variant))
    return model, model.init(KEY, SMALL)[0]


# --- conv_pool -----------------------------------------------------------------------


def numpy_conv_pool(x, kernel):
    """Direct sums in NumPy float64: valid convolution, then 2x2 max-pool."""
    size = kernel.shape[0]
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    y = np.einsum("bhwcij,ijco->bhwo", windows, kernel)
    height, width = y.shape[1] // 2, y.shape[2] // 2
    y = y[:, : 2 * height, : 2 * width]
    return y.reshape(len(x), height, 2, width, 2, -1).max((2, 4))


def conv_case(shape=(3, 12, 12, 2), size=5, features=4, seed=0):
    rng = np.random.default_rng(seed)
    kernel_shape = (size, size, shape[-1], features)
    return rng.normal(size=shape), rng.normal(size=kernel_shape)


@pytest.mark.parametrize("form", ["blocks", "lax"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 12, 12, 2), 5), ((2, 9, 14, 3), 3), ((2, 13, 11, 1), 5), ((1, 6, 7, 2), 1)],
)
def test_conv_pool_matches_direct_sums(x64, form, shape, size):
    """Odd and unequal sides too: the last row or column is then never pooled."""
    x, kernel = conv_case(shape, size)
    y = conv_pool(jnp.asarray(x), jnp.asarray(kernel), form=form)
    # 1e-12: float64 sums of at most 75 products of numbers of order one.
    np.testing.assert_allclose(y, numpy_conv_pool(x, kernel), rtol=0, atol=1e-12)


def test_conv_pool_forms_have_the_same_derivatives(x64):
    x, kernel = map(jnp.asarray, conv_case())
    tangents = tuple(map(jnp.asarray, conv_case(seed=1)))
    cotangents = jnp.asarray(np.random.default_rng(2).normal(size=(3, 3, 4, 4, 4)))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(form):
        def f(x, kernel):
            return conv_pool(x, kernel, form=form)

        def grad(x, kernel):
            return jax.grad(lambda *p: jnp.sum(f(*p) ** 3), (0, 1))(x, kernel)

        _, pullback = jax.vjp(f, x, kernel)
        return {
            "forward mode": jax.jvp(f, (x, kernel), tangents),
            "vmapped pull-back": jax.vmap(pullback)(cotangents),
            "mapped pull-back": lax.map(pullback, cotangents),
            "jvp of grad": jax.jvp(grad, (x, kernel), tangents),
        }

    # 1e-12 relative to the largest entry: second derivatives reach some 1e5.
    for blocks, reference in zip(
        jax.tree.leaves(derivatives("blocks")),
        jax.tree.leaves(derivatives("lax")),
        strict=True,
    ):
        scale = jnp.abs(reference).max()
        np.testing.assert_allclose(blocks, reference, rtol=0, atol=1e-12 * scale)


@pytest.mark.slow
def test_conv_pool_gradient_is_that_of_finite_differences(x64):
    x, kernel = map(jnp.asarray, conv_case())

    @jax.jit
    def f(x, kernel):
        return jnp.sin(conv_pool(x, kernel, form="blocks")).sum()

    jax.test_util.check_grads(f, (x, kernel), order=2, modes=["fwd", "rev"], eps=1e-5)


@pytest.mark.parametrize("form", ["blocks", "lax"])
def test_ties_pass_on_the_whole_cotangent_once(x64, form):
    """On a constant image all four phases tie: a subgradient, not four gradients."""
    x, kernel = jnp.ones((1, 6, 6, 1)), jnp.ones((3, 3, 1, 2))
    grad = jax.grad(lambda *p: conv_pool(*p, form=form).sum(), argnums=(0, 1))
    grad_x, grad_kernel = jax.jit(grad)(x, kernel)
    # 2x2 outputs of 2 channels; every window of the image is all ones.
    chex.assert_trees_all_close(grad_kernel, jnp.full((3, 3, 1, 2), 4.0))
    assert grad_x.sum() == pytest.approx(2 * 4 * 9)


def test_conv_pool_rejects_bad_arguments():
    x, kernel = jnp.zeros((1, 8, 8, 2)), jnp.zeros((5, 5, 2, 3))
    with pytest.raises(ValueError, match="form must be one of"):
        conv_pool(x, kernel, form="fft")
    with pytest.raises(ValueError, match="odd k, got"):
        conv_pool(x, jnp.zeros((4, 4, 2, 3)))
    with pytest.raises(ValueError, match=r"x must have shape \(B, H, W, 2\)"):
        conv_pool(x[..., :1], kernel)
    with pytest.raises(ValueError, match="H and W >= 6"):
        conv_pool(x[:, :5], kernel)


# --- LeNet ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "num_tasks", "total", "shared"),
    [
        ("small", 2, 22_350, 21_330),
        ("mgda", 2, 27_450, 21_330),
        ("small", 40, 21_330 + 40 * 510, 21_330),
    ],
)
def test_lenet_has_the_papers_parameters(variant, num_tasks, total, shared):
    model = as_functional(LeNet(num_tasks, variant=variant))
    params, state = jax.eval_shape(model.init, KEY, SMALL)
    assert leaf_count(params) == total
    assert leaf_count(params["encoder"]) == shared
    assert set(params) == {"encoder", "heads"}
    assert state == {}
    for leaf in jax.tree.leaves(params["heads"]):
        assert leaf.shape[0] == num_tasks
    logits, _ = jax.eval_shape(model.apply, params, state, SMALL)
    assert logits.shape == (num_tasks, 4, 10)


def test_lenet_is_the_same_function_in_both_forms(x64):
    x = SMALL.astype(jnp.float64)
    models = [
        as_functional(LeNet(3, variant="mgda", conv=form, param_dtype=jnp.float64))
        for form in ("blocks", "lax")
    ]
    params, _ = models[0].init(KEY, x)
    chex.assert_trees_all_equal(params, models[1].init(KEY, x)[0])
    logits = [jax.jit(model.apply)(params, {}, x)[0] for model in models]
    assert logits[0].dtype == jnp.float64
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-12)


def test_init_is_deterministic_and_uniform_by_fan_in():
    model, params = built(3, "mgda")
    chex.assert_trees_all_equal(params, model.init(KEY, SMALL)[0])
    other, _ = model.init(jax.random.key(1), SMALL)
    fan_in = {"conv1": 25, "conv2": 250, "dense": 320, "hidden": 50, "out": 50}
    layers = params["encoder"] | params["heads"]
    others = other["encoder"] | other["heads"]
    for name, layer in layers.items():
        bound = 1 / math.sqrt(fan_in[name])
        for kind, leaf in layer.items():
            assert not jnp.array_equal(leaf, others[name][kind])
            assert jnp.abs(leaf).max() <= bound
            if leaf.size >= 500:  # uniform: standard deviation bound / sqrt(3)
                assert leaf.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
                assert jnp.abs(leaf).max() >= 0.98 * bound


def test_each_head_depends_on_its_own_parameters_only():
    model, params = built(3, "mgda")
    labels = jnp.zeros((4, 3), jnp.int32)
    jacobian = jax.jit(
        jax.jacrev(lambda p: cross_entropy(model.apply(p, {}, SMALL)[0], labels))
    )(params)
    for leaf in jax.tree.leaves(jacobian["heads"]):
        norms = jnp.sqrt((leaf**2).sum(range(2, leaf.ndim)))
        assert jnp.all((norms > 0) == jnp.eye(3, dtype=bool))


def test_encoder_and_heads_compose_to_lenet():
    model, params = built(3, "mgda")
    encoder, heads = as_functional(Encoder()), as_functional(Heads(3, hidden=50))

    @jax.jit
    def run(params):
        features, _ = encoder.apply(params["encoder"], {}, SMALL)
        logits, _ = heads.apply(params["heads"], {}, features)
        return features, logits, model.apply(params, {}, SMALL)[0]

    features, logits, expected = run(params)
    assert features.shape == (4, 50)
    chex.assert_trees_all_close(logits, expected)


def test_dropout_masks():
    """One channel mask for the batch, survivors not rescaled, off in evaluation."""
    x = jnp.concatenate([SMALL, SMALL])
    encoder = Encoder(dropout=True)
    model = as_functional(encoder)
    params, _ = model.init(KEY, x)
    # An identity-like dense layer shows the masked channels after the second pool.
    dense = {"kernel": jnp.zeros((320, 50)), "bias": jnp.zeros(50)}
    dense["kernel"] = dense["kernel"].at[jnp.arange(20), jnp.arange(20)].set(1.0)
    params = params | {"dense": dense}
    params["conv2"] = params["conv2"] | {"bias": jnp.full(20, 10.0)}  # all active
    apply = jax.jit(model.apply, static_argnames="train")
    evaluated = apply(params, {}, x)[0][:, :20]
    rates = []
    for seed in range(20):
        key = jax.random.key(seed)
        trained = apply(params, {}, x, train=True, key=key)[0][:, :20]
        kept = trained != 0
        assert jnp.array_equal(kept, jnp.broadcast_to(kept[:1], kept.shape))
        np.testing.assert_array_equal(trained, jnp.where(kept, evaluated, 0))
        rates.append(kept[0].mean())
    assert np.mean(rates) == pytest.approx(0.5, abs=0.1)  # 400 draws: 4 sigma


def test_dropout_in_heads_is_elementwise_and_per_task():
    heads = Heads(2, num_classes=50, hidden=50, dropout=True)
    model = as_functional(heads)
    z = jnp.ones((64, 50))
    params, _ = model.init(KEY, z)
    identity = jnp.broadcast_to(jnp.eye(50), (2, 50, 50))
    zeros = jnp.zeros((2, 50))
    params = {name: {"kernel": identity, "bias": zeros} for name in ("hidden", "out")}
    masks = model.apply(params, {}, z, train=True, key=KEY)[0]
    assert set(np.unique(masks)) == {0.0, 1.0}
    assert masks.mean() == pytest.approx(0.5, abs=0.025)  # 6400 draws: 4 sigma
    assert not jnp.array_equal(masks[0], masks[1])
    assert not jnp.array_equal(masks[:, 0], masks[:, 1])
    assert jnp.all(model.apply(params, {}, z)[0] == 1)


def test_dropout_is_off_by_default_in_the_small_variant():
    model, params = built(2, "small")
    apply = jax.jit(model.apply, static_argnames="train")
    trained, _ = apply(params, {}, SMALL, train=True)  # needs no key
    chex.assert_trees_all_equal(trained, apply(params, {}, SMALL)[0])


def test_missing_dropout_key_is_explained():
    model, params = built(3, "mgda")
    with pytest.raises(ValueError, match=r"LeNet draws random numbers .* key="):
        jax.eval_shape(lambda p: model.apply(p, {}, SMALL, train=True), params)


def test_lenet_rejects_bad_arguments():
    with pytest.raises(ValueError, match="num_tasks must be"):
        LeNet(0)
    with pytest.raises(ValueError, match="variant must be one of"):
        LeNet(2, variant="large")
    with pytest.raises(ValueError, match="conv must be one of"):
        LeNet(2, conv="fft")
    with pytest.raises(ValueError, match="LeNet needs images"):
        as_functional(LeNet(2)).init(KEY, SMALL[..., 0])


def test_lenet_learns():
    """Gradient descent on the mean loss fits a separable toy problem."""
    labels = jnp.stack([jnp.arange(32) % 2, jnp.arange(32) // 16], axis=1)
    x = 0.1 * jax.random.normal(KEY, (32, 28, 28, 1))
    x = x.at[:, :14].add(labels[:, 0].reshape(-1, 1, 1, 1))
    x = x.at[:, 14:].add(labels[:, 1].reshape(-1, 1, 1, 1))
    model, params = built(2, "small")

    @jax.jit
    def step(params):
        loss, grads = jax.value_and_grad(
            lambda p: cross_entropy(model.apply(p, {}, x)[0], labels).mean()
        )(params)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads), loss

    losses = []
    for _ in range(60):
        params, loss = step(params)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(math.log(10), rel=0.1)
    assert losses[-1] < 0.05
    assert jnp.all(accuracy(model.apply(params, {}, x)[0], labels) == 1)


# --- adapters ------------------------------------------------------------------------


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(4)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        return {"a": linen.Dense(3)(x), "b": linen.Dense(2)(x)}


class NnxNet(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(5, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.heads = nnx.Dict(
            a=nnx.Linear(4, 3, rngs=rngs), b=nnx.Linear(4, 2, rngs=rngs)
        )

    def __call__(self, x):
        x = self.dropout(self.norm(self.dense(x)))
        return {name: head(x) for name, head in self.heads.items()}


ADAPTED = {
    "linen": LinenNet(),
    "nnx class": NnxNet,
    "nnx factory": lambda *, rngs: NnxNet(rngs=rngs),
    "nnx instance": NnxNet(rngs=nnx.Rngs(0)),
}
X = jax.random.normal(jax.random.key(2), (16, 5))


@pytest.fixture(params=ADAPTED)
def adapted(request):
    return as_functional(ADAPTED[request.param])


def test_adapted_trees_are_plain_dicts(adapted):
    params, state = adapted.init(KEY, X)

    def check(tree):
        if isinstance(tree, dict):
            for child in tree.values():
                check(child)
        else:
            assert isinstance(tree, jax.Array)

    check(params)
    check(state)
    assert leaf_count(params) == 24 + 8 + 15 + 10
    assert leaf_count(state) == 8


def test_batch_statistics_change_in_training_only(adapted):
    params, state = adapted.init(KEY, X)
    outputs, same = adapted.apply(params, state, X)
    assert same is state
    assert outputs["a"].shape == (16, 3)
    _, updated = adapted.apply(params, state, X, train=True, key=KEY)
    chex.assert_trees_all_equal_structs(state, updated)
    # Fresh statistics are mean 0, variance 1; momentum 0.9 moves them by a tenth.
    means = [leaf for leaf in jax.tree.leaves(updated) if jnp.abs(leaf).max() < 0.5]
    assert len(means) == 1
    assert jnp.all(means[0] != 0)
    outputs_after, _ = adapted.apply(params, updated, X)
    assert not jnp.allclose(outputs["a"], outputs_after["a"])


def test_dropout_follows_the_key(adapted):
    params, state = adapted.init(KEY, X)

    def outputs(seed):
        key = jax.random.key(seed)
        return adapted.apply(params, state, X, train=True, key=key)[0]["a"]

    chex.assert_trees_all_equal(outputs(1), outputs(1))
    assert not jnp.allclose(outputs(1), outputs(2))
    with pytest.raises(ValueError, match="draws random numbers in training"):
        adapted.apply(params, state, X, train=True)


@pytest.mark.slow
def test_adapted_pullback_under_vmap(adapted):
    """Rows of the batched pull-back are the gradients of the single losses."""
    params, state = adapted.init(KEY, X)

    def losses_fn(params, state):
        outputs, state = adapted.apply(params, state, X, train=True, key=KEY)
        return jnp.stack([(o**2).mean() for o in outputs.values()]), state

    @jax.jit
    def task_grads(params, state):
        _, pullback, new_state = jax.vjp(
            lambda p: losses_fn(p, state), params, has_aux=True
        )
        return jax.vmap(pullback)(jnp.eye(2))[0], new_state

    rows, new_state = task_grads(params, state)
    # Two programs, float32: a few roundings of numbers of order one.
    chex.assert_trees_all_close(new_state, losses_fn(params, state)[1], atol=1e-6)
    for task in range(2):
        single = jax.grad(lambda p, t=task: losses_fn(p, state)[0][t])(params)
        row = jax.tree.map(lambda leaf, t=task: leaf[t], rows)
        chex.assert_trees_all_close(row, single, atol=1e-6)


@pytest.mark.slow
def test_adapted_hessian_vector_product_and_members(adapted):
    """The needs of Pareto exploration (HVP) and manifolds (members stacked by vmap)."""
    params, state = adapted.init(KEY, X)

    def loss(params):
        return sum((o**2).mean() for o in adapted.apply(params, state, X)[0].values())

    _, product = jax.jvp(jax.grad(loss), (params,), (params,))
    chex.assert_trees_all_equal_shapes(product, params)
    chex.assert_tree_all_finite(product)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    losses = jax.vmap(loss)(stacked)
    np.testing.assert_allclose(losses[0], loss(params), rtol=1e-5)


def test_nnx_instance_is_not_changed():
    instance = NnxNet(rngs=nnx.Rngs(0))
    before = jax.tree.map(
        jnp.copy, nnx.to_pure_dict(nnx.state(instance, nnx.BatchStat))
    )
    model = as_functional(instance)
    params, state = model.init(KEY, X)
    model.apply(params, state, X, train=True, key=KEY)
    after = nnx.to_pure_dict(nnx.state(instance, nnx.BatchStat))
    chex.assert_trees_all_equal(before, after)
    chex.assert_trees_all_equal(params["dense"]["kernel"], instance.dense.kernel[...])


def test_nnx_factory_follows_the_init_key():
    model = as_functional(NnxNet)
    params, _ = model.init(KEY, X)
    chex.assert_trees_all_equal(params, model.init(KEY, X)[0])
    other, _ = model.init(jax.random.key(1), X)
    assert not jnp.allclose(params["dense"]["kernel"], other["dense"]["kernel"])


def test_as_functional_rejects_what_it_cannot_use():
    with pytest.raises(ValueError, match=r"the class LeNet; pass LeNet\(\.\.\.\)"):
        as_functional(LeNet)
    with pytest.raises(ValueError, match=r"needs a flax\.linen\.Module"):
        as_functional({"not": "a model"})
    with pytest.raises(ValueError, match="expected the factory to return"):
        as_functional(lambda *, rngs: 1).init(KEY, X)


# --- losses --------------------------------------------------------------------------


def test_cross_entropy_and_accuracy_match_numpy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 8, 5)), rng.integers(0, 5, (8, 3))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = [[-log_p[t, b, labels[b, t]] for b in range(8)] for t in range(3)]
    hits = [[logits[t, b].argmax() == labels[b, t] for b in range(8)] for t in range(3)]
    losses = cross_entropy(jnp.asarray(logits), jnp.asarray(labels, jnp.uint8))
    np.testing.assert_allclose(losses, np.mean(rows, axis=1), rtol=1e-5)
    scores = accuracy(jnp.asarray(logits), jnp.asarray(labels, jnp.uint8))
    np.testing.assert_allclose(scores, np.mean(hits, axis=1), rtol=1e-6)


def test_cross_entropy_survives_extreme_logits():
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    labels = jnp.array([[1]])
    loss, grad = jax.value_and_grad(lambda z: cross_entropy(z, labels).sum())(logits)
    assert loss == pytest.approx(2e4)
    np.testing.assert_allclose(grad, [[[1.0, -1.0, 0.0]]])


def test_losses_reject_bad_shapes():
    with pytest.raises(ValueError, match=r"labels \(B, T\), got"):
        cross_entropy(jnp.zeros((2, 8, 10)), jnp.zeros((2, 8), jnp.int32))
    with pytest.raises(ValueError, match="labels must be integers"):
        accuracy(jnp.zeros((2, 8, 10)), jnp.zeros((8, 2)))
