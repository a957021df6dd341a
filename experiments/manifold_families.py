"""Families of networks over the simplex that the study ``manifold`` trains.

Each is one small object: how a run starts, one pure step, and the network at a point.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mtl_jax
from experiments import problem as shared
from experiments.explore_outputs import Examples
from experiments.manifold import ManifoldConfig
from experiments.manifold_points import Family, losses_of, method, plain, plain_inputs
from experiments.manifold_problems import ManifoldProblem, batch_losses
from mtl_jax import pareto
from mtl_jax.pareto.balancing import BALANCES

Array = jax.Array
LARGEST_WHOLE, CHUNK = 500_000, 4_096
"""Parameters up to which a hypernetwork has a matrix for every leaf; columns else."""


class Trainable(NamedTuple):
    """State of a run of a family of networks."""

    params: Any
    """Whatever is trained: stacked members, a hypernetwork ..."""
    model_state: Any
    opt_state: Any
    rule: Any


def make(name: str, problem: ManifoldProblem, config: ManifoldConfig) -> Family:
    """The family, or the baseline, of that name.

    Args:
        name: one of the configuration's ``families`` or ``baselines``.
        problem: data and network.
        config: settings.

    Raises:
        ValueError: for an unknown method or option.
    """
    makers = {
        "manifold": manifold,
        "low_rank": low_rank,
        "cosmos": cosmos,
        "phn_linear": hypernetwork,
        "phn_epo": functools.partial(hypernetwork, exact=True),
        "ls": plain,
    }
    if name in makers:
        return makers[name](problem, config)
    return method(name, problem, config)


def balance_of(text: str, num_tasks: int) -> Any:
    """The option ``balance`` of Pareto manifolds from its text.

    Raises:
        ValueError: if it names neither a balance nor a weighting.
    """
    if text in BALANCES:
        return text
    try:
        return mtl_jax.build_weighting(text, num_tasks)
    except ValueError as error:
        raise ValueError(
            f"balance must be one of {list(BALANCES)} or a weighting's call string: {error}"
        ) from None


def manifold_options(config: ManifoldConfig, num_tasks: int) -> dict[str, Any]:
    """Options of :func:`mtl_jax.pareto.pareto_manifold` from the configuration."""
    return {
        "samples": config.samples,
        "sampler": config.sampler,
        "concentration": config.concentration,
        "balance": balance_of(config.balance, num_tasks),
        "regularizer": config.regularizer,
        "gate": config.gate,
    }


def manifold(problem: ManifoldProblem, config: ManifoldConfig) -> Family:
    """An ensemble whose mixtures are all trained, one member per task."""
    num_tasks = problem.num_tasks
    source = pareto.value_and_member_grad(
        losses_of(problem),
        num_tasks,
        has_aux=True,
        heads=shared.is_head,
        **manifold_options(config, num_tasks),
    )

    def start(key: Array) -> tuple[Any, Any]:
        # One after another: programs that draw under vmap take longer to compile.
        keys = jax.random.split(key, num_tasks)
        inits = [problem.model.init(each, problem.inputs()) for each in keys]
        return pareto.stack_members([params for params, _ in inits]), inits[0][1]

    needs_grads = config.balance not in ("ls", "rwa")
    return _family(
        "manifold",
        problem,
        config,
        source,
        start,
        pareto.member_mixture,
        pull_backs=config.samples * (num_tasks if needs_grads else 1),
    )


def low_rank(problem: ManifoldProblem, config: ManifoldConfig) -> Family:
    """One network, and a low-rank difference of each member from it.

    Points and regulariser as for the ensemble; the balance is that of linear weights.
    """
    options = manifold_options(config, problem.num_tasks)
    options["balance"] = "ls"
    at = pareto.low_rank_mixture

    def start(key: Array) -> tuple[Any, Any]:
        init_key, key = jax.random.split(key)
        params, model_state = problem.model.init(init_key, problem.inputs())
        members = pareto.low_rank_members(
            params, problem.num_tasks, config.rank, key=key
        )
        return members, model_state

    source = _source(problem, at, **options)
    return _family(
        "low_rank", problem, config, source, start, at, pull_backs=config.samples
    )


def cosmos(problem: ManifoldProblem, config: ManifoldConfig) -> Family:
    """One network that sees the preference beside its inputs; one ray a step."""

    def inputs(raw: Any, alpha: Array) -> Any:
        return pareto.append_ray(problem.prepare(raw), alpha)

    def start(key: Array) -> tuple[Any, Any]:
        first = problem.train.inputs[:1]
        ray = jnp.full(problem.num_tasks, 1 / problem.num_tasks)
        return problem.model.init(key, inputs(first, ray))

    balance = pareto.cosmos_balance(config.cosmos_coefficient)
    source = _source(problem, _itself, inputs, balance=balance)
    return _family("cosmos", problem, config, source, start, _itself, inputs)


def hypernetwork(
    problem: ManifoldProblem, config: ManifoldConfig, exact: bool = False
) -> Family:
    """A network that generates a network for every ray; one ray a step.

    Args:
        problem: data and network.
        config: settings.
        exact: weigh the losses by exact Pareto optimal search instead of the ray.
    """
    num_tasks = problem.num_tasks
    size = problem.num_parameters()
    # A matrix of its own for every leaf would take gigabytes for a ResNet.
    hyper = pareto.pareto_hypernetwork(
        num_tasks,
        hidden=(config.hidden,) * 3,
        chunk=None if size < LARGEST_WHOLE else CHUNK,
    )

    def start(key: Array) -> tuple[Any, Any]:
        init_key, key = jax.random.split(key)
        params, model_state = problem.model.init(init_key, problem.inputs())
        return hyper.init(key, params), model_state

    balance = pareto.epo_balance() if exact else "ls"
    source = _source(problem, hyper.apply, balance=balance)
    return _family(
        "phn_epo" if exact else "phn_linear",
        problem,
        config,
        source,
        start,
        hyper.apply,
        pull_backs=num_tasks if exact else 1,
    )


def _itself(params: Any, alpha: Array) -> Any:
    del alpha
    return params


def _source(
    problem: ManifoldProblem,
    at: Callable[[Any, Array], Any],
    inputs: Callable[[Any, Array], Any] | None = None,
    **options: Any,
) -> pareto.MemberGrad:
    """The gradients of a family whose network at a point is ``at(params, alpha)``."""
    see = plain_inputs(problem) if inputs is None else inputs

    def losses_fn(
        family: Any, alpha: Array, model_state: Any, batch: Examples
    ) -> tuple[Array, Any]:
        outputs, model_state = problem.model.apply(
            at(family, alpha), model_state, see(batch.inputs, alpha), train=True
        )
        return batch_losses(outputs, batch.targets), model_state

    return pareto.value_and_family_grad(
        losses_fn, problem.num_tasks, has_aux=True, **options
    )


def _family(
    name: str,
    problem: ManifoldProblem,
    config: ManifoldConfig,
    source: pareto.MemberGrad,
    start: Callable[[Array], tuple[Any, Any]],
    at: Callable[[Any, Array], Any],
    inputs: Callable[[Any, Array], Any] | None = None,
    pull_backs: int = 1,
) -> Family:
    """A family trained by Adam on what ``source`` says.

    One set of batch statistics is shared by all its networks, as in the release; each step
    averages what its points make of them (there one point after the other moves them).
    """
    optimizer = optax.adam(config.learning_rate)

    def init(key: Array) -> Trainable:
        start_key, points_key = jax.random.split(key)
        params, model_state = start(start_key)
        rule = source.init(params)._replace(key=points_key)
        return Trainable(params, model_state, optimizer.init(params), rule)

    def step(state: Trainable, batch: Examples) -> tuple[Trainable, Array]:
        (losses, states), grads, rule = source.update(
            state.rule, state.params, state.model_state, batch
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        mean = jax.tree.map(lambda leaf: leaf.mean(0), states)
        return Trainable(params, mean, opt_state, rule), losses

    return Family(
        name=name,
        init=init,
        step=step,
        solution=lambda state: (state.params, state.model_state),
        at=lambda solution, alpha: (at(solution[0], alpha), solution[1]),
        inputs=plain_inputs(problem) if inputs is None else inputs,
        pull_backs=pull_backs,
    )
