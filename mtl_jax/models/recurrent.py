"""Recurrent parts of the message-passing network, as PyTorch defines them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array
from mtl_jax.models.affine import Affine


class GRUCell(nn.Module):
    r"""One step of a gated recurrent unit: ``(x (..., d), h (..., d)) -> h (..., d)``.

    .. math:: h' = (1 - u) \odot \tanh(W_n x + b_n + r \odot (U_n h + c_n)) + u \odot h

    with the gates ``r`` and ``u`` (sigmoids of affine functions of both). As in PyTorch,
    and unlike flax's cell, inputs and states have a bias each and weights start as
    ``U(-1/sqrt(d), 1/sqrt(d))``.
    """

    features: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, h: Array) -> Array:
        size = 3 * self.features
        width, dtype = self.features, self.param_dtype
        from_input = Affine(size, width, dtype, name="input")(x)
        from_state = Affine(size, width, dtype, name="state")(h)
        x_reset, x_update, x_new = jnp.split(from_input, 3, axis=-1)
        h_reset, h_update, h_new = jnp.split(from_state, 3, axis=-1)
        reset = jax.nn.sigmoid(x_reset + h_reset)
        update = jax.nn.sigmoid(x_update + h_update)
        new = jnp.tanh(x_new + reset * h_new)
        return new + update * (h - new)


class Set2Set(nn.Module):
    r"""Order-free readout of a set: ``(x (B, N, d), mask (B, N)) -> (B, 2d)``.

    .. math:: q = \mathrm{LSTM}(q^*), \quad a = \mathrm{softmax}_i(x_i \cdot q), \quad
              q^* = \Bigl[q, \sum_i a_i x_i\Bigr]

    repeated ``steps`` times from zero. References: Vinyals, Bengio and Kudlur, 2015,
    arXiv:1511.06391
    """

    features: int
    steps: int = 3
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        width = self.features
        query = jnp.zeros((x.shape[0], 2 * width), x.dtype)
        h = cell = jnp.zeros((x.shape[0], width), x.dtype)
        least = jnp.finfo(x.dtype).min  # not -inf: an empty set reads zero

        def step(lstm: LSTMCell, carry: Any, _: Any) -> tuple[Any, None]:
            h, cell = lstm(*carry)
            scores = jnp.where(mask, jnp.einsum("bnd,bd->bn", x, h), least)
            read = jnp.einsum("bn,bnd->bd", jax.nn.softmax(scores, axis=1), x)
            return (jnp.concatenate([h, read], -1), h, cell), None

        lstm = LSTMCell(width, self.param_dtype, name="lstm")
        steps = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False},
            length=self.steps,
        )
        (query, _, _), _ = steps(lstm, (query, h, cell), None)
        return query


class LSTMCell(nn.Module):
    """One step of an LSTM: ``(x, h, cell) -> (h, cell)``, gates as in PyTorch."""

    features: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, h: Array, cell: Array) -> tuple[Array, Array]:
        size = 4 * self.features
        width, dtype = self.features, self.param_dtype
        total = Affine(size, width, dtype, name="input")(x)
        total += Affine(size, width, dtype, name="state")(h)
        enter, forget, new, leave = jnp.split(total, 4, axis=-1)
        kept = jax.nn.sigmoid(forget) * cell
        cell = kept + jax.nn.sigmoid(enter) * jnp.tanh(new)
        return jax.nn.sigmoid(leave) * jnp.tanh(cell), cell
