"""Sources of task gradients: parameters and a batch in, losses and ``(T, *p)`` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax import tree
from mtl_jax._types import Array, LossesFn, StackedTree, check_choice

STRATEGIES = ("auto", "vmap", "unroll", "map")


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
            * ``"auto"``: see :func:`choose_strategy`.
        heads: task-specific parameters, a bool mask or a path predicate (see
            ``tree.HeadsSpec``). Their leaves come back summed over the tasks with shape
            ``(1, *p)`` instead of ``(T, *p)``: one more pull-back, but no ``T`` copies.
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
        shared_grads = stacked_pullback(linear.shared, linear.losses, strategy)
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


def choose_strategy(pullback: Callable[[Array], Any], losses: Array) -> str:
    """Returns what ``strategy="auto"`` picks for a pull-back on the default backend.

    On accelerators the batched pull-back. On CPUs (measured, ``docs/measurements.md``)
    XLA batches pull-backs badly: a loop is 1.4 to 1.7 times faster for LeNet as matrix
    products, and keeps one task's activations in the cache. But XLA runs convolutions
    inside loops many times slower than outside, so networks that contain any are unrolled.
    """
    if jax.default_backend() != "cpu":
        return "vmap"
    jaxpr = jax.make_jaxpr(pullback)(jnp.ones_like(losses))
    return "unroll" if "conv_general_dilated" in _primitives(jaxpr.jaxpr) else "map"


def stacked_pullback(
    pullback: Callable[[Array], list[Array]], losses: Array, strategy: str
) -> list[Array]:
    """Pulls back the ``T`` unit cotangents; leaves ``(T, *p)`` by the given strategy."""
    if strategy == "auto":
        strategy = choose_strategy(pullback, losses)
    cotangents = jnp.eye(losses.shape[0], dtype=losses.dtype)
    if strategy == "vmap":
        return jax.vmap(pullback)(cotangents)
    if strategy == "map":
        return lax.map(pullback, cotangents)
    rows = [pullback(cotangent) for cotangent in cotangents]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def check_losses(losses: Any) -> None:
    """Raises ``ValueError`` unless ``losses`` is a floating point vector ``(T,)``."""
    if not isinstance(losses, jax.Array):
        raise ValueError(
            f"losses_fn must return one array of shape (T,), got {type(losses).__name__}; "
            "stack the task losses with jnp.stack([...]) (and pass has_aux=True if "
            "losses_fn also returns auxiliary outputs)"
        )
    if losses.ndim != 1 or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(
            "losses_fn must return floating point losses of shape (T,), one per task, "
            f"got shape {losses.shape} and dtype {losses.dtype}"
        )


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


def _primitives(jaxpr: Any) -> set[str]:
    """Names of all primitives in a jaxpr, inner ones included."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names |= _primitives(inner)
    return names
