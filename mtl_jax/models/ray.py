"""The preference of a conditioned network as learnt channels of a picture."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array
from mtl_jax.models.heads import fan_in_uniform


class RayChannels(nn.Module):
    """Appends a ray to pictures as channels that transposed convolutions draw.

    As in the released COSMOS (arXiv:2103.12718): the ray's ``T`` entries, one pixel, to
    4x4 (kernel 4), ReLU, to 10x10 (kernel 6, stride 2), ReLU, then to the pictures' size by
    nearest neighbours; ``T`` channels throughout, no biases: ``52 T^2`` parameters.
    ``mtl_jax.pareto.append_ray`` appends constant channels instead.

    Args:
        param_dtype: dtype of the parameters.

    Call: ``((x (B, H, W, c), ray (T,))) -> (B, H, W, c + T)``, one argument, a pair.

    Raises:
        ValueError: when called for other shapes.

    >>> from mtl_jax.models import as_functional
    >>> model = as_functional(RayChannels())
    >>> inputs = jnp.zeros((4, 28, 28, 1)), jnp.array([0.25, 0.75])
    >>> params, state = model.init(jax.random.key(0), inputs)
    >>> model.apply(params, state, inputs)[0].shape
    (4, 28, 28, 3)
    """

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: tuple[Array, Array]) -> Array:
        x, ray = inputs
        if x.ndim != 4 or ray.ndim != 1:
            raise ValueError(
                "RayChannels needs a pair of pictures (B, H, W, c) and a ray (T,), got "
                f"{x.shape} and {ray.shape}"
            )
        num_tasks = ray.shape[0]
        y = ray.reshape(1, 1, 1, num_tasks)
        for name, size, stride in (("first", 4, 1), ("second", 6, 2)):
            y = nn.ConvTranspose(
                num_tasks,
                (size, size),
                (stride, stride),
                padding="VALID",
                use_bias=False,
                kernel_init=fan_in_uniform(size**2 * num_tasks),
                param_dtype=self.param_dtype,
                name=name,
            )(y)
            y = nn.relu(y)
        y = y[:, 1:-1, 1:-1]  # 12x12 to 10x10: PyTorch's padding of one
        shape = (1, *x.shape[1:3], num_tasks)
        y = jax.image.resize(y, shape, "nearest").astype(x.dtype)
        return jnp.concatenate([x, jnp.broadcast_to(y, (len(x), *shape[1:]))], axis=-1)
