"""The message-passing network of the QM9 benchmark, on dense padded molecules."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array, check_num_tasks
from mtl_jax.models.affine import Affine
from mtl_jax.models.heads import Heads
from mtl_jax.models.nn_conv import ORDERS, EdgeUnits, NNConv
from mtl_jax.models.recurrent import GRUCell, Set2Set


class GraphBatch(NamedTuple):
    """What the network sees of a batch of molecules."""

    nodes: Array
    """Node features ``(B, N, F)``."""
    edges: Array
    """Features of all pairs ``(B, N, N, E)``; entry ``(i, j)`` belongs to the message
    from ``j`` to ``i``. The diagonal is not looked at."""
    mask: Array
    """Where there is a node, bool ``(B, N)``; all else in the batch is ignored there."""


class MPNN(nn.Module):
    r"""Edge networks, a GRU and a Set2Set readout, with one head per task.

    .. math::

        h^0 = \mathrm{ReLU}(W x), \quad
        m_i = \mathrm{ReLU}(\mathrm{NNConv}(h)_i), \quad
        h_i \leftarrow \mathrm{GRU}(m_i, h_i) \ \text{(three times, same weights)}, \quad
        z = \mathrm{ReLU}(W' \, \mathrm{Set2Set}(h))

    and ``T`` heads ``64 -> 1`` on ``z``: the network of Nash-MTL's QM9 experiment, layer by
    layer and with PyTorch's initialisation.

    ============================================= ===========
    part (default sizes)                          parameters
    ============================================= ===========
    ``embed``, dense 11 to 64                     768
    ``edge_units``, dense 5 to 128                768
    ``round/conv``, dense 128 to 64 x 64          528,384
    ``round/conv``, root weight and bias          4,160
    ``round/gru``                                 24,960
    ``readout``, Set2Set: an LSTM 128 to 64       49,664
    ``dense``, 128 to 64                          8,256
    ``heads``, 65 each                            715 (T = 11)
    together                                      617,675
    ============================================= ===========

    The parameters are ``{"encoder": ..., "heads": ...}``, so
    ``lambda path: path.startswith("heads/")`` marks the task-specific ones, stacked with
    leaves ``(T, ...)``.

    Args:
        num_tasks: the number of tasks ``T``.
        hidden: width of the nodes' states.
        edge_hidden: hidden units of the edge network.
        rounds: rounds of message passing.
        readout_steps: steps of Set2Set.
        order: see :class:`NNConv`.
        param_dtype: dtype of the parameters.

    Call: ``(GraphBatch) -> predictions (T, B, 1)``. They do not depend on the order of the
    nodes, nor on padding.

    Raises:
        ValueError: at construction for a bad option; when called for shapes that do not
            fit.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from mtl_jax.models import GraphBatch, as_functional
        >>> model = as_functional(MPNN(num_tasks=11))
        >>> x = GraphBatch(
        ...     jnp.zeros((4, 29, 11)), jnp.zeros((4, 29, 29, 5)), jnp.ones((4, 29), bool)
        ... )
        >>> params, state = jax.eval_shape(model.init, jax.random.key(0), x)
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        617675

    References:
        Gilmer et al., *Neural Message Passing for Quantum Chemistry*, 2017,
        arXiv:1704.01212; Navon et al., 2022, arXiv:2202.01017
    """

    num_tasks: int
    hidden: int = 64
    edge_hidden: int = 128
    rounds: int = 3
    readout_steps: int = 3
    order: str = "nodes_first"
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_num_tasks(self.num_tasks)
        for name in ("hidden", "edge_hidden", "rounds", "readout_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {self.order!r}")
        super().__post_init__()

    def setup(self) -> None:
        self.encoder = MPNNEncoder(
            self.hidden,
            self.edge_hidden,
            self.rounds,
            self.readout_steps,
            self.order,
            self.param_dtype,
        )
        self.heads = Heads(self.num_tasks, 1, param_dtype=self.param_dtype)

    def __call__(self, batch: GraphBatch) -> Array:
        return self.heads(self.encoder(batch))


class MPNNEncoder(nn.Module):
    """The shared part of :class:`MPNN`: a :class:`GraphBatch` to features ``(B, d)``."""

    hidden: int = 64
    edge_hidden: int = 128
    rounds: int = 3
    readout_steps: int = 3
    order: str = "nodes_first"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: GraphBatch) -> Array:
        _check(batch)
        nodes, edges, mask = batch
        width, dtype = self.hidden, self.param_dtype
        state = nn.relu(Affine(width, param_dtype=dtype, name="embed")(nodes))
        state = jnp.where(mask[..., None], state, 0)
        units = EdgeUnits(self.edge_hidden, dtype, name="edge_units")
        # A loop, because unrolled rounds take XLA three times as long to compile.
        whole: Any = (nn.broadcast, nn.broadcast)
        rounds = nn.scan(
            MPNNRound,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=whole,
            length=self.rounds,
        )(width, self.order, dtype, name="round")
        # What the edges do is the same in all rounds.
        state, _ = rounds(state, units(edges, mask), mask)
        pooled = Set2Set(width, self.readout_steps, dtype, name="readout")(state, mask)
        return nn.relu(Affine(width, param_dtype=dtype, name="dense")(pooled))


class MPNNRound(nn.Module):
    """One round: ``(state (B, N, d), edge_units (B, N, N, K), mask) -> (state, None)``."""

    features: int
    order: str = "nodes_first"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, state: Array, edge_units: Array, mask: Array) -> Any:
        conv = NNConv(self.features, self.order, self.param_dtype, name="conv")
        message = nn.relu(conv(state, edge_units, mask))
        state = GRUCell(self.features, self.param_dtype, name="gru")(message, state)
        return jnp.where(mask[..., None], state, 0), None


def _check(batch: GraphBatch) -> None:
    nodes, edges, mask = (jnp.shape(leaf) for leaf in batch)
    fits = len(nodes) == 3 and len(edges) == 4 and len(mask) == 2
    if not fits or edges[:3] != (*mask, mask[1]) or nodes[:2] != mask:
        raise ValueError(
            "MPNN needs nodes (B, N, F), edges (B, N, N, E) and mask (B, N), got shapes "
            f"{nodes}, {edges} and {mask}"
        )


def pair_features(bonds: Array, positions: Array) -> Array:
    """Edge features of the benchmark: four bond types one-hot and the distance.

    Args:
        bonds: ``(B, N, N)``: 0 no bond, 1 to 4 the type.
        positions: ``(B, N, 3)``, Å.

    Returns:
        ``(B, N, N, 5)`` in the positions' dtype. The distance is not scaled, as published.
    """
    dtype = positions.dtype
    types = jax.nn.one_hot(bonds.astype(jnp.int32) - 1, 4, dtype=dtype)
    differences = positions[:, :, None] - positions[:, None, :]
    squares = jnp.square(differences).sum(-1, keepdims=True)
    apart = squares > 0  # the root has no derivative at zero
    distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)
    return jnp.concatenate([types, distances], -1)
