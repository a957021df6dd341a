"""Smaller parameters that compute the same: no zero rows, equal rows stored once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax._types import ArrayTree
from mtl_jax.sparsity.metrics import first_of_equal
from mtl_jax.sparsity.rows import LayersSpec, from_rows, select_layers, to_rows

INPUTS, GROUPS = "_inputs", "_groups"


def compress(params: ArrayTree, layers: LayersSpec = None) -> ArrayTree:
    r"""Leaves the zero rows of kernels out and stores equal rows once.

    A kernel ``k`` with ``n`` rows, of which ``m`` are not zero and ``u`` different,
    becomes up to three leaves of the same dictionary:

    * ``k``: the different rows, ``(u, out)``, or ``(kh, kw, u, out)`` of a convolution;
    * ``k_inputs``: which inputs of the layer still count, ``(m,)``, ascending;
    * ``k_groups``: the row of each, ``(m,)``; only where rows are shared (``u < m``).

    Such a layer computes ``x[..., k_inputs] @ k[k_groups]``. The networks of
    :mod:`mtl_jax.models` that are made for sparsity (``MDMTN``, ``HardSharing``) take
    compressed parameters as they are; :func:`expand` serves any other. Stacked kernels
    and those that would not become smaller stay as they are.

    Args:
        params: parameters in nested dictionaries, with exact zeros and equal rows.
        layers: which kernels, see ``LayersSpec``.

    Returns:
        The compressed parameters, arrays of NumPy.

    Raises:
        ValueError: if ``layers`` chooses nothing, or kernels are not in dictionaries.

    Examples:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.array([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [0.0, 0.0]])
        >>> small = compress({"dense": {"kernel": kernel}})["dense"]
        >>> print(small["kernel_inputs"], small["kernel_groups"])
        [1 2 3] [0 1 0]
        >>> print(small["kernel"])
        [[1. 2.]
         [3. 4.]]
    """
    return _walk(params, select_layers(params, layers))


def _walk(node: Any, chosen: Any) -> Any:
    if not isinstance(node, dict):
        if any(jax.tree.leaves(chosen)):
            raise ValueError("compress needs kernels in dictionaries: {'kernel': ...}")
        return node if not hasattr(node, "dtype") else np.asarray(node)
    result = {}
    for name, value in node.items():
        mark = chosen[name]
        if mark is True:
            result.update(_compressed(name, np.asarray(value)))
        else:
            result[name] = _walk(value, mark)
    return result


def _compressed(name: str, kernel: np.ndarray) -> dict[str, np.ndarray]:
    if kernel.ndim not in (2, 4):
        return {name: kernel}
    rows = to_rows(kernel)
    live = np.flatnonzero(rows.any(axis=1))
    if not len(live):
        live = np.zeros(1, int)  # no array without entries: one zero row stays
    groups = first_of_equal(rows[live])
    _, first = np.unique(groups, return_index=True)
    shape = (*kernel.shape[:-2], len(first), kernel.shape[-1])
    index = np.uint16 if len(rows) <= 2**16 else np.uint32
    small = np.ascontiguousarray(from_rows(rows[live[first]], shape))
    result: dict[str, np.ndarray] = {name: small}
    result[name + INPUTS] = live.astype(index)
    if len(first) < len(live):
        result[name + GROUPS] = groups.astype(index)
    size = sum(leaf.nbytes for leaf in result.values())
    return result if size < kernel.nbytes else {name: kernel}


def expand(compressed: ArrayTree, like: ArrayTree) -> ArrayTree:
    """Inverse of :func:`compress`: full parameters for any network.

    Args:
        compressed: from :func:`compress`.
        like: parameters, or shapes, of the whole network.

    Returns:
        The parameters in the structure of ``like``, equal to those that were compressed.

    Raises:
        ValueError: if the two do not belong together.

    Examples:
        >>> import jax.numpy as jnp
        >>> params = {"dense": {"kernel": jnp.eye(8)[:, :4], "bias": jnp.ones(4)}}
        >>> small = compress(params)
        >>> small["dense"]["kernel"].shape
        (4, 4)
        >>> bool((expand(small, params)["dense"]["kernel"] == jnp.eye(8)[:, :4]).all())
        True
    """
    if not isinstance(like, dict):
        found, expected = jax.tree.map(jnp.shape, (compressed, like))
        if found != expected:
            raise ValueError(f"a leaf has shape {found}, expected {expected}")
        return compressed
    result = {}
    for name, value in like.items():
        if not isinstance(compressed, dict) or name not in compressed:
            raise ValueError(f"the compressed parameters have no entry {name!r}")
        inputs = compressed.get(name + INPUTS)
        if inputs is None:
            result[name] = expand(compressed[name], value)
            continue
        groups = compressed.get(name + GROUPS, np.arange(len(inputs)))
        small = to_rows(np.asarray(compressed[name]))
        size = value.shape[-2]
        if int(np.max(inputs)) >= size:
            raise ValueError(
                f"{name + INPUTS} reaches {int(np.max(inputs))}, but the kernel has "
                f"only {size} rows"
            )
        rows = np.zeros((size, small.shape[1]), small.dtype)
        rows[np.asarray(inputs)] = small[np.asarray(groups)]
        result[name] = jnp.asarray(from_rows(rows, value.shape))
    return result
