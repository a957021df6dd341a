"""Time of the T x T solvers: ``python -m experiments.bench_solvers``.

Pin it to one core (``taskset -c 0``) for figures that repeat. Each cell is the median
over 10 Gramians of the fastest of several jitted calls, in microseconds: once for random
gradients and, in brackets, for conflicting ones whose norms span 1e-3 to 1e3.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import solvers

NUM_TASKS = (2, 3, 10, 40)
COMPILED_AT = 10
SOLVERS: dict[str, Callable] = {
    "min norm, closed form": functools.partial(
        solvers.min_norm_point, solver="closed_form"
    ),
    "min norm, active set": functools.partial(
        solvers.min_norm_point, solver="active_set"
    ),
    "min norm, jaxopt": functools.partial(solvers.min_norm_point, solver="jaxopt"),
    "min norm, Frank-Wolfe": functools.partial(
        solvers.min_norm_point, solver="frank_wolfe"
    ),
    "CAGrad": functools.partial(solvers.cagrad_weights, c=0.4),
    "Nash": solvers.nash_weights,
    "dual cone": lambda gram: solvers.dual_cone_weights(
        gram, jnp.full(gram.shape[0], 1 / gram.shape[0])
    ),
    "dual cone, T times (UPGrad)": lambda gram: solvers.dual_cone_weights(
        gram, jnp.eye(gram.shape[0])
    ),
}


def gramians(num_tasks: int, hard: bool, count: int = 10) -> list[jax.Array]:
    rng = np.random.default_rng(num_tasks)
    results = []
    for _ in range(count):
        rows = rng.normal(size=(num_tasks, 4 * num_tasks))
        if hard:
            rows -= 0.7 * rows.mean(0)
            rows *= 10 ** rng.uniform(-3, 3, size=(num_tasks, 1))
        results.append(jnp.asarray(rows @ rows.T, jnp.float32))
    return results


def seconds(function: Callable, gram: jax.Array, repeats: int = 50) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(gram))
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    heads = "".join(f"{f'T={num_tasks}':>16}" for num_tasks in NUM_TASKS)
    print(f"{'microseconds':28}{heads}{'compile s':>12}")
    for name, solver in SOLVERS.items():
        cells, compile_time = [], float("nan")
        for num_tasks in NUM_TASKS:
            function = jax.jit(lambda gram, solver=solver: solver(gram))
            easy, hard = (gramians(num_tasks, hard) for hard in (False, True))
            start = time.perf_counter()
            try:
                jax.block_until_ready(function(easy[0]))
            except ValueError:  # a solver for few tasks only
                cells.append("-")
                continue
            if num_tasks == COMPILED_AT:
                compile_time = time.perf_counter() - start
            medians = (
                1e6 * np.median([seconds(function, gram) for gram in grams])
                for grams in (easy, hard)
            )
            cells.append("{:.0f} ({:.0f})".format(*medians))
        cells = "".join(f"{cell:>16}" for cell in cells)
        print(f"{name:28}{cells}{compile_time:>12.2f}", flush=True)


if __name__ == "__main__":
    main()
