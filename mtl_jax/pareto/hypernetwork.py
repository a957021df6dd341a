"""Pareto hypernetworks: a network that generates a network for every preference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, check_count, check_num_tasks, check_range
from mtl_jax.pareto.simplex_samplers import check_alphas
from mtl_jax.solvers.vectors import as_vector


class Hypernetwork(NamedTuple):
    """Pair of pure functions that :func:`pareto_hypernetwork` returns."""

    init: Callable[[Array, ArrayTree], ArrayTree]
    """``init(key, params) -> hyper_params``, for networks with parameters like ``params``.
    """
    apply: Callable[[ArrayTree, Any], ArrayTree]
    """``apply(hyper_params, ray (T,)) -> params``."""


def pareto_hypernetwork(
    num_tasks: int,
    *,
    hidden: Sequence[int] = (100, 100, 100),
    chunk: int | None = None,
    spread: float = 0.5,
) -> Hypernetwork:
    r"""A network from rays to the parameters of any other network.

    .. math:: \theta_l(r) = b_l + K_l\, h(r)

    for every leaf :math:`l`, with features :math:`h` of a small perceptron (dense layers
    with ReLU between them): ``h + 1`` numbers for each parameter generated. With
    ``chunk``, a leaf of ``n > chunk`` numbers is cut into ``k`` pieces that share one
    matrix of ``chunk`` columns and differ in a learnt factor for every feature,
    :math:`b + K (g_k \odot h(r))`: ``n + h (chunk + k)`` numbers. A ResNet-18 needs that.

    ``init`` takes the parameters of one network, drawn as its author meant it. Generated
    networks start as

    .. math:: \sqrt{1 - s^2}\,\theta_l + s\,\mathrm{std}(\theta_l)\,\varepsilon(r)

    (about the leaf's mean), so each leaf keeps its mean and variance: constants, such as
    scales of a normalisation, stay constants, and ``spread`` is how much of the variance
    depends on the ray's features.

    Args:
        num_tasks: ``T``.
        hidden: width of each layer; the last one is ``h``.
        chunk: largest number of columns, or ``None`` for a matrix of each leaf's own.
        spread: :math:`s`, in [0, 1].

    Returns:
        :class:`Hypernetwork`; ``apply`` works under ``jit``, ``grad`` and ``vmap``.

    Raises:
        ValueError: for bad options; from ``init`` for parameters that are not floating
            point; from ``apply`` for a ray of another shape or off the simplex.

    The released code draws the matrices :math:`K_l` and biases as PyTorch's dense layers
    do, whatever the layer they generate; its LeNet skips a layer of the heads and the
    encoder's last ReLU, which a network of your own does not.

    Examples:
        >>> params = {"w": jax.random.normal(jax.random.key(0), (50, 40)), "b": jnp.ones(3)}
        >>> hyper = pareto_hypernetwork(2)
        >>> hyper_params = jax.jit(hyper.init)(jax.random.key(1), params)
        >>> found = hyper.apply(hyper_params, [0.25, 0.75])
        >>> print(found["b"], found["w"].shape)
        [1. 1. 1.] (50, 40)
        >>> sum(leaf.size for leaf in jax.tree.leaves(hyper_params))
        222803

    References:
        Navon, Shamsian, Chechik and Fetaya, *Learning the Pareto Front with
        Hypernetworks*, 2020, arXiv:2010.04104
    """
    check_num_tasks(num_tasks)
    check_range("spread", spread, 0, 1)
    for width in hidden:
        check_count("each width of hidden", width, 1)
    if not hidden:
        raise ValueError("hidden must have one width or more, got none")
    if chunk is not None:
        check_count("chunk", chunk, 1)

    def init(key: Array, params: ArrayTree) -> ArrayTree:
        params = as_vector("params", params)
        dtype = tree.accumulator_dtype(params)
        mlp_key, head_key = jax.random.split(key)
        mlp = _draw_mlp(mlp_key, (num_tasks, *hidden), dtype)
        features = _features(mlp, jnp.full(num_tasks, 1 / num_tasks, dtype))
        size = jnp.sqrt(jnp.sum(jnp.square(features)))
        leaves, structure = jax.tree.flatten(params)
        heads = _draw_heads(head_key, hidden[-1], leaves, chunk, dtype)
        share = math.sqrt(1 - spread**2)
        for i, leaf in enumerate(leaves):
            mean, scale = jnp.mean(leaf), spread * jnp.std(leaf)
            scale = scale / jnp.where(size > 0, size, 1)
            leaves[i] = (mean + share * (leaf - mean)).astype(leaf.dtype)
            heads[i]["kernel"] = (scale * heads[i]["kernel"]).astype(leaf.dtype)
        return {
            "mlp": mlp,
            "bias": jax.tree.unflatten(structure, leaves),
            "heads": jax.tree.unflatten(structure, heads),
        }

    def apply(hyper_params: ArrayTree, ray: Any) -> ArrayTree:
        mlp = hyper_params["mlp"]
        ray = check_alphas("ray", ray, num_tasks, 1)
        features = _features(mlp, jnp.asarray(ray, mlp["dense1"]["kernel"].dtype))

        def generate(bias: Array, head: dict[str, Array]) -> Array:
            kernel = head["kernel"]
            inputs = features.astype(jnp.promote_types(features.dtype, kernel.dtype))
            if "gates" in head:
                inputs = head["gates"].astype(inputs.dtype) * inputs[None]
            change = lax.dot_general(
                inputs,
                kernel.astype(inputs.dtype),
                (((inputs.ndim - 1,), (0,)), ((), ())),
                precision=lax.Precision.HIGHEST,
            )
            if "gates" in head:
                change = change.reshape(-1)[: bias.size].reshape(bias.shape)
            return (bias.astype(change.dtype) + change).astype(bias.dtype)

        return jax.tree.map(generate, hyper_params["bias"], hyper_params["heads"])

    return Hypernetwork(init, apply)


def _features(mlp: dict[str, dict[str, Array]], ray: Array) -> Array:
    """The perceptron, ReLU between its layers only."""
    x = ray
    for i in range(1, len(mlp) + 1):
        x = jax.nn.relu(x) if i > 1 else x
        x = x @ mlp[f"dense{i}"]["kernel"] + mlp[f"dense{i}"]["bias"]
    return x


def _draw_mlp(key: Array, sizes: tuple[int, ...], dtype: Any) -> dict:
    """Dense layers from ``U(-1/sqrt(inputs), 1/sqrt(inputs))``, PyTorch's default."""
    shapes = [(inputs + 1, outputs) for inputs, outputs in itertools.pairwise(sizes)]
    pieces = _split(jax.random.uniform, key, shapes, dtype, minval=-1)
    layers = {}
    for i, piece in enumerate(pieces, 1):
        piece = piece / math.sqrt(len(piece) - 1)
        layers[f"dense{i}"] = {"kernel": piece[:-1], "bias": piece[-1]}
    return layers


def _draw_heads(
    key: Array, features: int, leaves: list[Array], chunk: int | None, dtype: Any
) -> list[dict[str, Array]]:
    """Matrices (and factors of chunks) of all leaves, standard normal."""
    names, shapes = [], []
    for i, leaf in enumerate(leaves):
        if chunk is None or leaf.size <= chunk:
            names.append((i, "kernel"))
            shapes.append((features, *leaf.shape))
        else:
            names += [(i, "kernel"), (i, "gates")]
            shapes += [(features, chunk), (-(-leaf.size // chunk), features)]
    heads: list[dict[str, Array]] = [{} for _ in leaves]
    pieces = _split(jax.random.normal, key, shapes, dtype)
    for (i, name), piece in zip(names, pieces, strict=True):
        heads[i][name] = piece.astype(leaves[i].dtype)
    return heads


def _split(
    draw: Callable[..., Array], key: Array, shapes: list, dtype: Any, **options: Any
) -> list[Array]:
    """Arrays of several shapes out of one draw, which compiles once."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    flat = draw(key, (int(ends[-1]),), dtype, **options)
    pieces = jnp.split(flat, ends[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
