"""The multi-task attention network (MTAN) on the trunk of the sparse networks."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array
from mtl_jax.models.hard_sharing import SIZES, Trunk, check_network
from mtl_jax.models.heads import Heads
from mtl_jax.models.row_layers import ConvBlock, RowDense


class MTAN(nn.Module):
    r"""Hard sharing in which each task gates the trunk's blocks :math:`b_1, b_2, b_3`.

    .. math:: g = A(b_1) \odot b_2, \qquad z = F(g) \odot b_3

    with :math:`A`: convolution 1x1, ReLU, convolution as the trunk's second one, pool,
    sigmoid (normalised where the trunk is), and :math:`F`: flatten, dense, ReLU, dense,
    sigmoid; every task has its own. (In the released code of the study all tasks share one
    set, 146,250 and 1,412,900 parameters.) Parameters at ``T = 2``: 270,150 for
    ``multi_mnist``, 2,783,060 for ``cifar10_mnist``.

    Args:
        num_tasks: the number of tasks ``T``.
        images: ``"multi_mnist"`` or ``"cifar10_mnist"``, see
            :class:`~mtl_jax.models.HardSharing`.
        num_classes: classes per task.
        conv: see :func:`mtl_jax.models.conv.conv_pool`.
        param_dtype: dtype of the parameters.

    Call: ``(x (B, H, W, c), train=False) -> logits (T, B, classes)``.

    Raises:
        ValueError: at construction for a bad option; when called for a bad input shape.

    References:
        Liu, Johns and Davison, *End-to-End Multi-Task Learning with Attention*, 2019,
        arXiv:1803.10704; the variant is that of Hotegni et al., arXiv:2308.12243
    """

    num_tasks: int
    images: str = "multi_mnist"
    num_classes: int = 10
    conv: str = "auto"
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_network(self)
        super().__post_init__()

    def setup(self) -> None:
        shared: tuple[Any, ...] = (self.images, self.conv, self.param_dtype)
        self.encoder = Trunk(*shared)
        self.attentions = [Attention(*shared) for _ in range(self.num_tasks)]
        self.heads = Heads(
            self.num_tasks, self.num_classes, param_dtype=self.param_dtype
        )

    def __call__(self, x: Array, train: bool = False) -> Array:
        blocks = self.encoder.blocks(x, train)
        gated = [attention(*blocks, train) for attention in self.attentions]
        return self.heads(jnp.stack(gated), train)


class Attention(nn.Module):
    """One task's gates: the trunk's three outputs to features ``(B, d)``."""

    images: str
    conv: str = "auto"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, first: Array, second: Array, third: Array, train: bool = False
    ) -> Array:
        sizes = SIZES[self.images]
        options = {"param_dtype": self.param_dtype, "conv": self.conv}
        gate = ConvBlock(
            sizes.channels[0], 1, sizes.norm, pool=False, name="conv1", **options
        )(first, train)
        gate = ConvBlock(
            sizes.channels[1],
            sizes.size,
            sizes.norm,
            activation="sigmoid",
            name="conv2",
            **options,
        )(gate, train)
        flat = (gate * second).reshape(second.shape[0], -1)
        hidden = nn.relu(
            RowDense(flat.shape[-1], self.param_dtype, name="hidden")(flat)
        )
        last = RowDense(sizes.features, self.param_dtype, name="dense")(hidden)
        return nn.sigmoid(last) * third
