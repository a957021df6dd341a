"""Gramians layer by layer: every kind of layer against the stored task gradients.

All in float64, where the two ways to the same sums differ by rounding, below 1e-10 of the
largest entry.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mtl_jax
from mtl_jax import tree
from mtl_jax.layers import (
    cheaper_layer,
    find_layer,
    layerwise_gram,
    layerwise_pays,
    pullback_macs,
)
from tests.networks import probe, traced

T = 3
QUICK = {"xla_backend_optimization_level": 0}  # compile time is most of these tests


def normal(seed, *shape, dtype=None):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, dtype)


def losses_of(forward, tasks=T):
    """Losses that pull arbitrary cotangents back through all of the outputs."""

    def losses_fn(params):
        out = jnp.tanh(forward(params))
        mixed = normal(99, tasks, *out.shape).astype(out.dtype) * out[None]
        return mixed.mean(axis=tuple(range(1, mixed.ndim)))

    return losses_fn


def close(actual, expected, tolerance=1e-10):
    scale = np.abs(np.asarray(expected, np.float64)).max()
    assert scale > 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def check(forward, params, tokens, losses_fn=None):
    """Compares the forced form by tokens and the whole layerwise Gramian.

    Args:
        forward: the network.
        params: a flat dictionary.
        tokens: names of the parameters that have the form by tokens: no more, no fewer.
        losses_fn: in place of ``losses_of(forward)``.
    """
    losses_fn = losses_of(forward) if losses_fn is None else losses_fn
    names = sorted(params)
    found = []

    def both(params):
        linear, trace = traced(losses_fn, params)
        pullback, outputs = trace.pullback, trace.shared
        cotangents = jnp.eye(len(linear.losses), dtype=linear.losses.dtype)
        rows = jax.vmap(linear.shared)(cotangents)
        pairs = []
        for name, output, row in zip(names, outputs, rows, strict=True):
            layer = find_layer(pullback, output)
            if layer is None:
                continue
            found.append(name)
            count, features, units = layer.sizes
            assert features * units == params[name].size
            part = pullback.part([pullback.input], [layer.cotangent])
            (cut,) = jax.vmap(part)(cotangents)
            assert cut[0].size == count * units
            pairs.append((layer.gram(cut), tree.gram(row)))
        return [*pairs, (layerwise_gram(trace), tree.gram(rows))]

    for actual, expected in jax.jit(both, compiler_options=QUICK)(params):
        close(actual, expected)
    assert set(found) == set(tokens)


# -- products ------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [(5,), (2, 3), (2, 3, 2)])
def test_dense_with_several_token_axes(x64, tokens):
    del x64
    x = normal(0, *tokens, 4)
    params = {"b": normal(1, 6), "w": normal(2, 4, 6)}
    lift = (1,) * len(tokens)
    check(lambda p: x @ p["w"] + p["b"].reshape(*lift, 6), params, ["w"])


@pytest.mark.parametrize(
    "equation",
    [
        "bi,io->bo",
        "bi,oi->bo",
        "ib,io->ob",
        "bsi,io->bos",
        "bi,ihd->bhd",
        "bhd,hdo->bo",
    ],
)
@pytest.mark.parametrize("weight_first", [False, True])
def test_einsum_with_the_weight_on_either_side(x64, equation, weight_first):
    del x64
    sizes = {"b": 4, "s": 2, "i": 3, "o": 5, "h": 2, "d": 3}
    left, right = equation.split("->")[0].split(",")
    x = normal(0, *[sizes[i] for i in left])
    params = {"w": normal(1, *[sizes[i] for i in right])}
    swapped = f"{right},{left}->{equation.split('->')[1]}"

    def forward(p):
        if weight_first:
            return jnp.einsum(swapped, p["w"], x)
        return jnp.einsum(equation, x, p["w"])

    check(forward, params, ["w"])


def test_batched_kernels_have_no_form_by_tokens(x64):
    del x64
    x = normal(0, 2, 4, 3)
    params = {"w": normal(1, 2, 3, 5)}
    check(lambda p: jnp.einsum("tbi,tio->tbo", x, p["w"]), params, [])
    # Side by side on the same inputs they are one.
    check(lambda p: jnp.einsum("bi,tio->tbo", x[0], p["w"]), params, ["w"])


def test_products_without_tokens(x64):
    """A vector as input: nothing is summed, the gradient is an outer product."""
    del x64
    x = normal(0, 4)
    check(lambda p: x @ p["w"], {"w": normal(1, 4, 3)}, [])


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(param_dtype=x.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(2, param_dtype=x.dtype)(y)
        y = nn.DenseGeneral((2, 3), param_dtype=x.dtype)(x)
        return nn.DenseGeneral(4, axis=(-2, -1), param_dtype=x.dtype)(nn.gelu(y))


def test_flax_attention_and_dense_general(x64):
    del x64
    x = normal(0, 2, 3, 4)
    model = Transformer()
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: normal(leaf.size, *leaf.shape), shapes)
    leaves, structure = jax.tree.flatten(params)
    names = [tree.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    flat = dict(zip(names, leaves, strict=True))
    assert names == sorted(names)

    def forward(flat):
        return model.apply(jax.tree.unflatten(structure, flat.values()), x)

    kernels = [name for name in names if name.endswith("kernel")]
    assert len(kernels) == 6
    check(forward, flat, kernels)


# -- convolutions --------------------------------------------------------------------

CONVOLUTIONS = {
    "1d": dict(space=(7,), kernel=(3,)),
    "1d, stride 2": dict(space=(8,), kernel=(3,), window_strides=(2,)),
    "2d valid": dict(space=(5, 6), kernel=(3, 2)),
    "2d same": dict(space=(5, 6), kernel=(3, 3), padding="SAME"),
    "2d stride, same": dict(
        space=(6, 5), kernel=(3, 3), window_strides=(2, 2), padding="SAME"
    ),
    "2d stride that leaves pixels over": dict(
        space=(8, 9), kernel=(2, 3), window_strides=(3, 4)
    ),
    "1x1 with stride 2": dict(space=(6, 6), kernel=(1, 1), window_strides=(2, 2)),
    "2d dilated kernel": dict(
        space=(7, 8), kernel=(3, 2), rhs_dilation=(2, 3), padding="SAME"
    ),
    "2d dilated kernel and stride": dict(
        space=(9, 8), kernel=(3, 2), rhs_dilation=(2, 3), window_strides=(2, 3)
    ),
    "2d explicit padding": dict(
        space=(5, 6),
        kernel=(3, 2),
        window_strides=(2, 1),
        padding=((2, 1), (0, 3)),
    ),
    "2d negative padding": dict(
        space=(7, 8), kernel=(3, 2), padding=((-1, 2), (1, -2))
    ),
    "2d negative low padding, stride": dict(
        space=(9, 8),
        kernel=(2, 2),
        window_strides=(2, 3),
        padding=((-2, -1), (-1, 0)),
    ),
    "3d": dict(
        space=(4, 3, 5), kernel=(2, 2, 3), padding="SAME", window_strides=(2, 1, 2)
    ),
}


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        *[(case, "channels last") for case in CONVOLUTIONS],
        ("1d, stride 2", "channels first"),
        ("2d negative low padding, stride", "channels first"),
        ("3d", "channels first"),
    ],
)
def test_convolutions(x64, case, layout):
    del x64
    options = {"padding": "VALID", "window_strides": None, **CONVOLUTIONS[case]}
    space, kernel = options.pop("space"), options.pop("kernel")
    options["window_strides"] = options["window_strides"] or (1,) * len(space)
    letters = "DHW"[-len(space) :]
    if layout == "channels last":
        spec = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        x, w = normal(0, 2, *space, 3), normal(1, *kernel, 3, 4)
    else:
        spec = (f"NC{letters}", f"OI{letters}", f"NC{letters}")
        x, w = normal(0, 2, 3, *space), normal(1, 4, 3, *kernel)

    def forward(p):
        return lax.conv_general_dilated(x, p["w"], dimension_numbers=spec, **options)

    check(forward, {"w": w}, ["w"])


SPEC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(
    ("images", "kernel", "options"),
    [
        pytest.param(
            (2, 5, 5, 4), (3, 3, 2, 6), dict(feature_group_count=2), id="groups"
        ),
        pytest.param(
            (2, 5, 5, 3), (3, 3, 1, 6), dict(feature_group_count=3), id="depthwise"
        ),
        pytest.param(
            (4, 5, 5, 3), (3, 3, 3, 6), dict(batch_group_count=2), id="batch groups"
        ),
        pytest.param(
            (2, 4, 4, 3), (3, 3, 3, 5), dict(lhs_dilation=(2, 2)), id="dilated images"
        ),
    ],
)
def test_convolutions_without_a_form_by_tokens(x64, images, kernel, options):
    del x64
    x = normal(0, *images)

    def forward(p):
        return lax.conv_general_dilated(
            x, p["w"], (1, 1), ((0, 0), (1, 0)), dimension_numbers=SPEC, **options
        )

    check(forward, {"w": normal(1, *kernel)}, [])


def test_transposed_convolution(x64):
    del x64
    x = normal(0, 2, 4, 4, 3)
    check(
        lambda p: lax.conv_transpose(x, p["w"], (2, 2), "SAME"),
        {"w": normal(1, 3, 3, 3, 4)},
        [],
    )


def test_convolution_of_a_learned_image(x64):
    """The parameter is what is convolved; its kernel is a constant or another one."""
    del x64

    def forward(p):
        return lax.conv_general_dilated(
            p["x"], p["w"], (1, 1), "SAME", dimension_numbers=SPEC
        )

    params = {"w": normal(0, 3, 3, 3, 4), "x": normal(1, 2, 5, 5, 3)}
    check(forward, params, ["w"])


def test_residual_network_with_shared_statistics(x64):
    del x64
    x = normal(0, 2, 6, 6, 3)

    def norm(y):
        mean, var = y.mean((0, 1, 2), keepdims=True), y.var((0, 1, 2), keepdims=True)
        return (y - mean) / jnp.sqrt(var + 1e-5)

    def conv(y, w, stride=1):
        return lax.conv_general_dilated(
            y, w, (stride, stride), "SAME", dimension_numbers=SPEC
        )

    def forward(p):
        y = jax.nn.relu(norm(conv(x, p["stem"])))
        z = norm(conv(jax.nn.relu(norm(conv(y, p["a"], 2))), p["b"]))
        y = jax.nn.relu(z + conv(y, p["skip"], 2))
        y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
        return y.mean((1, 2)) @ p["w"]

    params = {
        "a": normal(1, 3, 3, 4, 5),
        "b": normal(2, 3, 3, 5, 5),
        "skip": normal(3, 1, 1, 4, 5),
        "stem": normal(4, 3, 3, 3, 4),
        "w": normal(5, 5, 2),
    }
    check(forward, params, list(params))


# -- programs around the layers ------------------------------------------------------


def dense(p, x):
    return jnp.tanh(x @ p["w"])


X = np.random.default_rng(0).normal(size=(5, 4))
W = np.random.default_rng(1).normal(size=(4, 4))


def scanned(p):
    return lax.scan(lambda y, _: (dense(p, y), None), jnp.asarray(X), None, length=3)[0]


def scanned_layers(p):
    return lax.scan(lambda y, w: (jnp.tanh(y @ w), None), jnp.asarray(X), p["w"])[0]


def rematerialised(p):
    return jax.checkpoint(dense)(p, jax.checkpoint(jnp.sin)(jnp.asarray(X)))


def conditional(p):
    branches = (lambda y: y @ p["w"], lambda y: y @ p["w"].T)
    return lax.cond(jnp.sum(p["w"]) > 1e9, *branches, jnp.asarray(X))


def custom_activation(p):
    return jax.nn.gelu(jax.nn.relu(jax.nn.silu(jnp.asarray(X) @ p["w"])))


@jax.custom_vjp
def clipped(x):
    return jnp.clip(x, -1, 1)


# The backward pass calls a function with a derivative rule of its own.
clipped.defvjp(lambda x: (clipped(x), x), lambda x, g: (g * jax.nn.relu(jnp.sign(x)),))

PROGRAMS = {
    "used twice": (lambda p: dense(p, dense(p, X)), []),
    "used twice, transposed": (lambda p: dense(p, X) @ p["w"].T, []),
    "scan": (scanned, []),
    "remat": (rematerialised, None),
    "cond": (conditional, []),
    "vmap over examples": (lambda p: jax.vmap(lambda x: dense(p, x))(X), ["w"]),
    "jitted": (lambda p: jax.jit(dense)(p, jnp.asarray(X)), ["w"]),
    "jitted twice": (lambda p: jax.jit(jax.jit(jnp.dot))(X, p["w"]), ["w"]),
    "custom_jvp activations": (custom_activation, ["w"]),
    "custom_vjp": (lambda p: clipped(X @ p["w"]), ["w"]),
    "masked": (lambda p: X @ (p["w"] * (W > 0)), []),
    "weight norm": (
        lambda p: X @ (p["w"] / jnp.linalg.norm(p["w"], axis=0, keepdims=True)),
        [],
    ),
    "scaled": (lambda p: X @ (2.0 * p["w"]), []),
    "transposed and reshaped": (
        lambda p: X @ p["w"].T.reshape(2, 2, 4).reshape(4, 4),
        ["w"],
    ),
    "sliced": (lambda p: X[:, :2] @ p["w"][:2], []),
    "padded": (
        lambda p: jnp.pad(X, ((0, 0), (0, 1))) @ jnp.pad(p["w"], ((0, 1), (0, 0))),
        [],
    ),
    "looked up": (lambda p: p["w"][jnp.array([0, 2, 2, 1])], []),
    "with a square of itself": (lambda p: X @ p["w"] @ p["w"], []),
    "its product with itself": (lambda p: X @ (p["w"] @ W), None),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(x64, name):
    del x64
    forward, tokens = PROGRAMS[name]
    params = {"w": jnp.asarray(W)}
    if tokens is None:
        # Either form will do as long as it is right.
        tokens = ["w"] if _has_form(forward, params) else []
    check(forward, params, tokens)


def _has_form(forward, params):
    _, trace = traced(losses_of(forward), params)
    return find_layer(trace.pullback, trace.shared[0]) is not None


def test_layers_stacked_for_a_scan(x64):
    del x64
    check(scanned_layers, {"w": normal(1, 3, 4, 4)}, [])


def test_a_jitted_losses_function_and_eager_calls(x64):
    del x64
    params = {"w": jnp.asarray(W)}
    losses_fn = jax.jit(losses_of(lambda p: dense(p, X)))
    check(None, params, ["w"], losses_fn=losses_fn)
    linear, trace = traced(losses_fn, params)
    layer = find_layer(trace.pullback, trace.shared[0])
    (cut,) = jax.vmap(trace.part([layer.cotangent]))(jnp.eye(T))
    close(layer.gram(cut), tree.gram(jax.vmap(linear.shared)(jnp.eye(T))))


def test_parameters_that_no_loss_depends_on(x64):
    del x64
    params = {"idle": normal(0, 3, 4), "step": jnp.ones(()), "w": jnp.asarray(W)}

    def forward(p):
        return dense(p, X) * lax.stop_gradient(p["step"])

    check(forward, params, ["w"])
    source = mtl_jax.value_and_combined_grad(
        losses_of(forward), probe(T), strategy="layerwise"
    )
    _, grads, _ = jax.jit(source.update)(source.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    assert not grads["idle"].any() and not grads["step"].any()
    assert grads["w"].any()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # The cotangents of a task have three bits fewer than their products here.
    [(jnp.float32, 1e-5), (jnp.bfloat16, 5e-2)],
)
def test_low_precision(dtype, tolerance):
    rng = np.random.default_rng(3)
    params = {"w": rng.normal(size=(32, 16))}
    x = rng.normal(size=(6, 32))

    def gram(dtype, rows_of):
        cast = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        losses_fn = losses_of(lambda p: dense(p, jnp.asarray(x, dtype)))
        return rows_of(*traced(losses_fn, cast))

    def layerwise(linear, trace):
        assert cheaper_layer(trace.pullback, trace.shared[0], T) is not None
        return layerwise_gram(trace)

    actual = gram(dtype, layerwise)
    assert actual.dtype == jnp.float32
    with jax.enable_x64(True):
        exact = gram(
            jnp.float64,
            lambda linear, *_: tree.gram(jax.vmap(linear.shared)(jnp.eye(T))),
        )
    close(actual, exact, tolerance)


# -- which form is taken -------------------------------------------------------------


@functools.cache
def two_layers(tokens, features, units, tasks):
    """Shapes only: ``(tokens, features) -> units -> units``."""
    x = jnp.ones((tokens, features))
    params = {"a": jnp.ones((features, units)), "b": jnp.ones((units, units))}
    losses_fn = losses_of(lambda p: jnp.tanh(x @ p["a"]) @ p["b"], tasks)
    _, trace = traced(losses_fn, params)
    return trace.pullback, trace.shared


@pytest.mark.parametrize("tasks", [2, 10])
@pytest.mark.parametrize("tokens", [1, 8, 100])
def test_the_cheaper_form_is_the_one_by_the_formula(tokens, tasks):
    features, units = 24, 32
    pullback, outputs = two_layers(tokens, features, units, tasks)
    saved = 0
    for output, a in zip(outputs, (features, units), strict=True):
        n, b, t = tokens, units, tasks
        by_gradients = t * n * a * b + t**2 * a * b
        by_tokens = n**2 * a + t * n**2 * b + t**2 * n * b
        assert find_layer(pullback, output).macs(t) == (by_gradients, by_tokens)
        layer = cheaper_layer(pullback, output, t)
        assert (layer is not None) == (by_tokens < by_gradients)
        saved += max(0, by_gradients - by_tokens)
    # One pull-back: the two kernels and the hidden layer between them.
    macs = tokens * units * (features + units + units)
    assert pullback_macs(pullback) == macs
    assert layerwise_pays(pullback, outputs, tasks) == (saved > macs)


def test_both_answers_occur():
    def pays(tokens, tasks):
        pullback, outputs = two_layers(tokens, 24, 32, tasks)
        return layerwise_pays(pullback, outputs, tasks)

    assert pays(1, 10) and pays(8, 10) and not pays(100, 2)


def test_macs_of_a_convolution():
    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

    def forward(p):
        return lax.conv_general_dilated(
            x, p["w"], (1, 1), "VALID", dimension_numbers=SPEC
        )

    _, trace = traced(losses_of(forward), {"w": w})
    pullback, (output,) = trace.pullback, trace.shared
    # One product for every tap of the kernel, position and pair of channels.
    assert pullback_macs(pullback) == (2 * 6 * 6) * (3 * 3) * 3 * 5
    assert find_layer(pullback, output).sizes == (2 * 6 * 6, 3 * 3 * 3, 5)


def shapes_in(jaxpr):
    """The shapes of all intermediate arrays, inner programs included."""
    shapes = set()
    for equation in jaxpr.eqns:
        shapes |= {v.aval.shape for v in equation.outvars}
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                shapes |= shapes_in(inner)
    return shapes


def test_no_task_gradients_of_a_kernel_in_the_program():
    tasks, x = 4, normal(0, 3, 17, dtype=jnp.float32)
    params = {"a": normal(1, 17, 19), "b": normal(2, 19, 23)}
    params = {name: leaf.astype(jnp.float32) for name, leaf in params.items()}
    losses_fn = losses_of(lambda p: jnp.tanh(x @ p["a"]) @ p["b"], tasks)

    def shapes(strategy):
        source = mtl_jax.value_and_combined_grad(
            losses_fn, probe(tasks), strategy=strategy
        )
        program = jax.make_jaxpr(source.update)(source.init(params), params)
        return shapes_in(program.jaxpr)

    stored = {(tasks, 17, 19), (tasks, 19, 23)}
    assert stored <= shapes("vmap")
    assert stored <= shapes("map")
    for strategy in ("layerwise", "auto", "gramian"):
        assert stored.isdisjoint(shapes(strategy))
