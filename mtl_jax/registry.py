"""Registry of methods: name -> factory, needs, properties, reference; call strings."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

from mtl_jax import transforms, weighting
from mtl_jax._types import LossesFn, Weighting
from mtl_jax.combined import CombinedGrad, value_and_combined_grad

PROPERTIES = {
    "non_conflicting": "the update has a non-negative product with every task gradient",
    "descent": "... a positive one wherever the point is not Pareto stationary",
    "scale_invariant": "rescaling one task's loss leaves the update's direction alone",
    "homogeneous": "a common factor of all gradients does not change the weights",
    "permutation_equivariant": "reordering the tasks reorders the weights",
    "convex": "the weights lie on the simplex",
    "mean_without_conflict": "parallel to the mean gradient when no two tasks conflict",
}
"""What a method may declare, in the words of the README; the test suite checks each."""

NEEDS = {
    "losses": "update(..., losses=losses)",
    "gram": "the Gramian of the task gradients",
    "gradients": "the task gradients coordinate by coordinate",
    "key": "a random key (seed=)",
}
"""What a method may need."""


class MethodSpec(NamedTuple):
    """One registered method."""

    name: str
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    """``factory(num_tasks, **hyper_parameters)``."""
    weighting: Callable[..., Weighting] | None
    """The same as a weighting; ``None`` for element-wise rules."""
    summary: str
    reference: str
    """Authors and year."""
    arxiv: str | None
    """arXiv number, where there is one."""
    needs: frozenset[str]
    properties: frozenset[str]


def _spec(
    name: str, summary: str, reference: str, arxiv: str | None, needs: str, has: str
) -> MethodSpec:
    return MethodSpec(
        name=name,
        factory=getattr(transforms, name),
        weighting=getattr(weighting, name, None),
        summary=summary,
        reference=reference,
        arxiv=arxiv,
        needs=frozenset(needs.split()),
        properties=frozenset(has.split()),
    )


_SPECS = (
    _spec(
        "ls",
        "fixed weights, equal by default",
        "baseline",
        None,
        needs="",
        has="homogeneous permutation_equivariant mean_without_conflict",
    ),
    _spec(
        "si",
        "weights 1/loss: minimises the sum of log-losses",
        "baseline of Navon et al. 2022",
        "2202.01017",
        needs="losses",
        has="homogeneous permutation_equivariant scale_invariant",
    ),
    _spec(
        "rlw",
        "random weights at every step",
        "Lin et al. 2021",
        "2111.10603",
        needs="key",
        has="homogeneous convex",
    ),
    _spec(
        "dwa",
        "more weight to losses that fall slowly",
        "Liu et al. 2019",
        "1803.10704",
        needs="losses",
        has="homogeneous permutation_equivariant",
    ),
    _spec(
        "uw",
        "learned homoscedastic uncertainty",
        "Kendall et al. 2018",
        "1705.07115",
        needs="losses",
        has="homogeneous permutation_equivariant",
    ),
    _spec(
        "gradnorm",
        "learned weights that equalise training rates",
        "Chen et al. 2018",
        "1711.02257",
        needs="losses gram",
        has="permutation_equivariant",
    ),
    _spec(
        "mgda",
        "min-norm point of the convex hull of the gradients",
        "Sener & Koltun 2018",
        "1810.04650",
        needs="gram",
        has="non_conflicting descent homogeneous permutation_equivariant convex",
    ),
    _spec(
        "pcgrad",
        "projects gradients off those they conflict with",
        "Yu et al. 2020",
        "2001.06782",
        needs="gram key",
        has="homogeneous mean_without_conflict",
    ),
    _spec(
        "graddrop",
        "one random sign per coordinate wins",
        "Chen et al. 2020",
        "2010.06808",
        needs="gradients key",
        has="homogeneous",
    ),
    _spec(
        "cagrad",
        "best worst-case improvement near the mean gradient",
        "Liu et al. 2021",
        "2110.14048",
        needs="gram",
        has="homogeneous permutation_equivariant",
    ),
    _spec(
        "imtl_g",
        "equal cosines with every task gradient",
        "Liu et al. 2021 (ICLR)",
        None,
        needs="gram",
        has="homogeneous permutation_equivariant scale_invariant",
    ),
    _spec(
        "nash_mtl",
        "Nash bargaining between the tasks",
        "Navon et al. 2022",
        "2202.01017",
        needs="gram",
        has="non_conflicting descent permutation_equivariant scale_invariant",
    ),
    _spec(
        "upgrad",
        "sum of the gradients' projections on the dual cone",
        "Quinton & Rey 2024",
        "2406.16232",
        needs="gram",
        has="non_conflicting homogeneous permutation_equivariant mean_without_conflict",
    ),
    _spec(
        "aligned_mtl",
        "orthogonal, equally long principal components",
        "Senushkin et al. 2023",
        "2305.19000",
        needs="gram",
        has="homogeneous permutation_equivariant",
    ),
)

SOURCE_OPTIONS = ("strategy", "every_k", "head_weights", "feature_batch")
"""Options of :func:`mtl_jax.value_and_combined_grad` that call strings may hold where the
program that reads them makes the source, too: ``mgda(strategy=features)``."""

METHODS: dict[str, MethodSpec] = {spec.name: spec for spec in _SPECS}
"""All registered methods by name."""


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
    spec, arguments = parse(call)
    if spec.weighting is None:
        raise ValueError(
            f"method {spec.name!r} works coordinate by coordinate and is no weighting; "
            "use mtl_jax.build"
        )
    return spec.weighting(num_tasks, **arguments)


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
            f"method {spec.name!r} works on the task gradients coordinate by coordinate "
            f"and takes no {', '.join(chosen)}"
        )
    weighting = spec.weighting(num_tasks, **arguments)
    return value_and_combined_grad(losses_fn, weighting, **{**options, **chosen})


def _hint(word: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(word, choices, n=1)
    nearest = f"; did you mean {close[0]!r}?" if close else ""
    return f"{nearest} (known: {', '.join(sorted(choices)) or 'none'})"
