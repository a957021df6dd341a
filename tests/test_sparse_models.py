"""Networks of the sparsity study: sizes, fusion, attention, distillation, LSUV, rows."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtl_jax import sparsity
from mtl_jax.models import (
    KDMTL,
    MDMTN,
    MTAN,
    HardSharing,
    LeNet,
    Trunk,
    as_functional,
    distillation_losses,
    lsuv,
)
from mtl_jax.models.hard_sharing import SIZES

KEY = jax.random.key(0)


def images_of(name, batch=6):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(batch, *SIZES[name].image)), jnp.float32)


def shapes_of(network):
    model = as_functional(network)
    return jax.eval_shape(model.init, KEY, images_of(network.images))


def numbers_like(shapes, scale=0.1):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32),
        shapes,
    )


def leaf_count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def monitored():
    """The monitored network of MultiMNIST: its logits, and numbers in every leaf.

    One compilation serves learned and fixed fusion, and one more compressed parameters.
    """
    x = images_of("multi_mnist")

    def apply(params):
        learned = as_functional(MDMTN(2)).apply(params, {}, x)[0]
        fixed = {name: node for name, node in params.items() if name != "fusion"}
        return learned, as_functional(MDMTN(2, fusion="fixed")).apply(fixed, {}, x)[0]

    return jax.jit(apply), numbers_like(shapes_of(MDMTN(2))[0])


# --- sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "mnist", "cifar"),
    [
        (lambda images: HardSharing(1, images), 21_840, 42_410),
        (lambda images: HardSharing(2, images), 22_350, 42_740),
        (lambda images: MDMTN(2, images, "fixed"), 311_490, 505_524),
        (lambda images: MDMTN(2, images), 311_494, 505_528),
        (lambda images: KDMTL(2, images), 27_450, 44_852),
        (lambda images: MTAN(2, images), 270_150, 2_783_060),
    ],
    ids=["stl", "hps", "mdmtn_fixed", "mdmtn", "kdmtl", "mtan"],
)
def test_parameter_counts(network, mnist, cifar):
    for images, expected in (("multi_mnist", mnist), ("cifar10_mnist", cifar)):
        params, state = shapes_of(network(images))
        assert leaf_count(params) == expected
        assert bool(state) == (images == "cifar10_mnist")  # running statistics


def test_rows_and_attainable_sparsity_are_those_of_the_paper():
    """Row totals, and the share that the caps allow in the layers that may be sparse."""
    cases = [
        (HardSharing(2), 431, 0.8, 61.25),
        (MDMTN(2), 6193, 0.8, 78.67),
        (HardSharing(2, "cifar10_mnist"), 1235, 0.15, 14.09),
        (MDMTN(2, "cifar10_mnist"), 15641, 0.3, 29.85),
    ]
    for network, total, cap, share in cases:
        params, _ = shapes_of(network)
        params = jax.tree.map(np.asarray, numbers_like(params))
        stats = sparsity.sparsity_stats(params)
        assert stats == (total, 0, total)
        chosen = sparsity.zero_rows(params)  # the default leaves out first convolutions
        most = sum(int(cap * mask.size) for mask in chosen.values())
        assert 100 * most / total == pytest.approx(share, abs=0.01)


def test_fusion_weights_are_no_kernel():
    """With four tasks they have as many rows as the smallest layers that are chosen."""
    params, _ = shapes_of(MDMTN(4))
    assert params["fusion"].shape == (4, 2)
    for layers in (None, lambda path: True):
        chosen = sparsity.select_layers(params, layers)
        assert not chosen["fusion"] and chosen["encoder"]["dense"]["kernel"]


def test_monitors_are_task_specific():
    params, _ = shapes_of(MDMTN(2))
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    shared = [path for path in paths if not MDMTN.task_specific(path)]
    assert len(shared) == 6 and all(path.startswith("encoder/") for path in shared)
    assert sorted({path.split("/")[0] for path in paths}) == [
        "encoder", "fusion", "heads", "monitors_0", "monitors_1",
    ]  # fmt: skip


# --- what they compute ----------------------------------------------------------------


@pytest.mark.slow
def test_hard_sharing_of_multi_mnist_is_the_small_lenet():
    x = images_of("multi_mnist")
    params, _ = as_functional(LeNet(2)).init(KEY, x)

    @jax.jit
    def both(params):
        lenet = as_functional(LeNet(2)).apply(params, {}, x)[0]
        return lenet, as_functional(HardSharing(2)).apply(params, {}, x)[0]

    lenet, other = both(params)
    chex.assert_shape(other, (2, 6, 10))
    np.testing.assert_allclose(other, lenet, atol=1e-6)


def by_hand(params, x, fusion):
    """The monitored network of MultiMNIST in NumPy float64."""

    def layer(x, node):
        kernel, bias = (np.asarray(node[k], np.float64) for k in ("kernel", "bias"))
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(1, 2))
        y = np.einsum("bhwcij,ijco->bhwo", windows, kernel) + bias
        side = y.shape[1] // 2
        y = y[:, : 2 * side, : 2 * side].reshape(len(x), side, 2, side, 2, -1)
        return np.maximum(y.max((2, 4)), 0)

    def dense(x, node):
        kernel, bias = (np.asarray(node[k], np.float64) for k in ("kernel", "bias"))
        return np.maximum(x.reshape(len(x), -1) @ kernel + bias, 0)

    x = np.asarray(x, np.float64)
    trunk = dense(layer(layer(x, params["encoder"]["conv1"]), params["encoder"]["conv2"]),
                  params["encoder"]["dense"])  # fmt: skip
    logits = []
    for task in range(2):
        node = params[f"monitors_{task}"]
        monitor = dense(layer(x, node["conv"]), node["dense"])
        head = {
            k: np.asarray(v[task], float) for k, v in params["heads"]["out"].items()
        }
        mixed = fusion[task][0] * trunk + fusion[task][1] * monitor
        logits.append(mixed @ head["kernel"] + head["bias"])
    return np.stack(logits)


def test_mdmtn_is_what_the_paper_draws():
    apply, params = monitored()
    x = images_of("multi_mnist")
    learned, fixed = apply(params)
    fusion = np.asarray(params["fusion"])
    np.testing.assert_allclose(learned, by_hand(params, x, fusion), atol=1e-4)
    np.testing.assert_allclose(fixed, by_hand(params, x, 2 * [(0.75, 0.25)]), atol=1e-4)


def test_mdmtn_starts_as_hard_sharing():
    init = MDMTN(3)._trunk_only(KEY)
    np.testing.assert_array_equal(init, [[1, 0]] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("images", list(SIZES))
def test_networks_run_and_train(images):
    x = images_of(images)
    for network in (MDMTN(2, images), MTAN(2, images), KDMTL(2, images)):
        model = as_functional(network)
        params, state = model.init(KEY, x)

        def loss(params, model=model, state=state):
            outputs, new = model.apply(params, state, x, train=True)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(outputs)), new

        (_, new), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        chex.assert_tree_all_finite(grads)
        chex.assert_trees_all_equal_shapes(new, state)
        dead = [
            k for k, v in grads.items() if not any(map(jnp.any, jax.tree.leaves(v)))
        ]
        learned = isinstance(network, MDMTN)  # its monitors have no weight yet
        assert dead == (["monitors_0", "monitors_1"] if learned else [])


def test_mtan_gates_the_trunk():
    """With huge biases the gates are open: what remains is hard sharing."""
    x = images_of("multi_mnist", 2)
    model = MTAN(2)
    shapes, _ = shapes_of(model)
    params = numbers_like(shapes)
    for task in range(2):
        last = params[f"attentions_{task}"]["dense"]
        last["bias"] = jnp.full_like(last["bias"], (100.0, -100.0)[task])
    shared = {name: params[name] for name in ("encoder", "heads")}

    @jax.jit
    def both(params, shared):
        return (
            as_functional(model).apply(params, {}, x)[0],
            as_functional(HardSharing(2)).apply(shared, {}, x)[0],
        )

    gated, plain = both(params, shared)
    np.testing.assert_allclose(gated[0], plain[0], atol=1e-5)  # open
    bias = np.asarray(params["heads"]["out"]["bias"][1])
    np.testing.assert_allclose(gated[1], np.tile(bias, (2, 1)), atol=1e-5)  # closed


def test_distillation_losses():
    rng = np.random.default_rng(3)
    adapted, teachers = rng.normal(size=(2, 2, 5, 4))
    adapted[0, 0] = 0  # all units of an adaptor dead

    def unit(features):
        norms = np.linalg.norm(features, axis=-1, keepdims=True)
        return features / np.where(norms > 0, norms, 1)

    expected = ((unit(adapted) - unit(teachers)) ** 2).sum(-1).mean(-1)
    losses = jax.jit(distillation_losses)(jnp.asarray(adapted), jnp.asarray(teachers))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    total = jax.jit(jax.grad(lambda *a: distillation_losses(*a).sum(), argnums=(0, 1)))
    own, other = total(jnp.asarray(adapted), jnp.asarray(teachers))
    chex.assert_tree_all_finite(own)
    assert own.any() and not other.any()
    with pytest.raises(ValueError, match="must both have shape"):
        distillation_losses(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 5)))


# --- compressed parameters ------------------------------------------------------------


def test_compressed_network_predicts_the_same():
    """Zero and tied rows in every hidden layer: smaller, same model, same logits."""
    apply, params = monitored()
    rng = np.random.default_rng(4)
    labels = {}
    rows = sparsity.zero_rows(jax.tree.map(np.asarray, params))
    for name, mask in rows.items():
        numbers = rng.integers(0, max(2, mask.size // 8), mask.shape)
        numbers[rng.random(mask.shape) < 0.6] = -1
        labels[name] = (
            np.unique(numbers, return_inverse=True)[1].reshape(mask.shape) - 1
        )
    sparse = jax.jit(lambda params: sparsity.tie(params, labels))(params)
    small = sparsity.compress(sparse)
    assert sparsity.sparsity_stats(sparse).sparsity_rate > 50
    assert sparsity.tree_bytes(sparse) > 4 * sparsity.tree_bytes(small)
    np.testing.assert_allclose(apply(small)[0], apply(sparse)[0], atol=1e-6)
    back = sparsity.expand(small, sparse)
    chex.assert_trees_all_equal(back, sparse)


# --- LSUV -----------------------------------------------------------------------------


@pytest.mark.slow
def test_lsuv_of_the_monitored_network():
    network, x = MDMTN(2), images_of("multi_mnist", 32)
    _, params = monitored()
    flat = lsuv(network, params, {}, x, max_corrections=0)
    kernels = [flat["encoder"]["conv2"]["kernel"], flat["monitors_1"]["dense"]["kernel"],
               flat["heads"]["out"]["kernel"][1]]  # fmt: skip
    for kernel in kernels:
        matrix = np.asarray(kernel, float).reshape(-1, kernel.shape[-1])
        np.testing.assert_allclose(
            matrix.T @ matrix, np.eye(matrix.shape[1]), atol=1e-5
        )
    assert not flat["encoder"]["dense"]["bias"].any()
    seen = []

    def batch(index):
        seen.append(index)
        return x

    out = lsuv(network, params, {}, batch)
    assert seen == [0, *range(8)]  # 3 + 2 * 2 layers, and the heads as one
    # Directions stay: only scales differ from the orthonormal ones.
    ratio = out["encoder"]["dense"]["kernel"] / flat["encoder"]["dense"]["kernel"]
    np.testing.assert_allclose(ratio, np.asarray(ratio).mean(), rtol=1e-4)
    assert abs(float(ratio[0, 0]) - 1) > 0.01
    numbers = ("NHWC", "HWIO", "NHWC")

    @jax.jit
    def deviations(params):
        shared = params["encoder"]
        first, second, _ = Trunk().bind({"params": shared}).blocks(x)
        kernel = shared["conv2"]["kernel"]
        conv = jax.lax.conv_general_dilated(
            first, kernel, (1, 1), "VALID", dimension_numbers=numbers
        )
        dense = second.reshape(len(x), -1) @ shared["dense"]["kernel"]
        logits = MDMTN(2).apply({"params": params}, x)
        return conv.std(), dense.std(), *logits.std((1, 2))

    np.testing.assert_allclose(deviations(out), 1, atol=0.1)


def test_lsuv_of_any_module():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), name="b")(x))
            return nn.Dense(3, name="a")(x.reshape(len(x), -1))

    x = jnp.asarray(np.random.default_rng(5).normal(size=(16, 6, 6, 2)), jnp.float32)
    variables = jax.eval_shape(Net().init, KEY, x)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables["params"])
    dead = lsuv(Net(), params, {}, 0 * x)  # no deviation can be made 1
    np.testing.assert_allclose(np.square(dead["b"]["kernel"]).sum(), 4, rtol=1e-5)
    out = lsuv(Net(), params, {}, 3 * x + 1)
    conv = nn.Conv(4, (3, 3)).apply({"params": out["b"]}, 3 * x + 1)
    dense = Net().apply({"params": out}, 3 * x + 1)
    assert float(conv.std()) == pytest.approx(1, abs=0.1)
    assert float(dense.std()) == pytest.approx(1, abs=0.1)


def test_lsuv_takes_one_dimensional_convolutions_for_one_layer():
    net = nn.Conv(5, (3,))  # a kernel of rank 3
    x = jnp.asarray(np.random.default_rng(5).normal(size=(8, 7, 2)), jnp.float32)
    params = {"kernel": jnp.ones((3, 2, 5)), "bias": jnp.ones(5)}
    flat = lsuv(net, params, {}, x, max_corrections=0)["kernel"].reshape(6, 5)
    np.testing.assert_allclose(flat.T @ flat, np.eye(5), atol=1e-5)
    out = net.apply({"params": lsuv(net, params, {}, 4 * x)}, 4 * x)
    assert float(out.std()) == pytest.approx(1, abs=0.1)


# --- bad input ------------------------------------------------------------------------


def test_bad_arguments():
    for network in (HardSharing, MDMTN, MTAN, KDMTL):
        with pytest.raises(ValueError, match="images must be one of"):
            network(2, images="mnist")
        with pytest.raises(ValueError, match="num_tasks must be"):
            network(0)
    with pytest.raises(ValueError, match="fusion must be one of"):
        MDMTN(2, fusion="sum")
    with pytest.raises(
        ValueError, match=r"shape \(B, 28, 28, 1\), got \(2, 32, 32, 3\)"
    ):
        jax.eval_shape(HardSharing(2).init, KEY, jnp.zeros((2, 32, 32, 3)))
    with pytest.raises(ValueError, match=r"needs a flax\.linen\.Module, got function"):
        lsuv(images_of, {}, {}, jnp.ones(3))
    norm = {"scale": jnp.ones(3), "bias": jnp.ones(3)}
    with pytest.raises(ValueError, match="found no layer"):
        lsuv(nn.LayerNorm(), norm, {}, jnp.ones((2, 3)))
