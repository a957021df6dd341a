"""``strategy="features"``: where the encoder ends, and MGDA-UB to the letter."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from mtl_jax import Split
from mtl_jax.features import find_representation
from mtl_jax.models import (
    Heads,
    LeNet,
    ResNet18,
    TransformerClassifier,
    as_functional,
    cross_entropy,
)
from tests.networks import is_head, probe, traced

T = 3
QUICK = {"xla_backend_optimization_level": 0}  # compile time is most of these tests


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def quick_jit(function):
    return jax.jit(function, compiler_options=QUICK)


def features(losses_fn, weighting=None, **options):
    weighting = probe(T) if weighting is None else weighting
    if not isinstance(losses_fn, Split):
        options.setdefault("heads", is_head)
    return mtl_jax.value_and_combined_grad(
        losses_fn, weighting, strategy="features", **options
    )


def rounding(actual, expected):
    """float64: the same products, added up in another order."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for leaf, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-11 * max(scale, 1e-3))


def check_gradients(source, losses_fn, args, head_weights="unit", has_aux=False):
    """The gradients are those of the plain function for the weights in the state.

    Returns:
        What the source returned.
    """

    def both(*args):
        value, grads, state = source.update(source.init(args[0]), *args)
        output, pull_back = jax.vjp(
            lambda params: losses_fn(params, *args[1:]), args[0]
        )
        zeros = jax.tree.map(jnp.zeros_like, output)
        weights = state.aggregate.weights

        def pull(weights):
            cotangent = (weights, zeros[1]) if has_aux else weights
            return pull_back(cotangent)[0]

        shared = pull(weights)
        own = pull(jnp.ones_like(weights) if head_weights == "unit" else weights)
        expected = {"encoder": shared["encoder"], "heads": own["heads"]}
        return (value, grads, state), (output, expected)

    returned, expected = jax.jit(both, compiler_options=QUICK)(*args)
    rounding(returned[:2], expected)
    assert np.ptp(returned[2].aggregate.weights) > 1e-3
    return returned


def drawn(init, x):
    """Parameters and state of the right shapes, without compiling their initialiser."""
    shapes = jax.eval_shape(init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: 0.3 * normal(leaf.size, *leaf.shape), shapes)


# -- where the encoder ends ----------------------------------------------------------


def classification(model, x):
    """Losses of a model of this package, its parameters, and the sum of its outputs."""
    functional = as_functional(model)
    tasks, batch = model.num_tasks, x.shape[0]
    labels = jnp.arange(batch * tasks).reshape(batch, tasks) % 2

    def losses_fn(params, state, x, key):
        logits, state = functional.apply(params, state, x, train=True, key=key)
        return cross_entropy(logits, labels), state

    return losses_fn, functional.init


NETWORKS = {
    "LeNet": (LeNet(T), (4, 16, 16, 1), (4, 50)),
    "LeNet, convolutions": (LeNet(T, conv="lax"), (4, 16, 16, 1), (4, 50)),
    "LeNet, mgda": (LeNet(T, variant="mgda"), (4, 16, 16, 1), (4, 50)),
    "ResNet18": (ResNet18(T), (2, 32, 32, 3), (2, 512)),
    "TransformerClassifier": (
        TransformerClassifier(
            T, vocab_size=7, width=8, num_layers=1, num_heads=2, mlp_width=12
        ),
        (3, 5),
        (3, 8),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_finds_the_features_of_the_networks(name):
    """By shape alone: nothing is compiled."""
    model, shape, expected = NETWORKS[name]
    integers = isinstance(model, TransformerClassifier)
    x = jnp.zeros(shape, int if integers else jnp.float32)
    losses_fn, init = classification(model, x)
    key = jax.random.key(0)

    def gradient(key):
        params, state = init(key, x)
        _, trace = traced(lambda p: losses_fn(p, state, x, key)[0], params, is_head)
        variable = find_representation(trace.pullback, trace.shared, trace.heads)
        return jnp.zeros(variable.aval.shape)

    found = jax.eval_shape(gradient, key).shape
    # Behind a reshape it is the same array.
    assert found[0] == expected[0] and np.prod(found) == np.prod(expected)


@pytest.mark.parametrize(
    "name",
    [
        "LeNet, mgda",
        "TransformerClassifier",
        pytest.param("ResNet18", marks=pytest.mark.slow),
    ],
)
def test_networks_with_dropout_and_batch_statistics(x64, name):
    """Dropout in encoder and heads: both passes draw the same masks. State as aux."""
    del x64
    model, shape, features_shape = NETWORKS[name]
    if isinstance(model, TransformerClassifier):
        model = model.clone(dropout=0.3, param_dtype=jnp.float64)
        x = jnp.asarray(np.random.default_rng(0).integers(7, size=shape))
    else:
        model, x = model.clone(param_dtype=jnp.float64), normal(0, *shape)
    losses_fn, init = classification(model, x)
    params, state = drawn(init, x)
    source = features(losses_fn, has_aux=True)
    args = (params, state, x, jax.random.key(5))
    _, _, returned = check_gradients(source, losses_fn, args, has_aux=True)

    # The Gramian by hand: through the heads alone, from the encoder's output.
    encoder = _encoder_of(model)

    def rows(params, state, x, key):
        z = encoder(params, state, x, key)
        heads = Heads(
            T,
            model.num_classes if isinstance(model, LeNet) else model.num_outputs,
            hidden=50 if isinstance(model, LeNet) else None,
            param_dtype=jnp.float64,
        )

        def head_losses(z):
            logits = heads.apply({"params": params["heads"]}, z)
            labels = jnp.arange(len(z) * T).reshape(len(z), T) % 2
            return cross_entropy(logits, labels)

        return jax.jacrev(head_losses)(z)

    if isinstance(model, LeNet):
        return  # the masks of its heads are drawn inside the module
    stacked = quick_jit(rows)(*args)
    assert stacked.shape == (T, *features_shape)
    expected = np.einsum("sbi,tbi->st", stacked, stacked)
    np.testing.assert_allclose(returned.gram, expected, rtol=1e-10)


def _encoder_of(model):
    from flax.linen import Module

    def encode(params, state, x, key):
        def run(module: Module, x):
            return module.encoder(x, True)

        variables = {"params": params, **state}
        rngs = {"dropout": key}
        mutable = list(state)
        return nn.apply(run, model, mutable=mutable)(variables, x, rngs=rngs)[0]

    return encode


class Separate(nn.Module):
    """An MLP with batch statistics and dropout, and a dense module for every task."""

    @nn.compact
    def __call__(self, x, train=False):
        z = Trunk(name="encoder")(x, train)
        return Towers(name="heads")(z, train)


class Trunk(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        z = nn.Dense(6, param_dtype=x.dtype)(x)
        z = nn.BatchNorm(not train, param_dtype=x.dtype)(z)
        return nn.Dropout(0.5, deterministic=not train)(jnp.tanh(z))


class Towers(nn.Module):
    @nn.compact
    def __call__(self, z, train):
        outs = []
        for _ in range(T):
            y = nn.relu(nn.Dense(5, param_dtype=z.dtype)(z))
            y = nn.Dropout(0.5, deterministic=not train)(y)
            outs.append(nn.Dense(2, param_dtype=z.dtype)(y))
        return outs


def test_separate_modules_batch_norm_and_dropout(x64):
    del x64
    model, x = as_functional(Separate()), normal(0, 7, 4)
    params, state = drawn(model.init, x)

    def losses_fn(params, state, x, key):
        outs, state = model.apply(params, state, x, train=True, key=key)
        return jnp.stack(
            [jnp.square(out - t).mean() for t, out in enumerate(outs)]
        ), state

    source = features(losses_fn, has_aux=True)
    args = (params, state, x, jax.random.key(1))
    (losses, new_state), _, _ = check_gradients(source, losses_fn, args, has_aux=True)
    before, after = jax.tree.leaves(state), jax.tree.leaves(new_state)
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    other_key = quick_jit(losses_fn)(params, state, x, jax.random.key(2))[0]
    assert (np.abs(losses - other_key) > 1e-6).all()  # the masks matter


def linear(seed=0, examples=5, inputs=4, width=3, tasks=T):
    """``Z = tanh(X W)``, one linear head per task, squared losses."""
    params = {
        "encoder": {"w": normal(seed, inputs, width)},
        "heads": {"v": normal(seed + 1, tasks, width)},
    }
    x, y = normal(seed + 2, examples, inputs), normal(seed + 3, examples, tasks)
    return params, x, y


def encode(params, x, y):
    del y
    return jnp.tanh(x @ params["encoder"]["w"])


def head_losses(params, z, x, y):
    del x
    return jnp.square(z @ params["heads"]["v"].T - y).mean(0)


def plain(params, x, y):
    return head_losses(params, encode(params, x, y), x, y)


def gram_of(rows):
    """In NumPy, of stacked gradients of any shape."""
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
    return flat @ flat.T


def test_copies_of_the_representation_are_not_taken_for_it(x64):
    """Dropout between the features and stacked heads: the features are before it."""
    del x64
    params, x, y = linear()
    keep = jax.random.bernoulli(jax.random.key(0), 0.5, (T, 5, 3))

    def losses_of(params, z):
        out = jnp.einsum(
            "tbi,ti->bt", jax.nn.gelu(z[None] * keep), params["heads"]["v"]
        )
        return jnp.square(out - y).mean(0)

    def losses_fn(params):
        return losses_of(params, encode(params, x, y))

    _, _, state = check_gradients(features(losses_fn), losses_fn, (params,))
    rows = jax.jacrev(losses_of, argnums=1)(params, encode(params, x, y))
    np.testing.assert_allclose(state.gram, gram_of(rows), rtol=1e-10)
    assert np.abs(state.gram[0, 1]) > 1e-3


def test_the_bias_of_the_last_layer_counts_as_encoder(x64):
    del x64
    params, x, y = linear()
    params["encoder"]["b"] = normal(9, 3)

    def losses_fn(params):
        z = x @ params["encoder"]["w"] + params["encoder"]["b"][None]
        return head_losses(params, z, x, y)

    _, _, state = check_gradients(features(losses_fn), losses_fn, (params,))
    z = x @ params["encoder"]["w"] + params["encoder"]["b"][None]
    rows = jax.jacrev(head_losses, argnums=1)(params, z, x, y)
    np.testing.assert_allclose(state.gram, gram_of(rows), rtol=1e-10)


def l2_regularised(params, x, y):
    return plain(params, x, y) + 0.1 * jnp.square(params["encoder"]["w"]).sum()[None]


def tied(params, x, y):
    heads = params["heads"]["v"] + params["encoder"]["w"][:T]
    return jnp.square(encode(params, x, y) @ heads.T - y).mean(0)


def two_arrays(params, x, y):
    first = x @ params["encoder"]["w"]
    second = jnp.tanh(first @ params["encoder"]["u"])
    scale = params["heads"]["v"]
    return jnp.square(second @ scale.T + first @ scale.T**2 - y).mean(0)


def encoder_for_every_head(params, x, y):
    heads = params["heads"]["v"]
    outs = [encode(params, x, y) @ heads[t] for t in range(T)]
    return jnp.square(jnp.stack(outs, 1) - y).mean(0)


@pytest.mark.parametrize(
    "losses_fn", [l2_regularised, tied, two_arrays, encoder_for_every_head]
)
def test_no_single_representation(losses_fn):
    params, x, y = linear()
    params["encoder"]["u"] = jnp.ones((3, 3))
    source = features(losses_fn)
    with pytest.raises(ValueError, match="found no single array between"):
        source.update(source.init(params), params, x, y)


def test_errors():
    params, x, y = linear()
    with pytest.raises(
        ValueError, match="mark the task-specific parameters with heads="
    ):
        features(plain, heads=None)
    with pytest.raises(ValueError, match="first argument, got argnums=1"):
        features(Split(encode, head_losses), argnums=1)
    with pytest.raises(ValueError, match="feature_batch must be one of"):
        features(plain, feature_batch="mean")
    source = features(plain, heads=lambda path: path.startswith("head/"))
    with pytest.raises(ValueError, match="mark all task-specific parameters"):
        source.update(source.init(params), params, x, y)
    bad = Split(encode, lambda *args: head_losses(*args)[0])
    source = features(bad)
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        source.update(source.init(params), params, x, y)


# -- a Split -------------------------------------------------------------------------


@pytest.mark.parametrize("head_weights", ["unit", "weighted"])
def test_a_split_by_functions_equals_the_one_found(x64, head_weights):
    del x64
    params, x, y = linear()
    split = Split(encode, head_losses)
    np.testing.assert_array_equal(split(params, x, y), plain(params, x, y))
    by_functions = features(split, head_weights=head_weights)
    _, _, first = check_gradients(by_functions, plain, (params, x, y), head_weights)
    by_heads = features(plain, head_weights=head_weights)
    _, _, second = check_gradients(by_heads, plain, (params, x, y), head_weights)
    rounding(first, second)
    # Every other source takes a Split for the losses function that it is.
    stored = mtl_jax.value_and_combined_grad(
        split, probe(T), strategy="vmap", heads=is_head, head_weights=head_weights
    )
    check_gradients(stored, plain, (params, x, y), head_weights)


def test_a_split_with_aux_and_several_arrays(x64):
    del x64
    params, x, y = linear()

    def encode_two(params, x, y):
        z = encode(params, x, y)
        return {"z": z, "square": z @ params["encoder"]["w"].T}

    def losses_of(params, z, x, y):
        losses = (
            head_losses(params, z["z"], x, y) + jnp.square(z["square"]).mean()[None]
        )
        return losses, {"mean": losses.mean()}

    def losses_fn(params, x, y):
        return losses_of(params, encode_two(params, x, y), x, y)

    source = features(Split(encode_two, losses_of), has_aux=True)
    args = (params, x, y)
    _, _, state = check_gradients(source, losses_fn, args, has_aux=True)
    rows = jax.jacrev(lambda z: losses_of(params, z, x, y)[0])(encode_two(*args))
    expected = gram_of(rows["z"]) + gram_of(rows["square"])
    np.testing.assert_allclose(state.gram, expected, rtol=1e-10)


def test_the_batch_flattened_or_summed(x64):
    del x64
    params, x, y = linear()
    z = encode(params, x, y)
    rows = jax.jacrev(head_losses, argnums=1)(params, z, x, y)
    by_hand = {"flatten": gram_of(rows), "sum": gram_of(rows.sum(1))}
    assert np.abs(by_hand["flatten"] - by_hand["sum"]).max() > 1e-3
    for losses_fn in (plain, Split(encode, head_losses)):
        for feature_batch, expected in by_hand.items():
            source = features(losses_fn, feature_batch=feature_batch)
            _, _, state = check_gradients(source, plain, (params, x, y))
            np.testing.assert_allclose(state.gram, expected, rtol=1e-10)


# -- what the theory says ------------------------------------------------------------


def orthonormal_rows(examples, inputs):
    return jnp.linalg.qr(normal(5, inputs, examples))[0].T


def linear_features(params, x, y):
    return head_losses(params, x @ params["encoder"]["w"], x, y)


def parameters_as_features(params, x, y):
    return head_losses(params, params["encoder"]["w"].reshape(5, 3), x, y)


@pytest.mark.parametrize("method", ["mgda", "nash_mtl"])
def test_equals_stored_gradients_where_the_jacobian_is_orthogonal(x64, method):
    """``Z = X W`` with orthonormal rows of X, and Z the parameters themselves."""
    del x64
    _, x, y = linear(examples=5, inputs=6)
    x = orthonormal_rows(5, 6)
    np.testing.assert_allclose(x @ x.T, np.eye(5), atol=1e-12)
    weighting = mtl_jax.build_weighting(method, T)
    cases = [
        (linear_features, normal(0, 6, 3)),
        (parameters_as_features, normal(0, 15)),
    ]

    def updates(x, y):
        outs = []
        for losses_fn, w in cases:
            params = {"encoder": {"w": w}, "heads": {"v": normal(1, T, 3)}}
            for strategy in ("features", "vmap"):
                source = mtl_jax.value_and_combined_grad(
                    losses_fn, weighting, strategy=strategy, heads=is_head
                )
                _, grads, state = source.update(source.init(params), params, x, y)
                outs.append((grads, state.aggregate.weights, state.gram))
        return outs

    outs = jax.jit(updates, compiler_options=QUICK)(x, y)
    for ours, stored in (outs[:2], outs[2:]):
        chex.assert_trees_all_close(ours, stored, rtol=1e-8, atol=1e-9)


def test_a_twice_as_long_jacobian_scales_the_gramian(x64):
    """Columns of one length that is not 1: the same up to that factor."""
    del x64
    params, _, y = linear(inputs=6)
    x = 2 * orthonormal_rows(5, 6)
    source = features(linear_features, mtl_jax.weighting.mgda(T))
    _, grads, state = jax.jit(source.update)(source.init(params), params, x, y)
    stored = mtl_jax.value_and_combined_grad(
        linear_features, mtl_jax.weighting.mgda(T), strategy="vmap", heads=is_head
    )
    _, expected, other = jax.jit(stored.update)(stored.init(params), params, x, y)
    np.testing.assert_allclose(4 * state.gram, other.gram, rtol=1e-10)
    chex.assert_trees_all_close(grads, expected, rtol=1e-8, atol=1e-10)


def test_the_upper_bound(x64):
    """The combined gradient is at most the spectral norm times that of the features."""
    del x64

    def deep(params, x, y):
        return jnp.tanh(encode(params, x, y) @ params["encoder"]["u"])

    source = features(Split(deep, head_losses), mtl_jax.weighting.mgda(T))

    def run(params, x, y):
        _, grads, state = source.update(source.init(params), params, x, y)
        z = deep(params, x, y)
        rows = jax.jacrev(head_losses, argnums=1)(params, z, x, y)
        return grads, state, jax.jacrev(deep)(params, x, y)["encoder"], rows

    compiled = quick_jit(run)
    for seed in range(5):
        params, x, y = linear(10 * seed)
        params["encoder"]["u"] = normal(seed, 3, 3)
        check_bound(seed, *compiled(params, x, y))


def check_bound(seed, grads, state, jacobian, rows):
    flat = np.concatenate([leaf.reshape(15, -1) for leaf in jacobian.values()], axis=1)
    norm = np.linalg.norm(flat, 2) ** 2
    rows = np.asarray(rows).reshape(T, -1)
    rng = np.random.default_rng(seed)
    for w in (*rng.normal(size=(20, T)), *rng.dirichlet([0.3] * T, size=20)):
        assert np.square(w @ rows @ flat).sum() <= norm * np.square(w @ rows).sum()
    w = np.asarray(state.aggregate.weights)
    ours = sum(float(jnp.square(leaf).sum()) for leaf in grads["encoder"].values())
    np.testing.assert_allclose(ours, np.square(w @ rows @ flat).sum(), rtol=1e-10)
    # And the weights are those that make the bound smallest.
    bound = np.square(w @ rows).sum()
    others = rng.dirichlet([0.5] * T, size=200) @ rows
    assert bound <= np.square(others).sum(1).min() * (1 + 1e-9)


# -- MGDA-UB, replayed ---------------------------------------------------------------


def two_task_weights(first, second):
    """The min-norm point of a segment: the closed form of Sener & Koltun, section 3.2."""
    difference = second - first
    gamma = (difference * second).sum() / np.square(difference).sum()
    gamma = min(max(gamma, 0.0), 1.0)
    return np.array([gamma, 1 - gamma])


def replay(theta, heads, x, y, steps, rate, normalization="none", weighted=False):
    """Algorithm 2 with the representation's gradients, in NumPy.

    ``Z = X theta``, predictions ``Z heads[t]``, mean squared errors. All gradients of a
    step are taken at the same point, as one backward pass takes them.

    Args:
        weighted: whether heads are scaled by their task's weight, as in the released
            code, or not, as in the paper.
    """
    weights = []
    for _ in range(steps):
        z = x @ theta
        error = z @ heads.T - y  # (B, T)
        losses = np.square(error).mean(0)
        scale = 2 / len(x)
        grads_z = [scale * np.outer(error[:, t], heads[t]) for t in range(2)]
        grads_heads = np.stack([scale * error[:, t] @ z for t in range(2)])
        norms = np.array([np.linalg.norm(grad) for grad in grads_z])
        divisors = {
            "none": np.ones(2),
            "l2": norms,
            "loss": losses,
            "loss+": losses * norms,
        }[normalization]
        alpha = two_task_weights(
            *(grad / divisor for grad, divisor in zip(grads_z, divisors, strict=True))
        )
        combined = alpha[0] * grads_z[0] + alpha[1] * grads_z[1]
        theta = theta - rate * x.T @ combined
        heads = heads - rate * (alpha[:, None] if weighted else 1) * grads_heads
        weights.append(alpha)
    return theta, heads, np.array(weights)


@pytest.mark.parametrize("by", ["heads", "split"])
@pytest.mark.parametrize(
    ("normalization", "head_weights"),
    [
        ("none", "unit"),
        ("none", "weighted"),
        ("l2", "weighted"),
        ("loss", "weighted"),
        ("loss+", "weighted"),
    ],
)
def test_mgda_ub_to_the_letter(x64, normalization, head_weights, by):
    """Algorithm 2 of the paper, and the released code's step with its normalisations."""
    del x64
    steps, rate = 12, 0.05
    params, x, y = linear(20, tasks=2)
    weighting = mtl_jax.weighting.mgda(2, normalization=normalization)
    if by == "heads":
        losses_fn = linear_features
    else:
        losses_fn = Split(lambda p, x, y: x @ p["encoder"]["w"], head_losses)
    source = features(losses_fn, weighting, head_weights=head_weights)

    def step(carry, _):
        params, state = carry
        _, grads, state = source.update(state, params, x, y)
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        return (params, state), state.aggregate.weights

    start = (params, source.init(params))
    (trained, _), weights = jax.jit(
        lambda start: jax.lax.scan(step, start, None, length=steps),
        compiler_options=QUICK,
    )(start)
    theta, heads, expected = replay(
        *map(np.asarray, (params["encoder"]["w"], params["heads"]["v"], x, y)),
        steps,
        rate,
        normalization,
        head_weights == "weighted",
    )
    if normalization != "l2":
        assert np.ptp(expected[:, 0]) > 0.01  # the weights do change
    np.testing.assert_allclose(weights, expected, atol=1e-9)
    np.testing.assert_allclose(trained["encoder"]["w"], theta, atol=1e-9)
    np.testing.assert_allclose(trained["heads"]["v"], heads, atol=1e-9)
