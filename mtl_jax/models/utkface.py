"""ResNet-18 with heads of different sizes: age, gender and race of a face."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array, check_choice
from mtl_jax.models.heads import fan_in_uniform
from mtl_jax.models.resnet import NORMS, STEMS, ResNet18Encoder

FACE_TASKS = (("age", 1), ("gender", 2), ("race", 5))
"""Tasks of UTKFace and their outputs: a number, the logits of two and of five classes."""


class UTKFaceNet(nn.Module):
    """ResNet-18 with one shared encoder and one dense head per task.

    The encoder is that of :class:`~mtl_jax.models.ResNet18`. With the ``cifar`` stem and
    64x64 pictures it has 11,168,832 parameters and the heads 16,392: 11,185,224 in all.
    The parameters are ``{"encoder": ..., "heads": {"age": ...}}``, so
    ``lambda path: path.startswith("heads/")`` marks the task-specific ones.

    Args:
        tasks: name and number of outputs of each task.
        stem: ``"cifar"`` (pictures of at least 25x25) or ``"imagenet"``.
        norm: ``"batch"`` or ``"group"``. Batch statistics tie the pictures of a batch
            together and change with the parameters; for Hessian-vector products take
            BatchNorm in evaluation (``train=False``: an affine map with the running
            statistics) or GroupNorm, which has no state.
        dtype: dtype of the computation, or None for that of inputs and parameters
            together. Statistics and outputs are at least float32.
        param_dtype: dtype of the parameters.

    The paper of continuous Pareto exploration (arXiv:2006.16434) names the data set and a
    ResNet-18; its code for them was not released, so stem, norm and heads are the choice
    of Pareto manifold learning (arXiv:2210.09759).

    Call: ``(x (B, H, W, c), train=False) -> one (B, outputs) per task, in a tuple``.

    Raises:
        ValueError: at construction for a bad option; when called for a bad input shape.

    >>> import jax
    >>> from mtl_jax.models import as_functional
    >>> model = as_functional(UTKFaceNet(norm="group"))
    >>> x = jnp.zeros((8, 64, 64, 3))
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> outputs, _ = jax.eval_shape(model.apply, params, state, x)
    >>> [output.shape for output in outputs]
    [(8, 1), (8, 2), (8, 5)]
    """

    tasks: tuple[tuple[str, int], ...] = FACE_TASKS
    stem: str = "cifar"
    norm: str = "batch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        names = [name for name, _ in self.tasks]
        sizes = [size for _, size in self.tasks]
        if not names or len(set(names)) != len(names) or min(sizes) < 1:
            raise ValueError(
                "tasks must be pairs (name, outputs >= 1) with different names, got "
                f"{self.tasks!r}"
            )
        check_choice("stem", self.stem, STEMS)
        check_choice("norm", self.norm, NORMS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, ...]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        encoder = ResNet18Encoder(self.stem, self.norm, **dtypes, name="encoder")
        heads = NamedHeads(tuple(self.tasks), **dtypes, name="heads")
        return heads(encoder(x, train))


class NamedHeads(nn.Module):
    """One dense head per task, each of its own size: ``(B, d)`` to ``(B, outputs)`` each.

    Where all tasks have the same number of outputs, :class:`~mtl_jax.models.Heads` does
    them in one product. The outputs are at least float32 whatever ``dtype`` is.
    """

    tasks: tuple[tuple[str, int], ...]
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> tuple[Array, ...]:
        uniform = fan_in_uniform(z.shape[-1])
        outputs = []
        for name, size in self.tasks:
            dense = nn.Dense(
                size,
                kernel_init=uniform,
                bias_init=uniform,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )
            output = dense(z)
            outputs.append(output.astype(jnp.promote_types(output.dtype, jnp.float32)))
        return tuple(outputs)
