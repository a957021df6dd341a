"""Heads of all tasks, stacked on a leading axis, and what the networks share."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from mtl_jax._types import Array


class Heads(nn.Module):
    """One classifier per task: features ``(B, d)`` to logits ``(T, B, classes)``.

    With ``hidden`` set, each head is dense, ReLU, (dropout,) dense; else one dense. The
    parameters of all tasks are stacked, leaves ``(T, ...)``: one batched product serves
    any ``T``. The logits are at least float32 whatever ``dtype`` the products run in,
    because a loss of eight bits would be useless.
    """

    num_tasks: int
    num_classes: int = 10
    hidden: int | None = None
    dropout: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        if self.hidden is not None:
            z = nn.relu(self._dense("hidden", z, self.hidden))
            if self.dropout and train:
                z = z * keep_mask(self, z.shape, z.dtype)
        logits = self._dense("out", z, self.num_classes)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _dense(self, name: str, z: Array, features: int) -> Array:
        dense = StackedDense(
            self.num_tasks, features, self.dtype, self.param_dtype, name=name
        )
        return dense(z)


class StackedDense(nn.Module):
    """``T`` dense layers at once: ``(T, B, d)``, or one ``(B, d)`` for all of them, to
    ``(T, B, features)``.

    One input for all is not copied ``T`` times: the backward pass would be many times
    slower on CPUs.
    """

    num_tasks: int
    features: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, z: Array) -> Array:
        num_tasks, size = self.num_tasks, z.shape[-1]
        uniform = fan_in_uniform(size)
        shape = (num_tasks, size, self.features)
        kernel = self.param("kernel", uniform, shape, self.param_dtype)
        bias = self.param("bias", uniform, (num_tasks, self.features), self.param_dtype)
        z, kernel, bias = promote_dtype(z, kernel, bias, dtype=self.dtype)
        product = "bi,tio->tbo" if z.ndim == 2 else "tbi,tio->tbo"
        return jnp.einsum(product, z, kernel) + bias[:, None]


def fan_in_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Initialiser ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, the default of PyTorch."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        # Drawn flat: XLA's CPU backend takes seconds to compile a draw of rank 3 or 4.
        flat = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return flat.reshape(shape)

    return init


def keep_mask(module: nn.Module, shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros and ones with probability 1/2, from the module's stream ``dropout``."""
    return jax.random.bernoulli(module.make_rng("dropout"), 0.5, shape).astype(dtype)
