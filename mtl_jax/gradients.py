"""Sources of task gradients: parameters and a batch in, losses and ``(T, *p)`` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from mtl_jax import tree
from mtl_jax._types import Array, LossesFn, StackedTree, check_choice, check_losses
from mtl_jax.features import find_representation
from mtl_jax.pullback import Atom, Pullback
from mtl_jax.separable import separate_rows
from mtl_jax.stacking import STRATEGIES, stack_rows


def value_and_task_grads(
    losses_fn: LossesFn,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    strategy: str = "auto",
    heads: tree.HeadsSpec = None,
) -> Callable[..., tuple[Any, StackedTree]]:
    r"""Creates a function that returns the task losses and the task gradients.

    The counterpart of :func:`jax.value_and_grad` for a function of ``T`` losses: row
    ``t`` of the result is :math:`g_t = \nabla_\theta L_t`. One forward pass is shared by
    all tasks; only the pull-backs differ between the strategies.

    Args:
        losses_fn: ``losses_fn(params, *args, **kwargs) -> losses`` with ``losses`` of
            shape ``(T,)`` (or ``(losses, aux)`` with ``has_aux=True``), pure JAX code.
        argnums: which positional argument(s) to differentiate, as in ``jax.grad``.
        has_aux: whether ``losses_fn`` returns a pair ``(losses, aux)``.
        strategy: how the ``T`` pull-backs run:

            * ``"vmap"``: one batched pull-back; the choice on accelerators. Memory ``T``
              times the activations.
            * ``"unroll"``: ``T`` pull-backs one after another in one program; fastest on
              CPUs for networks with ``lax`` convolutions. Compile time grows with ``T``.
            * ``"map"``: a ``lax.map`` loop, the activations' memory only once; the choice
              on CPUs for networks of matrix products.
            * ``"auto"``: see :func:`mtl_jax.stacking.choose_strategy`.
        heads: task-specific parameters, a bool mask or a path predicate (see
            ``tree.HeadsSpec``). Their leaves come back summed over the tasks with shape
            ``(1, *p)`` instead of ``(T, *p)``: one more pull-back, but no ``T`` copies.
            Where loss ``t`` acts through head ``t`` only, all tasks' pull-backs through
            the heads then cost as much as one.
            Pass the same ``heads`` to :func:`mtl_jax.aggregate`.

    Returns:
        A function with the arguments of ``losses_fn`` returning ``(losses, task_grads)``,
        or ``((losses, aux), task_grads)`` with ``has_aux=True``. ``task_grads`` has the
        structure of the differentiated argument(s), leaves ``(T, *p)``.

    Raises:
        ValueError: for an unknown strategy, or (when called) if ``losses_fn`` does not
            return a floating point vector.

    Examples:
        >>> import jax.numpy as jnp
        >>> def losses_fn(x):
        ...     return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)])
        >>> losses, task_grads = value_and_task_grads(losses_fn)(jnp.zeros(2))
        >>> print(task_grads)
        [[-2. -2.]
         [ 2.  2.]]
    """
    check_choice("strategy", strategy, STRATEGIES)

    def value_and_task_grads_fn(*args: Any, **kwargs: Any) -> tuple[Any, StackedTree]:
        linear = linearize_losses(losses_fn, argnums, has_aux, heads, args, kwargs)
        shared_grads = stacked_grads(linear, strategy)
        head_grads = []
        if linear.num_heads:
            ones = jnp.ones_like(linear.losses)
            head_grads = [leaf[None] for leaf in linear.heads(ones)]
        return linear.value, linear.join(shared_grads, head_grads)

    return value_and_task_grads_fn


class LinearizedLosses(NamedTuple):
    """The losses at one point and their pull-back, shared and head parameters apart."""

    losses: Array
    """``(T,)``."""
    value: Any
    """What the caller gets: the losses, or ``(losses, aux)``."""
    pullback: Callable[[Array], tuple[list[Array], list[Array]]]
    """Cotangent ``(T,)`` -> gradients of the shared and of the head leaves, ``(*p)``."""
    join: Callable[[Sequence[Any], Sequence[Any]], Any]
    """Puts shared and head leaves together as ``jax.grad`` nests its results."""
    num_heads: int
    """Number of head leaves."""
    function: Callable[[list[Array]], Array]
    """Shared leaves -> losses, the function that was linearised ..."""
    point: list[Array]
    """... and the leaves where."""

    def shared(self, cotangent: Array) -> list[Array]:
        """Pulls back to the shared leaves only (the compiler drops the others)."""
        return self.pullback(cotangent)[0]

    def heads(self, cotangent: Array) -> list[Array]:
        """Pulls back to the head leaves only."""
        return self.pullback(cotangent)[1]


def linearize_losses(
    losses_fn: LossesFn,
    argnums: int | Sequence[int],
    has_aux: bool,
    heads: tree.HeadsSpec,
    args: tuple,
    kwargs: dict[str, Any],
) -> LinearizedLosses:
    """Runs the forward pass once; arguments as for :func:`value_and_task_grads`."""
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    split, join = _splitter(tuple(args[i] for i in positions), heads)

    def losses_of(shared: list[Array], head: list[Array]) -> Any:
        full = list(args)
        for i, value in zip(positions, join(shared, head), strict=True):
            full[i] = value
        output = losses_fn(*full, **kwargs)
        losses, aux = output if has_aux else (output, None)
        check_losses(losses)
        return losses, aux

    def nest(shared: Sequence[Any], head: Sequence[Any]) -> Any:
        targets = join(shared, head)
        return targets[0] if isinstance(argnums, int) else targets

    losses, pullback, aux = jax.vjp(losses_of, *split, has_aux=True)
    value = (losses, aux) if has_aux else losses
    point, head = split
    return LinearizedLosses(
        losses,
        value,
        pullback,
        nest,
        num_heads=len(head),
        function=lambda shared: losses_of(shared, head)[0],
        point=point,
    )


def stacked_grads(linear: LinearizedLosses, strategy: str) -> list[Array]:
    """Returns the task gradients of the shared leaves, ``(T, *p)``."""
    if linear.num_heads and len(linear.losses) > 1:
        traced = trace_losses(linear)
        return stack_rows(traced.part(traced.shared), traced.rows, strategy)
    cotangents = jnp.eye(len(linear.losses), dtype=linear.losses.dtype)
    return stack_rows(linear.shared, cotangents, strategy)


class TracedLosses(NamedTuple):
    """The pull-back as equations, and where the pull-backs of single tasks may start."""

    pullback: Pullback
    shared: list[Atom]
    """Outputs of ``pullback``: the gradients of the shared leaves."""
    heads: list[Atom]
    """Likewise of the head leaves."""
    start: Var
    """A variable that the shared gradients depend on the cotangent through."""
    rows: Array
    """Its values for the ``T`` unit cotangents, ``(T, *start)``."""

    def part(self, outputs: Sequence[Atom]) -> Callable[[Array], list[Array]]:
        """The function to run on every row: from ``start`` to ``outputs``."""
        return self.pullback.part([self.start], outputs)


def trace_losses(linear: LinearizedLosses) -> TracedLosses:
    """Traces the pull-back and goes through separate heads for all tasks at once."""

    def both(cotangent: Array) -> list[Array]:
        shared, head = linear.pullback(cotangent)
        return [*shared, *head]

    pullback = Pullback(both, linear.losses)
    count = len(pullback.outputs) - linear.num_heads
    shared, head = pullback.outputs[:count], pullback.outputs[count:]
    if linear.num_heads:
        start = find_representation(pullback, shared, head)
        rows = None if start is None else separate_rows(pullback, start)
        if start is not None and rows is not None:
            return TracedLosses(pullback, shared, head, start, rows)
    cotangents = jnp.eye(len(linear.losses), dtype=linear.losses.dtype)
    return TracedLosses(pullback, shared, head, pullback.input, cotangents)


def _splitter(targets: tuple, heads: tree.HeadsSpec) -> tuple[tuple, Callable]:
    """Splits the differentiated arguments into shared and head leaves.

    Returns ``((shared, head), join)``; ``join(shared, head)`` undoes the split.
    """
    # A single argument is the tree that the mask describes; several form a tuple.
    marked = tree.resolve_heads(heads, targets[0] if len(targets) == 1 else targets)
    leaves, structure = jax.tree.flatten(targets)
    marks = [False] * len(leaves) if marked is None else jax.tree.leaves(marked)

    def join(shared: Sequence[Any], head: Sequence[Any]) -> Any:
        shared_leaves, head_leaves = iter(shared), iter(head)
        merged = [next(head_leaves if mark else shared_leaves) for mark in marks]
        return jax.tree.unflatten(structure, merged)

    shared = [leaf for leaf, mark in zip(leaves, marks, strict=True) if not mark]
    head = [leaf for leaf, mark in zip(leaves, marks, strict=True) if mark]
    return (shared, head), join
