"""ResNet-18 and the transformer: counts, float64 references, statistics, gradients."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from mtl_jax.models import (
    Heads,
    ResNet18,
    ResNet18Encoder,
    TransformerClassifier,
    TransformerEncoder,
    as_functional,
    cross_entropy,
)
from mtl_jax.models.resnet import BasicBlock
from tests.helpers import slow_but
from tests.references import networks

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
TOKENS = jax.random.randint(jax.random.key(2), (4, 10), 0, 50)
LABELS = jnp.array([[0, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 1]])
SIZES = {"vocab_size": 50, "max_length": 12, "width": 32, "num_layers": 2}
TINY = SIZES | {"num_heads": 2, "mlp_width": 48}


def is_head(path):
    return path.startswith("heads/")


def leaf_count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def drawn(model, x, dtype=np.float32):
    """Parameters of order ``1/sqrt(fan_in)`` and positive statistics, not initialised.

    No draw is compiled, and no scale, bias or statistic is trivial.
    """
    rng = np.random.default_rng(0)

    def param(leaf):
        fan_in = max(1, math.prod(leaf.shape[:-1]))
        return rng.normal(size=leaf.shape).astype(dtype) / dtype(math.sqrt(fan_in))

    def statistic(leaf):
        return rng.uniform(0.5, 1.5, leaf.shape).astype(dtype)

    params, state = jax.eval_shape(model.init, KEY, x)
    return jax.tree.map(param, params), jax.tree.map(statistic, state)


@functools.cache
def resnet():
    model = as_functional(ResNet18(2, stem="imagenet"))
    return model, *drawn(model, IMAGES)


@functools.cache
def resnet_in_training():
    return jax.jit(functools.partial(resnet()[0].apply, train=True))


@functools.cache
def transformer(**options):
    model = as_functional(TransformerClassifier(3, **TINY, **options))
    return model, *drawn(model, TOKENS)


# --- sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    ("stem", "encoder", "features"),
    [("cifar", 11_168_832, 2048), ("imagenet", 11_176_512, 512)],
)
def test_resnet_has_the_published_size(stem, encoder, features, norm):
    x = jnp.zeros((8, 64, 64, 3))
    model = as_functional(ResNet18(40, stem=stem, norm=norm))
    params, state = jax.eval_shape(model.init, KEY, x)
    assert set(params) == {"encoder", "heads"}
    assert leaf_count(params["encoder"]) == encoder
    assert leaf_count(params["heads"]) == 40 * (features + 1) * 2
    # Mean and variance of as many channels as there are scales and biases.
    assert leaf_count(state) == (9_600 if norm == "batch" else 0)
    logits, _ = jax.eval_shape(model.apply, params, state, x)
    chex.assert_shape(logits, (40, 8, 2))
    alone = as_functional(ResNet18Encoder(stem=stem, norm=norm))
    z, _ = jax.eval_shape(alone.apply, params["encoder"], _inner(state), x)
    chex.assert_shape(z, (8, features))


def _inner(state):
    return {name: tree["encoder"] for name, tree in state.items()}


def test_transformer_has_the_documented_size():
    model = as_functional(TransformerClassifier(10))
    tokens = jnp.zeros((16, 64), jnp.int32)
    params, state = jax.eval_shape(model.init, KEY, tokens)
    assert leaf_count(params["encoder"]) == 5_011_456
    assert leaf_count(params["heads"]) == 10 * 257 * 2
    assert state == {}
    logits, _ = jax.eval_shape(model.apply, params, state, tokens)
    chex.assert_shape(logits, (10, 16, 2))
    d, m = TINY["width"], TINY["mlp_width"]
    small = jax.eval_shape(as_functional(TransformerEncoder(**TINY)).init, KEY, TOKENS)
    expected = (50 + 12 + 2) * d + 2 * (4 * d**2 + 2 * d * m + 9 * d + m)
    assert leaf_count(small[0]) == expected


@pytest.mark.parametrize("build", [ResNet18, TransformerClassifier])
@pytest.mark.parametrize("num_outputs", [2, 7])
def test_heads_are_stacked(build, num_outputs):
    x = jnp.zeros((2, 64, 64, 3)) if build is ResNet18 else TOKENS
    params, _ = jax.eval_shape(as_functional(build(5, num_outputs)).init, KEY, x)
    kernel, bias = params["heads"]["out"]["kernel"], params["heads"]["out"]["bias"]
    assert (kernel.shape[0], kernel.shape[2]) == (5, num_outputs)
    assert bias.shape == (5, num_outputs)


# --- against NumPy -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "norm", "train"),
    slow_but(
        [("cifar", "batch", True)],
        [
            ("cifar", "batch", True),
            ("imagenet", "batch", False),
            ("imagenet", "group", True),
        ],
    ),
)
def test_resnet_matches_numpy(x64, stem, norm, train):
    """Sides that are odd, or odd after halving; features, running statistics."""
    x = np.random.default_rng(1).normal(size=(2, 64, 37, 3))
    model = as_functional(ResNet18Encoder(stem, norm, param_dtype=jnp.float64))
    params, state = drawn(model, x, np.float64)
    expected, stats = networks.resnet18(
        params, state.get("batch_stats", {}), x, stem=stem, norm=norm, train=train
    )
    apply = jax.jit(functools.partial(model.apply, train=train))
    features, new_state = apply(params, state, x)
    assert features.dtype == jnp.float64
    # Twenty layers of float64 sums of up to 4608 products, E[x²] - E[x]² for variances.
    np.testing.assert_allclose(features, expected, rtol=1e-9, atol=1e-9)
    if norm == "batch":
        chex.assert_trees_all_close(new_state["batch_stats"], stats, rtol=1e-9)
        chex.assert_trees_all_equal_dtypes(new_state, state)
    else:
        assert new_state == {}


def test_transformer_matches_numpy(x64):
    model = as_functional(TransformerEncoder(**TINY, param_dtype=jnp.float64))
    params, _ = drawn(model, TOKENS, np.float64)
    expected = networks.transformer(params, np.asarray(TOKENS))
    features, _ = jax.jit(model.apply)(params, {}, TOKENS)
    assert features.dtype == jnp.float64
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-12)


# --- initialisation ------------------------------------------------------------------


def test_resnet_initialises_by_fan_in():
    model = as_functional(BasicBlock(128, stride=2))
    params, state = model.init(KEY, jnp.zeros((1, 8, 8, 64)))
    for name, fan_in in {"first": 576, "second": 1152, "shortcut": 64}.items():
        kernel, bound = params[name]["conv"]["kernel"], 1 / math.sqrt(fan_in)
        assert 0.99 * bound < jnp.abs(kernel).max() <= bound
        # At least 8192 uniform draws: three per cent are 5 standard errors.
        assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    zeros, ones = jnp.zeros(128), jnp.ones(128)
    chex.assert_trees_all_equal(params["first"]["norm"], {"scale": ones, "bias": zeros})
    fresh = state["batch_stats"]["first"]["norm"]
    chex.assert_trees_all_equal(fresh, {"mean": zeros, "var": ones})


def test_transformer_starts_near_chance():
    model = as_functional(TransformerClassifier(3, **TINY))
    params, _ = model.init(KEY, TOKENS)
    other, _ = model.init(jax.random.key(1), TOKENS)
    flat = params["encoder"]["positions"], params["encoder"]["tokens"]["embedding"]
    # Standard deviations 0.02 and 1/sqrt(width); 384 and 1600 draws, 5 standard errors.
    assert flat[0].std() == pytest.approx(0.02, rel=0.2)
    assert flat[1].std() == pytest.approx(1 / math.sqrt(32), rel=0.1)
    assert not jnp.allclose(flat[1], other["encoder"]["tokens"]["embedding"])
    losses = cross_entropy(jax.jit(model.apply)(params, {}, TOKENS)[0], LABELS)
    # Features of variance one, heads U(±1/sqrt(32)): logits of deviation 0.6.
    assert jnp.all((losses > 0.3) & (losses < 1.5))


# --- statistics ----------------------------------------------------------------------


def test_batch_statistics_change_in_training_only():
    model, params, state = resnet()
    evaluate = jax.jit(model.apply)
    before, same = evaluate(params, state, IMAGES)
    chex.assert_trees_all_equal(same, state)
    trained, updated = resnet_in_training()(params, state, IMAGES)
    chex.assert_trees_all_equal_shapes_and_dtypes(updated, state)
    for old, new in zip(*map(jax.tree.leaves, (state, updated)), strict=True):
        assert jnp.all(old != new)
    after, _ = evaluate(params, updated, IMAGES)
    assert not jnp.allclose(before, after)
    assert not jnp.allclose(before, trained)
    # In evaluation an image's logits do not depend on the others of the batch.
    alone, _ = evaluate(params, state, jnp.tile(IMAGES[:1], (4, 1, 1, 1)))
    chex.assert_trees_all_close(alone[:, :1], before[:, :1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("param_dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_statistics_keep_their_dtype(x64, dtype, param_dtype):
    """Else no scan could carry them."""
    model = as_functional(ResNet18(2, dtype=dtype, param_dtype=param_dtype))
    x = jnp.zeros((2, 32, 32, 3), param_dtype)
    params, state = jax.eval_shape(model.init, KEY, x)
    logits, updated = jax.eval_shape(
        functools.partial(model.apply, train=True), params, state, x
    )
    chex.assert_trees_all_equal_dtypes(updated, state)
    accurate = jnp.promote_types(param_dtype, jnp.float32)
    assert all(leaf.dtype == accurate for leaf in jax.tree.leaves(state))
    assert all(leaf.dtype == param_dtype for leaf in jax.tree.leaves(params))
    assert logits.dtype == (jnp.float32 if dtype else accurate)


# --- task gradients ------------------------------------------------------------------


def task_gradients(losses_fn, params, strategy="auto"):
    source = mtl_jax.value_and_task_grads(
        losses_fn, has_aux=True, strategy=strategy, heads=is_head
    )
    return jax.jit(source)(params)


def check_task_gradients(losses_fn, params, grads, rtol):
    """Derivatives of the losses, forwards, along the gradients found backwards.

    Along the encoder's row ``t`` they are column ``t`` of the rows' Gramian; along head
    ``t``'s gradient only loss ``t`` changes, by the gradient's squared norm.
    """

    @jax.jit
    def along(direction):
        return jax.jvp(lambda p: losses_fn(p)[0], (params,), (direction,))[1]

    zeros = jax.tree.map(jnp.zeros_like, params)
    gram = mtl_jax.tree.gram(grads["encoder"])
    num_tasks = len(gram)
    tasks = jnp.arange(num_tasks)
    for t in range(num_tasks):
        row = jax.tree.map(lambda leaf, t=t: leaf[t], grads["encoder"])
        assert gram[t, t] > 0
        error = jnp.abs(along(zeros | {"encoder": row}) - gram[t])
        assert jnp.all(error <= rtol * jnp.sqrt(gram[t, t] * jnp.diag(gram)))

        head = jax.tree.map(
            lambda leaf, t=t: leaf[0].at[tasks != t].set(0), grads["heads"]
        )
        squared = sum((leaf**2).sum() for leaf in jax.tree.leaves(head))
        assert squared > 0
        expected = jnp.where(tasks == t, squared, 0)
        chex.assert_trees_all_close(
            along(zeros | {"heads": head}), expected, rtol=rtol, atol=0
        )


@pytest.mark.slow
def test_task_gradients_of_the_resnet():
    model, params, state = resnet()

    def losses_fn(params):
        logits, new_state = model.apply(params, state, IMAGES, train=True)
        return cross_entropy(logits, LABELS[:, :2]), new_state

    (_, new_state), grads = task_gradients(losses_fn, params)
    # float32: rounding grows through the batch statistics of four images.
    check_task_gradients(losses_fn, params, grads, rtol=1e-3)
    # One update for all tasks together.
    expected = resnet_in_training()(params, state, IMAGES)[1]
    chex.assert_trees_all_close(new_state, expected, rtol=1e-4, atol=1e-5)


def transformer_losses(params, **options):
    model, _, _ = transformer(**options)
    logits, _ = model.apply(params, {}, TOKENS)
    return cross_entropy(logits, LABELS), logits


@functools.cache
def transformer_gradients(**options):
    losses_fn = functools.partial(transformer_losses, **options)
    return task_gradients(losses_fn, transformer()[1])


def test_task_gradients_of_the_transformer():
    _, grads = transformer_gradients()
    check_task_gradients(transformer_losses, transformer()[1], grads, rtol=1e-4)


def test_encoder_and_heads_compose():
    _, params, _ = transformer()
    (_, logits), _ = transformer_gradients()
    encoder, heads = (
        as_functional(TransformerEncoder(**TINY)),
        as_functional(Heads(3, 2)),
    )

    @jax.jit
    def composed(params):
        features, _ = encoder.apply(params["encoder"], {}, TOKENS)
        return heads.apply(params["heads"], {}, features)[0]

    chex.assert_trees_all_close(composed(params), logits, rtol=1e-4, atol=1e-5)


# --- precision -----------------------------------------------------------------------


def test_bfloat16_computation_keeps_float32_parameters():
    (_, logits), grads = transformer_gradients()
    (losses, half_logits), half_grads = transformer_gradients(dtype=jnp.bfloat16)
    chex.assert_type([losses, half_logits, *jax.tree.leaves(half_grads)], jnp.float32)
    # bfloat16 rounds by 2^-9 = 0.2 %, at most a few dozen times in a row.
    assert 0 < jnp.abs(logits - half_logits).max() < 0.05 * jnp.abs(logits).max()
    gram, half_gram = (mtl_jax.tree.gram(g["encoder"]) for g in (grads, half_grads))
    scale = jnp.sqrt(jnp.diag(gram)[:, None] * jnp.diag(gram)[None])
    assert jnp.all(jnp.abs(gram - half_gram) < 0.1 * scale)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_resnet_computes_in_the_dtype_it_is_given(norm):
    module = ResNet18Encoder("cifar", norm, dtype=jnp.bfloat16)
    model = as_functional(module)
    params, state = jax.eval_shape(model.init, KEY, IMAGES)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    program = jax.make_jaxpr(functools.partial(model.apply, train=True))(
        *jax.tree.map(jnp.zeros_like, (params, state)), IMAGES
    )
    products = [
        equation.outvars[0].aval.dtype
        for equation in program.jaxpr.eqns
        if equation.primitive.name == "conv_general_dilated"
    ]
    assert len(products) == 20
    assert set(products) == {jnp.dtype(jnp.bfloat16)}


# --- the transformer's own -----------------------------------------------------------


def test_order_of_the_tokens_matters_through_positions_only():
    model, params, _ = transformer()
    apply = jax.jit(model.apply)
    shuffled = TOKENS[:, jnp.array([3, 1, 9, 0, 2, 8, 7, 6, 5, 4])]
    before, after = (apply(params, {}, tokens)[0] for tokens in (TOKENS, shuffled))
    assert not jnp.allclose(before, after, atol=1e-2)
    encoder = params["encoder"] | {"positions": np.zeros((12, 32), np.float32)}
    blind = params | {"encoder": encoder}
    before, after = (apply(blind, {}, tokens)[0] for tokens in (TOKENS, shuffled))
    chex.assert_trees_all_close(before, after, atol=1e-5)


def test_dropout_follows_the_key():
    model, params, _ = transformer(dropout=0.1)
    train = jax.jit(functools.partial(model.apply, train=True))

    def outputs(seed):
        return train(params, {}, TOKENS, key=jax.random.key(seed))[0]

    chex.assert_trees_all_equal(outputs(1), outputs(1))
    assert not jnp.allclose(outputs(1), outputs(2))
    evaluated, _ = jax.jit(model.apply)(params, {}, TOKENS)
    (_, expected), _ = transformer_gradients()
    chex.assert_trees_all_close(evaluated, expected, rtol=1e-4, atol=1e-5)


def test_dropout_needs_a_key_only_if_it_is_on():
    model, params, _ = transformer(dropout=0.1)
    off = functools.partial(transformer()[0].apply, train=True)
    jax.eval_shape(off, params, {}, TOKENS)
    train = functools.partial(model.apply, train=True)
    with pytest.raises(ValueError, match="TransformerClassifier draws random numbers"):
        jax.eval_shape(train, params, {}, TOKENS)


def test_dropout_of_the_embeddings_scales_the_survivors():
    """Without blocks only the embeddings drop, and the last norm undoes the scale."""
    sizes = TINY | {"num_layers": 0, "max_length": 1, "width": 512}
    model = as_functional(TransformerEncoder(**sizes, dropout=0.25))
    params, _ = drawn(model, TOKENS[:, :1])
    params["tokens"]["embedding"] = np.ones((50, 512), np.float32)
    params["positions"] = np.zeros((1, 512), np.float32)
    params["norm"] = {
        "scale": np.ones(512, np.float32),
        "bias": np.zeros(512, np.float32),
    }
    train = jax.jit(functools.partial(model.apply, train=True))
    outputs, _ = train(params, {}, TOKENS[:, :1], key=KEY)
    kept = outputs > 0
    assert kept.mean() == pytest.approx(0.75, abs=0.04)  # 2048 draws: 4 sigma
    # Survivors are a, the rest 0: normalised to sqrt(q/p) and -sqrt(p/q) if p survive.
    p = kept.mean(1, keepdims=True)
    expected = jnp.where(kept, jnp.sqrt((1 - p) / p), -jnp.sqrt(p / (1 - p)))
    chex.assert_trees_all_close(outputs, expected, rtol=1e-4)


# --- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (ResNet18, {"num_tasks": 0}, "num_tasks must be"),
        (ResNet18, {"num_tasks": 2, "stem": "mnist"}, "stem must be one of"),
        (ResNet18, {"num_tasks": 2, "norm": "layer"}, "norm must be one of"),
        (ResNet18Encoder, {"stem": "mnist"}, "stem must be one of"),
        (ResNet18Encoder, {"norm": "layer"}, "norm must be one of"),
        (TransformerClassifier, {"num_tasks": True}, "num_tasks must be"),
        (TransformerClassifier, {"num_tasks": 2, "width": 0}, r"width must lie in \[1"),
        (TransformerEncoder, {"num_heads": 3}, "width must be a multiple of num_heads"),
        (TransformerEncoder, {"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        (TransformerEncoder, {"num_layers": -1}, r"num_layers must lie in \[0"),
    ],
)
def test_bad_options_are_refused_at_construction(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("module", "x", "message"),
    [
        (ResNet18(2), IMAGES[..., 0], r"needs images \(B, H, W, channels\)"),
        (ResNet18(2), IMAGES[:, :24], "H and W >= 25 for the cifar stem"),
        (TransformerClassifier(2), TOKENS[0], r"tokens must have shape \(B, L\)"),
        (TransformerEncoder(max_length=9), TOKENS, "1 <= L <= 9"),
        (TransformerEncoder(), TOKENS[:, :0], "1 <= L <= 64"),
        (TransformerEncoder(), TOKENS.astype(float), "tokens must be integers"),
    ],
)
def test_bad_inputs_are_refused(module, x, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(as_functional(module).init, KEY, x)
