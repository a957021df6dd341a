"""Pareto manifolds of the toy functions: fronts covered in a single run, Figure 1."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import manifold_toy_plot, records, toy, toy_table
from experiments.explore import Table
from experiments.manifold import ManifoldConfig
from experiments.manifold_families import balance_of, manifold_options
from mtl_jax import metrics, pareto
from mtl_jax.data.toy import TOY_STARTS, toy_losses, toy_pareto_set

Record = dict[str, Any]
PAIRS = ((0, 2), (3, 4), (0, 4), (1, 2))
"""Starts of the two members, by their places in ``TOY_STARTS``."""
SEGMENT = 101
"""Points of a run's segment on which it is judged."""
NOTES = {
    "coverage": "share of the Pareto set's x in [-7, 7] that lies between the members",
    "off_front": "largest distance of the covered part of the segment from the set",
    "hypervolume": "of the segment's losses over that of the front, reference: its ends",
}


def check(config: ManifoldConfig) -> None:
    """Names bad options before anything is written.

    Raises:
        ValueError: for an unknown balance or method, or numbers that do not fit.
    """
    for name in config.balances:
        balance_of(name, toy.NUM_TASKS)
    toy.usable_methods(config.methods)
    toy.check(_toy_config(config))


def run(config: ManifoldConfig, folder: Path) -> list[Table]:
    """Runs all balances and methods, writes records and pictures, returns tables.

    Args:
        config: of the study.
        folder: of the run.

    Raises:
        records.NonFiniteError: if a trajectory leaves the finite numbers.
    """
    begin = time.perf_counter()
    with jax.enable_x64(True):
        found = {name: _balance(name, config) for name in config.balances}
        print("  methods ...", flush=True)
        paths = _methods(config)
        rows = [
            row
            for name, members in found.items()
            for row in _rows(name, members, config)
        ]
    arrays = {
        "balances": np.array(config.balances),
        "methods": np.array(list(paths)),
        "scales": np.array(config.scales),
        "steps": np.arange(0, config.steps + 1, config.record_every),
        # One seed is enough for the picture.
        "members": np.float32(np.stack([each[:, :, 0] for each in found.values()])),
        "paths": np.float32(np.stack(list(paths.values()))),
    }
    records.write_bytes(folder / "trajectories.npz", toy_table.as_npz(**arrays))
    facts = records.environment()
    summary = {
        **{key: facts[key] for key in ("device", "cpu_count", "versions")},
        "git_commit": facts["git_commit"],
        "config": records.as_json(config),
        "starts": TOY_STARTS.tolist(),
        "pairs": PAIRS,
        "notes": NOTES,
        "rows": rows,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    records.write_json(folder / "summary.json", summary)
    if config.plot:
        print(f"picture: {manifold_toy_plot.draw(folder)}")
    return [_table(summary)]


def _toy_config(config: ManifoldConfig) -> toy.ToyConfig:
    """What the study ``toy`` would be told of the methods' trajectories."""
    return toy.ToyConfig(
        methods=config.methods,
        scales=config.scales,
        steps=config.steps,
        record_every=config.record_every,
        learning_rate=config.learning_rate,
    )


def _balance(name: str, config: ManifoldConfig) -> np.ndarray:
    """Members of all runs, ``(scales, pairs, seeds, N + 1, 2, 2)``."""
    print(f"  {name} ...", flush=True)
    optimizer = optax.adam(config.learning_rate)
    options = manifold_options(config, toy.NUM_TASKS)
    options["balance"] = balance_of(name, toy.NUM_TASKS)

    def trajectory(scale: Any, starts: Any, key: Any) -> Any:
        source = pareto.value_and_member_grad(
            lambda theta: toy_losses(theta, scale),
            toy.NUM_TASKS,
            strategy="vmap",
            loop="vmap",
            **options,
        )

        def step(carry: Any, _: None) -> tuple[Any, None]:
            members, state, opt_state = carry
            _, grads, state = source.update(state, members)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(members, updates), state, opt_state), None

        def record(carry: Any, _: None) -> tuple[Any, Any]:
            carry, _ = lax.scan(step, carry, None, length=config.record_every)
            return carry, carry[0]

        state = source.init(starts)._replace(key=key)
        carry = starts, state, optimizer.init(starts)
        length = config.steps // config.record_every
        points = lax.scan(record, carry, None, length=length)[1]
        return jnp.concatenate([starts[None], points])

    over_seeds = jax.vmap(trajectory, (None, None, 0))
    over_pairs = jax.vmap(over_seeds, (None, 0, None))
    runs = jax.jit(jax.vmap(over_pairs, (0, None, None)))
    starts = jnp.asarray(TOY_STARTS[np.array(PAIRS)], jnp.float64)
    keys = jax.vmap(jax.random.key)(jnp.array(config.seeds))
    members = np.asarray(runs(jnp.array(config.scales), starts, keys))
    if not np.isfinite(members).all():
        raise records.NonFiniteError(f"members left the finite numbers with {name}")
    return members


def _methods(config: ManifoldConfig) -> dict[str, np.ndarray]:
    """Trajectories of the methods from the five starts, ``(scales, 5, N + 1, 2)``."""
    methods = toy.usable_methods(config.methods)
    simulate = functools.partial(
        toy.simulate,
        methods=methods,
        steps=config.steps,
        record_every=config.record_every,
        learning_rate=config.learning_rate,
    )
    starts = jnp.asarray(TOY_STARTS, jnp.float64)
    found = jax.jit(simulate)(starts, jnp.array(config.scales))
    return {name: np.asarray(found[name].points) for name in methods}


def _losses(points: np.ndarray, scale: float) -> np.ndarray:
    """Losses ``(N, 2)`` at points ``(N, 2)``."""
    return np.asarray(jax.jit(jax.vmap(lambda p: toy_losses(p, scale)))(points))


def _rows(name: str, members: np.ndarray, config: ManifoldConfig) -> list[Record]:
    """One row per scale, start pair and seed."""
    front = toy_pareto_set(1401)
    shares = np.linspace(0, 1, SEGMENT)[:, None]
    rows = []
    for i, scale in enumerate(config.scales):
        best = _losses(front, scale)
        reference = best.max(0)
        whole = metrics.hypervolume(best, reference)
        for k, seed in np.ndindex(members.shape[1:3]):
            first, second = members[i, k, seed, -1]
            low, high = sorted((first[0], second[0]))
            covered = max(min(high, 7.0) - max(low, -7.0), 0.0)
            segment = (1 - shares) * first + shares * second
            inside = segment[np.abs(segment[:, 0]) <= 7]
            gaps = (
                metrics.front_gap(inside, front) if len(inside) else np.array([np.inf])
            )
            volume = metrics.hypervolume(_losses(segment, scale), reference)
            rows.append(
                {
                    "balance": name,
                    "scale": scale,
                    "pair": k,
                    "seed": config.seeds[seed],
                    "members": records.rounded([first.tolist(), second.tolist()]),
                    "coverage": records.rounded(covered / 14),
                    "off_front": records.rounded(float(gaps.max()))
                    if len(inside)
                    else None,
                    "hypervolume": records.rounded(volume / whole),
                }
            )
    return rows


def _table(summary: Record) -> Table:
    heads = ["balance", "scale", "runs", "coverage of [-7, 7]: least", "mean"]
    heads += ["member 1's x", "member 2's x", "hypervolume: least", "mean"]
    groups: dict[tuple[str, float], list[Record]] = {}
    for row in summary["rows"]:
        groups.setdefault((row["balance"], row["scale"]), []).append(row)
    body = []
    for (name, scale), group in groups.items():
        ends = np.array([row["members"] for row in group])[:, :, 0]
        cover = np.array([row["coverage"] for row in group])
        volume = np.array([row["hypervolume"] for row in group])
        spans = [f"{each.min():z.2f} to {each.max():z.2f}" for each in ends.T]
        body.append(
            [
                name,
                f"{scale:g}",
                str(len(group)),
                f"{cover.min():.3f}",
                f"{cover.mean():.3f}",
                *spans,
                f"{volume.min():.3f}",
                f"{volume.mean():.3f}",
            ]
        )
    return Table(
        "Pareto manifolds of the toy, all pairs of starts and seeds", heads, body
    )
