"""EPO search in NumPy float64, by SciPy's linear programming."""

import numpy as np
from scipy.optimize import linprog


def program(gram, losses, ray, tolerance=1e-4):
    """Objective, constraints ``matrix w >= bounds`` and the mode; the restriction last."""
    count = len(losses)
    weighted = ray * losses
    shares = weighted / weighted.sum()
    mu = np.sum(shares * np.log(count * shares))
    slope = ray * (np.log(count * shares) - mu)
    along = gram @ slope
    if mu <= tolerance:
        matrix = np.concatenate([gram, along[None]])
        bounds = np.append(np.zeros(count), min(along.max(), 0))
        return gram.sum(axis=0), matrix, bounds, "descent"
    bounds = np.zeros(count)
    if (along > 0).any():
        bounds = np.where(along > 0, -np.inf, along)
        bounds[weighted == weighted.max()] = 0
    return along, gram, bounds, "balance"


def solve(objective, matrix, bounds):
    """Best weights, or None where nothing is feasible."""
    rows = np.isfinite(bounds)
    result = linprog(
        -objective,
        A_ub=-matrix[rows],
        b_ub=-bounds[rows],
        A_eq=np.ones((1, len(objective))),
        b_eq=[1.0],
        bounds=(0, None),
    )
    return result.x if result.status == 0 else None


def weights(gram, losses, ray):
    """Weights, the program, and which of the modes balance, descent, relaxed it was."""
    objective, matrix, bounds, mode = program(gram, losses, ray)
    found = solve(objective, matrix, bounds)
    if found is None:
        assert mode == "descent"
        matrix, bounds, mode = matrix[:-1], bounds[:-1], "relaxed"
        found = solve(objective, matrix, bounds)
    return found, (objective, matrix, bounds), mode
