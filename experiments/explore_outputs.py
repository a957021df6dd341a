"""Networks of the study ``explore``: losses and errors of every single example."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import data, models

Array = jax.Array
LENET = models.as_functional(models.LeNet(2, variant="small"))
CENSUS = models.as_functional(models.CensusMLP())
FACES = models.as_functional(models.UTKFaceNet(stem="imagenet", norm="group"))


class Examples(NamedTuple):
    """Inputs and targets on the device, one entry per example: leaves ``(N, ...)``."""

    inputs: Any
    targets: Any

    @property
    def count(self) -> int:
        return len(jax.tree.leaves(self.inputs)[0])


def digit_examples(params: Any, batch: Examples) -> tuple[Array, Array]:
    """Losses and errors ``(2, B)`` of LeNet on pictures of two digits."""
    logits, _ = LENET.apply(params, {}, data.standardize(batch.inputs))
    return _by_task(
        [_classified(*each) for each in zip(logits, batch.targets.T, strict=True)]
    )


def census_examples(params: Any, batch: Examples) -> tuple[Array, Array]:
    """Losses and errors ``(3, B)`` of the perceptron on rows of features."""
    logits, _ = CENSUS.apply(params, {}, batch.inputs)
    return _by_task(
        [_classified(*each) for each in zip(logits, batch.targets.T, strict=True)]
    )


def face_examples(
    age_scale: float, params: Any, batch: Examples
) -> tuple[Array, Array]:
    """Losses and errors ``(3, B)`` of ResNet-18 on faces; ages are standardised."""
    outputs, _ = FACES.apply(params, {}, picture_numbers(batch.inputs))
    (age, *logits), (years, *labels) = outputs, batch.targets
    off = age[:, 0] - years
    classes = [_classified(*each) for each in zip(logits, labels, strict=True)]
    return _by_task([(jnp.square(off), age_scale * jnp.abs(off)), *classes])


def picture_numbers(images: Any) -> Any:
    """Bytes to numbers in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1


def _classified(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Cross-entropies and errors in percent, ``(B,)``, of logits ``(B, classes)``."""
    picked = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    losses = -(jax.nn.log_softmax(logits) * picked).sum(-1)
    return losses, 100.0 * (logits.argmax(-1) != labels)


def _by_task(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    losses, errors = zip(*pairs, strict=True)
    return jnp.stack(losses), jnp.stack(errors)
