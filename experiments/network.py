"""Pure functions of a network on MultiMNIST bytes: initialise, losses, evaluate."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax import data, models
from mtl_jax.data import Split
from mtl_jax.models import FunctionalModel
from mtl_jax.train import TrainLossesFn

EVAL_BATCH = 1000


def make_losses(model: FunctionalModel) -> TrainLossesFn:
    """Cross-entropy per task on bytes, which become numbers inside the step."""

    def losses_fn(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        images = data.standardize(batch.images)
        logits, model_state = model.apply(
            params, model_state, images, train=True, key=key
        )
        return models.cross_entropy(logits, batch.labels), model_state

    return losses_fn


@functools.partial(jax.jit, static_argnums=0)
def init_model(
    model: FunctionalModel, key: jax.Array, images: jax.Array
) -> tuple[Any, Any]:
    """Initial parameters and model state."""
    return model.init(key, data.standardize(images))


@functools.partial(jax.jit, static_argnums=0)
def correct(
    model: FunctionalModel, params: Any, model_state: Any, split: Split
) -> jax.Array:
    """Which predictions are right, bool ``(N, T)``, in large batches."""
    count = split.labels.shape[0]
    batch = min(EVAL_BATCH, count)
    rows = jnp.arange(-(-count // batch) * batch).reshape(-1, batch)

    def hits(rows: jax.Array) -> jax.Array:
        images, labels = (jnp.take(leaf, rows, axis=0, mode="clip") for leaf in split)
        logits, _ = model.apply(params, model_state, data.standardize(images))
        return logits.argmax(-1).T == labels

    return lax.map(hits, rows).reshape(-1, split.labels.shape[1])[:count]
