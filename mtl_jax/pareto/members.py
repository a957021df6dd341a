"""Ensemble members stacked on a leading axis, and their convex combinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree
from mtl_jax.pareto.simplex_samplers import check_alphas
from mtl_jax.solvers.scaling import full_precision
from mtl_jax.solvers.vectors import as_vector, check_like


def stack_members(members: Sequence[ArrayTree]) -> ArrayTree:
    """Stacks the parameters of ``M`` networks, leaves ``(*p)`` to ``(M, *p)``.

    Members that are drawn one per key need no stacking:
    ``jax.vmap(init)(jax.random.split(key, M))`` returns them so. The paper draws every
    member independently.

    Args:
        members: one or more pytrees of one structure, floating point.

    Returns:
        leaves ``(M, *p)``, arrays of JAX.

    Raises:
        ValueError: naming the first leaf in which two members differ, or for none.

    Examples:
        >>> print(stack_members([jnp.zeros(2), jnp.ones(2)]))
        [[0. 0.]
         [1. 1.]]
    """
    if not members:
        raise ValueError("stack_members needs one member or more, got none")
    arrays = [as_vector(f"member {i}", member) for i, member in enumerate(members)]
    for i, member in enumerate(arrays[1:], start=1):
        check_like(f"member {i}", member, "member 0", arrays[0])
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)


def count_members(members: ArrayTree, num_members: int | None = None) -> int:
    """Returns ``M``, the size of the leading axis that all leaves share.

    Raises:
        ValueError: if they do not, if ``M`` is not ``num_members``, or for leaves that
            are not floating point.
    """
    members = as_vector("members", members)
    leaves = jax.tree_util.tree_leaves_with_path(members)
    found = {tree.path_name(path): leaf.shape[:1] for path, leaf in leaves}
    sizes = set(found.values())
    expected = "one" if num_members is None else f"of size {num_members}"
    wrong = num_members is not None and sizes != {(num_members,)}
    if len(sizes) != 1 or sizes & {(), (0,)} or wrong:
        raise ValueError(
            f"all leaves of members must share a leading axis, {expected}, got the "
            f"leading axes {found}; mtl_jax.pareto.stack_members makes it"
        )
    return sizes.pop()[0]


def member_mixture(members: ArrayTree, alpha: Any) -> ArrayTree:
    r"""Returns the convex combination :math:`\theta(\alpha) = \sum_m \alpha_m \theta_m`.

    A one-hot ``alpha`` returns that member exactly. Differentiable in both arguments, and
    ``jax.vmap(member_mixture, (None, 0))`` makes many points at once.

    Args:
        members: leaves ``(M, *p)``, floating point.
        alpha: ``(M,)``, entries >= 0 with sum 1 (checked outside ``jit``).

    Returns:
        leaves ``(*p)``, in the dtypes of the members.

    Raises:
        ValueError: for an ``alpha`` of another shape or off the simplex, or leaves
            without a common leading axis.

    Examples:
        >>> print(member_mixture({"w": jnp.array([[0.0, 2.0], [4.0, 2.0]])}, [0.75, 0.25]))
        {'w': Array([1., 2.], dtype=float32)}

    References:
        Dimitriadis, Frossard and Fleuret, *Pareto Manifold Learning*, 2023,
        arXiv:2210.09759
    """
    alpha = check_alphas("alpha", alpha, count_members(members), 1)
    members = jax.tree.map(jnp.asarray, members)
    return tree.combine(jnp.asarray(alpha, tree.accumulator_dtype(members)), members)


@full_precision
def member_similarity(members: ArrayTree) -> Array:
    """Returns the cosines between the members' parameters, ``(M, M)``.

    Members of norm zero have cosine 0 with all others. The release logs these numbers
    during training: members that start apart come together.

    Args:
        members: leaves ``(M, *p)``.

    Raises:
        ValueError: for leaves without a common leading axis.

    Examples:
        >>> print(member_similarity(jnp.array([[3.0, 4.0], [-8.0, 6.0]])))
        [[1. 0.]
         [0. 1.]]
    """
    count = count_members(members)
    gram = tree.gram(jax.tree.map(jnp.asarray, members))
    norms = jnp.sqrt(jnp.diagonal(gram))
    safe = jnp.where(norms > 0, norms, 1)
    cosines = jnp.clip(gram / safe[:, None] / safe[None, :], -1, 1)
    return jnp.where(jnp.eye(count, dtype=bool), jnp.ones_like(gram), cosines)
