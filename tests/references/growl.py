"""Float64 references for GrOWL's proximal operator: a generic solver and sequential PAV."""

import numpy as np
from scipy.optimize import nnls


def by_nnls(norms, theta):
    """Prox of norms: the differences of the sorted solution are non-negative."""
    norms = np.asarray(norms, np.float64)
    order = np.argsort(-norms, kind="stable")
    sums = np.triu(np.ones((len(norms), len(norms))))  # v_i = sum of steps j >= i
    steps, _ = nnls(sums, norms[order] - theta)
    shrunk = np.empty_like(norms)
    shrunk[order] = sums @ steps
    return shrunk


def objective(rows, start, theta):
    """``½ |V - W|² + G(V)``."""
    norms = np.sort(np.linalg.norm(rows, axis=-1))[::-1]
    return 0.5 * np.sum((rows - start) ** 2) + norms @ theta


def pav(values):
    """Non-increasing projection by the textbook's stack of blocks."""
    blocks = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-1][0] > blocks[-2][0]:
            mean, count = blocks.pop()
            other, size = blocks[-1]
            blocks[-1] = [(mean * count + other * size) / (count + size), count + size]
    return np.repeat([b[0] for b in blocks], [b[1] for b in blocks])
