"""Gramians layer by layer, without the task gradients of dense and conv kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Var

from mtl_jax import tree
from mtl_jax._types import Array
from mtl_jax.gradients import TracedLosses
from mtl_jax.pullback import MOVES, Atom, Pullback, shape_of
from mtl_jax.stacking import stack_rows


class Layer(NamedTuple):
    """A kernel whose gradient is a sum of outer products over tokens.

    A token is one row that a dense layer sees, or one position of one image for a
    convolution. With the layer's inputs ``x_n`` and the cotangents ``δ_tn`` of its
    outputs, the gradient of task ``t`` is ``Σ_n x_n δ_tnᵀ``.
    """

    cotangent: Var
    """The cotangent of the layer's outputs, a variable of the pull-back."""
    inputs: Callable[[], Array]
    """Returns the layer's inputs."""
    input_tokens: tuple[int, ...]
    """Token axes of the inputs, ascending; their other axes are the features ``a``."""
    cotangent_tokens: tuple[int, ...]
    """The same axes of the cotangent, in the same order; its others are ``b``."""
    sizes: tuple[int, int, int]
    """Number of tokens ``N``, of input features ``a`` and of output features ``b``."""

    def macs(self, num_tasks: int) -> tuple[int, int]:
        """Multiply-adds of the Gramian by way of the ``T`` gradients, and of tokens."""
        (n, a, b), t = self.sizes, num_tasks
        return t * n * a * b + t * t * a * b, n * n * a + t * n * n * b + t * t * n * b

    def gram(self, cotangents: Array) -> Array:
        r"""Returns :math:`G_{st} = \sum_{nm} (x_n \cdot x_m)(δ_{sn} \cdot δ_{tm})`.

        Args:
            cotangents: of all tasks, stacked on axis 0.
        """
        dtype = tree.accumulator_dtype(cotangents)
        inputs = self.inputs().astype(dtype)
        cotangents = cotangents.astype(dtype)
        tokens = tuple(axis + 1 for axis in self.cotangent_tokens)
        count = len(tokens)
        features = _others(inputs.ndim, self.input_tokens)
        outputs = _others(cotangents.ndim, (0, *tokens))
        # No axes are merged, so that sharded ones stay so.
        kernel = _dot(inputs, inputs, features, features)  # (*tokens, *tokens)
        mixed = _dot(kernel, cotangents, tuple(range(count, 2 * count)), tokens)
        # mixed is (*tokens, T, *outputs)
        return _dot(
            mixed,
            cotangents,
            (*range(count), *range(count + 1, mixed.ndim)),
            (*tokens, *outputs),
        )


def find_layer(pullback: Pullback, output: Atom) -> Layer | None:
    """Returns the layer whose kernel has this gradient, or ``None`` if it has no form."""
    equation = pullback.producer(output)
    while equation is not None and equation.primitive.name in MOVES:
        equation = pullback.producer(equation.invars[0])
    if equation is None:
        return None
    if equation.primitive.name == "dot_general":
        return _dense(pullback, equation)
    if equation.primitive.name == "conv_general_dilated":
        return _conv(pullback, equation)
    return None


def layerwise_gram(traced: TracedLosses) -> Array:
    """Returns the Gramian of the task gradients, each layer in its cheaper form.

    Returns:
        ``(T, T)``, float32 or float64.
    """
    layers = [
        cheaper_layer(traced.pullback, output, len(traced.rows))
        for output in traced.shared
    ]
    cuts = [
        output if layer is None else layer.cotangent
        for output, layer in zip(traced.shared, layers, strict=True)
    ]
    stacked = stack_rows(traced.part(cuts), traced.rows)
    terms = [
        tree.gram(rows) if layer is None else layer.gram(rows)
        for rows, layer in zip(stacked, layers, strict=True)
    ]
    total = sum(terms[1:], start=terms[0])
    return 0.5 * (total + total.T)


def cheaper_layer(pullback: Pullback, output: Atom, num_tasks: int) -> Layer | None:
    """Returns the layer of a gradient if its form by tokens takes fewer operations."""
    layer = find_layer(pullback, output)
    if layer is None:
        return None
    by_gradients, by_tokens = layer.macs(num_tasks)
    return layer if by_tokens < by_gradients else None


def layerwise_pays(pullback: Pullback, outputs: Sequence[Atom], num_tasks: int) -> bool:
    """Whether the operations saved exceed those of the one more pull-back it takes."""
    saved = 0
    for output in outputs:
        layer = cheaper_layer(pullback, output, num_tasks)
        if layer is not None:
            by_gradients, by_tokens = layer.macs(num_tasks)
            saved += by_gradients - by_tokens
    return saved > pullback_macs(pullback)


def pullback_macs(pullback: Pullback) -> int:
    """Multiply-adds of the matrix products and convolutions of one pull-back."""
    return sum(_macs(equation) for equation in pullback.equations)


def _macs(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = shape_of(equation.invars[0])
        depth = math.prod(shape[axis] for axis in contracted)
    elif name == "conv_general_dilated":
        spec = params["dimension_numbers"].rhs_spec
        shape = shape_of(equation.invars[1])
        depth = math.prod(shape) // shape[spec[0]]
    else:
        return 0
    return depth * math.prod(shape_of(equation.outvars[0]))


def _dense(pullback: Pullback, equation: JaxprEqn) -> Layer | None:
    """The layer of a gradient ``Σ_n x_n δ_nᵀ`` that one matrix product computes."""
    contracted, (batched, _) = equation.params["dimension_numbers"]
    linear = [pullback.depends(atom) for atom in equation.invars]
    side = 0 if linear[0] else 1
    cotangent, inputs = equation.invars[side], equation.invars[1 - side]
    if batched or linear[0] == linear[1] or not contracted[0]:
        return None
    assert isinstance(cotangent, Var)
    pairs = sorted(zip(contracted[1 - side], contracted[side], strict=True))
    input_tokens, cotangent_tokens = zip(*pairs, strict=True)
    shape, out_shape = shape_of(inputs), shape_of(cotangent)
    count = math.prod(shape[axis] for axis in input_tokens)
    return Layer(
        cotangent,
        lambda: pullback.value(inputs),
        input_tokens,
        cotangent_tokens,
        (count, math.prod(shape) // count, math.prod(out_shape) // count),
    )


def _conv(pullback: Pullback, equation: JaxprEqn) -> Layer | None:
    """The layer of a kernel's gradient, a convolution of inputs with cotangents.

    In that convolution channels play the part of the batch: inputs ``(a, B, *space)``,
    cotangents ``(b, B, *space)`` as its kernel, strides and dilations exchanged.
    """
    inputs, cotangent = equation.invars
    params = equation.params
    plain = params["feature_group_count"] == 1 and params["batch_group_count"] == 1
    plain = plain and all(factor == 1 for factor in params["lhs_dilation"])
    if not plain or pullback.depends(inputs) or not pullback.depends(cotangent):
        return None
    assert isinstance(cotangent, Var)
    spec = params["dimension_numbers"]
    channels, batch, *space = spec.lhs_spec
    out_channels, out_batch, *out_space = spec.rhs_spec
    kernel = [shape_of(equation.outvars[0])[axis] for axis in spec.out_spec[2:]]
    shape, out_shape = shape_of(inputs), shape_of(cotangent)
    strides, dilation = params["rhs_dilation"], params["window_strides"]
    positions = [out_shape[axis] for axis in out_space]

    def patches() -> Array:
        # The upper padding is what makes the positions as many as the outputs'.
        padding = [
            (low, (n - 1) * stride + (k - 1) * step + 1 - shape[axis] - low)
            for (low, _), n, stride, k, step, axis in zip(
                params["padding"],
                positions,
                strides,
                kernel,
                dilation,
                space,
                strict=True,
            )
        ]
        images = jnp.transpose(pullback.value(inputs), (batch, channels, *space))
        result = lax.conv_general_dilated_patches(
            images,
            kernel,
            strides,
            padding,
            rhs_dilation=dilation,
            precision=lax.Precision.HIGHEST,
        )
        return jnp.moveaxis(result, 1, -1)

    count = shape[batch] * math.prod(positions)
    return Layer(
        cotangent,
        patches,
        tuple(range(1 + len(space))),
        (out_batch, *out_space),
        (count, shape[channels] * math.prod(kernel), out_shape[out_channels]),
    )


def _others(ndim: int, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis not in axes)


def _dot(
    left: Array, right: Array, left_axes: Sequence[int], right_axes: Sequence[int]
) -> Array:
    return lax.dot_general(
        left,
        right,
        ((tuple(left_axes), tuple(right_axes)), ((), ())),
        precision=lax.Precision.HIGHEST,
    )
