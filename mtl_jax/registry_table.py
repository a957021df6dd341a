"""The table of registered methods: factories, needs, properties, references."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import optax

from mtl_jax import transforms, weighting
from mtl_jax._types import Weighting

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

METHODS: dict[str, MethodSpec] = {spec.name: spec for spec in _SPECS}
"""All registered methods by name."""
