"""Float64 reference of quadratic programs on the simplex: all supports, T <= 6."""

from itertools import combinations

import numpy as np


def by_enumeration(matrix, linear):
    """Minimiser of ``½ w'Aw - b'w``: the best KKT point over all supports."""
    size, best, best_value = len(linear), None, np.inf
    for count in range(1, size + 1):
        for support in combinations(range(size), count):
            chosen = list(support)
            system = np.zeros((count + 1, count + 1))
            system[:count, :count] = matrix[np.ix_(chosen, chosen)]
            system[:count, count] = system[count, :count] = 1
            right = np.append(linear[chosen], 1)
            solved = np.linalg.lstsq(system, right, rcond=None)[0][:count]
            if solved.min() < -1e-12:
                continue
            weights = np.zeros(size)
            weights[chosen] = solved
            value = 0.5 * weights @ matrix @ weights - linear @ weights
            if value < best_value - 1e-15:
                best, best_value = weights, value
    return best
