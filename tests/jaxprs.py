"""Walks the equations of a traced program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those of loops, branches and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def primitives(jaxpr: Any) -> list[str]:
    """The names of all primitives, one for each equation."""
    return [equation.primitive.name for equation in equations(jaxpr)]


def loops(jaxpr: Any) -> list[Any]:
    """The bodies of all ``while`` equations."""
    return [
        equation.params["body_jaxpr"].jaxpr
        for equation in equations(jaxpr)
        if equation.primitive.name == "while"
    ]
