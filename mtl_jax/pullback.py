"""Pull-backs as flat lists of equations: they can be cut into parts and looked into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Var

from mtl_jax._types import Array

Atom = Var | Literal
CALLS = ("jit", "pjit", "closed_call", "core_call")
"""Primitives that only call another program: they are inlined."""
MOVES = frozenset(
    {"transpose", "reshape", "squeeze", "copy", "convert_element_type"}
    | {"sharding_constraint"}
)
"""Primitives that leave sums and inner products as they are (but for rounding)."""


class Pullback:
    """A linear function from cotangents ``(T,)`` to a list of arrays, as equations.

    What :func:`jax.vjp` returns is a closed box. Traced once, it is a list of primitive
    equations over the residuals of the forward pass; no equation runs before a part that
    needs it is called, and XLA merges equations that several parts share.

    Args:
        function: from a cotangent ``(T,)`` to a list of arrays, linear.
        losses: ``(T,)``, gives the cotangent's shape and dtype.
    """

    def __init__(
        self, function: Callable[[Array], Sequence[Array]], losses: Array
    ) -> None:
        closed = jax.make_jaxpr(function)(losses)
        flat = jax.make_jaxpr(
            lambda cotangent: _evaluate(closed.jaxpr, closed.consts, cotangent)
        )(losses)
        jaxpr = flat.jaxpr
        self.ones = jnp.ones_like(losses)
        """The cotangent of the sum of the losses."""
        self.equations: list[JaxprEqn] = list(jaxpr.eqns)
        self.input: Var = jaxpr.invars[0]
        self.outputs: list[Atom] = list(jaxpr.outvars)
        self._known = dict(zip(jaxpr.constvars, flat.consts, strict=True))
        self._producers = {
            var: equation for equation in self.equations for var in equation.outvars
        }
        self.linear = _reachable(self.equations, {self.input})
        """The variables that depend on the cotangent."""

    def producer(self, atom: Atom) -> JaxprEqn | None:
        """The equation that an output or intermediate variable comes from, if any."""
        return None if isinstance(atom, Literal) else self._producers.get(atom)

    def depends(self, atom: Atom) -> bool:
        """Whether a variable depends on the cotangent."""
        return not isinstance(atom, Literal) and atom in self.linear

    def value(self, atom: Atom) -> Array:
        """The value of a variable that does not depend on the cotangent."""
        return self.part([], [atom])()[0]

    def ancestors(self, atoms: Iterable[Atom]) -> set[Var]:
        """The variables that the given ones are computed from, themselves included."""
        found = _variables(atoms)
        for equation in reversed(self.equations):
            if not found.isdisjoint(equation.outvars):
                found |= _variables(equation.invars)
        return found

    def between(self, start: Var, ends: Iterable[Atom]) -> list[JaxprEqn]:
        """The equations that depend on ``start`` and lead to ``ends``, in order."""
        ahead = _reachable(self.equations, {start})
        behind = self.ancestors(ends)
        return [
            equation
            for equation in self.equations
            if not ahead.isdisjoint(_variables(equation.invars))
            and not behind.isdisjoint(equation.outvars)
        ]

    def part(
        self, inputs: Sequence[Var], outputs: Sequence[Atom]
    ) -> Callable[..., list[Array]]:
        """The function from some variables to others, running only what it needs."""
        needed = {atom for atom in outputs if not isinstance(atom, Literal)}
        needed -= set(inputs)
        steps = []
        for equation in reversed(self.equations):
            if needed.isdisjoint(equation.outvars):
                continue
            steps.append(equation)
            needed |= _variables(equation.invars) - set(inputs)
        if self.input in needed and self.input not in inputs:
            raise ValueError("the outputs depend on more than the inputs given")
        steps.reverse()

        def run(*values: Array) -> list[Array]:
            environment = dict(self._known)
            environment.update(zip(inputs, values, strict=True))
            _run(steps, environment)
            return [_read(environment, atom) for atom in outputs]

        return run


def shape_of(atom: Atom) -> tuple[int, ...]:
    """The shape of a variable."""
    return cast(Any, atom.aval).shape


def bind(equation: JaxprEqn, *values: Any) -> list[Any]:
    """Results of one equation for the values of its operands, with calls inlined."""
    primitive, params = equation.primitive, equation.params
    if primitive.name in CALLS:
        inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, *values)
    with equation.ctx.manager:
        results = primitive.bind(*values, **primitive.get_bind_params(params))
    return results if primitive.multiple_results else [results]


def _variables(atoms: Iterable[Atom]) -> set[Var]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}


def _reachable(equations: Iterable[JaxprEqn], start: set[Var]) -> set[Var]:
    """All variables that depend on those in ``start``."""
    found = set(start)
    for equation in equations:
        if not found.isdisjoint(_variables(equation.invars)):
            found.update(equation.outvars)
    return found


def _read(environment: dict[Var, Any], atom: Atom) -> Any:
    return jnp.asarray(atom.val) if isinstance(atom, Literal) else environment[atom]


def _run(equations: Iterable[JaxprEqn], environment: dict[Var, Any]) -> None:
    """Binds the equations in turn, with calls inlined."""
    for equation in equations:
        values = [
            atom.val if isinstance(atom, Literal) else environment[atom]
            for atom in equation.invars
        ]
        results = bind(equation, *values)
        environment.update(zip(equation.outvars, results, strict=True))


def _evaluate(jaxpr: Any, consts: Sequence[Any], *values: Any) -> list[Any]:
    environment = dict(zip(jaxpr.constvars, consts, strict=True))
    environment.update(zip(jaxpr.invars, values, strict=True))
    _run(jaxpr.eqns, environment)
    return [_read(environment, atom) for atom in jaxpr.outvars]
