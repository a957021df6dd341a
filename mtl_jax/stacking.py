"""Ways to run one function for every task and stack the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax._types import Array

STRATEGIES = ("auto", "vmap", "unroll", "map")


def stack_rows(
    function: Callable[[Array], Any], rows: Array, strategy: str = "auto"
) -> Any:
    """Applies ``function`` to every row ``rows[t]`` and stacks the results on axis 0.

    Args:
        function: a pull-back, from one cotangent to a tree of arrays.
        rows: ``(T, ...)``.
        strategy: see :func:`mtl_jax.value_and_task_grads`.
    """
    if strategy == "auto":
        strategy = choose_strategy(function, rows[0])
    if strategy == "vmap":
        return jax.vmap(function)(rows)
    if strategy == "map":
        return lax.map(function, rows)
    results = [function(row) for row in rows]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def choose_strategy(pullback: Callable[[Array], Any], cotangent: Array) -> str:
    """Returns what ``strategy="auto"`` picks for a pull-back on the default backend.

    On accelerators the batched pull-back. On CPUs (measured, ``docs/measurements.md``)
    XLA batches pull-backs badly: a loop is 1.4 to 1.7 times faster for LeNet as matrix
    products, and keeps one task's activations in the cache. But XLA runs convolutions
    inside loops many times slower than outside, so networks that contain any are unrolled.
    """
    if jax.default_backend() != "cpu":
        return "vmap"
    jaxpr = jax.make_jaxpr(pullback)(jnp.ones_like(cotangent))
    return "unroll" if "conv_general_dilated" in _primitives(jaxpr.jaxpr) else "map"


def _primitives(jaxpr: Any) -> set[str]:
    """Names of all primitives in a jaxpr, inner ones included."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names |= _primitives(inner)
    return names
