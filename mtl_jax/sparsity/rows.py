"""Kernels as rows, one row per input of a layer, and the choice of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree

LayersSpec = ArrayTree | Callable[[str], bool] | None
"""Chooses layers: a bool mask (a prefix of the parameters' tree), a predicate of the
kernel's path, e.g. ``lambda path: path.startswith("encoder/")``, or ``None``: all kernels
outside ``heads/`` with more than three rows (which leaves out convolutions of images)."""

# Of rank 2 where stacked per task, and no kernels all the same.
_VECTORS = ("bias", "scale", "fusion")


def is_kernel(path: tuple, leaf: Any) -> bool:
    """Whether a leaf is a kernel: rank 2 to 5, not called ``bias``, ``scale``, ``fusion``.

    ``fusion`` are the weights ``(T, 2)`` of :class:`mtl_jax.models.MDMTN`.
    """
    name = tree.path_name(path).rsplit("/", 1)[-1]
    return 2 <= jnp.ndim(leaf) <= 5 and name not in _VECTORS


def to_rows(kernel: Any) -> Any:
    r"""Returns a kernel as rows :math:`w_{[i]}`, one for each input of the layer.

    ============== ========================================== ==================
    rank           kernel                                     rows
    ============== ========================================== ==================
    2              dense ``(in, out)``                        ``(in, out)``
    4              convolution ``(kh, kw, in, out)``          ``(in, kh kw out)``
    3, 5           ``L`` of them, stacked                     ``(L, in, ...)``
    ============== ========================================== ==================

    The axis of the input channels is moved to the front. The released code reshapes
    PyTorch's ``(out, in, kh, kw)`` buffer to ``(in, -1)`` without transposing it, so that
    its "rows" are groups of whole output filters.

    Args:
        kernel: array of rank 2 to 5, of JAX or NumPy.

    Returns:
        Rows ``(n, d)``, or ``(L, n, d)`` of stacked layers.

    Raises:
        ValueError: for another rank.

    Examples:
        >>> import jax.numpy as jnp
        >>> to_rows(jnp.zeros((5, 5, 10, 20))).shape
        (10, 500)
        >>> to_rows(jnp.zeros((2, 50, 10))).shape  # two heads, stacked
        (2, 50, 10)
    """
    rank = jnp.ndim(kernel)
    if rank in (2, 3):
        return kernel
    if rank not in (4, 5):
        raise ValueError(
            "a kernel must be dense (in, out), a convolution (kh, kw, in, out), or a "
            f"stack of either, got shape {jnp.shape(kernel)}"
        )
    # A method, so that arrays of NumPy stay such.
    rows = kernel.transpose((2, 0, 1, 3) if rank == 4 else (0, 3, 1, 2, 4))
    return rows.reshape(*rows.shape[: rank - 3], -1)


def from_rows(rows: Any, shape: tuple[int, ...]) -> Any:
    """Inverse of :func:`to_rows`: the kernel of the given shape."""
    if len(shape) in (2, 3):
        return rows.reshape(shape)
    *lead, height, width, inputs, outputs = shape
    moved = rows.reshape(*lead, inputs, height, width, outputs)
    return moved.transpose((0, 2, 3, 1, 4) if lead else (1, 2, 0, 3))


def select_layers(params: ArrayTree, layers: LayersSpec = None) -> ArrayTree:
    """Returns which leaves are kernels of the chosen layers, a bool tree.

    Leaves that are no kernels (biases, normalisations) are never chosen.

    Args:
        params: the parameters.
        layers: see ``LayersSpec``.

    Raises:
        ValueError: if a mask does not fit the tree, or no kernel is chosen.

    Examples:
        >>> import jax.numpy as jnp
        >>> params = {"conv": {"kernel": jnp.zeros((5, 5, 1, 8))},
        ...           "dense": {"kernel": jnp.zeros((50, 10)), "bias": jnp.zeros(10)}}
        >>> select_layers(params)
        {'conv': {'kernel': False}, 'dense': {'bias': False, 'kernel': True}}
    """
    kernels = jax.tree_util.tree_map_with_path(is_kernel, params)
    if layers is None:
        marks = jax.tree_util.tree_map_with_path(_is_hidden, params)
    elif callable(layers):
        marks = jax.tree_util.tree_map_with_path(
            lambda path, _: bool(layers(tree.path_name(path))), params
        )
    else:
        try:
            marks = jax.tree.map(
                lambda mark, sub: jax.tree.map(lambda _: bool(mark), sub),
                layers,
                params,
            )
        except ValueError as error:
            raise ValueError(
                "layers must be a bool mask that is a prefix of the parameters' tree, or "
                f"a predicate of the kernel's path; the mask does not fit: {error}"
            ) from None
    chosen = jax.tree.map(lambda kernel, mark: kernel and mark, kernels, marks)
    if not any(jax.tree.leaves(chosen)):
        leaves = jax.tree_util.tree_leaves_with_path(params)
        names = [tree.path_name(path) for path, leaf in leaves if is_kernel(path, leaf)]
        raise ValueError(
            "layers chooses no kernel of the parameters; there are "
            f"{', '.join(names) or 'no kernels at all'}"
        )
    return chosen


def _is_hidden(path: tuple, leaf: Any) -> bool:
    if not is_kernel(path, leaf) or tree.path_name(path).startswith("heads/"):
        return False
    shape = jnp.shape(leaf)
    return shape[-2] > 3  # images have one or three channels


def map_layers(
    function: Callable[..., Any],
    params: ArrayTree,
    layers: LayersSpec,
    *rest: ArrayTree,
) -> ArrayTree:
    """Applies ``function(kernel, *others)`` to the chosen kernels, leaves others alone."""
    chosen = select_layers(params, layers)
    return jax.tree.map(
        lambda mark, leaf, *others: function(leaf, *others) if mark else leaf,
        chosen,
        params,
        *rest,
    )


def chosen_leaves(params: ArrayTree, layers: LayersSpec) -> dict[str, Array]:
    """Returns the chosen kernels by path."""
    chosen = jax.tree.leaves(select_layers(params, layers))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    pairs = zip(leaves, chosen, strict=True)
    return {tree.path_name(path): leaf for (path, leaf), mark in pairs if mark}


def row_norms(rows: Array) -> Array:
    r"""Returns the norms :math:`\|w_{[i]}\|_2`, ``(..., n, d)`` to ``(..., n)``.

    At least float32; safe from overflow and underflow of the squares, and with derivative
    zero at a zero row.
    """
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    largest = lax.stop_gradient(jnp.max(jnp.abs(rows), axis=-1, keepdims=True))
    nonzero = largest > 0
    largest = jnp.where(nonzero, largest, 1)
    squares = jnp.sum(jnp.square(rows / largest), axis=-1)
    nonzero = nonzero[..., 0]
    norms = largest[..., 0] * jnp.sqrt(jnp.where(nonzero, squares, 1))
    return jnp.where(nonzero, norms, 0)


def zero_rows(params: ArrayTree, layers: LayersSpec = None) -> dict[str, Array]:
    """Returns which rows of the chosen layers are zero: path to bool ``(n,)``, ``(L, n)``.

    Examples:
        >>> import jax.numpy as jnp
        >>> zero_rows({"dense": {"kernel": jnp.eye(4).at[1].set(0)}})
        {'dense/kernel': Array([False,  True, False, False], dtype=bool)}
    """
    kernels = chosen_leaves(params, layers)
    return {name: ~to_rows(leaf).any(axis=-1) for name, leaf in kernels.items()}
