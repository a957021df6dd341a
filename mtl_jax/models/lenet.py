"""LeNet of the MultiMNIST experiments, with any number of classification heads."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array, check_choice, check_num_tasks
from mtl_jax.models.conv import FORMS, conv_pool
from mtl_jax.models.heads import Heads, fan_in_uniform, keep_mask

VARIANTS = ("small", "mgda")


class LeNet(nn.Module):
    """LeNet with one shared encoder and one head per task.

    Encoder: conv 5x5 to 10 channels, pool, ReLU; conv 5x5 to 20 channels, pool, ReLU;
    dense to 50, ReLU. Parameters at ``T = 2`` on 28x28 images:

    ========== ======================== ======= ========== ======
    variant    head of each task        encoder each head  total
    ========== ======================== ======= ========== ======
    ``small``  50 -> classes            21,330  510        22,350
    ``mgda``   50 -> 50, ReLU, classes  21,330  3,060      27,450
    ========== ======================== ======= ========== ======

    ``small`` is the network of continuous Pareto exploration (arXiv:2006.16434) and the
    hard-sharing one of MDMTN (arXiv:2308.12243); ``mgda`` is that of MGDA-UB
    (arXiv:1810.04650); all as in the released codes. The parameters are
    ``{"encoder": ..., "heads": ...}``, so ``lambda path: path.startswith("heads/")``
    marks the task-specific ones. The heads of all tasks are stacked, leaves
    ``(T, ...)``: one batched product serves any ``T``, and 40 tasks compile as fast as
    two. :class:`Encoder` and :class:`~mtl_jax.models.heads.Heads` also work alone, on
    ``params["encoder"]`` and ``params["heads"]``.

    Args:
        num_tasks: the number of tasks ``T``.
        variant: ``"small"`` or ``"mgda"``.
        dropout: in training, zero each channel after the second convolution (one mask
            for the whole batch) and, in ``mgda``, each hidden unit of the heads, with
            probability 1/2. As in MGDA's released code the survivors are **not** scaled
            by 2. ``None`` means on for ``mgda`` and off for ``small``.
        num_classes: classes per task.
        conv: form of the convolutions, see :func:`mtl_jax.models.conv.conv_pool`. It
            does not change the parameters.
        param_dtype: dtype of the parameters.

    Weights and biases start as ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, the default of
    PyTorch, which the papers used.

    Call: ``(x (B, H, W, c), train=False) -> logits (T, B, classes)``; the random stream
    ``dropout`` is needed in training when dropout is on.

    Raises:
        ValueError: at construction for a bad option; when called for a bad input shape.
    """

    num_tasks: int
    variant: str = "small"
    dropout: bool | None = None
    num_classes: int = 10
    conv: str = "auto"
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_num_tasks(self.num_tasks)
        check_choice("variant", self.variant, VARIANTS)
        check_choice("conv", self.conv, FORMS)
        super().__post_init__()

    def setup(self) -> None:
        mgda = self.variant == "mgda"
        dropout = mgda if self.dropout is None else self.dropout
        self.encoder = Encoder(dropout, self.conv, self.param_dtype)
        self.heads = Heads(
            self.num_tasks,
            self.num_classes,
            hidden=50 if mgda else None,
            dropout=dropout,
            param_dtype=self.param_dtype,
        )

    def __call__(self, x: Array, train: bool = False) -> Array:
        return self.heads(self.encoder(x, train), train)


class Encoder(nn.Module):
    """The shared part of :class:`LeNet`: ``(B, H, W, c)`` to features ``(B, 50)``."""

    dropout: bool = False
    conv: str = "auto"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        if x.ndim != 4:
            raise ValueError(f"LeNet needs images (B, H, W, channels), got {x.shape}")
        x = nn.relu(self._conv_pool("conv1", x, 10))
        x = self._conv_pool("conv2", x, 20)
        if self.dropout and train:
            # Released code masks before the pool; masks of 0 and 1 commute with it.
            x = x * keep_mask(self, (1, 1, 1, x.shape[-1]), x.dtype)
        x = nn.relu(x).reshape(x.shape[0], -1)
        uniform = fan_in_uniform(x.shape[-1])
        return nn.relu(
            nn.Dense(
                50,
                kernel_init=uniform,
                bias_init=uniform,
                param_dtype=self.param_dtype,
                name="dense",
            )(x)
        )

    def _conv_pool(self, name: str, x: Array, features: int) -> Array:
        return ConvPool(features, self.conv, self.param_dtype, name=name)(x)


class ConvPool(nn.Module):
    """Valid 5x5 convolution with bias, then 2x2 max-pool."""

    features: int
    conv: str
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (5, 5, x.shape[-1], self.features)
        uniform = fan_in_uniform(math.prod(shape[:3]))
        kernel = self.param("kernel", uniform, shape, self.param_dtype)
        bias = self.param("bias", uniform, shape[3:], self.param_dtype)
        # Constant over a pooling window, so the bias can wait until after the pool.
        return conv_pool(x, kernel, form=self.conv) + bias.reshape(1, 1, 1, -1)
