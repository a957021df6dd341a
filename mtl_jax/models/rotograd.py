"""RotoGrad: a rotation of the shared features for every task, so that gradients agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array, check_num_tasks


def cayley(raw: Array) -> Array:
    r"""Returns the rotations :math:`(I - A/2)^{-1} (I + A/2)` of ``A = raw - rawᵀ``.

    Args:
        raw: any matrices ``(..., d, d)``; zero gives the identity.

    Returns:
        Orthogonal matrices of determinant one, ``(..., d, d)``, at least float32: all
        rotations but those that turn a plane by 180 degrees.

    Examples:
        >>> rotation = cayley(jnp.array([[0.0, -2.0], [0.0, 0.0]]))  # a right angle
        >>> print(rotation.round(3) + 0.0)
        [[ 0. -1.]
         [ 1.  0.]]
    """
    raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
    half = (raw - jnp.swapaxes(raw, -1, -2)) / 2
    identity = jnp.eye(raw.shape[-1], dtype=raw.dtype)
    identity = jnp.broadcast_to(identity, raw.shape)
    return jnp.linalg.solve(identity - half, identity + half)


def rotation_loss(raw: Array, feature_grads: Array) -> Array:
    r"""What the rotations minimise: minus the sum of cosines with the mean direction.

    .. math:: -\sum_t \cos\big(R_t^\top G_t,\ V\big), \qquad
              V = \sum_t R_t^\top G_t / \|G_t\|

    for the gradients ``G`` of the losses with respect to the rotated features of their own
    task; the target ``V`` is held fixed.

    Args:
        raw: of :func:`cayley`, ``(T, d, d)``.
        feature_grads: ``G``, ``(T, ..., d)``, any axes for examples and positions.

    Returns:
        A number between ``-T`` (all aligned) and ``T``. Zero gradients count as zero.

    Examples:
        >>> grads = jnp.eye(2)[:, None]  # two tasks, one example, orthogonal
        >>> print(f"{rotation_loss(jnp.zeros((2, 2, 2)), grads):.3f}")
        -1.414
    """
    grads = feature_grads.astype(jnp.promote_types(feature_grads.dtype, raw.dtype))
    units = _unit(grads.reshape(grads.shape[0], -1, grads.shape[-1]))
    back = jnp.einsum("tji,tbj->tbi", cayley(raw), units, precision="highest")
    target = _unit(jax.lax.stop_gradient(back).sum(axis=0)[None])
    return -jnp.sum(back * target)


def _unit(rows: Array) -> Array:
    """Each row ``(B, d)`` divided by its norm, through its largest entry; zero stays."""
    largest = jnp.abs(rows).max(axis=(1, 2), keepdims=True)
    rows = rows / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.square(rows).sum(axis=(1, 2), keepdims=True))
    return rows / jnp.where(length > 0, length, 1)


@jax.custom_vjp
def rotate(raw: Array, z: Array) -> Array:
    """Rotates features ``(..., d)`` for every task, ``(T, ..., d)``.

    The gradient with respect to ``z`` is that of the product. What arrives at ``raw`` is
    the gradient of :func:`rotation_loss` instead, for the gradients of the losses that
    come in: the task losses do not train the rotations.
    """
    rotations = cayley(raw).astype(z.dtype)
    return jnp.einsum("tij,...j->t...i", rotations, z)


def _forward(raw: Array, z: Array) -> tuple[Array, Array]:
    return rotate(raw, z), raw


def _backward(raw: Array, grads: Array) -> tuple[Array, Array]:
    rotations = cayley(raw).astype(grads.dtype)
    downwards = jnp.einsum("tij,t...i->...j", rotations, grads)
    turned = jax.grad(rotation_loss)(raw, jax.lax.stop_gradient(grads))
    return turned.astype(raw.dtype), downwards


rotate.defvjp(_forward, _backward)


class Rotations(nn.Module):
    """RotoGrad's rotations: features ``(..., d)`` to ``(T, ..., d)``, one turn per task.

    Put it between encoder and heads, ``heads(Rotations(T)(encoder(x)))``, with heads that
    take features of their own for each task. The head of task ``t`` sees
    :math:`z_t = R_t z`, so the gradient that reaches the encoder from it is
    :math:`R_t^\\top \\nabla_{z_t} L_t`; the rotations turn until these agree.

    Mark its parameters as task-specific (``heads=``, both in the source and in
    ``aggregate``): the pull-back of the plain sum of the losses then brings the gradient
    of :func:`rotation_loss`, for any optimiser. Not so marked they would stay as they
    are, since a single task is aligned with itself. Give them an optimiser of their own
    with ``optax.partition``; the paper's theory wants a learning rate that falls faster
    than the network's. The paper also gives the gradients one length: use the weighting
    of your choice with ``strategy="features"`` of
    :func:`mtl_jax.value_and_combined_grad`, or on the parameters' gradients.

    Differs from the released code: the Cayley map in place of the matrix exponential;
    cosines in place of squared distances, so that no scale of the losses counts (per task
    the same direction). Both start at the identity. Functions with their own pull-back
    have no push-forward: ``strategy="gramian"`` cannot be used.

    Args:
        num_tasks: the number of tasks ``T``.
        size: how many leading features are turned, the others pass; all by default. The
            cost grows like the cube of it.

    Call: ``z (..., d) -> (T, ..., d)``.

    Raises:
        ValueError: when called, for a ``size`` above ``d`` or below 1.

    Examples:
        >>> z = jnp.ones((8, 4))
        >>> module = Rotations(num_tasks=3)
        >>> params = module.init(jax.random.key(0), z)["params"]
        >>> params["raw"].shape, module.apply({"params": params}, z).shape
        ((3, 4, 4), (3, 8, 4))

    References:
        Javaloy & Valera, *RotoGrad: Gradient Homogenization in Multitask Learning*, 2022,
        arXiv:2103.02631
    """

    num_tasks: int
    size: int | None = None

    def __post_init__(self) -> None:
        check_num_tasks(self.num_tasks)
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Array) -> Array:
        total = z.shape[-1]
        size = total if self.size is None else self.size
        if not 1 <= size <= total:
            raise ValueError(
                f"size must lie between 1 and the number of features, {total}, got {size}"
            )
        raw = self.param("raw", nn.initializers.zeros, (self.num_tasks, size, size))
        turned = rotate(raw, z[..., :size])
        kept = jnp.broadcast_to(
            z[None, ..., size:], (self.num_tasks, *z.shape[:-1], total - size)
        )
        return jnp.concatenate([turned, kept], axis=-1)
