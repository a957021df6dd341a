"""Scores of multi-task runs, and measures of Pareto fronts, in NumPy.

``scores`` compares methods, ``fronts`` says which points of a front are dominated and how
far two fronts are apart, ``volume`` measures what a front dominates.
"""

from mtl_jax.metrics.fronts import additive_epsilon as additive_epsilon
from mtl_jax.metrics.fronts import coverage as coverage
from mtl_jax.metrics.fronts import epsilon_non_dominated as epsilon_non_dominated
from mtl_jax.metrics.fronts import front_gap as front_gap
from mtl_jax.metrics.fronts import non_dominated as non_dominated
from mtl_jax.metrics.scores import delta_m as delta_m
from mtl_jax.metrics.scores import mean_rank as mean_rank
from mtl_jax.metrics.volume import hypervolume as hypervolume
