"""One pure training step for losses, a method and an optimiser; and scans of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, State
from mtl_jax.combined import CombinedGrad
from mtl_jax.gradients import value_and_task_grads

TrainLossesFn = Callable[[ArrayTree, State, Any, Array], tuple[Array, State]]
"""``losses_fn(params, model_state, batch, key) -> (losses (T,), model_state)``."""
Step = Callable[["TrainState", Any], tuple["TrainState", "StepRecord"]]
"""``step(state, batch) -> (state, record)``."""


class TrainState(NamedTuple):
    """All that changes in training; a pytree of arrays."""

    params: ArrayTree
    model_state: State
    """What the model carries besides parameters (BatchNorm statistics), or ``{}``."""
    opt_state: State
    key: Array
    """Root key, typed ``()``; it stays, step ``n`` draws from ``fold_in(key, n)``."""
    step: Array
    """Steps taken, int32 ``()``."""
    source_state: State = ()
    """State of the combined source, with :func:`make_combined_step`."""


class StepRecord(NamedTuple):
    """What one step reports."""

    losses: Array
    """Task losses before the step, ``(T,)``."""
    weights: Array
    """Task weights of the step, ``(T,)``; ones for methods that have none."""
    cosines: Array
    """Cosines between the task gradients, ``(T, T)``; 0 where a gradient vanishes (or,
    with :func:`make_combined_step`, where the method at hand needs no Gramian)."""


def init_state(
    params: ArrayTree,
    model_state: State,
    tx: optax.GradientTransformation,
    key: Array,
    *,
    source: CombinedGrad | None = None,
) -> TrainState:
    """Returns the state before the first step.

    Args:
        params: initial parameters.
        model_state: initial model state, ``{}`` if there is none.
        tx: as for :func:`make_train_step`.
        key: typed key ``()`` of the run. The random states inside ``tx`` are re-keyed by
            it, so that runs differ in all their random numbers by this key alone (and
            ``seed=`` of a method still sets methods of one run apart).
        source: as for :func:`make_combined_step`.
    """
    root, salt_key = jax.random.split(key)
    salt = jax.random.bits(salt_key)

    def rekey(leaf: Any) -> Any:
        is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        return jax.random.fold_in(leaf, salt) if is_key else leaf

    source_state = () if source is None else source.init(params)
    opt_state, source_state = jax.tree.map(rekey, (tx.init(params), source_state))
    step = jnp.zeros([], jnp.int32)
    return TrainState(params, model_state, opt_state, root, step, source_state)


def make_train_step(
    losses_fn: TrainLossesFn,
    tx: optax.GradientTransformation,
    *,
    strategy: str = "auto",
    heads: tree.HeadsSpec = None,
    stack_heads: bool = False,
) -> Step:
    """Makes the pure function that takes one training step.

    Plain single-task training is the same code with one loss and ``mtl_jax.ls(1)``.

    Args:
        losses_fn: ``losses_fn(params, model_state, batch, key) -> (losses (T,),
            model_state)``, pure JAX code; ``key`` is for dropout and the like.
        tx: from task gradients ``(T, *p)`` to updates ``(*p)``: a method chained with an
            optimiser, e.g. ``optax.chain(mtl_jax.mgda(2), optax.adam(1e-3))``.
        strategy: see :func:`mtl_jax.value_and_task_grads`.
        heads: task-specific parameters, see ``mtl_jax.tree.HeadsSpec``; pass the same to
            :func:`mtl_jax.aggregate`. They do not count in the recorded cosines.
        stack_heads: whether the heads' gradients come to ``tx`` stacked ``(T, *p)``
            rather than summed ``(1, *p)``: for element-wise methods, and for
            ``aggregate(..., head_weights="weighted")``.

    Returns:
        ``step(state, batch) -> (state, record)``, see :class:`TrainState` and
        :class:`StepRecord`. Nothing in it is jitted or donated yet.

    Examples:
        >>> import jax, jax.numpy as jnp, mtl_jax, optax
        >>> from mtl_jax.train import init_state, make_train_step
        >>> def losses_fn(params, model_state, batch, key):
        ...     return jnp.square(params - batch), model_state
        >>> tx = optax.chain(mtl_jax.mgda(2), optax.sgd(0.1))
        >>> step = jax.jit(make_train_step(losses_fn, tx))
        >>> state = init_state(jnp.zeros(()), {}, tx, jax.random.key(0))
        >>> state, record = step(state, jnp.array([1.0, 3.0]))
        >>> print(record.losses, record.weights, record.cosines[0, 1])
        [1. 9.] [1. 0.] 1.0
    """
    transformation = optax.with_extra_args_support(tx)
    task_grads_of = value_and_task_grads(
        losses_fn, has_aux=True, strategy=strategy, heads=None if stack_heads else heads
    )

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepRecord]:
        key = jax.random.fold_in(state.key, state.step)
        (losses, model_state), task_grads = task_grads_of(
            state.params, state.model_state, batch, key
        )
        updates, opt_state = transformation.update(
            task_grads, state.opt_state, state.params, losses=losses
        )
        marks = tree.resolve_heads(heads, task_grads)
        record = StepRecord(
            losses=losses,
            weights=_weights(opt_state, losses),
            cosines=tree.cosines(tree.gram(tree.shared_leaves(task_grads, marks))),
        )
        new_state = state._replace(
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
            step=state.step + 1,
        )
        return new_state, record

    return step


def make_combined_step(source: CombinedGrad, tx: optax.GradientTransformation) -> Step:
    """Makes the training step of a source that combines the task gradients itself.

    Args:
        source: from :func:`mtl_jax.value_and_combined_grad` with a
            :data:`TrainLossesFn` and ``has_aux=True``.
        tx: an ordinary optimiser, e.g. ``optax.adam(1e-3)``; it gets the combined
            gradient ``(*p)`` and the losses as extra argument.

    Returns:
        As :func:`make_train_step`. The state must come from :func:`init_state` with the
        same ``source``.

    Examples:
        >>> import jax, jax.numpy as jnp, mtl_jax, optax
        >>> from mtl_jax.train import init_state, make_combined_step
        >>> def losses_fn(params, model_state, batch, key):
        ...     return jnp.square(params - batch), model_state
        >>> source = mtl_jax.value_and_combined_grad(
        ...     losses_fn, mtl_jax.weighting.nash_mtl(2), has_aux=True, every_k=10
        ... )
        >>> tx = optax.sgd(0.1)
        >>> step = jax.jit(make_combined_step(source, tx))
        >>> state = init_state(jnp.zeros(()), {}, tx, jax.random.key(0), source=source)
        >>> state, record = step(state, jnp.array([1.0, 3.0]))
        >>> print(record.cosines[0, 1])
        1.0
    """
    transformation = optax.with_extra_args_support(tx)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepRecord]:
        key = jax.random.fold_in(state.key, state.step)
        (losses, model_state), grads, source_state = source.update(
            state.source_state, state.params, state.model_state, batch, key
        )
        updates, opt_state = transformation.update(
            grads, state.opt_state, state.params, losses=losses
        )
        record = StepRecord(
            losses=losses,
            weights=source_state.aggregate.weights,
            cosines=tree.cosines(source_state.gram),
        )
        new_state = state._replace(
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
            step=state.step + 1,
            source_state=source_state,
        )
        return new_state, record

    return step


def scan_steps(
    step: Step,
    state: TrainState,
    data: Any,
    indices: Array,
    *,
    batch_sharding: jax.sharding.Sharding | None = None,
) -> tuple[TrainState, StepRecord]:
    """Takes one step per row of ``indices``, as one ``lax.scan`` over data on the device.

    Args:
        step: from :func:`make_train_step`.
        state: state before the first of these steps.
        data: pytree of arrays with one entry per example, leaves ``(N, ...)``.
        indices: integer ``(S, B)``, the examples of each batch.
        batch_sharding: where the batches are put, e.g. split over the devices;
            ``None`` leaves it to the compiler.

    Returns:
        ``(state, records)``, the records stacked, leaves ``(S, ...)``.
    """

    def body(state: TrainState, rows: Array) -> tuple[TrainState, StepRecord]:
        batch = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), data)
        if batch_sharding is not None:
            batch = lax.with_sharding_constraint(batch, batch_sharding)
        return step(state, batch)

    return lax.scan(body, state, indices)


def _weights(opt_state: State, losses: Array) -> Array:
    """The last task weights in the state, or ones."""

    def is_weights(path: Any, value: Any) -> bool:
        # A parameter may be called "weights" too, and the moments of Adam with it.
        named = isinstance(path[-1], optax.tree_utils.NamedTupleKey)
        return named and jnp.shape(value) == losses.shape

    return optax.tree.get(opt_state, "weights", jnp.ones_like(losses), is_weights)
