"""The monitored deep multi-task network (MDMTN)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array, check_choice
from mtl_jax.models.hard_sharing import SIZES, Trunk, check_network
from mtl_jax.models.heads import Heads
from mtl_jax.models.row_layers import ConvBlock, RowDense

FUSIONS = ("learned", "fixed")


class MDMTN(nn.Module):
    r"""Hard sharing with a monitor per task, a small network for what is not shared.

    The head of task ``t`` gets :math:`\alpha_{t1} S(x) + \alpha_{t2} M_t(x)` from the
    shared trunk and its own monitor: convolution, pool, (normalisation,) ReLU, dense,
    ReLU.

    ================= ========= =========== ======= ================ =======
    images            trunk     one monitor head    :math:`\alpha`   T = 2
    ================= ========= =========== ======= ================ =======
    ``multi_mnist``   21,330    144,570     510     4                311,494
    ``cifar10_mnist`` 42,080    231,392     330     4                505,528
    ================= ========= =========== ======= ================ =======

    The parameters are ``{"encoder", "monitors_0", ..., "heads", "fusion"}``; those of the
    first is what the tasks share, :meth:`task_specific` marks the others for methods that
    ask (``heads=MDMTN.task_specific``). Compressed parameters
    (:func:`mtl_jax.sparsity.compress`) may be given to ``apply``.

    Args:
        num_tasks: the number of tasks ``T``.
        images: ``"multi_mnist"`` or ``"cifar10_mnist"``, see
            :class:`~mtl_jax.models.HardSharing`.
        fusion: ``"learned"``: :math:`\alpha` are parameters, at first (1, 0), so that a
            monitor has no gradient until the first step; ``"fixed"``:
            :math:`(1 - c, c)` with :math:`c = 1/2 - 1/(2T)`.
        num_classes: classes per task.
        conv: see :func:`mtl_jax.models.conv.conv_pool`.
        param_dtype: dtype of the parameters.

    Call: ``(x (B, H, W, c), train=False) -> logits (T, B, classes)``.

    Differs from the released code in that :math:`\alpha` belong to the parameters (there
    they are lost on saving).

    Raises:
        ValueError: at construction for a bad option; when called for a bad input shape.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from mtl_jax.models import as_functional
        >>> model = as_functional(MDMTN(2, fusion="fixed"))
        >>> x = jnp.zeros((8, 28, 28, 1))
        >>> params, state = jax.eval_shape(model.init, jax.random.key(0), x)
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        311490

    References:
        Hotegni, Berkemeier and Peitz, 2023, arXiv:2308.12243
    """

    num_tasks: int
    images: str = "multi_mnist"
    fusion: str = "learned"
    num_classes: int = 10
    conv: str = "auto"
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_network(self)
        check_choice("fusion", self.fusion, FUSIONS)
        super().__post_init__()

    def setup(self) -> None:
        shared: tuple[Any, ...] = (self.images, self.conv, self.param_dtype)
        self.encoder = Trunk(*shared)
        self.monitors = [Monitor(*shared) for _ in range(self.num_tasks)]
        self.heads = Heads(
            self.num_tasks, self.num_classes, param_dtype=self.param_dtype
        )
        if self.fusion == "learned":
            self.alphas = self.param("fusion", self._trunk_only)

    def _trunk_only(self, key: Array) -> Array:
        del key
        row = jnp.array([1, 0], self.param_dtype)
        return jnp.broadcast_to(row[None], (self.num_tasks, 2))

    def __call__(self, x: Array, train: bool = False) -> Array:
        trunk = self.encoder(x, train)
        monitors = jnp.stack([monitor(x, train) for monitor in self.monitors])
        if self.fusion == "learned":
            own, other = self.alphas[:, 0], self.alphas[:, 1]
            own, other = own.reshape(-1, 1, 1), other.reshape(-1, 1, 1)
        else:
            other = 0.5 - 0.5 / self.num_tasks
            own = 1 - other
        return self.heads(own * trunk[None] + other * monitors, train)

    @staticmethod
    def task_specific(path: str) -> bool:
        """Whether a parameter belongs to one task: all but the trunk's do."""
        return not path.startswith("encoder/")


class Monitor(nn.Module):
    """Images ``(B, H, W, c)`` to features ``(B, d)`` of one task."""

    images: str
    conv: str = "auto"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        sizes, dtypes = SIZES[self.images], {"param_dtype": self.param_dtype}
        block = ConvBlock(
            sizes.monitor, sizes.size, sizes.norm, conv=self.conv, name="conv", **dtypes
        )
        x = block(x, train)
        x = x.reshape(x.shape[0], -1)
        return nn.relu(RowDense(sizes.features, name="dense", **dtypes)(x))
