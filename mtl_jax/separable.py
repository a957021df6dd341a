"""All tasks' pull-backs through the heads at the price of one, where paths are separate.

Loss ``t`` acts through head ``t`` only, so most of a pull-back through ``T`` heads is
multiplication by zero, and ``T`` of them cost ``T²`` heads. But the pull-back of the sum
of the losses holds the pieces of all tasks until they are added up in the representation:
stacked along an axis, or in variables of their own. To read the pieces off before they
are added costs ``T`` heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Literal, Var

from mtl_jax._types import Array
from mtl_jax.pullback import MOVES, Atom, Pullback, bind, shape_of

ELEMENTWISE = frozenset(
    "add_any add sub neg mul div select_n copy convert_element_type".split()
)


class Along(NamedTuple):
    """Entry ``t`` along the axis depends on the cotangent of task ``t`` alone."""

    axis: int


class Only(NamedTuple):
    """The whole variable depends on the cotangent of one task alone."""

    task: int


Mark = Along | Only | None


def separate_rows(pullback: Pullback, variable: Atom) -> Array | None:
    """Returns a variable's values for all unit cotangents, ``(T, *v)``, in one pass.

    ``None`` where the tasks' paths to the variable are not separate, or lead through
    equations that this function does not know.
    """
    if shape_of(pullback.input) == (1,):
        return _at_ones(pullback, variable)[None]
    return _rows(pullback, _marks(pullback, [variable]), variable)


def apart(pullback: Pullback, ends: Iterable[Atom]) -> set[Var]:
    """The variables on the way to ``ends`` in which every task has entries of its own.

    There are none for a single task, and some may be missed.
    """
    if shape_of(pullback.input) == (1,):
        return set()
    return {var for var, mark in _marks(pullback, ends).items() if mark is not None}


def _marks(pullback: Pullback, ends: Iterable[Atom]) -> dict[Var, Mark]:
    """What is known of the variables on the way to ``ends``."""
    marks: dict[Var, Mark] = {pullback.input: Along(0)}
    for equation in pullback.between(pullback.input, ends):
        found = {
            i: marks.get(atom)
            for i, atom in enumerate(equation.invars)
            if isinstance(atom, Var) and pullback.depends(atom)
        }
        marks.update(zip(equation.outvars, _spread(equation, found), strict=True))
    return marks


def _rows(pullback: Pullback, marks: dict[Var, Mark], atom: Atom) -> Array | None:
    """The rows of a variable, put together from those of what it is the sum of."""
    mark = None if isinstance(atom, Literal) else marks.get(atom)
    equation = pullback.producer(atom)
    if isinstance(mark, Only):
        value = _at_ones(pullback, atom)
        zeros = jnp.zeros((*shape_of(pullback.input), *value.shape), value.dtype)
        return zeros.at[mark.task].set(value)
    if mark is not None or equation is None:
        return None
    name = equation.primitive.name
    linear = [operand for operand in equation.invars if pullback.depends(operand)]
    if name == "add_any":
        parts = [_rows(pullback, marks, operand) for operand in linear]
        known = [part for part in parts if part is not None]
        return sum(known[1:], start=known[0]) if len(known) == len(parts) else None
    if len(linear) != 1:
        return None
    (operand,) = linear
    inner = marks.get(operand) if isinstance(operand, Var) else None
    if inner is None and (name in MOVES or name == "reduce_sum"):
        rows = _rows(pullback, marks, operand)
        return None if rows is None else jax.vmap(lambda r: bind(equation, r)[0])(rows)
    if not isinstance(inner, Along):
        return None
    if name == "reduce_sum" and inner.axis in equation.params["axes"]:
        value = jnp.moveaxis(_at_ones(pullback, operand), inner.axis, 0)
        axes = [axis for axis in equation.params["axes"] if axis != inner.axis]
        return value.sum([axis + (axis < inner.axis) for axis in axes])
    if name == "dot_general":
        return _unsummed_dot(pullback, equation, operand, inner.axis)
    return None


def _unsummed_dot(
    pullback: Pullback, equation: JaxprEqn, operand: Atom, axis: int
) -> Array | None:
    """A product that contracts the tasks' axis, with that axis kept in front instead."""
    contracted, batched = equation.params["dimension_numbers"]
    side = 0 if equation.invars[0] is operand else 1
    if axis not in contracted[side]:
        return None
    place = contracted[side].index(axis)
    values = [
        _at_ones(pullback, atom) if atom is operand else pullback.value(atom)
        for atom in equation.invars
    ]
    rest = [(*axes[:place], *axes[place + 1 :]) for axes in contracted]
    front = [
        (axes[place], *batch) for axes, batch in zip(contracted, batched, strict=True)
    ]
    return lax.dot_general(
        values[0],
        values[1],
        ((rest[0], rest[1]), (front[0], front[1])),
        precision=equation.params["precision"],
        preferred_element_type=equation.params["preferred_element_type"],
    )


def _at_ones(pullback: Pullback, atom: Atom) -> Array:
    return pullback.part([pullback.input], [atom])(pullback.ones)[0]


def _spread(equation: JaxprEqn, marks: dict[int, Mark]) -> list[Mark]:
    """Marks of an equation's results, given those of its linear operands by position."""
    unknown: list[Mark] = [None] * len(equation.outvars)
    (side, mark), *others = marks.items()
    if mark is None or any(other != mark for _, other in others):
        return unknown
    if isinstance(mark, Only):
        return [mark] * len(equation.outvars)
    name, params, axis = equation.primitive.name, equation.params, mark.axis
    before, after = shape_of(equation.invars[side]), shape_of(equation.outvars[0])
    if name in ELEMENTWISE:
        # Without broadcasting, but for scalars.
        same = before == after
        same &= all(shape_of(atom) in ((), after) for atom in equation.invars)
        return [mark] if same else unknown
    if name in ("unstack", "split") and params["axis"] == axis:
        single = name == "unstack" or all(size == 1 for size in params["sizes"])
        return [Only(t) for t in range(len(equation.outvars))] if single else unknown
    if name == "slice" and params["strides"] is None:
        start, limit = params["start_indices"][axis], params["limit_indices"][axis]
        return [Only(start)] if limit - start == 1 else unknown
    if name == "broadcast_in_dim":
        target = params["broadcast_dimensions"][axis]
        return [Along(target)] if after[target] == before[axis] else unknown
    if name == "transpose":
        return [Along(params["permutation"].index(axis))]
    if name in ("reshape", "squeeze"):
        ahead = math.prod(before[:axis])
        matches = [
            i
            for i, size in enumerate(after)
            if size == before[axis] and math.prod(after[:i]) == ahead
        ]
        return [Along(matches[0])] if matches else unknown
    if name == "reduce_sum" and axis not in params["axes"]:
        return [Along(axis - sum(other < axis for other in params["axes"]))]
    if name == "dot_general":
        return [_through_dot(equation, side, axis)]
    return unknown


def _through_dot(equation: JaxprEqn, side: int, axis: int) -> Mark:
    """Where an axis of one factor is in the product: batch axes, left's, then right's."""
    contracted, batched = equation.params["dimension_numbers"]
    if axis in contracted[side]:
        return None
    if axis in batched[side]:
        return Along(batched[side].index(axis))
    free = [
        [i for i in range(len(shape_of(atom))) if i not in (*summed, *batch)]
        for atom, summed, batch in zip(
            equation.invars, contracted, batched, strict=True
        )
    ]
    ahead = len(batched[0]) + (len(free[0]) if side else 0)
    return Along(ahead + free[side].index(axis))
