"""How sparse and how shared a network's rows are: SR, CR and PS."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax._types import ArrayTree, check_choice
from mtl_jax.sparsity.rows import LayersSpec, chosen_leaves, to_rows


class SparsityStats(NamedTuple):
    """Counts over the chosen layers, and the three measures made of them."""

    total: int
    """All rows, or parameters, ``n``."""
    zero: int
    """Those that are zero, ``z``."""
    distinct: int
    """Different ones, layer by layer, ``u``; all zero rows of a layer count as one."""

    @property
    def sparsity_rate(self) -> float:
        """SR, ``100 z / n``, per cent."""
        return 100 * self.zero / self.total

    @property
    def compression_ratio(self) -> float:
        """CR, ``n / u``."""
        return self.total / self.distinct

    @property
    def parameter_sharing(self) -> float:
        """PS, ``(n - z) / u``."""
        return (self.total - self.zero) / self.distinct


def sparsity_stats(
    params: ArrayTree, layers: LayersSpec = None, *, by: str = "rows"
) -> SparsityStats:
    """Counts zero and different rows of kernels, in NumPy.

    Args:
        params: the parameters.
        layers: which kernels, see ``LayersSpec``; here ``None`` means all of them, heads
            and first convolutions included, as in the tables of Hotegni et al.
        by: ``"rows"``, each row counts as one, as in those tables; ``"parameters"``, as
            many as it has entries, as in the paper's words.

    Returns:
        The counts, with ``sparsity_rate``, ``compression_ratio``, ``parameter_sharing``.

    Raises:
        ValueError: if ``layers`` chooses nothing, or for an unknown ``by``.

    Examples:
        >>> import numpy as np
        >>> rows = np.array([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [3.0, 4.0]])
        >>> stats = sparsity_stats({"dense": {"kernel": rows}})
        >>> stats
        SparsityStats(total=4, zero=1, distinct=3)
        >>> print(stats.sparsity_rate, round(stats.compression_ratio, 3))
        25.0 1.333
    """
    check_choice("by", by, ("rows", "parameters"))
    counts = np.zeros(3, np.int64)
    for kernel in chosen_leaves(params, _all if layers is None else layers).values():
        rows = to_rows(np.asarray(kernel))
        for layer in rows.reshape(-1, *rows.shape[-2:]):
            zero = int((~layer.any(axis=1)).sum())
            row = np.array([len(layer), zero, first_of_equal(layer).max() + 1])
            counts += row * (layer.shape[1] if by == "parameters" else 1)
    return SparsityStats(*(int(count) for count in counts))


def first_of_equal(rows: np.ndarray) -> np.ndarray:
    """Numbers the different rows ``(n, d)`` by first appearance: int ``(n,)``."""
    # Rows as single items; adding zero turns -0 into 0, whose bytes would differ.
    rows = np.ascontiguousarray(rows + np.zeros_like(rows[:1]))
    items = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, inverse = np.unique(items, return_index=True, return_inverse=True)
    ranks = np.empty_like(first)
    ranks[np.argsort(first)] = np.arange(len(first))
    return ranks[inverse.ravel()]


def tree_bytes(tree: ArrayTree) -> int:
    """Returns the bytes of all arrays in a tree.

    Examples:
        >>> import numpy as np
        >>> tree_bytes({"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(2)})
        64
    """
    return sum(int(_nbytes(leaf)) for leaf in jax.tree.leaves(tree))


def _nbytes(leaf: Any) -> int:
    return np.size(leaf) * np.dtype(leaf.dtype).itemsize


def _all(path: str) -> bool:
    del path
    return True
