"""Algebra of stacked pytrees: leaves ``(T, *p)``, the task axis always first.

The contractions work leaf by leaf with ``lax.dot_general`` over all non-task axes, without
reshape, ravel or concatenation: a sharded leaf then stays sharded and only ``T x T``
numbers cross devices.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mtl_jax._types import Array, ArrayTree, StackedTree

HeadsSpec = ArrayTree | Callable[[str], bool] | None
"""Marks task-specific parameters: a bool mask (a prefix of the parameters' tree) or a
predicate of the leaf's path, e.g. ``lambda path: path.startswith("heads/")``."""


def path_name(path: tuple) -> str:
    """Returns the leaf's path as text, e.g. ``"encoder/Dense_0/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def accumulator_dtype(tree: ArrayTree) -> jnp.dtype:
    """Returns float64 when any leaf is float64, else float32."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(tree)]
    wide = any(dtype == jnp.float64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def check_stacked(
    task_grads: StackedTree, num_tasks: int, heads: ArrayTree | None = None
) -> None:
    """Raises ``ValueError`` unless every leaf is floating point ``(num_tasks, *p)``.

    Args:
        task_grads: the tree to check.
        num_tasks: the expected leading axis ``T``.
        heads: bool tree from :func:`resolve_heads`; marked leaves may also be
            ``(1, *p)``, which means already summed over the tasks.

    Raises:
        ValueError: naming the leaf, what was found and what was expected.
    """
    leaves = jax.tree_util.tree_leaves_with_path(task_grads)
    if not leaves:
        raise ValueError("the tree of task gradients has no leaves")
    marks = [False] * len(leaves) if heads is None else jax.tree.leaves(heads)
    for (path, leaf), is_head in zip(leaves, marks, strict=True):
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        name = path_name(path) or "(the whole tree)"
        sizes = {num_tasks, 1} if is_head else {num_tasks}
        if not shape or shape[0] not in sizes:
            raise ValueError(
                f"leaf {name!r} of the task gradients has shape {shape}, expected "
                f"({num_tasks}, ...): one gradient per task, stacked on axis 0 "
                "(mtl_jax.value_and_task_grads returns them so)"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"leaf {name!r} of the task gradients has dtype {dtype}, expected a "
                "real floating point dtype"
            )


def resolve_heads(heads: HeadsSpec, params: ArrayTree) -> ArrayTree | None:
    """Returns ``heads`` as a bool tree with the structure of ``params`` (or ``None``).

    Args:
        heads: a mask or a path predicate, see ``HeadsSpec``.
        params: parameters, or task gradients of the same structure.

    Raises:
        ValueError: if the mask does not fit the tree, or every leaf is marked.
    """
    if heads is None:
        return None
    if callable(heads):
        marks = jax.tree_util.tree_map_with_path(
            lambda path, _: bool(heads(path_name(path))), params
        )
    else:
        try:
            marks = jax.tree.map(
                lambda mark, sub: jax.tree.map(lambda _: bool(mark), sub), heads, params
            )
        except ValueError as error:
            raise ValueError(
                "heads must be a bool mask that is a prefix of the parameters' tree, or "
                f"a predicate of the leaf's path; the mask does not fit: {error}"
            ) from None
    if all(jax.tree.leaves(marks)):
        raise ValueError(
            "heads marks every parameter, so no shared parameter is left whose task "
            "gradients could be combined"
        )
    return marks


def shared_leaves(updates: StackedTree, marks: ArrayTree | None) -> list[Array]:
    """Returns the leaves that ``marks`` (from :func:`resolve_heads`) does not mark."""
    leaves = jax.tree.leaves(updates)
    if marks is None:
        return leaves
    pairs = zip(leaves, jax.tree.leaves(marks), strict=True)
    return [leaf for leaf, is_head in pairs if not is_head]


def stacked_zeros(
    params: ArrayTree, num_tasks: int, heads: ArrayTree | None = None
) -> StackedTree:
    """Returns zeros ``(T, *p)``, at least float32; ``(1, *p)`` where ``heads`` marks."""

    def leaf_zeros(leaf: Array, is_head: bool = False) -> Array:
        dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
        return jnp.zeros((1 if is_head else num_tasks, *jnp.shape(leaf)), dtype)

    if heads is None:
        return jax.tree.map(leaf_zeros, params)
    return jax.tree.map(leaf_zeros, params, heads)


def _replicated(leaf: Array) -> NamedSharding | None:
    """Output sharding that explicit-axes meshes ask for; ``None`` everywhere else."""
    sharding = getattr(jax.typeof(leaf), "sharding", None)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(None, None))


def gram(task_grads: StackedTree) -> Array:
    r"""Returns the Gramian :math:`G_{ij} = \langle g_i, g_j \rangle` of stacked gradients.

    Args:
        task_grads: leaves ``(T, *p)`` of any floating dtype.

    Returns:
        ``(T, T)``, exactly symmetric; float64 when a leaf is float64, else float32, and
        always accumulated at that precision (``Precision.HIGHEST``: TF32 or bfloat16
        products would destroy the small differences that conflicts consist of).

    Examples:
        >>> import jax.numpy as jnp
        >>> print(gram({"w": jnp.array([[3.0, 4.0], [0.0, 2.0]])}))
        [[25.  8.]
         [ 8.  4.]]
    """
    return _symmetric(cross_gram(task_grads, task_grads))


def cross_gram(left: StackedTree, right: StackedTree) -> Array:
    r"""Returns the products :math:`\langle a_s, b_t \rangle` of two stacks, ``(S, T)``.

    Args:
        left: leaves ``(S, *p)`` of any floating dtype.
        right: leaves ``(T, *p)`` in the same structure, for example the gradients of the
            same losses on another batch.

    Returns:
        As :func:`gram`, but in general not symmetric.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(cross_gram(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])))
        [[11.  2.]]
    """
    dtype = accumulator_dtype((left, right))

    def leaf_gram(a: Array, b: Array) -> Array:
        axes = tuple(range(1, a.ndim))
        wide = jnp.promote_types(a.dtype, b.dtype)
        return lax.dot_general(
            a.astype(wide),
            b.astype(wide),
            ((axes, axes), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=dtype,
            out_sharding=_replicated(a),
        ).astype(dtype)

    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return jnp.asarray(sum(leaf_gram(a, b) for a, b in pairs))


def cosines(gram: Array) -> Array:
    """Returns the cosines of a Gramian, ``(T, T)``, clipped; 0 with zero gradients."""
    norms = jnp.sqrt(jnp.diagonal(gram))
    inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
    return jnp.clip(gram * inverse[:, None] * inverse[None, :], -1, 1)


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + jnp.transpose(matrix))


def combine(weights: Array, task_grads: StackedTree) -> ArrayTree:
    r"""Returns :math:`\Delta = \sum_t w_t g_t`, leaves ``(*p)`` in the leaves' own dtypes.

    Args:
        weights: ``(T,)``, floating point.
        task_grads: leaves ``(T, *p)``.
    """

    def leaf_combine(leaf: Array) -> Array:
        dtype = jnp.promote_types(leaf.dtype, weights.dtype)
        return lax.dot_general(
            weights.astype(dtype),
            leaf.astype(dtype),
            (((0,), (0,)), ((), ())),
            precision=lax.Precision.HIGHEST,
        ).astype(leaf.dtype)

    return jax.tree.map(leaf_combine, task_grads)


def scale_tasks(scales: Array, task_grads: StackedTree) -> StackedTree:
    """Returns the stack with task ``t`` multiplied by ``scales[t]``; dtypes are kept."""

    def leaf_scale(leaf: Array) -> Array:
        dtype = jnp.promote_types(leaf.dtype, scales.dtype)
        factors = scales.astype(dtype).reshape((-1,) + (1,) * (leaf.ndim - 1))
        return (factors * leaf.astype(dtype)).astype(leaf.dtype)

    return jax.tree.map(leaf_scale, task_grads)


def zero_tasks(bad: Array, task_grads: StackedTree) -> StackedTree:
    """Returns the stack with the tasks marked in ``bad (T,)`` replaced by zeros.

    A leaf ``(1, *p)``, already summed over the tasks, loses its non-finite entries if any
    task is marked.
    """

    def leaf_zero(leaf: Array) -> Array:
        if leaf.shape[0] == bad.shape[0]:
            drop = bad.reshape((-1,) + (1,) * (leaf.ndim - 1))
        else:
            drop = bad.any() & ~jnp.isfinite(leaf)
        return jnp.where(drop, jnp.zeros_like(leaf), leaf)

    return jax.tree.map(leaf_zero, task_grads)


def task_norms(task_grads: StackedTree) -> Array:
    """Returns the Euclidean norms of the task gradients, ``(T,)``, float32 or float64."""
    dtype = accumulator_dtype(task_grads)

    def squares(leaf: Array) -> Array:
        axes = tuple(range(1, leaf.ndim))
        return jnp.sum(jnp.square(leaf.astype(dtype)), axis=axes)

    return jnp.sqrt(
        jnp.asarray(sum(squares(leaf) for leaf in jax.tree.leaves(task_grads)))
    )


def finite_tasks(task_grads: StackedTree) -> Array:
    """Returns whether all entries of each task's gradient are finite, bool ``(T,)``."""

    def leaf_finite(leaf: Array) -> Array:
        return jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))

    flags = [leaf_finite(leaf) for leaf in jax.tree.leaves(task_grads)]
    return jnp.stack(flags).all(axis=0)
