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
    "batches": "held_out= or independent= task gradients of further batches; without them "
    "the batch at hand stands in",
    "memory": "a state as large as the task gradients",
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

    @property
    def cost(self) -> str:
        """What a step takes beyond the forward pass, for ``T`` tasks, ``P`` parameters."""
        per_task = self.needs & {"gram", "gradients"}
        passes = "T backward passes" if per_task else "1 backward pass"
        return passes + (", T P numbers of state" if "memory" in self.needs else "")


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
    _spec(
        "gls",
        "minimises the geometric mean of the losses",
        "Chennupati et al. 2019",
        "1904.08492",
        needs="losses",
        has="homogeneous permutation_equivariant scale_invariant",
    ),
    _spec(
        "stch",
        "smooth Chebyshev scalarisation: a soft maximum of the losses",
        "Lin et al. 2024",
        "2402.19078",
        needs="losses",
        has="homogeneous permutation_equivariant scale_invariant",
    ),
    _spec(
        "imtl_l",
        "learned scales that make the losses equal",
        "Liu et al. 2021 (ICLR)",
        None,
        needs="losses",
        has="homogeneous permutation_equivariant",
    ),
    _spec(
        "imtl",
        "IMTL-G on the losses scaled by IMTL-L",
        "Liu et al. 2021 (ICLR)",
        None,
        needs="losses gram",
        has="homogeneous permutation_equivariant scale_invariant",
    ),
    _spec(
        "famo",
        "evens out the losses' rates of decrease, without task gradients",
        "Liu et al. 2023",
        "2306.03792",
        needs="losses",
        has="homogeneous permutation_equivariant scale_invariant convex",
    ),
    _spec(
        "pbi",
        "distance along a preferred ray of losses, and a penalty for leaving it",
        "Zhang & Li 2007",
        None,
        needs="losses",
        has="homogeneous permutation_equivariant",
    ),
    _spec(
        "fairgrad",
        "alpha-fair shares of progress",
        "Ban & Ji 2024",
        "2402.15638",
        needs="gram",
        has="non_conflicting descent permutation_equivariant scale_invariant",
    ),
    _spec(
        "dualproj",
        "preferred combination, projected on the dual cone",
        "Lopez-Paz & Ranzato 2017",
        "1706.08840",
        needs="gram",
        has="non_conflicting homogeneous permutation_equivariant mean_without_conflict",
    ),
    _spec(
        "config",
        "equal cosines, and the length on which the gradients agree",
        "Liu et al. 2024",
        "2408.11104",
        needs="gram",
        has="homogeneous permutation_equivariant scale_invariant",
    ),
    _spec(
        "gradvac",
        "raises cosines to their running averages",
        "Wang et al. 2020",
        "2010.05874",
        needs="gram key",
        has="homogeneous",
    ),
    _spec(
        "krum",
        "the gradients nearest to their neighbours",
        "Blanchard et al. 2017",
        "1703.02757",
        needs="gram",
        has="homogeneous permutation_equivariant convex",
    ),
    _spec(
        "trimmed_mean",
        "mean of every coordinate without its extremes",
        "Yin et al. 2018",
        "1803.01498",
        needs="gradients",
        has="homogeneous permutation_equivariant",
    ),
    _spec(
        "pcd",
        "one primary task, guaranteed progress of the others",
        "Varam et al. 2026",
        "2606.29521",
        needs="gram",
        has="homogeneous",
    ),
    _spec(
        "cr_mogm",
        "any weighting's weights, smoothed (MGDA's by default)",
        "Zhou et al. 2022 (NeurIPS)",
        None,
        needs="gram",
        has="homogeneous permutation_equivariant convex",
    ),
    _spec(
        "modo",
        "weights that follow MGDA's problem on independent batches",
        "Chen et al. 2023",
        "2305.20057",
        needs="gram batches",
        has="permutation_equivariant convex",
    ),
    _spec(
        "sdmgrad",
        "the same, pulled towards a direction",
        "Xiao et al. 2023",
        "2305.18409",
        needs="gram batches",
        has="homogeneous permutation_equivariant convex",
    ),
    _spec(
        "moco",
        "follows averaged gradients and MGDA's problem",
        "Fernando et al. 2022",
        "2210.12624",
        needs="losses gradients memory",
        has="permutation_equivariant convex",
    ),
    _spec(
        "db_mtl",
        "log-losses, and averaged gradients of equal length",
        "Lin et al. 2023",
        "2308.12029",
        needs="losses gradients memory",
        has="homogeneous permutation_equivariant scale_invariant",
    ),
    _spec(
        "excess_mtl",
        "weight goes where the excess risk is largest",
        "He et al. 2024",
        "2402.02009",
        needs="gradients memory",
        has="homogeneous permutation_equivariant",
    ),
    _spec(
        "auto_lambda",
        "weights whose look-ahead step helps held-out losses",
        "Liu et al. 2022",
        "2202.03091",
        needs="gram batches",
        has="permutation_equivariant convex",
    ),
    _spec(
        "moml",
        "the same, by MGDA over the held-out losses",
        "Ye et al. 2021",
        "2102.07121",
        needs="gram batches",
        has="permutation_equivariant convex",
    ),
)

METHODS: dict[str, MethodSpec] = {spec.name: spec for spec in _SPECS}
"""All registered methods by name."""
