"""How the study ``sparse`` trains: one pure step of the weighted Chebyshev method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.explore_outputs import Examples
from experiments.sparse import SparseConfig
from experiments.sparse_problems import Network, SparseProblem
from mtl_jax import Statistics, models, pareto, sparsity, tree

Array = jax.Array


class Fit(NamedTuple):
    """One way to train a network."""

    name: str
    init: Callable[..., Any]
    """State of a run, a pytree of arrays; its first two entries are parameters and model
    state."""
    step: Callable[[Any, Examples], tuple[Any, dict[str, Array]]]
    """``step(state, batch) -> (state, record)``; the record has ``losses (T,)``."""
    epochs: int
    iteration: int
    """Epochs of an outer iteration."""


class ChebyshevRun(NamedTuple):
    """State of a run of :func:`chebyshev_fit`."""

    params: Any
    model_state: Any
    opt_state: Any
    rule: Any
    """Of :func:`mtl_jax.chebyshev_al`."""
    importance: Array
    """``(k0, k1, ..., km)``, float32."""
    strength: Array
    """Factor of the proximal steps."""
    pressure: Array
    """Sum of the sparsity objective's weights since the last proximal step."""
    labels: dict[str, Array]
    """Clusters of rows by kernel, -1 for zero rows; empty: nothing is tied."""
    key: Array
    count: Array


def losses_of(net: Network, problem: SparseProblem) -> Callable[..., Any]:
    """``losses_fn(params, model_state, batch, key) -> (losses (T,), model_state)``."""

    def losses_fn(
        params: Any, model_state: Any, batch: Examples, key: Array
    ) -> tuple[Array, Any]:
        inputs = problem.prepare(batch.inputs, key)
        outputs, model_state = net.model.apply(params, model_state, inputs, train=True)
        return models.mixed_losses(outputs, batch.targets), model_state

    return losses_fn


def rate_of(config: SparseConfig, per_iteration: int) -> Callable[[Any], Any]:
    """The learning rate of a step, the same throughout an outer iteration."""
    return optax.exponential_decay(
        config.learning_rate, per_iteration, config.decay, staircase=True
    )


def chebyshev_fit(
    net: Network,
    problem: SparseProblem,
    config: SparseConfig,
    *,
    iterations: int,
    steps_per_epoch: int,
    max_sparsity: float | None = None,
    cosines: bool = False,
) -> Fit:
    """Training by the augmented Lagrangian of the weighted Chebyshev problem.

    Objective 0 is GrOWL, whose gradient proximal steps stand for, some in each epoch and
    the last at its end: between two of them the noise of Adam's steps moves a row's norm
    by their square root, while what the tasks need grows in proportion. A proximal step
    makes up for all steps since the last one. Adam divides gradients by their size, so
    that the sum of the task weights would count only through its epsilon: tasks get
    shares, the proximal step gets the weight itself.

    Args:
        net: network.
        problem: data.
        config: settings.
        iterations: outer iterations.
        steps_per_epoch: batches of an epoch.
        max_sparsity: greatest share of zero rows in a layer, reached in equal amounts
            over the iterations; ``None``: no proximal steps.
        cosines: record the cosine between the first two tasks' gradients of the shared
            part, which takes one more backward pass.
    """
    per_iteration = config.epochs_per_iteration * steps_per_epoch
    rate = rate_of(config, per_iteration)
    optimizer = optax.adam(rate)
    losses_fn = losses_of(net, problem)
    prox, every = None, 1
    if max_sparsity is not None:
        paper = config.growl_mode == "paper"
        every = _near_divisor(steps_per_epoch, 1 if paper else config.growl_steps)
        prox = sparsity.growl(
            None if paper else rate,
            max_sparsity=lambda count: (
                jnp.minimum(1.0, (count // per_iteration + 1) / iterations)
                * max_sparsity
            ),
            mode=config.growl_mode,
            every=every,
        )

    def rule(importance: Array) -> Any:
        return pareto.chebyshev_al_weighting(
            problem.num_tasks + 1,
            importance=importance,
            epsilon=config.epsilon,
            every=per_iteration,
            penalty=config.penalty,
            mode=config.mode,
            t_learning_rate=config.learning_rate,
            t_decay=config.decay,
        )

    def init(
        params: Any,
        model_state: Any,
        importance: Any,
        seed: int,
        labels: dict[str, Any] | None = None,
        strength: float | None = None,
    ) -> ChebyshevRun:
        k = jnp.asarray(importance, jnp.float32)
        first = optimizer.init(params), () if prox is None else prox.init(params)
        factor = config.growl_strength if strength is None else strength
        return ChebyshevRun(
            params,
            model_state,
            first,
            rule(k).init(),
            k,
            jnp.asarray(factor, jnp.float32),
            jnp.zeros([]),
            jax.tree.map(jnp.asarray, labels or {}),
            jax.random.key(seed),
            jnp.zeros([], jnp.int32),
        )

    def step(
        state: ChebyshevRun, batch: Examples
    ) -> tuple[ChebyshevRun, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.count)
        params = state.params
        losses, pull, model_state = jax.vjp(
            lambda params: losses_fn(params, state.model_state, batch, key),
            params,
            has_aux=True,
        )
        level = jnp.zeros([]) if prox is None else sparsity.growl_loss(params)
        objectives = jnp.concatenate([level.reshape(1), losses])
        weights, new_rule = rule(state.importance).update(
            Statistics(gram=None, losses=objectives), state.rule
        )
        shares = weights[1:] / jnp.maximum(weights[1:].sum(), 1e-30)
        record = {"losses": losses, "weights": weights}
        if cosines:
            grads = [pull(unit)[0] for unit in jnp.eye(problem.num_tasks)]
            record["cosine"] = tree_cosine(*(_shared(net, each) for each in grads[:2]))
            updates = jax.tree.map(
                lambda *each: sum(s * g for s, g in zip(shares, each, strict=True)),
                *grads,
            )
        else:
            (updates,) = pull(shares)
        opt_state, prox_state = state.opt_state
        updates, opt_state = optimizer.update(updates, opt_state)
        pressure = state.pressure + weights[0]
        if prox is not None:
            updates, prox_state = prox.update(
                updates,
                prox_state,
                params,
                sparsity_weight=state.strength * pressure / every,
            )
            pressure = jnp.where((state.count + 1) % every == 0, 0.0, pressure)
        params: Any = optax.apply_updates(params, updates)
        if state.labels:
            params = sparsity.tie(params, state.labels)
        return state._replace(
            params=params,
            model_state=model_state,
            opt_state=(opt_state, prox_state),
            rule=new_rule,
            pressure=pressure,
            count=state.count + 1,
        ), record

    epochs = iterations * config.epochs_per_iteration
    return Fit("chebyshev", init, step, epochs, config.epochs_per_iteration)


def _near_divisor(steps: int, parts: int) -> int:
    """The divisor of ``steps`` nearest to ``steps / parts``."""
    divisors = [n for n in range(1, steps + 1) if steps % n == 0]
    return min(divisors, key=lambda n: abs(n - steps / parts))


def _shared(net: Network, grads: Any) -> list[Array]:
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    return [g for path, g in leaves if not net.task_specific(tree.path_name(path))]


def tree_cosine(a: list[Array], b: list[Array]) -> Array:
    """Cosine between two lists of arrays, 0 where one vanishes."""

    def dot(x: list[Array], y: list[Array]) -> Array:
        return sum(
            (jnp.sum(u * v) for u, v in zip(x, y, strict=True)), start=jnp.zeros([])
        )

    norms = jnp.sqrt(dot(a, a) * dot(b, b))
    return jnp.where(norms > 0, dot(a, b) / jnp.where(norms > 0, norms, 1), 0)
