"""Pareto sets: curvature, tangents and traces of the front of several losses."""

from mtl_jax.pareto.batches import mean_task_grads as mean_task_grads
from mtl_jax.pareto.chebyshev import ChebyshevState as ChebyshevState
from mtl_jax.pareto.chebyshev import chebyshev as chebyshev
from mtl_jax.pareto.chebyshev import chebyshev_weighting as chebyshev_weighting
from mtl_jax.pareto.chebyshev_al import ChebyshevAlState as ChebyshevAlState
from mtl_jax.pareto.chebyshev_al import chebyshev_al as chebyshev_al
from mtl_jax.pareto.chebyshev_al import chebyshev_al_weighting as chebyshev_al_weighting
from mtl_jax.pareto.conditioned import append_ray as append_ray
from mtl_jax.pareto.conditioned import circle_rays as circle_rays
from mtl_jax.pareto.conditioned import cosmos_balance as cosmos_balance
from mtl_jax.pareto.conditioned import cosmos_objective as cosmos_objective
from mtl_jax.pareto.directions import both_ways as both_ways
from mtl_jax.pareto.directions import independent_directions as independent_directions
from mtl_jax.pareto.epo import epo_balance as epo_balance
from mtl_jax.pareto.epo import epo_weights as epo_weights
from mtl_jax.pareto.expansion import ExpansionState as ExpansionState
from mtl_jax.pareto.expansion import pareto_expansion as pareto_expansion
from mtl_jax.pareto.front import ParetoFront as ParetoFront
from mtl_jax.pareto.hvp import batched_hvp as batched_hvp
from mtl_jax.pareto.hvp import hvp as hvp
from mtl_jax.pareto.hypernetwork import Hypernetwork as Hypernetwork
from mtl_jax.pareto.hypernetwork import pareto_hypernetwork as pareto_hypernetwork
from mtl_jax.pareto.low_rank import LowRankMembers as LowRankMembers
from mtl_jax.pareto.low_rank import low_rank_members as low_rank_members
from mtl_jax.pareto.low_rank import low_rank_mixture as low_rank_mixture
from mtl_jax.pareto.manifold import pareto_manifold as pareto_manifold
from mtl_jax.pareto.manifold_family import MemberGrad as MemberGrad
from mtl_jax.pareto.manifold_family import (
    value_and_family_grad as value_and_family_grad,
)
from mtl_jax.pareto.manifold_front import ManifoldFront as ManifoldFront
from mtl_jax.pareto.manifold_front import evaluate_family as evaluate_family
from mtl_jax.pareto.manifold_front import evaluate_manifold as evaluate_manifold
from mtl_jax.pareto.manifold_front import monotonicity as monotonicity
from mtl_jax.pareto.manifold_grads import manifold_points as manifold_points
from mtl_jax.pareto.manifold_grads import (
    value_and_manifold_grads as value_and_manifold_grads,
)
from mtl_jax.pareto.manifold_grads import value_and_member_grad as value_and_member_grad
from mtl_jax.pareto.manifold_rule import ManifoldState as ManifoldState
from mtl_jax.pareto.members import member_mixture as member_mixture
from mtl_jax.pareto.members import member_similarity as member_similarity
from mtl_jax.pareto.members import stack_members as stack_members
from mtl_jax.pareto.multi_forward import multi_forward_penalty as multi_forward_penalty
from mtl_jax.pareto.preference_grids import (
    dirichlet_preferences as dirichlet_preferences,
)
from mtl_jax.pareto.preference_grids import mdmtn_preferences as mdmtn_preferences
from mtl_jax.pareto.recalibration import recalibrate as recalibrate
from mtl_jax.pareto.recalibration import recalibration as recalibration
from mtl_jax.pareto.simplex_samplers import simplex_grid as simplex_grid
from mtl_jax.pareto.tangents import Tangent as Tangent
from mtl_jax.pareto.tangents import correct_gradients as correct_gradients
from mtl_jax.pareto.tangents import stationarity as stationarity
from mtl_jax.pareto.tangents import tangent as tangent
from mtl_jax.pareto.trace import Counts as Counts
from mtl_jax.pareto.trace import Trace as Trace
from mtl_jax.pareto.trace import trace_front as trace_front
