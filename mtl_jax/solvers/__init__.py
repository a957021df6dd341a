"""Small solvers that run inside ``jit``: they never raise there and never return NaN."""

from mtl_jax.solvers.cagrad import cagrad_weights as cagrad_weights
from mtl_jax.solvers.simplex import min_norm_point as min_norm_point
