"""Baselines of the study ``sparse``: MGDA, distillation, attention, single-task networks.

All keep the epoch with the best validation accuracy, as ours do. (Released: MGDA trains on
the validation pictures as well and keeps its last epoch; the weights of the losses of KDMTL
and MTAN are searched for. MTAN's are equal here, which Adam makes independent of scale.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtl_jax
from experiments import sparse_lab
from experiments.explore_outputs import Examples
from experiments.sparse_problems import network, start
from experiments.sparse_steps import Fit, losses_of
from experiments.sparse_training import Evaluator, Trained, Trainer
from mtl_jax import models
from mtl_jax import train as training

Array = jax.Array
Record = dict[str, Any]
DECAYS = {
    "mgda": (0.5, 0.3),
    "stl": (0.5, 0.3),
    "kdmtl": (0.98, 0.125),
    "mtan": (0.5, 0.125),
}
"""Factor of the learning rate, and after which share of the epochs it is due again."""
COLOUR_DECAYS = {**DECAYS, "stl": (0.98, 0.01)}
ADAPTOR_DECAY = 5e-4


class PlainRun(NamedTuple):
    """State of a run on a sum of losses."""

    params: Any
    model_state: Any
    opt_state: Any
    teachers: Any
    """Trunks that a distilled network imitates, stacked by task; else empty."""
    key: Array
    count: Array


def train(
    lab: sparse_lab.Lab, architecture: str, method: str, seed: int
) -> tuple[Record, Any]:
    """Record and arrays of one baseline."""
    if method == "stl":
        return _single(lab, seed)
    if method == "mgda":
        trained = _mgda(lab, architecture, seed)
    else:
        teachers = _teachers(lab, seed) if method == "kdmtl" else {}
        fit = _plain(lab, lab.trainer, method, method, teachers)
        state = fit.init(*lab.start(method, seed, True), seed)
        (trained,) = lab.trainer.run(fit, [state], lab.evaluator(method), seed)
    entry = {
        **lab.scores(architecture, trained),
        "parameters": sparse_lab.num_parameters(trained.params),
        "measures": sparse_lab.measures(trained.params),
    }
    return entry, {"params": trained.params, "model_state": trained.model_state}


def _rate(lab: sparse_lab.Lab, method: str, steps_per_epoch: int) -> Any:
    colours = lab.problem.images == "cifar10_mnist"
    factor, share = (COLOUR_DECAYS if colours else DECAYS)[method]
    epochs = getattr(lab.config, f"{method}_epochs")
    due = max(1, round(share * epochs)) * steps_per_epoch
    rate = getattr(lab.config, f"{method}_rate")
    return optax.exponential_decay(rate, due, factor, staircase=True)


def _mgda(lab: sparse_lab.Lab, architecture: str, seed: int) -> Trained:
    net, trainer = lab.network(architecture), lab.trainer
    count = lab.problem.num_tasks
    rate = _rate(lab, "mgda", trainer.steps_per_epoch)
    tx = optax.chain(
        mtl_jax.aggregate(mtl_jax.weighting.mgda(count), heads=net.task_specific),
        optax.sgd(rate, momentum=0.9),
    )
    inner = training.make_train_step(
        losses_of(net, lab.problem), tx, heads=net.task_specific
    )

    def step(state: Any, batch: Examples) -> tuple[Any, dict[str, Array]]:
        state, record = inner(state, batch)
        return state, {"losses": record.losses}

    params, model_state = lab.start(architecture, seed, False)
    state = training.init_state(params, model_state, tx, jax.random.key(seed))
    fit = Fit("mgda", lambda: state, step, lab.config.mgda_epochs, 1)
    return trainer.run(fit, [state], lab.evaluator(architecture), seed)[0]


def _plain(
    lab: sparse_lab.Lab, trainer: Trainer, name: str, method: str, teachers: Any
) -> Fit:
    """Adam on the sum of the losses, and of distillation where there are teachers."""
    problem = trainer.problem
    net = network(name, problem)
    rate = _rate(lab, method, trainer.steps_per_epoch)
    optimizer = optax.adam(rate)
    if teachers:
        optimizer = optax.chain(
            optax.add_decayed_weights(ADAPTOR_DECAY, _adaptors), optimizer
        )
    trunk = models.Trunk(problem.images)
    factors = jnp.asarray(lab.config.kdmtl_weights)

    def total(
        params: Any, state: PlainRun, batch: Examples, key: Array
    ) -> tuple[Array, Any]:
        inputs = problem.prepare(batch.inputs, key)
        outputs, model_state = net.model.apply(
            params, state.model_state, inputs, train=True
        )
        if not teachers:
            losses = models.mixed_losses(outputs, batch.targets)
            return losses.sum(), (losses, model_state)
        logits, adapted = outputs
        losses = models.mixed_losses(logits, batch.targets)
        features = jax.vmap(lambda variables: trunk.apply(variables, inputs))(
            state.teachers
        )
        apart = models.distillation_losses(adapted, jnp.asarray(features))
        return losses.sum() + factors @ apart, (losses, model_state)

    def init(params: Any, model_state: Any, seed: int) -> PlainRun:
        return PlainRun(
            params,
            model_state,
            optimizer.init(params),
            teachers,
            jax.random.key(seed),
            jnp.zeros([], jnp.int32),
        )

    def step(state: PlainRun, batch: Examples) -> tuple[PlainRun, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.count)
        grads, (losses, model_state) = jax.grad(total, has_aux=True)(
            state.params, state, batch, key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return state._replace(
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            count=state.count + 1,
        ), {"losses": losses}

    return Fit(method, init, step, getattr(lab.config, f"{method}_epochs"), 1)


def _adaptors(params: Any) -> Any:
    return {
        name: jax.tree.map(lambda _, own=name == "adaptors": own, node)
        for name, node in params.items()
    }


def _single(lab: sparse_lab.Lab, seed: int) -> tuple[Record, Any]:
    """A network per task, one program for all: the first axis of the arrays is the task."""
    tasks = range(lab.problem.num_tasks)
    runs: list[Trained] = []
    entries: list[Record] = []
    first = lab.problem.of_task(0)
    trainer = Trainer(first, lab.config.batch_size, lab.config.steps_per_epoch)
    fit = _plain(lab, trainer, "hps", "stl", {})
    evaluate = Evaluator(network("hps", first), first)
    for task in tasks:
        problem = lab.problem.of_task(task)
        # In order of the tasks: networks of different tasks start apart.
        begin = start(network("hps", first), problem, seed + 1000 * task, lsuv=False)
        (trained,) = trainer.run(
            fit, [fit.init(*begin, seed)], evaluate, seed, data=problem
        )
        runs.append(trained)
        found = {
            split: evaluate(
                trained.params, trained.model_state, getattr(problem, split)
            )
            for split in ("validation", "test")
        }
        entries.append(
            {
                "train_losses": trained.history[-1]["losses"],
                "validation_losses": found["validation"][0],
                "validation": found["validation"][1],
                "test_losses": found["test"][0],
                "test": found["test"][1],
            }
        )
    joined = {key: [each[key][0] for each in entries] for key in entries[0]}
    entry = {
        **joined,
        "epoch": [trained.epoch for trained in runs],
        "history": [trained.history for trained in runs],
        "steps": sum(trained.steps for trained in runs),
        "seconds": round(sum(trained.seconds for trained in runs), 2),
        "compile_seconds": round(sum(trained.compile_seconds for trained in runs), 2),
        "parameters": sum(sparse_lab.num_parameters(each.params) for each in runs),
        "measures": sparse_lab.measures(runs[0].params),
    }
    stacked = jax.tree.map(
        lambda *each: np.stack(each),
        *[(each.params, each.model_state) for each in runs],
    )
    return entry, {"params": stacked[0], "model_state": stacked[1]}


def _teachers(lab: sparse_lab.Lab, seed: int) -> Any:
    """The trunks of the single-task networks, stacked by task."""
    from experiments import sparse_table  # which imports this module

    sparse_table.row(lab, "stl", "stl", seed)
    problem = lab.problem.of_task(0)
    inputs = problem.prepare(problem.train.inputs[:1], None)
    one: Callable[[], Any] = lambda: network("hps", problem).model.init(  # noqa: E731
        jax.random.key(0), inputs
    )
    count = lab.problem.num_tasks
    params, state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype),
        jax.eval_shape(one),
    )
    name = sparse_table.part_name("stl", "stl", seed)
    arrays = lab.store.arrays(name, {"params": params, "model_state": state})
    variables = {"params": arrays["params"]["encoder"]}
    for collection, tree in arrays["model_state"].items():
        variables[collection] = tree["encoder"]
    return jax.tree.map(jnp.asarray, variables)
