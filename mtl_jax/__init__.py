"""Multi-task and multi-objective learning as composable optax transformations.

Every method is an ``optax.GradientTransformation`` that turns task gradients, stacked on a
leading axis by :func:`value_and_task_grads`, into one update::

    tx = optax.chain(mtl_jax.nash_mtl(num_tasks=2), optax.adam(1e-3))
    (losses, task_grads) = mtl_jax.value_and_task_grads(losses_fn)(params, batch)
    updates, state = tx.update(task_grads, state, params, losses=losses)
"""

from mtl_jax import metrics as metrics
from mtl_jax import pareto as pareto
from mtl_jax import sharding as sharding
from mtl_jax import solvers as solvers
from mtl_jax import sparsity as sparsity
from mtl_jax import train as train
from mtl_jax import tree as tree
from mtl_jax import weighting as weighting
from mtl_jax._types import Statistics as Statistics
from mtl_jax._types import Weighting as Weighting
from mtl_jax.combined import CombinedGrad as CombinedGrad
from mtl_jax.combined import CombinedState as CombinedState
from mtl_jax.combined import value_and_combined_grad as value_and_combined_grad
from mtl_jax.features import Split as Split
from mtl_jax.gradients import value_and_task_grads as value_and_task_grads
from mtl_jax.pareto import chebyshev as chebyshev
from mtl_jax.pareto import chebyshev_al as chebyshev_al
from mtl_jax.pareto import pareto_manifold as pareto_manifold
from mtl_jax.registry import METHODS as METHODS
from mtl_jax.registry import MethodSpec as MethodSpec
from mtl_jax.registry import build as build
from mtl_jax.registry import build_weighting as build_weighting
from mtl_jax.transforms import AggregateState as AggregateState
from mtl_jax.transforms import accumulate as accumulate
from mtl_jax.transforms import aggregate as aggregate
from mtl_jax.transforms import aggregate_average as aggregate_average
from mtl_jax.transforms import aligned_mtl as aligned_mtl
from mtl_jax.transforms import auto_lambda as auto_lambda
from mtl_jax.transforms import cagrad as cagrad
from mtl_jax.transforms import clip_tasks as clip_tasks
from mtl_jax.transforms import config as config
from mtl_jax.transforms import cr_mogm as cr_mogm
from mtl_jax.transforms import db_mtl as db_mtl
from mtl_jax.transforms import dualproj as dualproj
from mtl_jax.transforms import dwa as dwa
from mtl_jax.transforms import excess_mtl as excess_mtl
from mtl_jax.transforms import fairgrad as fairgrad
from mtl_jax.transforms import famo as famo
from mtl_jax.transforms import gls as gls
from mtl_jax.transforms import graddrop as graddrop
from mtl_jax.transforms import gradnorm as gradnorm
from mtl_jax.transforms import gradvac as gradvac
from mtl_jax.transforms import groupwise as groupwise
from mtl_jax.transforms import imtl as imtl
from mtl_jax.transforms import imtl_g as imtl_g
from mtl_jax.transforms import imtl_l as imtl_l
from mtl_jax.transforms import krum as krum
from mtl_jax.transforms import ls as ls
from mtl_jax.transforms import mgda as mgda
from mtl_jax.transforms import moco as moco
from mtl_jax.transforms import modo as modo
from mtl_jax.transforms import moml as moml
from mtl_jax.transforms import monitor as monitor
from mtl_jax.transforms import nash_mtl as nash_mtl
from mtl_jax.transforms import normalize as normalize
from mtl_jax.transforms import pbi as pbi
from mtl_jax.transforms import pcd as pcd
from mtl_jax.transforms import pcgrad as pcgrad
from mtl_jax.transforms import rlw as rlw
from mtl_jax.transforms import sdmgrad as sdmgrad
from mtl_jax.transforms import si as si
from mtl_jax.transforms import stch as stch
from mtl_jax.transforms import trimmed_mean as trimmed_mean
from mtl_jax.transforms import upgrad as upgrad
from mtl_jax.transforms import uw as uw

__version__ = "0.1.0"
