"""Running statistics that fit the parameters at hand: BatchNorm on a Pareto manifold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from mtl_jax._types import Array, ArrayTree, State, check_choice
from mtl_jax.stacking import STRATEGIES, stack_rows

Update = Callable[[ArrayTree, State, Any], State]
"""``update(params, state, batch) -> state``: one training step's running averages."""


def recalibrate(
    update: Update,
    params: ArrayTree,
    state: State,
    batches: Any,
    *,
    loop: str = "auto",
) -> State:
    r"""Returns the running statistics of one network, anew from some batches.

    .. math:: s = \frac{1}{K} \sum_{k=1}^K b_k(\theta)

    with :math:`b_k` the statistics of batch ``k``: means of the batches' means and of
    their (biased) variances. A network trained on the points of a Pareto manifold has one
    set of running statistics, an average over all points, that is right at none of them;
    this one is right at the point it was computed for.

    The running averages are only known by how they move,
    :math:`s' = m s + (1 - m) b`; slope and offset of this line give :math:`b` whatever the
    momentum is, from one forward pass.

    Args:
        update: ``update(params, state, batch) -> state``, such as
            ``lambda params, state, x: model.apply(params, state, x, train=True)[1]`` with
            a ``mtl_jax.models.FunctionalModel``. In training mode the network must not
            look at its running averages.
        params: of the network, leaves ``(*p)``.
        state: its running averages; their values do not matter. Leaves that ``update``
            leaves alone, and those that are not floating point, are returned as they are.
        batches: tree of arrays ``(K, ...)``, ``K`` batches of equal size.
        loop: over the batches, ``"vmap"``, ``"map"`` or ``"unroll"``; ``"auto"``:
            ``"map"``, one batch's activations at a time, but ``"unroll"`` for networks
            with convolutions on CPUs.

    Returns:
        A state like ``state``. Pure and differentiable; vmap it over points as you like.

    Raises:
        ValueError: for batches without a common leading axis, an ``update`` that
            changes the state's structure, or an unknown loop.

    The released code of Pareto manifold learning evaluates all points with the shared
    statistics.

    Examples:
        >>> def update(params, state, x):  # momentum 0.9
        ...     return 0.9 * state + 0.1 * (params * x).mean(axis=0)
        >>> batches = jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]])  # two batches of two
        >>> print(recalibrate(update, jnp.array(2.0), jnp.zeros(1), batches).round(4))
        [8.]

    References:
        Izmailov et al., *Averaging Weights Leads to Wider Optima and Better
        Generalization*, 2018, arXiv:1803.05407 (statistics after averaging weights);
        Dimitriadis, Frossard and Fleuret, *Pareto Manifold Learning*, 2023,
        arXiv:2210.09759
    """
    check_choice("loop", loop, STRATEGIES)
    count = _count_batches(batches)
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, state))
    moving = [
        i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if not moving:
        return state
    start = [jnp.zeros_like(leaves[i]) for i in moving]
    steps = [jnp.ones_like(leaf) for leaf in start]

    def at_batch(index: Array) -> tuple[list[Array], list[Array]]:
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], batches)

        def moved(running: list[Array]) -> list[Array]:
            old = list(leaves)
            for i, leaf in zip(moving, running, strict=True):
                old[i] = leaf
            new = update(params, jax.tree.unflatten(structure, old), batch)
            if jax.tree.structure(new) != structure:
                raise ValueError(
                    f"update returned the structure {jax.tree.structure(new)}, expected "
                    f"that of the state, {structure}"
                )
            new_leaves = jax.tree.leaves(new)
            return [new_leaves[i] for i in moving]

        return jax.jvp(moved, (start,), (steps,))

    if loop == "auto" and jax.default_backend() != "cpu":
        loop = "map"
    offsets, slopes = stack_rows(at_batch, jnp.arange(count), loop)
    fresh = list(leaves)
    for i, offset, slope in zip(moving, offsets, slopes, strict=True):
        kept = slope == 1  # a constant: not an average at all
        statistic = (offset / jnp.where(kept, 1, 1 - slope)).mean(axis=0)
        fresh[i] = jnp.where(kept.all(axis=0), leaves[i], statistic)
        fresh[i] = fresh[i].astype(leaves[i].dtype)
    return jax.tree.unflatten(structure, fresh)


def recalibration(update: Update, state: State, batches: Any) -> Partial:
    """Returns ``params -> state``, :func:`recalibrate` with everything else bound.

    What ``stats`` of :func:`mtl_jax.pareto.evaluate_manifold` expects. ``update`` is
    static there: pass the same function object again, and nothing is compiled anew;
    ``state`` and ``batches`` are data.

    Args:
        update: see :func:`recalibrate`, like the others.
        state: running averages, for their structure.
        batches: tree of arrays ``(K, ...)``.

    Raises:
        ValueError: for batches without a common leading axis.

    Examples:
        >>> def update(params, state, x):
        ...     return 0.9 * state + 0.1 * (params * x).mean(axis=0)
        >>> stats = recalibration(update, jnp.zeros(1), jnp.ones((1, 4, 1)))
        >>> print(jax.vmap(stats)(jnp.array([2.0, 3.0])).round(4))
        [[2.]
         [3.]]
    """
    _count_batches(batches)
    update = update if isinstance(update, Partial) else Partial(update)
    return Partial(_recalibrated, update, state, batches)


def _recalibrated(
    update: Update, state: State, batches: Any, params: ArrayTree
) -> State:
    return recalibrate(update, params, state, batches)


def _count_batches(batches: Any) -> int:
    """``K``, the leading axis that all leaves share."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            "all leaves of batches must share a leading axis of K >= 1 batches, got the "
            f"leading axes {sorted(sizes)}; one batch x is x[None]"
        )
    return sizes.pop()[0]
