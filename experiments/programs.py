"""Compiled programs side by side: their time in turn, their memory, their compile time."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from experiments import records


class Program(NamedTuple):
    """A compiled function with its arguments."""

    call: Callable[[], Any]
    compile_seconds: float
    megabytes: float
    """What XLA allocates beyond the arguments: temporaries at their peak, and results."""


def compile_program(function: Callable[..., Any], *args: Any) -> Program:
    """Compiles ``function`` for ``args``."""
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - begin
    memory: Any = compiled.memory_analysis()
    size = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return Program(functools.partial(compiled, *args), seconds, size / 2**20)


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of one call, until its results are there."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def timings(
    programs: Mapping[Any, Callable[[], Any]], rounds: int, seconds: float = math.inf
) -> dict[Any, list[float]]:
    """Seconds of each call, in turn, so that a slow moment hits all programs.

    Each timed call follows one of its own kind, as in training: after another program's it
    would pay for the caches, the memory and the threads that the other one left behind.

    Args:
        programs: calls by name.
        rounds: timed rounds.
        seconds: a program that took as long sits out the further rounds (after three);
            one that takes a tenth of it is not called untimed before every timed call.
    """
    times: dict[Any, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        if seconds_of(program) < seconds / 4:
            seconds_of(program)
    for _ in range(rounds):
        for name, program in programs.items():
            done = times[name]
            if len(done) >= 3 and 2 * sum(done) > seconds:
                continue
            if not done or statistics.median(done) < seconds / 10:
                seconds_of(program)
            done.append(seconds_of(program))
    return times


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, float]:
    """Median seconds of each call, see :func:`timings`."""
    return {n: statistics.median(times) for n, times in timings(calls, rounds).items()}


def milliseconds(kind: str, times: list[float]) -> dict[str, float]:
    """``kind``: the median of ``times`` (seconds); ``kind_fastest``: the fastest call.

    On a busy machine only the fastest calls compare.
    """
    return {
        kind: records.rounded(1e3 * statistics.median(times)),
        f"{kind}_fastest": records.rounded(1e3 * min(times)),
    }
