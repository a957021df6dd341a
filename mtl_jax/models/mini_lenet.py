"""The 1,500-parameter LeNet on which continuous Pareto exploration draws fronts."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array, check_num_tasks
from mtl_jax.models.heads import Heads, fan_in_uniform

SIZE, STRIDE = 5, 2


class MiniLeNet(nn.Module):
    """Smallest network of the MultiMNIST experiments, for 14x14 images.

    Encoder: conv 5x5 of stride 2 to 10 channels, ReLU, 2x2 max-pool; dense to 20, ReLU.
    Heads: dense to the classes. On 14x14 images of one channel with two tasks of ten
    classes these are 260 + 820 + 420 = 1,500 parameters, so that the Hessian is
    1500x1500 and can be written out. As in the code released with continuous Pareto
    exploration (arXiv:2006.16434, Figure 4), which rectifies before it pools: the same
    function.

    The parameters are ``{"encoder": ..., "heads": ...}``, so
    ``lambda path: path.startswith("heads/")`` marks the task-specific ones, stacked with
    leaves ``(T, ...)``. Weights and biases start as
    ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, the default of PyTorch.

    Args:
        num_tasks: the number of tasks ``T``.
        num_classes: classes per task.
        param_dtype: dtype of the parameters.

    Call: ``(x (B, H, W, c)) -> logits (T, B, classes)``, H and W at least 7.

    Raises:
        ValueError: at construction for a bad ``num_tasks``; when called for a bad input
            shape.

    >>> import jax
    >>> from mtl_jax.models import as_functional
    >>> model = as_functional(MiniLeNet())
    >>> x = jnp.zeros((4, 14, 14, 1))
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    1500
    """

    num_tasks: int = 2
    num_classes: int = 10
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_num_tasks(self.num_tasks)
        super().__post_init__()

    def setup(self) -> None:
        self.encoder = MiniEncoder(self.param_dtype)
        self.heads = Heads(
            self.num_tasks, self.num_classes, param_dtype=self.param_dtype
        )

    def __call__(self, x: Array) -> Array:
        return self.heads(self.encoder(x))


class MiniEncoder(nn.Module):
    """The shared part of :class:`MiniLeNet`: ``(B, H, W, c)`` to features ``(B, 20)``."""

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.ndim != 4 or min(x.shape[1:3]) < SIZE + STRIDE:
            raise ValueError(
                "MiniLeNet needs images (B, H, W, channels) with H and W >= "
                f"{SIZE + STRIDE}, got {x.shape}"
            )
        x = StridedConvPool(10, self.param_dtype, name="conv")(x)
        x = nn.relu(x).reshape(x.shape[0], -1)
        uniform = fan_in_uniform(x.shape[-1])
        return nn.relu(
            nn.Dense(
                20,
                kernel_init=uniform,
                bias_init=uniform,
                param_dtype=self.param_dtype,
                name="dense",
            )(x)
        )


class StridedConvPool(nn.Module):
    """Valid 5x5 convolution of stride 2 with bias, then 2x2 max-pool of stride 2.

    Written as one matrix product over the 25 strided slices of the image, at the
    positions that the pool reads: XLA's CPU backend runs convolutions inside
    ``lax.while_loop`` many times slower, and the slices do not depend on the parameters,
    so that a linearised gradient keeps them instead of making them anew.
    """

    features: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (SIZE, SIZE, x.shape[-1], self.features)
        uniform = fan_in_uniform(math.prod(shape[:3]))
        kernel = self.param("kernel", uniform, shape, self.param_dtype)
        bias = self.param("bias", uniform, shape[3:], self.param_dtype)
        # Pooling windows per side; an odd last row of the convolution is never pooled.
        rows, columns = (((n - SIZE) // STRIDE + 1) // 2 for n in x.shape[1:3])
        height, width = 2 * STRIDE * rows, 2 * STRIDE * columns
        slices = [
            x[:, i : i + height : STRIDE, j : j + width : STRIDE]
            for i in range(SIZE)
            for j in range(SIZE)
        ]
        patches = jnp.concatenate(slices, axis=-1)
        y = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, self.features)
        y = y.reshape(-1, rows, 2, columns, 2, self.features).max((2, 4))
        # Constant over a pooling window, so the bias can wait until after the pool.
        return y + bias.reshape(1, 1, 1, -1)
