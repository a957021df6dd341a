"""Pareto sets: curvature, tangents and traces of the front of several losses."""

from mtl_jax.pareto.batches import mean_task_grads as mean_task_grads
from mtl_jax.pareto.directions import both_ways as both_ways
from mtl_jax.pareto.directions import independent_directions as independent_directions
from mtl_jax.pareto.expansion import ExpansionState as ExpansionState
from mtl_jax.pareto.expansion import pareto_expansion as pareto_expansion
from mtl_jax.pareto.front import ParetoFront as ParetoFront
from mtl_jax.pareto.hvp import batched_hvp as batched_hvp
from mtl_jax.pareto.hvp import hvp as hvp
from mtl_jax.pareto.tangents import Tangent as Tangent
from mtl_jax.pareto.tangents import correct_gradients as correct_gradients
from mtl_jax.pareto.tangents import stationarity as stationarity
from mtl_jax.pareto.tangents import tangent as tangent
from mtl_jax.pareto.trace import Counts as Counts
from mtl_jax.pareto.trace import Trace as Trace
from mtl_jax.pareto.trace import trace_front as trace_front
