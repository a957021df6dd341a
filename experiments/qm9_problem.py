"""QM9 on the device, its network, its losses and the training step of a method."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtl_jax
from experiments.problem import is_head, make_training
from mtl_jax import data, models, registry, train
from mtl_jax.data import MoleculeInputs, MoleculeSplit
from mtl_jax.models import FunctionalModel, GraphBatch
from mtl_jax.tree import resolve_heads

if TYPE_CHECKING:
    from experiments.qm9 import Qm9Config

Array = jax.Array
EVAL_BATCH = 500


class Qm9Problem(NamedTuple):
    """The three splits on the device, and what is needed to train on them."""

    train: MoleculeSplit
    validation: MoleculeSplit
    test: MoleculeSplit
    std: np.ndarray
    """Of the targets, in published units: an error times it is the published one."""
    task_names: tuple[str, ...]
    units: tuple[str, ...]
    source: str
    models: dict[int, FunctionalModel]
    """The network with one head, and with all."""

    @property
    def num_tasks(self) -> int:
        return len(self.task_names)


def load(config: Qm9Config) -> Qm9Problem:
    """Loads the data and describes the networks.

    Raises:
        ValueError: if sizes do not fit, or the data are damaged.
        FileNotFoundError: if the data are not in ``data_dir``.
    """
    loaded = data.load_qm9(
        config.data_dir,
        source=config.source,
        sizes=config.sizes,
        max_atoms=config.max_atoms,
        seed=config.data_seed,
    )
    sizes = [len(split.targets) for split in loaded[:3]]
    if config.batch_size > sizes[0]:
        raise ValueError(
            f"batch_size must be at most the {sizes[0]} training molecules, got "
            f"{config.batch_size}"
        )
    if min(sizes[1:]) < 1:
        raise ValueError(
            f"validation and test must have molecules, got sizes={tuple(sizes)}"
        )
    networks = {
        count: models.as_functional(
            models.MPNN(count, hidden=config.hidden, edge_hidden=config.edge_hidden)
        )
        for count in (1, len(loaded.task_names))
    }
    return Qm9Problem(
        *jax.device_put(loaded[:3]),
        std=loaded.std,
        task_names=loaded.task_names,
        units=loaded.units,
        source=loaded.source,
        models=networks,
    )


def graph_batch(inputs: MoleculeInputs) -> GraphBatch:
    """What the network sees: numbers, bonds and distances as edge features."""
    nodes, bonds, positions, mask = map(jnp.asarray, inputs)
    edges = models.pair_features(bonds, positions)
    return GraphBatch(nodes.astype(positions.dtype), edges, mask)


def predict(model: FunctionalModel, params: Any, inputs: MoleculeInputs) -> Array:
    """Standardised predictions ``(T, B)``."""
    return model.apply(params, {}, graph_batch(inputs))[0][..., 0]


def make_losses(model: FunctionalModel) -> train.TrainLossesFn:
    """Mean squared error of every task."""

    def losses_fn(params: Any, state: Any, batch: MoleculeSplit, key: Any) -> Any:
        errors = predict(model, params, batch.inputs) - batch.targets.T
        return jnp.square(errors).mean(1), state

    return losses_fn


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: FunctionalModel, key: Array, inputs: MoleculeInputs) -> Any:
    """Initial parameters."""
    return model.init(key, graph_batch(inputs))[0]


@functools.partial(jax.jit, static_argnums=0)
def absolute_errors(model: FunctionalModel, params: Any, split: MoleculeSplit) -> Array:
    """Mean absolute error of every task, standardised ``(T,)``, in large batches."""
    count = split.targets.shape[0]
    batch = min(EVAL_BATCH, count)
    rows = jnp.arange(-(-count // batch) * batch).reshape(-1, batch)

    def total(rows: Array) -> Array:
        inputs, targets = take(split, jnp.minimum(rows, count - 1))
        errors = jnp.abs(predict(model, params, inputs) - targets.T)
        return jnp.where((rows < count)[None], errors, 0).sum(1)

    return jax.lax.map(total, rows).sum(0) / count


def take(split: MoleculeSplit, rows: Array) -> MoleculeSplit:
    """The molecules ``rows (B,)``."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), split)


def of_task(split: MoleculeSplit, task: int) -> MoleculeSplit:
    """The split with the targets of one task, ``(M, 1)``."""
    return split._replace(targets=split.targets[:, task : task + 1])


def training(
    call: str,
    num_tasks: int,
    losses_fn: train.TrainLossesFn,
    learning_rate: float,
    *,
    unit_length: bool = False,
) -> tuple[train.Step, Callable[..., train.TrainState]]:
    """The step of a method with Adam, whose learning rate is part of the state.

    Methods that weigh tasks never store gradients of heads, and those that look at losses
    only take one pull-back, as in a step on the summed loss.

    Args:
        call: call string.
        num_tasks: number of losses.
        losses_fn: of the network.
        learning_rate: at first, see :func:`with_learning_rate`.
        unit_length: divide the combined gradient of the shared parameters by its norm,
            before Adam.

    Raises:
        ValueError: for an unknown method or option.
    """
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=learning_rate)
    if unit_length:
        unit = optax.masked(optax.normalize_by_update_norm(), _shared_marks)
        optimizer = optax.chain(unit, optimizer)
    spec, options = registry.parse(call, also=registry.SOURCE_OPTIONS)
    chosen = set(options) & set(registry.SOURCE_OPTIONS)
    if spec.weighting is None or chosen:
        return make_training(call, num_tasks, losses_fn, optimizer)
    source = mtl_jax.value_and_combined_grad(
        losses_fn,
        mtl_jax.build_weighting(call, num_tasks),
        has_aux=True,
        heads=is_head,
    )

    def init(params: Any, model_state: Any, key: Array) -> train.TrainState:
        return train.init_state(params, model_state, optimizer, key, source=source)

    return train.make_combined_step(source, optimizer), init


def _shared_marks(params: Any) -> Any:
    marks = resolve_heads(is_head, params)
    return jax.tree.map(lambda mark: not mark, marks)


def with_learning_rate(state: train.TrainState, rate: float) -> train.TrainState:
    """The state with another learning rate for the steps to come."""
    rate_array = jnp.asarray(rate, jnp.float32)
    opt_state = optax.tree.set(state.opt_state, learning_rate=rate_array)
    return state._replace(opt_state=opt_state)
