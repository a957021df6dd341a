"""Weightings: pure functions from the Gramian and the losses to task weights.

Each name is also a transformation of the package, ``mtl_jax.NAME``, by way of
:func:`mtl_jax.aggregate`.
"""

from mtl_jax._types import Statistics as Statistics
from mtl_jax._types import Weighting as Weighting
from mtl_jax.weighting.aligned import aligned_mtl as aligned_mtl
from mtl_jax.weighting.cagrad import cagrad as cagrad
from mtl_jax.weighting.gradnorm import gradnorm as gradnorm
from mtl_jax.weighting.imtl import imtl_g as imtl_g
from mtl_jax.weighting.loss_based import dwa as dwa
from mtl_jax.weighting.loss_based import si as si
from mtl_jax.weighting.loss_based import uw as uw
from mtl_jax.weighting.mgda import mgda as mgda
from mtl_jax.weighting.nash import nash_mtl as nash_mtl
from mtl_jax.weighting.pcgrad import pcgrad as pcgrad
from mtl_jax.weighting.static import ls as ls
from mtl_jax.weighting.static import rlw as rlw
from mtl_jax.weighting.upgrad import upgrad as upgrad
