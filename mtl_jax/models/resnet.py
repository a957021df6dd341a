"""ResNet-18 with any number of classification heads."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from mtl_jax._types import Array, check_choice, check_num_tasks
from mtl_jax.models.heads import Heads, fan_in_uniform

STEMS = ("cifar", "imagenet")
NORMS = ("batch", "group")
STAGES = (64, 128, 256, 512)


class ResNet18(nn.Module):
    """ResNet-18 with one shared encoder and one dense head per task.

    The encoder has a stem and four stages of two :class:`BasicBlock` each, with 64, 128,
    256 and 512 channels; all stages but the first halve the image.

    ============ ==================================== ================= ==========
    stem         first layers; last pool              features, 64x64   parameters
    ============ ==================================== ================= ==========
    ``cifar``    3x3; 4x4 average                     2048 (2x2x512)    11,168,832
    ``imagenet`` 7x7 stride 2, 3x3 max-pool stride 2; 512               11,176,512
                 average over the whole image
    ============ ==================================== ================= ==========

    Scale and shift of the normalisation are counted, the heads, ``T (d + 1) outputs``
    for ``d`` features, are not: 163,920 for CelebA's 40 attributes. ``cifar`` is the
    network of MGDA-UB on CelebA (arXiv:1810.04650), ``imagenet`` that of He et al.
    (arXiv:1512.03385). The parameters are ``{"encoder": ..., "heads": ...}``, so
    ``lambda path: path.startswith("heads/")`` marks the task-specific ones, stacked with
    leaves ``(T, ...)``. :class:`ResNet18Encoder` and
    :class:`~mtl_jax.models.heads.Heads` also work alone, on ``params["encoder"]`` and
    ``params["heads"]``.

    Args:
        num_tasks: the number of tasks ``T``.
        num_outputs: logits per task.
        stem: ``"cifar"`` (images of at least 25x25) or ``"imagenet"``.
        norm: ``"batch"``: BatchNorm, batch statistics in training and running means of
            them (momentum 0.9) in evaluation, kept in ``model_state``; a training step
            updates them once, however many tasks there are. ``"group"``: GroupNorm with
            32 groups, which has no state.
        dtype: dtype of the computation, or None for that of inputs and parameters
            together. Statistics and logits are at least float32.
        param_dtype: dtype of the parameters.

    Differs from PyTorch's networks in that the running variance averages the biased
    batch variances. Convolutions are padded as there, on both sides, and start as
    ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, as in MGDA's released code.

    Call: ``(x (B, H, W, c), train=False) -> logits (T, B, outputs)``.

    Raises:
        ValueError: at construction for a bad option; when called for a bad input shape.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from mtl_jax.models import as_functional
        >>> model = as_functional(ResNet18(num_tasks=40))
        >>> x = jnp.zeros((8, 64, 64, 3))
        >>> params, state = jax.eval_shape(model.init, jax.random.key(0), x)
        >>> sum(leaf.size for leaf in jax.tree.leaves(params["encoder"]))
        11168832
    """

    num_tasks: int
    num_outputs: int = 2
    stem: str = "cifar"
    norm: str = "batch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_num_tasks(self.num_tasks)
        check_choice("stem", self.stem, STEMS)
        check_choice("norm", self.norm, NORMS)
        super().__post_init__()

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.encoder = ResNet18Encoder(self.stem, self.norm, **dtypes)
        self.heads = Heads(self.num_tasks, self.num_outputs, **dtypes)

    def __call__(self, x: Array, train: bool = False) -> Array:
        return self.heads(self.encoder(x, train), train)


class ResNet18Encoder(nn.Module):
    """The shared part of :class:`ResNet18`: ``(B, H, W, c)`` to features ``(B, d)``."""

    stem: str = "cifar"
    norm: str = "batch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_choice("stem", self.stem, STEMS)
        check_choice("norm", self.norm, NORMS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        cifar = self.stem == "cifar"
        if x.ndim != 4 or (cifar and min(x.shape[1:3]) < 25):
            least = " with H and W >= 25 for the cifar stem" if cifar else ""
            raise ValueError(
                f"ResNet18 needs images (B, H, W, channels){least}, got {x.shape}"
            )
        options = (self.norm, self.dtype, self.param_dtype)
        size, stride = (3, 1) if cifar else (7, 2)
        x = nn.relu(ConvNorm(64, size, stride, *options, name="stem")(x, train))
        if not cifar:
            window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
            padding = ((0, 0), (1, 1), (1, 1), (0, 0))
            x = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
        for i, features in enumerate(STAGES):
            for j in range(2):
                stride = 2 if i > 0 and j == 0 else 1
                block = BasicBlock(features, stride, *options, name=f"block{i}{j}")
                x = block(x, train)
        if not cifar:
            return x.mean((1, 2))
        return nn.avg_pool(x, (4, 4), (4, 4)).reshape(x.shape[0], -1)


class BasicBlock(nn.Module):
    """``relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))`` with 3x3 convolutions.

    The shortcut is ``norm(conv(x))``, 1x1, where the shape changes, else ``x``.
    """

    features: int
    stride: int = 1
    norm: str = "batch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        options = (self.norm, self.dtype, self.param_dtype)
        y = ConvNorm(self.features, 3, self.stride, *options, name="first")(x, train)
        y = nn.relu(y)
        y = ConvNorm(self.features, 3, 1, *options, name="second")(y, train)
        if x.shape != y.shape:
            shortcut = ConvNorm(
                self.features, 1, self.stride, *options, name="shortcut"
            )
            x = shortcut(x, train)
        return nn.relu(y + x)


class ConvNorm(nn.Module):
    """Convolution without bias, padded by ``size // 2``, then normalisation."""

    features: int
    size: int
    stride: int
    norm: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(
            self.features,
            (self.size, self.size),
            self.stride,
            padding=self.size // 2,
            use_bias=False,
            kernel_init=fan_in_uniform(self.size**2 * x.shape[-1]),
            name="conv",
            **dtypes,
        )(x)
        if self.norm == "group":
            return nn.GroupNorm(32, epsilon=1e-5, name="norm", **dtypes)(x)
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            # flax would start the statistics of a float64 network in float32 and return
            # them in float64, which no scan can carry.
            force_float32_reductions=self.param_dtype != jnp.float64,
            name="norm",
            **dtypes,
        )(x)
