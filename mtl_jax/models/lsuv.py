"""Layer-sequential unit-variance initialisation of flax linen modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtl_jax._types import Array, ArrayTree, State, check_range


def lsuv(
    module: nn.Module,
    params: ArrayTree,
    model_state: State,
    batches: Any,
    *,
    tolerance: float = 0.1,
    max_corrections: int = 11,
    seed: int = 0,
) -> ArrayTree:
    """Starts a network with orthonormal kernels and layer outputs of unit deviation.

    1. Every leaf called ``kernel`` becomes orthonormal (a factor of the thin SVD of a
       Gaussian matrix with one row per output), the ``bias`` beside it zero.
    2. Layer by layer, in the order of execution, in evaluation mode: while the standard
       deviation of the layer's output differs from 1 by more than ``tolerance``, its
       kernel is divided by that deviation. Constant outputs (dead inputs) stay.

    The output is that of the layer's own ``__call__`` (``nn.Dense``, ``nn.Conv``, …), so
    before pool and activation; of the fused layers of :mod:`mtl_jax.models` the
    ``preactivation`` that they put into the collection ``intermediates``. Kernels of rank 3
    or 5 are stacked per task and count as separate layers, but for those of flax's own
    layers (one- and three-dimensional convolutions).

    Args:
        module: any ``flax.linen.Module`` whose layers call their kernels ``kernel``.
        params: its parameters, e.g. from ``as_functional(module).init``.
        model_state: its other collections.
        batches: a batch of inputs, or a function from the layer's number to one (a fresh
            batch for each layer, as published).
        tolerance: admitted distance of a deviation from 1.
        max_corrections: bound on the corrections of a layer; 0 stops after the first part.
        seed: of the Gaussian matrices.

    Returns:
        The new parameters.

    Raises:
        ValueError: if ``module`` is no linen module or has no kernels, or for numbers out
            of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> module = nn.Dense(3)
        >>> x = 5 * jax.random.normal(jax.random.key(0), (50, 8))
        >>> params = lsuv(module, module.init(jax.random.key(1), x)["params"], {}, x)
        >>> print(f"{module.apply({'params': params}, x).std():.3f}")
        1.000

    References:
        Mishkin and Matas, *All you need is a good init*, 2016, arXiv:1511.06422
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"lsuv needs a flax.linen.Module, got {type(module).__name__}")
    check_range("tolerance", tolerance, 0, open_low=True)
    if max_corrections < 0:
        raise ValueError(f"max_corrections must be at least 0, got {max_corrections}")
    batch: Callable[[int], Any] = batches if callable(batches) else lambda _: batches
    layers, deviations = _watch(module, params, model_state, batch(0))
    if not layers:
        raise ValueError("lsuv found no layer with a parameter called 'kernel'")
    params = _orthonormal(params, layers, np.random.default_rng(seed))
    for index, path in enumerate(layers):
        x = batch(index)
        for _ in range(max_corrections):
            found = np.asarray(deviations(params, model_state, x)["/".join(path)])
            far = (np.abs(found - 1) > tolerance) & (found > 0)
            if not far.any():
                break
            factor = np.where(far, 1 / (found + 1e-8), 1)
            params = _scaled(params, path, factor)
    return params


Layers = dict[tuple[str, ...], bool]
"""Paths of the layers in their order, and whether their kernels are stacked."""


def _watch(
    module: nn.Module, params: ArrayTree, model_state: State, x: Any
) -> tuple[Layers, Callable[..., dict[str, Array]]]:
    """The layers, and the jitted deviations of their outputs."""
    takes_train = "train" in inspect.signature(type(module).__call__).parameters
    flags: dict[str, Any] = {"train": False} if takes_train else {}
    layers: Layers = {}

    def deviations(params: ArrayTree, model_state: State, x: Any) -> dict[str, Array]:
        outputs: dict[tuple[str, ...], Any] = {}

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            own = context.module.variables.get("params", {})
            if context.method_name == "__call__" and _is_array(own.get("kernel")):
                outputs.setdefault(context.module.path, output)
                known = type(context.module).__module__.startswith("flax.")
                stacked = not known and own["kernel"].ndim in (3, 5)
                layers.setdefault(context.module.path, stacked)
            return output

        with nn.intercept_methods(watch):
            _, updated = module.apply(
                {"params": params, **model_state}, x, mutable=["intermediates"], **flags
            )
        return {
            "/".join(path): _deviation(layers[path], updated, path, output)
            for path, output in outputs.items()
        }

    jax.eval_shape(deviations, params, model_state, x)
    return layers, jax.jit(deviations)


def _deviation(
    stacked: bool, updated: Any, path: tuple[str, ...], output: Any
) -> Array:
    inner = updated.get("intermediates", {})
    for name in path:
        inner = inner.get(name, {})
    if "preactivation" in inner:
        output = inner["preactivation"][0]
    axes = tuple(range(1, output.ndim)) if stacked else None
    return jnp.std(output, axis=axes)


def _is_array(value: Any) -> bool:
    return hasattr(value, "ndim")


def _orthonormal(
    node: Any, layers: Layers, rng: np.random.Generator, path: tuple[str, ...] = ()
) -> Any:
    if not isinstance(node, dict):
        return node
    result = {
        name: _orthonormal(value, layers, rng, (*path, name))
        for name, value in node.items()
    }
    if not _is_array(node.get("kernel")):
        return result
    kernel = node["kernel"]
    # Kernels that the network does not use in evaluation are unknown: by rank.
    stacked = layers.get(path, kernel.ndim in (3, 5))
    count = kernel.shape[0] if stacked else 1
    rest = kernel.size // (count * kernel.shape[-1])
    draws = rng.normal(size=(count, kernel.shape[-1], rest))
    left, _, right = np.linalg.svd(draws, full_matrices=False)
    factor = right if kernel.shape[-1] <= rest else left
    matrices = np.swapaxes(factor, 1, 2).reshape(kernel.shape)
    result["kernel"] = jnp.asarray(matrices, kernel.dtype)
    if "bias" in node:
        result["bias"] = jnp.zeros_like(node["bias"])
    return result


def _scaled(node: Any, path: tuple[str, ...], factor: np.ndarray) -> Any:
    if path:
        name, *rest = path
        return {**node, name: _scaled(node[name], tuple(rest), factor)}
    kernel = node["kernel"]
    shape = factor.shape + (1,) * (kernel.ndim - factor.ndim)
    return {**node, "kernel": kernel * jnp.asarray(factor.reshape(shape), kernel.dtype)}
