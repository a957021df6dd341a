"""Part ``fuzz`` of the benchmark: random Gramians through every Gramian method.

Every set of weights must be finite. Where a solver does not report a failure (which the
method counts as a fallback), the residual of its optimality conditions, computed in
float64 from the same float32 Gramian, must be within the method's tolerance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import mtl_jax
from experiments import fuzz_gramians, fuzz_residuals, fuzz_rules, records
from mtl_jax import solvers

SHARES = {1: 0.05, 2: 0.2, 3: 0.2, 5: 0.2, 10: 0.2, 20: 0.1, 40: 0.05}
"""Part of the Gramians by number of tasks ``T``: the large ones cost the most."""
METHODS = tuple(
    name
    for name, spec in mtl_jax.METHODS.items()
    if spec.weighting is not None and "gram" in spec.needs
)
"""All Gramian methods; each has a residual."""
CALLS = {
    "auto_lambda": "auto_lambda(learning_rate=1.0)",
    "fairgrad": "fairgrad(alpha=2.0)",
    "modo": "modo(gamma=1.0)",
    "moml": "moml(learning_rate=1.0)",
}
"""With other options than the default ones: steps that are large enough to be judged, and
alpha-fair weights that are not those of ``nash_mtl``."""
RESIDUALS: dict[str, Callable[..., np.ndarray]] = {
    name: getattr(fuzz_residuals, name, None) or getattr(fuzz_rules, name)
    for name in METHODS
}
TOLERANCES = {
    "gradnorm": 1e-5,
    "mgda": 6e-3,
    "pcgrad": 1e-5,
    "cagrad": 6e-3,
    "imtl_g": 6e-3,
    "nash_mtl": 1e-3,
    "upgrad": 2e-2,
    "aligned_mtl": 1e-2,
    "imtl": 6e-3,
    "fairgrad": 1e-3,
    "dualproj": 2e-2,
    "config": 6e-3,
    "gradvac": 1e-5,
    "krum": 1e-5,
    "pcd": 1e-3,
    "cr_mogm": 6e-3,
    "modo": 1e-5,
    "sdmgrad": 1e-5,
    "auto_lambda": 6e-3,
    "moml": 6e-3,
}
"""Largest residual that passes; what each one measures is in ``fuzz_residuals``.

Those of MGDA and CAGrad (``17 sqrt(eps)``) and of the dual cone (``eps ** 0.25``) are what
the solvers' ``ok`` promises at Pareto-stationary points; elsewhere residuals are 1e-5.
"""


def run(
    out: Path, *, count: int = 100_000, batch_size: int = 100, seed: int = 0
) -> Path:
    """Runs the fuzz, prints the table and writes ``fuzz.json``.

    Args:
        out: folder of the record.
        count: number of Gramians, about: whole batches for each family and ``T``.
        batch_size: Gramians per call.
        seed: seed of the Gramians, losses and keys.
    """
    begin = time.perf_counter()
    results, total = fuzz(count, batch_size, seed, SHARES)
    seconds = round(time.perf_counter() - begin, 1)
    record = {
        **records.environment(),
        **{"gramians": total, "seed": seed, "seconds": seconds},
        "shares_by_tasks": SHARES,
        "tolerances": TOLERANCES,
        "methods": results,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = records.write_json(out / "fuzz.json", record)
    Console(width=110).print(_table(results, total, seconds))
    return path


def fuzz(
    count: int,
    batch_size: int,
    seed: int,
    shares: dict[int, float],
    methods: Sequence[str] = METHODS,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Returns what was found by method and family, and the number of Gramians."""
    results = {
        name: {family: Counts() for family in fuzz_gramians.FAMILIES}
        for name in methods
    }
    rng = np.random.default_rng(seed)
    total = 0
    for num_tasks, share in shares.items():
        programs = {name: _program(name, num_tasks) for name in methods}
        batches = max(
            1, round(count * share / len(fuzz_gramians.FAMILIES) / batch_size)
        )
        for family in fuzz_gramians.FAMILIES:
            for _ in range(batches):
                grams = fuzz_gramians.gramians(rng, family, batch_size, num_tasks)
                losses = rng.uniform(0.1, 10, size=(3, batch_size, num_tasks))
                keys = jax.random.split(jax.random.key(rng.integers(2**31)), batch_size)
                inputs = jnp.asarray(grams), jnp.asarray(losses, jnp.float32), keys
                problem = fuzz_residuals.scaled(grams)
                for name, program in programs.items():
                    results[name][family].add(name, problem, program(*inputs))
                total += batch_size
    summary = {
        name: {
            **sum(families.values(), Counts()).as_json(),
            "families": {key: value.as_json() for key, value in families.items()},
        }
        for name, families in results.items()
    }
    return summary, total


class Counts:
    """What was found in some Gramians."""

    def __init__(self) -> None:
        self.non_finite = 0
        self.fallbacks = 0
        self.unchecked = 0
        self.over_tolerance = 0
        self.worst = 0.0

    def add(
        self, name: str, problem: fuzz_residuals.Scaled, answer: dict[str, Any]
    ) -> None:
        """Judges one batch of a method's answers."""
        answer = {key: np.asarray(value) for key, value in answer.items()}
        fallbacks = answer.pop("fallbacks") > 0
        finite = [np.isfinite(v).reshape(len(v), -1).all(1) for v in answer.values()]
        broken = ~np.all(finite, axis=0)
        values = {
            key: np.where(np.isfinite(value), value, 0).astype(np.float64)
            for key, value in answer.items()
        }
        residual = RESIDUALS[name](problem, **values)
        checked = ~np.isnan(residual) & ~fallbacks & ~broken
        self.non_finite += int(broken.sum())
        self.fallbacks += int(fallbacks.sum())
        self.unchecked += int((~checked & ~fallbacks & ~broken).sum())
        self.over_tolerance += int((residual[checked] > TOLERANCES[name]).sum())
        self.worst = max([self.worst, *residual[checked].tolist()])

    def __add__(self, other: Counts) -> Counts:
        merged = Counts()
        for key in vars(merged):
            combine = max if key == "worst" else lambda a, b: a + b
            setattr(merged, key, combine(getattr(self, key), getattr(other, key)))
        return merged

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "worst": float(f"{min(self.worst, 1e300):.3g}")}


def _program(name: str, num_tasks: int) -> Callable[..., dict[str, Any]]:
    """Gramians, losses and keys in; weights, fallbacks and dual variables out."""
    weighting = mtl_jax.build_weighting(CALLS.get(name, name), num_tasks)

    def one(gram: jax.Array, losses: jax.Array, key: jax.Array) -> dict[str, Any]:
        state = weighting.init()
        if hasattr(state, "key"):
            state = state._replace(key=key)
        answer: dict[str, Any] = {}
        for step_losses in losses if name == "gradnorm" else losses[:1]:
            statistics = mtl_jax.Statistics(gram, step_losses)
            answer["weights"], state = weighting.update(statistics, state)
        if name == "cagrad":
            answer["dual"] = solvers.cagrad_weights(gram, 0.4).value
        if name == "upgrad":  # the conditions hold for each projection, not for the sum
            bounds = jnp.eye(num_tasks, dtype=gram.dtype) / num_tasks
            rows = solvers.dual_cone_weights(gram, bounds).value
            total = answer.pop("weights")
            answer["rows"] = jnp.where(jnp.isfinite(total), rows, jnp.nan)
        fallbacks = optax.tree.get(state, "fallbacks", jnp.zeros([], jnp.int32))
        return answer | {"fallbacks": fallbacks}

    return jax.jit(jax.vmap(one, in_axes=(0, 1, 0)))


def _table(results: dict[str, dict[str, Any]], total: int, seconds: float) -> Table:
    table = Table(title=f"{total} random Gramians in {seconds:.0f} s")
    for column in ("method", "not finite", "fallbacks", "over tolerance"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for column in ("tolerance", "worst", "worst family", "unchecked"):
        table.add_column(column, justify="right")
    for name, row in results.items():
        families = row["families"]
        worst = max(families, key=lambda family: families[family]["worst"])
        table.add_row(
            name,
            *(str(row[key]) for key in ("non_finite", "fallbacks", "over_tolerance")),
            *(f"{TOLERANCES[name]:g}", f"{row['worst']:.2g}", worst),
            str(row["unchecked"]),
        )
    return table
