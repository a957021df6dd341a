"""Per-task losses and scores of stacked classification logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax._types import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    r"""Mean cross-entropy per task, :math:`L_t = -\frac1B \sum_b \log p_{t,b,y_{b,t}}`.

    The label is picked with a one-hot mask: its gradient needs no scatter, which XLA
    runs one element at a time on CPUs.

    Args:
        logits: unnormalised log-probabilities ``(T, B, classes)``.
        labels: integer classes ``(B, T)``.

    Returns:
        Losses ``(T,)``.

    Raises:
        ValueError: if the shapes do not fit or the labels are not integers.

    Examples:
        >>> import jax.numpy as jnp
        >>> losses = cross_entropy(jnp.zeros((2, 8, 10)), jnp.ones((8, 2), int))
        >>> print(f"{losses[0]:.3f}, {losses[1]:.3f}")
        2.303, 2.303
    """
    _check(logits, labels)
    picked = jax.nn.one_hot(labels.T, logits.shape[-1], dtype=logits.dtype)
    return -(jax.nn.log_softmax(logits) * picked).sum(-1).mean(-1)


def accuracy(logits: Array, labels: Array) -> Array:
    """Fraction of correct predictions per task.

    Args:
        logits: ``(T, B, classes)``.
        labels: integer classes ``(B, T)``.

    Returns:
        Accuracies in [0, 1], ``(T,)``.

    Raises:
        ValueError: if the shapes do not fit or the labels are not integers.
    """
    _check(logits, labels)
    return (logits.argmax(-1) == labels.T).mean(-1, dtype=logits.dtype)


def _check(logits: Array, labels: Array) -> None:
    if logits.ndim != 3 or labels.shape != (logits.shape[1], logits.shape[0]):
        raise ValueError(
            "logits must have shape (T, B, classes) and labels (B, T), "
            f"got {logits.shape} and {labels.shape}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
