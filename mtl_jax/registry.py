"""Call strings: ``"cagrad(c=0.4)"`` -> a method, a weighting or a source."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import optax

from mtl_jax._types import LossesFn, Weighting
from mtl_jax.combined import CombinedGrad, value_and_combined_grad
from mtl_jax.registry_table import METHODS as METHODS
from mtl_jax.registry_table import NEEDS as NEEDS
from mtl_jax.registry_table import PROPERTIES as PROPERTIES
from mtl_jax.registry_table import MethodSpec as MethodSpec

SOURCE_OPTIONS = ("strategy", "every_k", "head_weights", "feature_batch")
"""Options of :func:`mtl_jax.value_and_combined_grad` that call strings may hold where the
program that reads them makes the source, too: ``mgda(strategy=features)``."""


def parse(call: str, also: Sequence[str] = ()) -> tuple[MethodSpec, dict[str, object]]:
    """Parses ``"name"`` or ``"name(option=literal, ...)"`` without evaluating code.

    Args:
        call: a registered name, optionally with keyword arguments that are Python
            literals (numbers, strings, tuples, lists, ``None``, booleans) or bare words,
            which stand for strings.
        also: options that are allowed besides those of the method, e.g.
            ``SOURCE_OPTIONS``.

    Returns:
        The method's entry and the keyword arguments.

    Raises:
        ValueError: for anything else, with the nearest registered name or option.
    """
    try:
        node = ast.parse(call.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(
            f"cannot read method {call!r}: write name or name(option=value)"
        ) from None
    arguments: dict[str, object] = {}
    name_node = node
    if isinstance(node, ast.Call):
        name_node = node.func
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(
                f"cannot read method {call!r}: options must be given by name, e.g. "
                "cagrad(c=0.4)"
            )
        for keyword in node.keywords:
            if keyword.arg in arguments:
                raise ValueError(
                    f"cannot read method {call!r}: option {keyword.arg!r} is given twice"
                )
            if isinstance(keyword.value, ast.Name):
                arguments[str(keyword.arg)] = keyword.value.id
                continue
            try:
                arguments[str(keyword.arg)] = ast.literal_eval(keyword.value)
            except ValueError:
                raise ValueError(
                    f"cannot read method {call!r}: the value of {keyword.arg!r} must be "
                    "a number, a string or a tuple of them"
                ) from None
    if not isinstance(name_node, ast.Name):
        raise ValueError(
            f"cannot read method {call!r}: write name or name(option=value)"
        )
    name = name_node.id
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{_hint(name, list(METHODS))}")
    spec = METHODS[name]
    options = [
        p for p in inspect.signature(spec.factory).parameters if p != "num_tasks"
    ] + list(also)
    for option in arguments:
        if option not in options:
            raise ValueError(
                f"method {name!r} has no option {option!r}{_hint(option, options)}"
            )
    if isinstance(arguments.get("around"), str):
        arguments["around"] = _weighting_factory(str(arguments["around"]))
    return spec, arguments


def build(call: str, num_tasks: int) -> optax.GradientTransformationExtraArgs:
    """Builds a method from a call string.

    Args:
        call: e.g. ``"nash_mtl"`` or ``"cagrad(c=0.4)"``, see :func:`parse`.
        num_tasks: number of tasks ``T``.

    Returns:
        The transformation, as from ``mtl_jax.NAME(num_tasks, ...)``.

    Raises:
        ValueError: for an unknown method or option, or a bad value.

    Examples:
        >>> import mtl_jax
        >>> tx = mtl_jax.build("cagrad(c=0.4)", num_tasks=3)
    """
    spec, arguments = parse(call)
    return spec.factory(num_tasks, **arguments)


def build_weighting(call: str, num_tasks: int) -> Weighting:
    """Builds a weighting from a call string, for :func:`mtl_jax.aggregate`.

    Raises:
        ValueError: as :func:`build`, and for methods that are no weightings.
    """
    return _weighting_factory(call)(num_tasks)


def _weighting_factory(call: str) -> Callable[[int], Weighting]:
    spec, arguments = parse(call)
    if spec.weighting is None:
        raise ValueError(
            f"method {spec.name!r} works on the gradients themselves and is no weighting; "
            "use mtl_jax.build"
        )
    return functools.partial(spec.weighting, **arguments)


def build_source(
    call: str, num_tasks: int, losses_fn: LossesFn, **options: Any
) -> CombinedGrad | None:
    """Builds the source that a call string asks for, or ``None`` if it asks for none.

    Args:
        call: e.g. ``"mgda(strategy=features)"`` or ``"nash_mtl(every_k=50)"``.
        num_tasks: number of tasks ``T``.
        losses_fn: see :func:`mtl_jax.value_and_combined_grad`.
        options: further ones of that function; those in ``call`` go first.

    Raises:
        ValueError: as :func:`build_weighting`.
    """
    spec, arguments = parse(call, also=SOURCE_OPTIONS)
    chosen: dict[str, Any] = {
        name: arguments.pop(name) for name in SOURCE_OPTIONS if name in arguments
    }
    if not chosen:
        return None
    if spec.weighting is None:
        raise ValueError(
            f"method {spec.name!r} works on the task gradients themselves and takes no "
            f"{', '.join(chosen)}"
        )
    weighting = spec.weighting(num_tasks, **arguments)
    return value_and_combined_grad(losses_fn, weighting, **{**options, **chosen})


def _hint(word: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(word, choices, n=1)
    nearest = f"; did you mean {close[0]!r}?" if close else ""
    return f"{nearest} (known: {', '.join(sorted(choices)) or 'none'})"
