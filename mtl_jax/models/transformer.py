"""Transformer encoder with any number of classification heads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax._types import Array, check_num_tasks, check_range
from mtl_jax.models.heads import Heads


class TransformerEncoder(nn.Module):
    """Encoder of token sequences: ``(B, L)`` to features ``(B, width)``.

    Embeddings of tokens and learned positions; ``num_layers`` blocks that normalise
    first, ``x + attention(norm(x))`` then ``x + mlp(norm(x))`` with one hidden GELU
    layer; LayerNorm; mean over the tokens. With ``d = width`` and ``m = mlp_width`` it
    has ``(vocab_size + max_length + 2) d + num_layers (4 d² + 2 d m + 9 d + m)``
    parameters, 5,011,456 by default. Sequences have no padding: all tokens count.

    Args:
        vocab_size: tokens are integers in ``[0, vocab_size)``; others give NaN.
        max_length: longest sequence, number of learned positions.
        width: size of the features, a multiple of ``num_heads``.
        num_layers: number of blocks.
        num_heads: attention heads per block.
        mlp_width: hidden units of each block's MLP.
        dropout: probability to zero, in training, an element of the embeddings or of a
            block's two updates; the survivors are scaled by ``1 / (1 - dropout)``.
        dtype: dtype of the computation, or None for that of the parameters. Statistics
            of the normalisation are at least float32.
        param_dtype: dtype of the parameters.

    Call: ``(tokens (B, L), train=False) -> (B, width)``; the random stream ``dropout``
    is needed in training when dropout is on.

    Raises:
        ValueError: at construction for a bad size; when called for bad tokens.

    References:
        Vaswani et al., "Attention is all you need", arXiv:1706.03762; normalising first:
        Xiong et al., arXiv:2002.04745.
    """

    vocab_size: int = 1000
    max_length: int = 64
    width: int = 256
    num_layers: int = 6
    num_heads: int = 4
    mlp_width: int = 1024
    dropout: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _check_sizes(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Array, train: bool = False) -> Array:
        self._check(tokens)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        embed = nn.Embed(self.vocab_size, self.width, name="tokens", **dtypes)
        positions = self.param(
            "positions",
            nn.initializers.normal(0.02),
            (self.max_length, self.width),
            self.param_dtype,
        )
        x = embed(tokens)
        x = x + positions[None, : tokens.shape[1]].astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for i in range(self.num_layers):
            block = Block(
                self.num_heads, self.mlp_width, self.dropout, **dtypes, name=f"block{i}"
            )
            x = block(x, train)
        return nn.LayerNorm(name="norm", **dtypes)(x).mean(1)

    def _check(self, tokens: Array) -> None:
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.max_length:
            raise ValueError(
                f"tokens must have shape (B, L) with 1 <= L <= {self.max_length}, "
                f"got {tokens.shape}"
            )
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers, got {tokens.dtype}")


class TransformerClassifier(nn.Module):
    """:class:`TransformerEncoder` with one dense head per task.

    The parameters are ``{"encoder": ..., "heads": ...}``, so
    ``lambda path: path.startswith("heads/")`` marks the task-specific ones, stacked with
    leaves ``(T, ...)``: ``T (width + 1) num_outputs`` numbers. The encoder and
    :class:`~mtl_jax.models.heads.Heads` also work alone, on ``params["encoder"]`` and
    ``params["heads"]``.

    Args:
        num_tasks: the number of tasks ``T``.
        num_outputs: logits per task.
        vocab_size, max_length, width, num_layers, num_heads, mlp_width, dropout, dtype,
            param_dtype: see :class:`TransformerEncoder`. The logits are at least float32
            whatever ``dtype`` is.

    Call: ``(tokens (B, L), train=False) -> logits (T, B, outputs)``; the random stream
    ``dropout`` is needed in training when dropout is on.

    Raises:
        ValueError: at construction for a bad size; when called for bad tokens.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from mtl_jax.models import as_functional
        >>> model = as_functional(TransformerClassifier(3, width=32, num_layers=1))
        >>> tokens = jnp.arange(20).reshape(2, 10)
        >>> params, state = model.init(jax.random.key(0), tokens)
        >>> logits, state = model.apply(params, state, tokens)
        >>> logits.shape
        (3, 2, 2)
    """

    num_tasks: int
    num_outputs: int = 2
    vocab_size: int = 1000
    max_length: int = 64
    width: int = 256
    num_layers: int = 6
    num_heads: int = 4
    mlp_width: int = 1024
    dropout: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_num_tasks(self.num_tasks)
        _check_sizes(self)
        super().__post_init__()

    def setup(self) -> None:
        self.encoder = TransformerEncoder(
            vocab_size=self.vocab_size,
            max_length=self.max_length,
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            mlp_width=self.mlp_width,
            dropout=self.dropout,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        self.heads = Heads(
            self.num_tasks,
            self.num_outputs,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def __call__(self, tokens: Array, train: bool = False) -> Array:
        return self.heads(self.encoder(tokens, train), train)


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; ``(B, L, d)`` to the same."""

    num_heads: int
    mlp_width: int
    dropout: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.LayerNorm(name="norm1", **dtypes)(x)
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads, name="attention", **dtypes
        )
        x = x + drop(attention(y))
        y = nn.LayerNorm(name="norm2", **dtypes)(x)
        y = _gelu(nn.Dense(self.mlp_width, name="mlp1", **dtypes)(y))
        return x + drop(nn.Dense(x.shape[-1], name="mlp2", **dtypes)(y))


@jax.custom_jvp
def _gelu(x: Array) -> Array:
    """``jax.nn.gelu``, of which a pull-back keeps one number an entry, the slope.

    Else it keeps every factor of the formula, five times as much; a single backward pass
    is fused with the forward pass and hides it, ``T`` of them in a loop are not.
    """
    return jax.nn.gelu(x)


@_gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    value, slope = jax.jvp(jax.nn.gelu, (x,), (jnp.ones_like(x),))
    return value, slope * dx


def _check_sizes(model: TransformerEncoder | TransformerClassifier) -> None:
    for name in ("vocab_size", "max_length", "width", "num_heads", "mlp_width"):
        check_range(name, getattr(model, name), 1)
    check_range("num_layers", model.num_layers, 0)
    check_range("dropout", model.dropout, 0, 1, open_high=True)
    if model.width % model.num_heads:
        raise ValueError(
            "width must be a multiple of num_heads, got "
            f"width={model.width} and num_heads={model.num_heads}"
        )
