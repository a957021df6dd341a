"""Hard parameter sharing, as in the study of sparse multi-task networks."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array, check_choice, check_num_tasks
from mtl_jax.models.conv import FORMS
from mtl_jax.models.heads import Heads
from mtl_jax.models.row_layers import ConvBlock, RowDense


class Sizes(NamedTuple):
    """What the networks for one data set look like."""

    image: tuple[int, int, int]
    size: int
    """Side of the convolutions' kernels."""
    channels: tuple[int, int]
    monitor: int
    """Channels of a monitor."""
    features: int
    norm: bool
    """Whether there is batch normalisation."""


SIZES = {
    "multi_mnist": Sizes((28, 28, 1), 5, (10, 20), 20, 50, False),
    "cifar10_mnist": Sizes((32, 32, 3), 3, (16, 32), 32, 32, True),
}


class HardSharing(nn.Module):
    """One shared trunk and a dense head per task (HPS); with one task, a single-task net.

    ================= =============================================== ====== =======
    images            trunk                                           head   T = 2
    ================= =============================================== ====== =======
    ``multi_mnist``   conv 5x5 to 10, conv 5x5 to 20, dense to 50     510    22,350
    ``cifar10_mnist`` conv 3x3 to 16, conv 3x3 to 32, dense to 32     330    42,740
    ================= =============================================== ====== =======

    Convolutions are valid, each followed by a 2x2 max-pool, batch normalisation
    (``cifar10_mnist`` only) and ReLU; so is the dense layer by ReLU. For MultiMNIST this
    is ``LeNet(variant="small")``. The parameters are ``{"encoder": ..., "heads": ...}``;
    compressed ones (:func:`mtl_jax.sparsity.compress`) may be given to ``apply``.

    Args:
        num_tasks: the number of tasks ``T``; 1 gives the networks called STL, 21,840 and
            42,410 parameters.
        images: ``"multi_mnist"`` or ``"cifar10_mnist"``.
        num_classes: classes per task.
        conv: see :func:`mtl_jax.models.conv.conv_pool`.
        param_dtype: dtype of the parameters.

    Call: ``(x (B, H, W, c), train=False) -> logits (T, B, classes)``; the papers' heads
    end in log-softmax, which :func:`mtl_jax.models.cross_entropy` includes.

    Raises:
        ValueError: at construction for a bad option; when called for a bad input shape.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from mtl_jax.models import as_functional
        >>> model = as_functional(HardSharing(2, images="cifar10_mnist"))
        >>> x = jnp.zeros((8, 32, 32, 3))
        >>> params, state = jax.eval_shape(model.init, jax.random.key(0), x)
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        42740

    References:
        Hotegni, Berkemeier and Peitz, 2023, arXiv:2308.12243
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
        self.encoder = Trunk(self.images, self.conv, self.param_dtype)
        self.heads = Heads(
            self.num_tasks, self.num_classes, param_dtype=self.param_dtype
        )

    def __call__(self, x: Array, train: bool = False) -> Array:
        return self.heads(self.encoder(x, train), train)


class Trunk(nn.Module):
    """The shared part: images ``(B, H, W, c)`` to features ``(B, d)``.

    It works alone, too: ``Trunk(images).apply({"params": params["encoder"], ...}, x)`` are
    the features of a trained network, which :class:`KDMTL` learns to imitate.
    """

    images: str = "multi_mnist"
    conv: str = "auto"
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        sizes, dtypes = SIZES[self.images], {"param_dtype": self.param_dtype}
        options: dict[str, Any] = {"norm": sizes.norm, "conv": self.conv, **dtypes}
        self.conv1 = ConvBlock(sizes.channels[0], sizes.size, **options)
        self.conv2 = ConvBlock(sizes.channels[1], sizes.size, **options)
        self.dense = RowDense(sizes.features, **dtypes)

    def __call__(self, x: Array, train: bool = False) -> Array:
        return self.blocks(x, train)[-1]

    def blocks(self, x: Array, train: bool = False) -> tuple[Array, Array, Array]:
        """The outputs of the three blocks."""
        check_images(self.images, x)
        first = self.conv1(x, train)
        second = self.conv2(first, train)
        flat = second.reshape(second.shape[0], -1)
        return first, second, nn.relu(self.dense(flat))


def check_network(module: Any) -> None:
    """Raises ``ValueError`` for bad options that all these networks have."""
    check_num_tasks(module.num_tasks)
    check_choice("images", module.images, SIZES)
    check_choice("conv", module.conv, FORMS)


def check_images(images: str, x: Array) -> None:
    """Raises ``ValueError`` unless ``x`` is a batch of the data set's images."""
    if x.ndim != 4 or x.shape[1:] != SIZES[images].image:
        wanted = ", ".join(str(side) for side in SIZES[images].image)
        raise ValueError(
            f"images={images!r} needs inputs of shape (B, {wanted}), got {x.shape}"
        )
