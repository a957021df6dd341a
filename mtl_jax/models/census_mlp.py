"""The multi-layer perceptron of the census experiments."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array, check_num_tasks
from mtl_jax.models.heads import Heads, fan_in_uniform


class CensusMLP(nn.Module):
    """Dense layers with ReLU, shared by all tasks, then one dense head per task.

    With the defaults ``F`` -> 256 -> 128 and three heads 128 -> 2: the network of
    continuous Pareto exploration (arXiv:2006.16434), 158,598 parameters at ``F = 487``.
    ``hidden=(256,)`` with two tasks at ``F = 468`` is that of Pareto manifold learning
    (arXiv:2210.09759), 121,092.

    The parameters are ``{"encoder": {"dense1": ...}, "heads": ...}``, so
    ``lambda path: path.startswith("heads/")`` marks the task-specific ones, stacked with
    leaves ``(T, ...)``. Weights and biases start as
    ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, the default of PyTorch.

    Args:
        num_tasks: the number of tasks ``T``.
        num_outputs: logits per task.
        hidden: width of each shared layer, at least one.
        param_dtype: dtype of the parameters.

    Call: ``(x (B, F)) -> logits (T, B, outputs)``.

    Raises:
        ValueError: at construction for a bad size; when called for a bad input shape.

    >>> import jax
    >>> from mtl_jax.models import as_functional
    >>> model = as_functional(CensusMLP())
    >>> x = jnp.zeros((4, 487))
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    158598
    """

    num_tasks: int = 3
    num_outputs: int = 2
    hidden: tuple[int, ...] = (256, 128)
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_num_tasks(self.num_tasks)
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"hidden must be at least one width >= 1, got {self.hidden!r}"
            )
        super().__post_init__()

    def setup(self) -> None:
        self.encoder = DenseEncoder(tuple(self.hidden), self.param_dtype)
        self.heads = Heads(
            self.num_tasks, self.num_outputs, param_dtype=self.param_dtype
        )

    def __call__(self, x: Array) -> Array:
        return self.heads(self.encoder(x))


class DenseEncoder(nn.Module):
    """The shared part of :class:`CensusMLP`: ``(B, F)`` to features ``(B, width)``."""

    hidden: tuple[int, ...] = (256, 128)
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.ndim != 2:
            raise ValueError(f"CensusMLP needs rows (B, features), got {x.shape}")
        for k, width in enumerate(self.hidden, 1):
            uniform = fan_in_uniform(x.shape[-1])
            x = nn.relu(
                nn.Dense(
                    width,
                    kernel_init=uniform,
                    bias_init=uniform,
                    param_dtype=self.param_dtype,
                    name=f"dense{k}",
                )(x)
            )
        return x
