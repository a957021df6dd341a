"""Dense layers that start as PyTorch's and are one product of matrices."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from mtl_jax._types import Array
from mtl_jax.models.heads import fan_in_uniform


class Affine(nn.Module):
    """Dense layer ``(..., in)`` to ``(..., features)``.

    Weights and biases start as ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, where ``fan_in`` is
    ``in`` if not given.
    """

    features: int
    fan_in: int | None = None
    param_dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = x.shape[-1]
        uniform = fan_in_uniform(self.fan_in or size)
        dtype = self.param_dtype or x.dtype
        kernel = self.param("kernel", uniform, (size, self.features), dtype)
        bias = self.param("bias", uniform, (self.features,), dtype)
        return product(x, kernel) + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def product(x: Array, kernel: Array) -> Array:
    """``x @ kernel`` over the last axis, with all others as one.

    XLA's CPU backend takes two and a half times as long for the kernel's gradient where it
    is summed over two axes (60 molecules of 16 atoms, 16 to 512 units: 2.7 ms, so 1.0).
    """
    flat = x.reshape(-1, x.shape[-1]) @ kernel
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])
