"""The shared representation: where the encoder ends and the heads begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Var

from mtl_jax._types import Array, ArrayTree, LossesFn, check_losses
from mtl_jax.pullback import MOVES, Atom, Pullback
from mtl_jax.separable import apart

CONTRACTIONS = MOVES | {"reduce_sum"}
"""Primitives behind which the representation is the same one, or a smaller one."""


class Split(NamedTuple):
    """A losses function in two parts, for ``strategy="features"``.

    Called, it is the losses function itself, so that it serves every other source too::

        losses_fn = Split(
            encode=lambda params, x, y: encoder(params["encoder"], x),
            losses=lambda params, z, x, y: jnp.stack([...]),
        )
    """

    encode: Callable[..., ArrayTree]
    """``encode(params, *args, **kwargs) -> z``, any pytree of floating point arrays."""
    losses: LossesFn
    """``losses(params, z, *args, **kwargs) -> (T,)``, or ``((T,), aux)``."""

    def __call__(self, params: ArrayTree, *args: Any, **kwargs: Any) -> Any:
        representation = self.encode(params, *args, **kwargs)
        return self.losses(params, representation, *args, **kwargs)


class LinearizedSplit(NamedTuple):
    """A forward pass in two parts and their pull-backs."""

    losses: Array
    """``(T,)``."""
    value: Any
    """What the caller gets: the losses, or ``(losses, aux)``."""
    representation: Callable[[Array], ArrayTree]
    """Cotangent ``(T,)`` -> gradient of the representation."""
    encoder: Callable[[ArrayTree], Any]
    """Gradient of the representation -> gradients of the shared parameters."""
    heads: Callable[[Array], Any]
    """Cotangent ``(T,)`` -> gradients of the head parameters."""


def linearize_split(
    split: Split, has_aux: bool, args: tuple, kwargs: dict[str, Any]
) -> LinearizedSplit:
    """Runs both parts once; gradients are those of ``args[0]``, the parameters."""
    params, rest = args[0], args[1:]
    representation, encoder = jax.vjp(
        lambda params: split.encode(params, *rest, **kwargs), params
    )

    def losses_of(params: ArrayTree, representation: ArrayTree) -> Any:
        output = split.losses(params, representation, *rest, **kwargs)
        losses, aux = output if has_aux else (output, None)
        check_losses(losses)
        return losses, aux

    losses, pullback, aux = jax.vjp(losses_of, params, representation, has_aux=True)
    return LinearizedSplit(
        losses,
        (losses, aux) if has_aux else losses,
        representation=lambda cotangent: pullback(cotangent)[1],
        encoder=lambda gradient: encoder(gradient)[0],
        heads=lambda cotangent: pullback(cotangent)[0],
    )


def find_representation(
    pullback: Pullback, shared: Sequence[Atom], heads: Sequence[Atom]
) -> Var | None:
    """Returns the gradient of the shared representation, a variable of the pull-back.

    It is the first variable through which alone the cotangent reaches the shared
    parameters and which no head parameter's gradient depends on. Where every task has a
    copy of the representation to itself, or where it then is summed, it is the sum.
    ``None``: there is none, or nothing is marked as head.

    Args:
        pullback: of the losses.
        shared: outputs of ``pullback``, the gradients of the shared parameters.
        heads: likewise of the head parameters.
    """
    if not heads:
        return None
    outputs = {atom for atom in shared if isinstance(atom, Var)}
    equations = pullback.between(pullback.input, outputs)
    used_by_heads = pullback.ancestors(heads)
    last_use = {var: len(equations) for var in outputs}
    for position, equation in reversed(list(enumerate(equations))):
        for atom in equation.invars:
            if isinstance(atom, Var):
                last_use.setdefault(atom, position)

    found = None
    copies = apart(pullback, outputs)
    live = {pullback.input}
    for position, equation in enumerate(equations):
        live |= {var for var in equation.outvars if var in last_use}
        live = {var for var in live if last_use[var] > position}
        alone = len(live) == 1 and live.isdisjoint(used_by_heads | outputs)
        same = alone and equation.primitive.name in CONTRACTIONS
        if found is not None and found not in copies and not same:
            break
        if alone:
            (found,) = live
    return found
