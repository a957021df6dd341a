"""Per-task losses and scores, of stacked logits and of outputs of different kinds."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtl_jax._types import Array, check_range


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


def mixed_losses(
    outputs: Sequence[Array],
    targets: Sequence[Array],
    *,
    huber: float | None = None,
    reduce: bool = True,
) -> Array:
    r"""Mean loss of tasks of different kinds, told by the type of their targets.

    * integers: cross-entropy, :math:`-\log p_y`;
    * floating point: regression, :math:`r^2` with the residual :math:`r = z - y`; or,
      with ``huber`` = δ, :math:`r^2/2` where :math:`|r| \le \delta` and
      :math:`\delta (|r| - \delta/2)` beyond.

    Huber's loss (δ = 1 is that of Pareto manifold learning for ages) has no curvature
    beyond δ; the squared error has the same curvature everywhere, which suits
    Hessian-vector products.

    Args:
        outputs: one array per task, ``(B, classes)`` or ``(B, 1)``.
        targets: one array ``(B,)`` per task, classes or numbers.
        huber: δ > 0, or None for the squared error.
        reduce: whether to take the mean over the examples.

    Returns:
        Losses ``(T,)``, or ``(T, B)`` without ``reduce``.

    Raises:
        ValueError: if the shapes do not fit, or for a bad ``huber``.

    Examples:
        >>> import jax.numpy as jnp
        >>> outputs = jnp.array([[1.0], [3.0]]), jnp.zeros((2, 5))
        >>> targets = jnp.array([0.0, 0.0]), jnp.array([4, 1])
        >>> [round(float(loss), 3) for loss in mixed_losses(outputs, targets)]
        [5.0, 1.609]
        >>> [round(float(loss), 3) for loss in mixed_losses(outputs, targets, huber=1.0)]
        [1.5, 1.609]
    """
    if huber is not None:
        check_range("huber", huber, 0, open_low=True)
    _check_mixed(outputs, targets)
    losses = []
    for output, target in zip(outputs, targets, strict=True):
        if jnp.issubdtype(target.dtype, jnp.integer):
            picked = jax.nn.one_hot(target, output.shape[-1], dtype=output.dtype)
            losses.append(-(jax.nn.log_softmax(output) * picked).sum(-1))
            continue
        residual = output[:, 0] - target
        if huber is None:
            losses.append(residual**2)
        else:
            inner = jnp.clip(residual, -huber, huber)
            losses.append(inner * (residual - inner / 2))
    stacked = jnp.stack(losses)
    return stacked.mean(-1) if reduce else stacked


def mixed_errors(
    outputs: Sequence[Array], targets: Sequence[Array], *, reduce: bool = True
) -> Array:
    """Share of wrong classes, or mean absolute error where the targets are numbers.

    Args:
        outputs: one array per task, ``(B, classes)`` or ``(B, 1)``.
        targets: one array ``(B,)`` per task, classes or numbers.
        reduce: whether to take the mean over the examples.

    Returns:
        Errors ``(T,)``, or ``(T, B)`` without ``reduce``; less is better for all.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check_mixed(outputs, targets)
    errors = [
        (output.argmax(-1) != target).astype(output.dtype)
        if jnp.issubdtype(target.dtype, jnp.integer)
        else jnp.abs(output[:, 0] - target)
        for output, target in zip(outputs, targets, strict=True)
    ]
    stacked = jnp.stack(errors)
    return stacked.mean(-1) if reduce else stacked


def _check_mixed(outputs: Sequence[Array], targets: Sequence[Array]) -> None:
    if len(outputs) != len(targets) or not len(outputs):
        raise ValueError(
            "outputs and targets must hold one array per task, got "
            f"{len(outputs)} and {len(targets)}"
        )
    for k, (output, target) in enumerate(zip(outputs, targets, strict=True)):
        number = jnp.issubdtype(target.dtype, jnp.floating)
        fits = output.ndim == 2 and target.shape == output.shape[:1]
        if not fits or (number and output.shape[1] != 1):
            raise ValueError(
                f"task {k} must have outputs (B, {1 if number else 'classes'}) and "
                f"targets (B,), got {output.shape} and {target.shape}"
            )
