"""Small solvers that run inside ``jit``: they never raise there and never return NaN."""

from mtl_jax._types import Solution as Solution
from mtl_jax.solvers.cagrad import cagrad_update_weights as cagrad_update_weights
from mtl_jax.solvers.cagrad import cagrad_weights as cagrad_weights
from mtl_jax.solvers.cone import dual_cone_weights as dual_cone_weights
from mtl_jax.solvers.fairness import fair_weights as fair_weights
from mtl_jax.solvers.jacobi import gram_spectrum as gram_spectrum
from mtl_jax.solvers.krylov import KrylovInfo as KrylovInfo
from mtl_jax.solvers.krylov import cg as cg
from mtl_jax.solvers.krylov import minres as minres
from mtl_jax.solvers.nash import nash_weights as nash_weights
from mtl_jax.solvers.projection import project_on_simplex as project_on_simplex
from mtl_jax.solvers.simplex import min_norm_point as min_norm_point
from mtl_jax.solvers.simplex_qp import simplex_qp as simplex_qp
