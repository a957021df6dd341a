"""Knowledge distillation for multi-task learning (KDMTL): adaptors and their loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array
from mtl_jax.models.hard_sharing import SIZES, Trunk, check_network
from mtl_jax.models.heads import Heads, StackedDense


class KDMTL(nn.Module):
    """Hard sharing with an adaptor per task that imitates a single-task network.

    An adaptor is a dense layer ``d -> d`` with ReLU on the shared features. Its output
    enters only :func:`distillation_losses`. The teachers are networks
    ``HardSharing(1, images)`` of one task each; their features are those of
    :class:`~mtl_jax.models.Trunk`. Parameters at ``T = 2``: 27,450 for ``multi_mnist``,
    44,852 for ``cifar10_mnist``.

    Args:
        num_tasks: the number of tasks ``T``.
        images: ``"multi_mnist"`` or ``"cifar10_mnist"``, see
            :class:`~mtl_jax.models.HardSharing`.
        num_classes: classes per task.
        conv: see :func:`mtl_jax.models.conv.conv_pool`.
        param_dtype: dtype of the parameters.

    Call: ``(x (B, H, W, c), train=False) -> (logits (T, B, classes), adapted (T, B, d))``.

    Raises:
        ValueError: at construction for a bad option; when called for a bad input shape.

    References:
        Li and Bilen, *Knowledge Distillation for Multi-task Learning*, 2020,
        arXiv:2007.06889
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
        features = SIZES[self.images].features
        self.encoder = Trunk(self.images, self.conv, self.param_dtype)
        self.heads = Heads(
            self.num_tasks, self.num_classes, param_dtype=self.param_dtype
        )
        self.adaptors = StackedDense(self.num_tasks, features, None, self.param_dtype)

    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        features = self.encoder(x, train)
        return self.heads(features, train), nn.relu(self.adaptors(features))


def distillation_losses(adapted: Array, teachers: Array) -> Array:
    r"""Mean squared distance of normalised features, per task.

    .. math:: \frac1B \sum_b \Big\| \frac{A_t(s_b)}{\|A_t(s_b)\|}
        - \frac{f_{t,b}}{\|f_{t,b}\|} \Big\|^2

    Features that are zero stay zero. The teachers get no gradient. (In the released code
    of Hotegni et al. the adaptors are detached, so that nothing is distilled.)

    Args:
        adapted: ``(T, B, d)``, of :class:`KDMTL`.
        teachers: ``f``, ``(T, B, d)``, one teacher's features per task.

    Returns:
        ``(T,)``.

    Raises:
        ValueError: for shapes that differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> adapted = jnp.array([[[3.0, 4.0]], [[1.0, 0.0]]])
        >>> print(distillation_losses(adapted, jnp.array([[[6.0, 8.0]], [[0.0, 2.0]]])))
        [0. 2.]
    """
    if adapted.ndim != 3 or adapted.shape != teachers.shape:
        raise ValueError(
            "adapted and teachers must both have shape (T, B, d), got "
            f"{adapted.shape} and {teachers.shape}"
        )
    distance = _normalized(adapted) - _normalized(jax.lax.stop_gradient(teachers))
    return jnp.mean(jnp.sum(distance**2, axis=-1), axis=-1)


def _normalized(features: Array) -> Array:
    squares = jnp.sum(features**2, axis=-1, keepdims=True)
    nonzero = squares > 0
    return jnp.where(nonzero, features / jnp.sqrt(jnp.where(nonzero, squares, 1)), 0)
