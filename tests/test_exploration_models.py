"""Networks of continuous Pareto exploration: sizes, functions, gradients, losses."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mtl_jax
from mtl_jax.models import (
    CensusMLP,
    DenseEncoder,
    Heads,
    MiniEncoder,
    MiniLeNet,
    NamedHeads,
    ResNet18Encoder,
    UTKFaceNet,
    as_functional,
    cross_entropy,
    mixed_errors,
    mixed_losses,
)

KEY = jax.random.key(0)
SMALL = jax.random.normal(jax.random.key(1), (8, 14, 14, 1))
ROWS = jax.random.normal(jax.random.key(2), (8, 30))
FACES = jax.random.normal(jax.random.key(3), (2, 32, 32, 3))


def is_head(path):
    return path.startswith("heads/")


def leaf_count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@functools.cache
def built(name):
    model, x = {
        "mini": (MiniLeNet(), SMALL),
        "census": (CensusMLP(hidden=(12, 7)), ROWS),
    }[name]
    model = as_functional(model)
    return model, model.init(KEY, x)[0], x


# --- sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "total", "heads", "outputs"),
    [
        (MiniLeNet(), (4, 14, 14, 1), 1_500, 420, (2, 4, 10)),
        (MiniLeNet(3, 5), (4, 17, 14, 2), 510 + 20 * 61 + 315, 315, (3, 4, 5)),
        (CensusMLP(), (4, 487), 158_598, 774, (3, 4, 2)),
        (CensusMLP(), (4, 485), 158_086, 774, (3, 4, 2)),
        (CensusMLP(2, hidden=(256,)), (4, 468), 121_092, 1_028, (2, 4, 2)),
    ],
)
def test_stacked_networks_have_the_published_sizes(model, shape, total, heads, outputs):
    x = jnp.zeros(shape)
    model = as_functional(model)
    params, state = jax.eval_shape(model.init, KEY, x)
    assert leaf_count(params) == total
    assert set(params) == {"encoder", "heads"} and state == {}
    assert leaf_count(params["heads"]) == heads
    logits, _ = jax.eval_shape(model.apply, params, state, x)
    chex.assert_shape(logits, outputs)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    ("stem", "total"), [("cifar", 11_185_224), ("imagenet", 11_176_512 + 513 * 8)]
)
def test_the_face_network_has_over_eleven_million_parameters(norm, stem, total):
    x = jnp.zeros((4, 64, 64, 3))
    model = as_functional(UTKFaceNet(norm=norm, stem=stem))
    params, state = jax.eval_shape(model.init, KEY, x)
    assert leaf_count(params) == total > 11_000_000
    assert set(params) == {"encoder", "heads"}
    assert set(params["heads"]) == {"age", "gender", "race"}
    assert leaf_count(state) == (9_600 if norm == "batch" else 0)
    outputs, _ = jax.eval_shape(model.apply, params, state, x)
    assert [output.shape for output in outputs] == [(4, 1), (4, 2), (4, 5)]
    alone = as_functional(ResNet18Encoder(stem=stem, norm=norm))
    inner = {name: tree["encoder"] for name, tree in state.items()}
    z, _ = jax.eval_shape(alone.apply, params["encoder"], inner, x)
    heads = as_functional(NamedHeads((("age", 1), ("gender", 2), ("race", 5))))
    outputs, _ = jax.eval_shape(heads.apply, params["heads"], {}, z)
    assert [output.shape for output in outputs] == [(4, 1), (4, 2), (4, 5)]


# --- functions -----------------------------------------------------------------------


def mini_reference(params, x):
    """As released: strided convolution, ReLU, pool, dense, ReLU, two heads."""
    conv, dense = params["encoder"]["conv"], params["encoder"]["dense"]
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, conv["kernel"], (2, 2), "VALID", dimension_numbers=dimensions
    )
    y = jax.nn.relu(y + conv["bias"].reshape(1, 1, 1, -1))
    window = (1, 2, 2, 1)
    y = lax.reduce_window(y, -jnp.inf, lax.max, window, window, "VALID")
    y = y.reshape(len(x), -1) @ dense["kernel"] + dense["bias"].reshape(1, -1)
    out = params["heads"]["out"]
    logits = jnp.einsum("bi,tio->tbo", jax.nn.relu(y), out["kernel"])
    return logits + out["bias"][:, None]


@pytest.mark.parametrize(
    ("shape", "twice"),
    [
        ((3, 16, 13, 2), False),
        pytest.param((8, 14, 14, 1), True, marks=pytest.mark.slow),  # long to compile
    ],
)
def test_mini_lenet_is_the_released_function(x64, shape, twice):
    """Odd and unequal sides too: the last row of the convolution is then not pooled."""
    x = jax.random.normal(KEY, shape)
    model = as_functional(MiniLeNet(param_dtype=jnp.float64))
    params, _ = model.init(KEY, x)
    labels = jax.random.randint(KEY, (shape[0], 2), 0, 10)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(apply, params):
        def loss(params):
            logits = apply(params, x)
            return cross_entropy(logits, labels) @ jnp.array([0.3, 0.7]), logits

        grad = jax.grad(loss, has_aux=True)
        return jax.jvp(grad, (params,), (params,)) if twice else grad(params)

    ours = derivatives(lambda params, x: model.apply(params, {}, x)[0], params)
    chex.assert_trees_all_close(ours, derivatives(mini_reference, params), atol=1e-12)


def test_census_mlp_matches_numpy():
    model, params, x = built("census")
    z = np.asarray(x, np.float64)
    for name in ("dense1", "dense2"):
        layer = jax.device_get(params["encoder"][name])
        z = np.maximum(z @ layer["kernel"] + layer["bias"], 0)
    out = jax.device_get(params["heads"]["out"])
    expected = np.einsum("bi,tio->tbo", z, out["kernel"]) + out["bias"][:, None]
    logits, _ = jax.jit(model.apply)(params, {}, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "encoder"), [("mini", MiniEncoder()), ("census", DenseEncoder((12, 7)))]
)
def test_encoder_and_heads_compose(name, encoder):
    model, params, x = built(name)

    @jax.jit
    def both(params):
        logits, _ = model.apply(params, {}, x)
        num_tasks, _, classes = logits.shape
        z, _ = as_functional(encoder).apply(params["encoder"], {}, x)
        heads = as_functional(Heads(num_tasks, classes))
        return logits, heads.apply(params["heads"], {}, z)[0]

    chex.assert_trees_all_close(*both(params))


@pytest.mark.parametrize("name", ["mini", "census"])
def test_initialised_uniformly_by_fan_in(name):
    model, params, x = built(name)
    chex.assert_trees_all_equal(params, model.init(KEY, x)[0])
    fan_in = {"conv": 25, "dense": 40, "dense1": 30, "dense2": 12}
    fan_in["out"] = {"mini": 20, "census": 7}[name]
    for layer, leaves in (params["encoder"] | params["heads"]).items():
        bound = 1 / math.sqrt(fan_in[layer])
        assert jnp.abs(leaves["kernel"]).max() <= bound
        assert jnp.abs(leaves["bias"]).max() <= bound
        assert jnp.abs(leaves["kernel"]).max() >= 0.85 * bound


@pytest.mark.parametrize("name", ["mini", "census"])
def test_heads_are_marked_by_their_path(name):
    model, params, x = built(name)
    num_tasks = jax.eval_shape(model.apply, params, {}, x)[0].shape[0]
    labels = jnp.zeros((len(x), num_tasks), jnp.int32)
    source = mtl_jax.value_and_task_grads(
        lambda p: cross_entropy(model.apply(p, {}, x)[0], labels), heads=is_head
    )
    losses, grads = jax.jit(source)(params)
    assert losses.shape == (num_tasks,)
    assert all(leaf.shape[0] == num_tasks for leaf in jax.tree.leaves(grads["encoder"]))
    assert all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(grads["heads"]))


def test_named_heads_match_numpy_and_keep_to_themselves():
    heads = as_functional(NamedHeads((("age", 1), ("gender", 2), ("race", 5))))
    z = ROWS
    params, _ = heads.init(KEY, z)
    outputs, _ = jax.jit(heads.apply)(params, {}, z)
    for output, (name, size) in zip(
        outputs, (("age", 1), ("gender", 2), ("race", 5)), strict=True
    ):
        layer = jax.device_get(params[name])
        assert layer["kernel"].shape == (30, size)
        assert np.abs(layer["kernel"]).max() <= 1 / math.sqrt(30)
        expected = np.asarray(z) @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    half = as_functional(NamedHeads((("a", 1),), dtype=jnp.bfloat16))
    output = jax.eval_shape(lambda z: half.apply(half.init(KEY, z)[0], {}, z)[0], z)
    assert output[0].dtype == jnp.float32


# --- the face network ----------------------------------------------------------------


def face_losses(model, state):
    targets = jnp.array([0.5, -1.0]), jnp.array([0, 1]), jnp.array([4, 2])

    def losses_fn(params):
        return mixed_losses(model.apply(params, state, FACES)[0], targets)

    return losses_fn


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_task_gradients_and_hessian_products_of_the_face_network(norm):
    model = as_functional(UTKFaceNet(norm=norm))
    params, state = model.init(KEY, FACES)
    losses_fn = face_losses(model, state)
    source = mtl_jax.value_and_task_grads(losses_fn, heads=is_head)
    losses, grads = jax.jit(source)(params)
    assert losses.shape == (3,) and jnp.isfinite(losses).all()
    chex.assert_tree_all_finite(grads)
    gram = np.asarray(mtl_jax.tree.gram(grads["encoder"]))
    assert np.linalg.matrix_rank(gram) == 3

    @jax.jit
    def product(v):
        return jax.jvp(jax.grad(lambda p: losses_fn(p).sum()), (params,), (v,))[1]

    leaves = jax.tree.leaves(params)
    keys = jax.random.split(KEY, 2 * len(leaves))
    u, v = (
        jax.tree.unflatten(
            jax.tree.structure(params),
            [
                jax.random.normal(k, leaf.shape)
                for k, leaf in zip(part, leaves, strict=True)
            ],
        )
        for part in (keys[: len(leaves)], keys[len(leaves) :])
    )
    left, right = inner(u, product(v)), inner(v, product(u))
    np.testing.assert_allclose(left, right, rtol=1e-2)


def inner(a, b):
    return sum(
        jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


# --- losses --------------------------------------------------------------------------


def test_mixed_losses_match_numpy():
    rng = np.random.default_rng(0)
    outputs = [rng.normal(size=(16, d)).astype(np.float32) for d in (1, 2, 5)]
    targets = [rng.normal(size=16), rng.integers(0, 2, 16), rng.integers(0, 5, 16)]
    targets[0] = 2 * targets[0].astype(np.float32)
    residual = outputs[0][:, 0] - targets[0]
    rows = [residual**2]
    errors = [np.abs(residual)]
    for z, y in zip(outputs[1:], targets[1:], strict=True):
        rows.append(np.log(np.exp(z).sum(1)) - z[np.arange(16), y])
        errors.append((z.argmax(1) != y).astype(float))
    delta = 0.7

    @jax.jit
    def measure(outputs, targets):
        def huber(outputs, reduce):
            return mixed_losses(outputs, targets, huber=delta, reduce=reduce)

        return {
            "losses": mixed_losses(outputs, targets, reduce=False),
            "errors": mixed_errors(outputs, targets, reduce=False),
            "huber": huber(outputs, False)[0],
            "slopes": jax.grad(lambda z: huber(z, False).sum())(outputs)[0][:, 0],
            "means": [mixed_losses(outputs, targets), mixed_errors(outputs, targets)],
        }

    measured = measure(outputs, targets)
    np.testing.assert_allclose(measured["losses"], rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(measured["errors"], errors, rtol=1e-6)
    means = [np.mean(rows, 1), np.mean(errors, 1)]
    np.testing.assert_allclose(measured["means"], means, rtol=1e-5)
    small = np.abs(residual) <= delta
    assert 0 < small.sum() < 16
    rows = np.where(small, residual**2 / 2, delta * (np.abs(residual) - delta / 2))
    np.testing.assert_allclose(measured["huber"], rows, rtol=1e-5, atol=1e-6)
    slopes = residual.clip(-delta, delta)
    np.testing.assert_allclose(measured["slopes"], slopes, atol=1e-6)


def test_mixed_losses_of_equal_tasks_are_the_cross_entropies():
    logits, labels = ROWS[:, :15].reshape(3, 8, 5), jnp.arange(24).reshape(8, 3) % 5
    mixed, expected = jax.jit(
        lambda z, y: (mixed_losses(tuple(z), tuple(y.T)), cross_entropy(z, y))
    )(logits, labels)
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        ([(8, 1)], [], "one array per task, got 1 and 0"),
        ([], [], "one array per task, got 0 and 0"),
        ([(8, 2)], [jnp.zeros(8)], r"task 0 must have outputs \(B, 1\) and .*\(8, 2\)"),
        ([(8, 2)], [jnp.zeros(7, int)], r"\(B, classes\) .* got \(8, 2\) and \(7,\)"),
        ([(8,)], [jnp.zeros(8)], "task 0 must have outputs"),
        ([(8, 1)], [jnp.zeros((8, 1))], "task 0 must have outputs"),
    ],
)
def test_mixed_losses_refuse_bad_shapes(outputs, targets, message):
    outputs = [jnp.zeros(shape) for shape in outputs]
    for function in (mixed_losses, mixed_errors):
        with pytest.raises(ValueError, match=message):
            function(outputs, targets)
    with pytest.raises(ValueError, match="huber must lie in"):
        mixed_losses([jnp.zeros((8, 1))], [jnp.zeros(8)], huber=0.0)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (MiniLeNet, {"num_tasks": 0}, "num_tasks must be"),
        (CensusMLP, {"num_tasks": 0}, "num_tasks must be"),
        (CensusMLP, {"hidden": ()}, "hidden must be at least one width"),
        (CensusMLP, {"hidden": (4, 0)}, "hidden must be at least one width"),
        (UTKFaceNet, {"stem": "mnist"}, "stem must be one of"),
        (UTKFaceNet, {"norm": "layer"}, "norm must be one of"),
        (UTKFaceNet, {"tasks": ()}, "tasks must be pairs"),
        (UTKFaceNet, {"tasks": (("a", 1), ("a", 2))}, "tasks must be pairs"),
        (UTKFaceNet, {"tasks": (("a", 0),)}, "tasks must be pairs"),
    ],
)
def test_bad_options_are_refused(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (MiniLeNet(), SMALL[..., 0], r"needs images \(B, H, W, channels\)"),
        (MiniLeNet(), SMALL[:, :6], "with H and W >= 7, got"),
        (CensusMLP(), SMALL, r"needs rows \(B, features\), got"),
        (UTKFaceNet(), FACES[:, :24], "H and W >= 25"),
    ],
)
def test_bad_inputs_are_refused(model, x, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(as_functional(model).init, KEY, x)
