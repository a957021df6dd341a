"""Every weighting as a transformation: ``mtl_jax.NAME(num_tasks, *, ...)``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

import optax

from mtl_jax import weighting
from mtl_jax._types import Weighting
from mtl_jax.transforms.aggregate import aggregate

P = ParamSpec("P")


def _lift(
    factory: Callable[P, Weighting],
) -> Callable[P, optax.GradientTransformationExtraArgs]:
    """Returns the factory of the transformation that a weighting's factory stands for."""

    @functools.wraps(factory)
    def method(
        *args: P.args, **kwargs: P.kwargs
    ) -> optax.GradientTransformationExtraArgs:
        return aggregate(factory(*args, **kwargs))

    name = factory.__name__
    summary, _, rest = (factory.__doc__ or "").partition("\n\n")
    method.__module__ = __name__
    returns = "optax.GradientTransformationExtraArgs"
    method.__annotations__ = {**factory.__annotations__, "return": returns}
    method.__dict__["__signature__"] = inspect.signature(factory).replace(
        return_annotation=returns
    )
    method.__doc__ = (
        f"{summary}\n\n    A transformation from task gradients ``(T, *p)`` to one update "
        f"``(*p)``:\n    :func:`mtl_jax.aggregate` of :func:`mtl_jax.weighting.{name}`, "
        f"documented as follows.\n\n{rest}"
    )
    return method


aligned_mtl = _lift(weighting.aligned_mtl)
auto_lambda = _lift(weighting.auto_lambda)
cagrad = _lift(weighting.cagrad)
config = _lift(weighting.config)
cr_mogm = _lift(weighting.cr_mogm)
dualproj = _lift(weighting.dualproj)
dwa = _lift(weighting.dwa)
fairgrad = _lift(weighting.fairgrad)
famo = _lift(weighting.famo)
gls = _lift(weighting.gls)
gradnorm = _lift(weighting.gradnorm)
gradvac = _lift(weighting.gradvac)
imtl = _lift(weighting.imtl)
imtl_g = _lift(weighting.imtl_g)
imtl_l = _lift(weighting.imtl_l)
krum = _lift(weighting.krum)
ls = _lift(weighting.ls)
mgda = _lift(weighting.mgda)
modo = _lift(weighting.modo)
moml = _lift(weighting.moml)
nash_mtl = _lift(weighting.nash_mtl)
pbi = _lift(weighting.pbi)
pcd = _lift(weighting.pcd)
pcgrad = _lift(weighting.pcgrad)
rlw = _lift(weighting.rlw)
sdmgrad = _lift(weighting.sdmgrad)
si = _lift(weighting.si)
stch = _lift(weighting.stch)
upgrad = _lift(weighting.upgrad)
uw = _lift(weighting.uw)
