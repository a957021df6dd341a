"""Weightings: pure functions from the Gramian and the losses to task weights.

Each name is also a transformation of the package, ``mtl_jax.NAME``, by way of
:func:`mtl_jax.aggregate`; ``every_k`` wraps another weighting, and ``stateless`` and
``from_solver`` make new ones.
"""

from mtl_jax._types import Statistics as Statistics
from mtl_jax._types import Weighting as Weighting
from mtl_jax.weighting._base import from_solver as from_solver
from mtl_jax.weighting._base import stateless as stateless
from mtl_jax.weighting.aligned import aligned_mtl as aligned_mtl
from mtl_jax.weighting.cagrad import cagrad as cagrad
from mtl_jax.weighting.config import config as config
from mtl_jax.weighting.dualproj import dualproj as dualproj
from mtl_jax.weighting.fairgrad import fairgrad as fairgrad
from mtl_jax.weighting.famo import famo as famo
from mtl_jax.weighting.gls import gls as gls
from mtl_jax.weighting.gradnorm import gradnorm as gradnorm
from mtl_jax.weighting.gradvac import gradvac as gradvac
from mtl_jax.weighting.held_out import auto_lambda as auto_lambda
from mtl_jax.weighting.held_out import moml as moml
from mtl_jax.weighting.imtl import imtl_g as imtl_g
from mtl_jax.weighting.imtl_l import imtl as imtl
from mtl_jax.weighting.imtl_l import imtl_l as imtl_l
from mtl_jax.weighting.krum import krum as krum
from mtl_jax.weighting.loss_based import dwa as dwa
from mtl_jax.weighting.loss_based import si as si
from mtl_jax.weighting.loss_based import uw as uw
from mtl_jax.weighting.mgda import mgda as mgda
from mtl_jax.weighting.modo import modo as modo
from mtl_jax.weighting.nash import nash_mtl as nash_mtl
from mtl_jax.weighting.pbi import pbi as pbi
from mtl_jax.weighting.pcd import pcd as pcd
from mtl_jax.weighting.pcgrad import pcgrad as pcgrad
from mtl_jax.weighting.sdmgrad import sdmgrad as sdmgrad
from mtl_jax.weighting.smoothing import cr_mogm as cr_mogm
from mtl_jax.weighting.smoothing import every_k as every_k
from mtl_jax.weighting.static import ls as ls
from mtl_jax.weighting.static import rlw as rlw
from mtl_jax.weighting.stch import stch as stch
from mtl_jax.weighting.upgrad import upgrad as upgrad
