"""Compiled programs side by side: their time in turn, their memory, their compile time."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

WARM_UP = 2
"""Rounds that are not counted."""


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


def interleaved(
    calls: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = WARM_UP
) -> dict[str, float]:
    """Median seconds per call; in turn, so that a slow moment hits all of them.

    Each timed call follows one of its own kind, as in training: after another program's it
    would pay for the caches and the memory that the other one left cold.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + warm_up):
        for name, call in calls.items():
            seconds_of(call)
            seconds = seconds_of(call)
            if round_ >= warm_up:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}
