"""``aggregate``: lifts a weighting into an optax transformation of task gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax import tree
from mtl_jax._types import (
    Array,
    ArrayTree,
    StackedTree,
    State,
    Statistics,
    Weighting,
    check_choice,
)
from mtl_jax.transforms.nonfinite import POLICIES, GoodTasks, good_tasks


class AggregateState(NamedTuple):
    """State of :func:`aggregate`."""

    weights: Array
    """The last task weights, ``(T,)``; ones before the first step."""
    inner: State
    """State of the weighting."""
    last_losses: Array
    """The last finite loss of every task, ``(T,)``; ones before the first."""
    skipped_tasks: Array
    """How often each task was skipped as non-finite, int32 ``(T,)``."""
    skipped_steps: Array
    """How many whole steps were skipped as non-finite, int32 ``()``."""


def aggregate(
    weighting: Weighting,
    *,
    heads: tree.HeadsSpec = None,
    head_weights: str = "unit",
    nonfinite: str = "propagate",
) -> optax.GradientTransformationExtraArgs:
    r"""Turns a weighting into a transformation from ``(T, *p)`` to ``(*p)``.

    The update is :math:`\Delta = \sum_t w_t g_t` with the weights that ``weighting``
    returns for the Gramian of the task gradients and the losses. Like any gradient it
    points uphill: chain it before ``optax.sgd``, ``optax.adam``, ….

    Args:
        weighting: from :mod:`mtl_jax.weighting`, or your own pair of functions.
        heads: task-specific parameters, a bool mask or a path predicate (see
            ``tree.HeadsSpec``). They are left out of the Gramian. Their leaves may be
            stacked ``(T, *p)`` or already summed ``(1, *p)``.
        head_weights: what heads get: ``"unit"``, the plain sum of the tasks' gradients
            (Sener & Koltun's Algorithm 2, LibMTL, TorchJD); ``"weighted"``, the same
            weights as the shared parameters (nash-mtl's code for Nash-MTL, MGDA and
            IMTL-G); needs stacked leaves.
        nonfinite: what happens when a task's loss or gradient is not finite:

            * ``"propagate"``: nothing special, the update becomes non-finite too;
            * ``"skip_task"``: the task is left out of this step: for the weighting it
              agrees with the mean of the other tasks, its gradient counts as zero,
              and its weight goes to the others;
            * ``"skip_step"``: the update is zero and the weighting's state stays.

            The state counts both. A gradient whose square leaves the accumulator's range
            (norm above about 1e19 in float32) counts as non-finite, too. An update that
            would not be finite all the same skips the step under both: a head that comes
            summed over the tasks does not tell whose gradient was bad.

    Returns:
        ``optax.GradientTransformationExtraArgs``; ``update(task_grads, state, params,
        losses=losses)`` with ``losses`` of shape ``(T,)`` where the method needs them.
        Further extra arguments, each for the methods that say so: ``held_out=H``, task
        gradients ``(T, *p)`` on another batch (the products :math:`\langle h_s, g_t\rangle`
        reach the weighting as ``cross_gram``); ``independent=(A, B)``, two such stacks
        (:math:`\langle a_s, b_t\rangle`); ``revisited_losses=``, the previous batch's
        losses at the present parameters, ``(T,)``.
        ``optax.tree.get(state, "weights")`` reads the last weights. Use it inside
        ``optax.chain``; wrappers that expect the shapes of the updates to stay
        (``optax.MultiSteps``, ``optax.apply_if_finite``) must come after it.

    Raises:
        ValueError: for unknown options; from ``update``, for task gradients that are not
            stacked ``(T, *p)`` floating point leaves, or missing losses.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax, optax
        >>> tx = optax.chain(mtl_jax.aggregate(mtl_jax.weighting.mgda(2)), optax.sgd(1.0))
        >>> params = jnp.zeros(2)
        >>> task_grads = jnp.array([[2.0, 0.0], [0.0, 2.0]])
        >>> updates, state = tx.update(task_grads, tx.init(params), params)
        >>> print(optax.tree.get(state, "weights"))
        [0.5 0.5]
    """
    check_choice("head_weights", head_weights, ("unit", "weighted"))
    check_choice("nonfinite", nonfinite, POLICIES)
    num_tasks = weighting.num_tasks

    def init_fn(params: ArrayTree) -> AggregateState:
        tree.resolve_heads(heads, params)
        return init_aggregate(weighting, params)

    def update_fn(
        updates: StackedTree,
        state: State,
        params: ArrayTree | None = None,
        *,
        losses: Array | None = None,
        held_out: StackedTree | None = None,
        independent: tuple[StackedTree, StackedTree] | None = None,
        revisited_losses: Array | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, State]:
        del params, extra_args
        marks = tree.resolve_heads(heads, updates)
        tree.check_stacked(updates, num_tasks, marks)
        _check_head_weights(updates, marks, num_tasks, head_weights)

        gram = tree.gram(tree.shared_leaves(updates, marks))
        cross = _cross_gram(updates, held_out, independent, marks, num_tasks)
        dtype = state.weights.dtype
        statistics, good = Statistics(gram, losses, cross, revisited_losses), None
        if nonfinite != "propagate":
            only = _only(updates, marks)
            good = good_tasks(gram, losses, state.last_losses, only, cross)
            statistics = good.statistics(revisited_losses)
            updates = tree.zero_tasks(~good.mask, updates)
        weights, inner = weighting.update(statistics, state.inner)
        if good is not None:
            weights = good.fold(weights)
        combined = _combine(weights, updates, marks, head_weights)
        new_state = state._replace(weights=weights.astype(dtype), inner=inner)
        if good is not None:
            skip_step = nonfinite == "skip_step"
            combined, new_state = apply_policy(
                combined, new_state, state, good, lost=skip_step & ~good.mask.all()
            )
        return combined, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def init_aggregate(weighting: Weighting, params: ArrayTree) -> AggregateState:
    """Returns the state before the first step."""
    dtype = tree.accumulator_dtype(params)
    return AggregateState(
        weights=jnp.ones(weighting.num_tasks, dtype),
        inner=weighting.init(),
        last_losses=jnp.ones(weighting.num_tasks, dtype),
        skipped_tasks=jnp.zeros(weighting.num_tasks, jnp.int32),
        skipped_steps=jnp.zeros([], jnp.int32),
    )


def apply_policy(
    combined: ArrayTree,
    new_state: AggregateState,
    state: AggregateState,
    good: GoodTasks,
    *,
    lost: Array,
) -> tuple[ArrayTree, AggregateState]:
    """Zeroes the update and keeps the old state where the whole step is skipped.

    That is where ``lost``, where no task is usable, or where the update is not finite all
    the same: a head summed over the tasks hides whose fault it is, and sums overflow.
    """
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(combined)]
    lost = lost | ~good.mask.any() | ~jnp.stack(finite).all()
    combined = jax.tree.map(lambda x: jnp.where(lost, jnp.zeros_like(x), x), combined)
    kept = jax.tree.map(lambda old, new: jnp.where(lost, old, new), state, new_state)
    bad_tasks = (~good.mask).astype(jnp.int32)
    last_losses = good.last_losses.astype(state.last_losses.dtype)
    return combined, kept._replace(
        last_losses=last_losses,
        skipped_tasks=state.skipped_tasks + bad_tasks,
        skipped_steps=state.skipped_steps + lost.astype(jnp.int32),
    )


def _cross_gram(
    updates: StackedTree,
    held_out: StackedTree | None,
    independent: tuple[StackedTree, StackedTree] | None,
    marks: ArrayTree | None,
    num_tasks: int,
) -> Array | None:
    """Products of other batches' task gradients, if any were given."""
    if held_out is not None and independent is not None:
        raise ValueError("pass either held_out= or independent=, not both")
    pair = (held_out, updates) if held_out is not None else independent
    if pair is None:
        return None
    for stack in pair:
        if jax.tree.structure(stack) != jax.tree.structure(updates):
            raise ValueError(
                "held_out= and independent= must have the structure of the task gradients, "
                f"{jax.tree.structure(updates)}, got {jax.tree.structure(stack)}; wrappers "
                "that split parameters into groups cannot split them"
            )
        tree.check_stacked(stack, num_tasks, marks)
    left, right = pair
    return tree.cross_gram(
        tree.shared_leaves(left, marks), tree.shared_leaves(right, marks)
    )


def _only(updates: StackedTree, marks: ArrayTree | None) -> list[Array]:
    """The leaves that are heads."""
    if marks is None:
        return []
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(marks), strict=True)
    return [leaf for leaf, is_head in pairs if is_head]


def _check_head_weights(
    updates: StackedTree, marks: ArrayTree | None, num_tasks: int, head_weights: str
) -> None:
    if head_weights == "unit" or num_tasks == 1:
        return
    if any(leaf.shape[0] == 1 for leaf in _only(updates, marks)):
        raise ValueError(
            "head_weights='weighted' needs the heads' gradients stacked (T, ...), got "
            "leaves (1, ...) already summed over the tasks: call value_and_task_grads "
            "without heads=, or use head_weights='unit'"
        )


def _combine(
    weights: Array, updates: StackedTree, marks: ArrayTree | None, head_weights: str
) -> ArrayTree:
    """Weighted sum of the shared leaves; heads by ``head_weights``."""
    if marks is None or head_weights == "weighted":
        return tree.combine(weights, updates)

    def leaf_combine(leaf: Array, is_head: bool) -> Array:
        return leaf.sum(axis=0) if is_head else tree.combine(weights, leaf)

    return jax.tree.map(leaf_combine, updates, marks)
