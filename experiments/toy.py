"""Study ``toy``: the two-dimensional problem of Nash-MTL's Figure 1."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import mtl_jax
from experiments import records, toy_plot, toy_table
from mtl_jax.data.toy import TOY_STARTS, toy_losses
from mtl_jax.registry import parse

NUM_TASKS = 2


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Trajectories of each method from the figure's five starts, for each loss scale."""

    out: Path = Path("runs/toy")
    """Folder of the run's records and picture."""
    methods: tuple[str, ...] = (
        "ls",
        "mgda",
        "pcgrad",
        "cagrad(c=0.4)",
        "imtl_g",
        "nash_mtl",
    )
    """Methods as call strings, one column of panels each."""
    scales: tuple[float, ...] = (0.1, 1.0)
    """Factors of the first loss, one row of panels each; the figure has 0.1."""
    steps: int = 35_000
    """Steps of Adam per trajectory."""
    record_every: int = 50
    """Steps between two recorded points."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    x64: bool = True
    """Compute in float64: float32 cannot tell how far opposed gradients are from
    cancelling, which the exact end points on the front depend on."""
    plot: bool = True
    """Draw toy.png."""


class Trajectories(NamedTuple):
    """One method's runs: S loss scales, K starts, N recorded points."""

    points: jax.Array
    """The starts and every recorded point, (S, K, N + 1, 2)."""
    fallbacks: jax.Array
    """Steps whose solver returned its safe answer, int32 (S, K)."""


def simulate(
    starts: jax.Array,
    scales: jax.Array,
    *,
    methods: Sequence[str],
    steps: int,
    record_every: int,
    learning_rate: float,
) -> dict[str, Trajectories]:
    """Runs every method from every start at every loss scale; pure, made for one jit.

    Args:
        starts: (K, 2), float32 or float64.
        scales: (S,), of the same type.
        methods: call strings.
        steps: a multiple of ``record_every``.
        record_every: steps between recorded points.
        learning_rate: of Adam.

    Returns:
        call string -> trajectories.
    """

    def trajectory(method: str, start: jax.Array, scale: Any) -> Trajectories:
        tx = optax.chain(mtl_jax.build(method, NUM_TASKS), optax.adam(learning_rate))
        task_grads = mtl_jax.value_and_task_grads(lambda p: toy_losses(p, scale))

        def step(carry: Any, _: None) -> tuple[Any, None]:
            theta, state = carry
            losses, grads = task_grads(theta)
            updates, state = tx.update(grads, state, theta, losses=losses)
            return (optax.apply_updates(theta, updates), state), None

        def record(carry: Any, _: None) -> tuple[Any, jax.Array]:
            carry, _ = lax.scan(step, carry, None, length=record_every)
            return carry, carry[0]

        carry, points = lax.scan(
            record, (start, tx.init(start)), None, length=steps // record_every
        )
        none = jnp.zeros([], jnp.int32)  # methods without a solver
        return Trajectories(
            jnp.concatenate([start[None], points]),
            optax.tree.get(carry[1], "fallbacks", none),
        )

    def grid(method: str) -> Trajectories:
        run_one = functools.partial(trajectory, method)
        over_starts = jax.vmap(run_one, in_axes=(0, None))
        return jax.vmap(over_starts, in_axes=(None, 0))(starts, scales)

    return {method: grid(method) for method in methods}


def run(config: ToyConfig) -> Path:
    """Simulates, prints the end points, writes the records and draws the picture.

    Raises:
        ValueError: for an unknown method or numbers out of range.
        records.NonFiniteError: if a trajectory leaves the finite numbers.
    """
    methods = usable_methods(config.methods)
    check(config)
    folder = records.start_run(config.out, "toy", config)
    (folder / "summary.json").unlink(missing_ok=True)  # of an earlier run
    count = len(methods) * len(config.scales) * len(TOY_STARTS)
    print(f"{count} trajectories of {config.steps} steps, in one program ...")
    with jax.enable_x64(config.x64):
        results, seconds = _timed_simulation(config, methods)
        points = np.stack([results[method].points for method in methods])
        _check_finite(points, methods, config)
        fallbacks = np.stack([results[method].fallbacks for method in methods])
        rows = toy_table.rows(methods, config.scales, points[..., -1, :], fallbacks)

    print(toy_table.as_text(rows))
    records.write_bytes(folder / "table.csv", toy_table.as_csv(rows))
    records.write_bytes(
        folder / "trajectories.npz",
        toy_table.as_npz(
            methods=np.array(methods),
            scales=np.array(config.scales),
            steps=np.arange(points.shape[-2]) * config.record_every,
            points=points.astype(np.float32),
        ),
    )
    facts = records.environment()
    summary = {
        **{key: facts[key] for key in ("device", "versions", "git_commit")},
        "config": records.as_json(config),
        "seconds": seconds,
        "scale_spread": toy_table.scale_spread(methods, points[..., -1, :]),
        "end_points": rows,
    }
    print(f"compiled in {seconds['compile']} s, ran in {seconds['run']} s")
    if config.plot:
        toy_plot.draw(folder)
    records.write_json(folder / "summary.json", summary)
    print(f"records in {folder}")
    return folder


def usable_methods(calls: Sequence[str]) -> list[str]:
    """Checks the call strings and leaves out methods that need positive losses.

    Raises:
        ValueError: for an unknown method or option, or if nothing is left.
    """
    specs = {call: parse(call)[0] for call in calls}
    for call in specs:
        mtl_jax.build(call, NUM_TASKS)  # names bad values before anything is written
    skipped = [call for call, spec in specs.items() if "losses" in spec.needs]
    usable = [call for call in specs if call not in skipped]
    reason = "the toy's losses are negative, and they need positive ones"
    if not usable:
        raise ValueError(f"no method left to run: of {list(calls)}, {reason}")
    if skipped:
        print(f"warning: skipping {', '.join(skipped)}: {reason}", file=sys.stderr)
    return usable


def check(config: ToyConfig) -> None:
    """Raises ``ValueError`` for numbers out of range."""
    if config.record_every < 1 or config.steps < config.record_every:
        raise ValueError(
            f"steps must be at least record_every >= 1, got steps={config.steps} and "
            f"record_every={config.record_every}"
        )
    if config.steps % config.record_every:
        raise ValueError(
            f"steps must be a multiple of record_every={config.record_every}, got "
            f"{config.steps}"
        )
    if not config.scales or min(config.scales) <= 0:
        raise ValueError(f"scales must be positive numbers, got {config.scales}")
    if config.learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive, got {config.learning_rate}")


def _timed_simulation(
    config: ToyConfig, methods: list[str]
) -> tuple[dict[str, Trajectories], dict[str, float]]:
    """Compiles and runs one program; results as NumPy arrays, seconds spent."""
    dtype = jnp.float64 if config.x64 else jnp.float32
    program = jax.jit(
        functools.partial(
            simulate,
            methods=methods,
            steps=config.steps,
            record_every=config.record_every,
            learning_rate=config.learning_rate,
        )
    )
    arguments = jnp.asarray(TOY_STARTS, dtype), jnp.asarray(config.scales, dtype)
    begin = time.perf_counter()
    compiled = program.lower(*arguments).compile()
    middle = time.perf_counter()
    results = jax.device_get(compiled(*arguments))
    end = time.perf_counter()
    return results, {
        "compile": round(middle - begin, 2),
        "run": round(end - middle, 2),
    }


def _check_finite(
    points: np.ndarray, methods: Sequence[str], config: ToyConfig
) -> None:
    bad = np.argwhere(~np.isfinite(points).all(axis=-1))
    if len(bad):
        method, scale, start, index = min(bad.tolist(), key=lambda row: row[-1])
        raise records.NonFiniteError(
            f"{methods[method]} left the finite numbers before step "
            f"{index * config.record_every} (loss scale {config.scales[scale]}, start "
            f"{tuple(TOY_STARTS[start].tolist())})"
        )
