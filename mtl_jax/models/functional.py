"""Models as two pure functions over plain dictionaries, from flax linen or nnx."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import errors, linen

from mtl_jax._types import Array, ArrayTree, State


class FunctionalModel(NamedTuple):
    """A model as two pure functions; every tree is a plain nested dictionary."""

    init: Callable[..., tuple[ArrayTree, State]]
    """``init(key, x) -> (params, model_state)``."""
    apply: Callable[..., tuple[Any, State]]
    """``apply(params, model_state, x, *, train=False, key=None)
    -> (outputs, model_state)``, ``outputs`` indexed by task (array, tuple or dict)."""


def as_functional(model: Any) -> FunctionalModel:
    """Turns a flax module into a :class:`FunctionalModel`.

    Args:
        model: one of

            * a ``flax.linen.Module``. ``train`` is passed on if ``__call__`` takes it;
              all collections but ``params`` form ``model_state`` (BatchNorm statistics)
              and are updated in training only; ``key`` is the stream ``dropout``.
            * a factory ``factory(*, rngs) -> flax.nnx.Module``, an ``nnx.Module`` class
              with that signature, or an instance (then ``init`` returns the values it
              holds). ``train`` calls ``module.train()`` or ``module.eval()``; all
              variables but ``nnx.Param`` and random states form ``model_state``;
              ``key`` reseeds all random streams. An instance is never changed.

    Returns:
        The functions ``init`` and ``apply``. They jit, differentiate and vmap; the
        ``model_state`` returned in evaluation is the one that came in.

    Raises:
        ValueError: for anything else; and by ``apply`` in training if the model draws
            random numbers and ``key`` is missing.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from mtl_jax.models import LeNet, as_functional
        >>> model = as_functional(LeNet(num_tasks=2))
        >>> x = jnp.zeros((4, 28, 28, 1))
        >>> params, model_state = model.init(jax.random.key(0), x)
        >>> logits, model_state = model.apply(params, model_state, x)
        >>> logits.shape
        (2, 4, 10)
    """
    if isinstance(model, linen.Module):
        return _from_linen(model)
    if isinstance(model, type) and issubclass(model, linen.Module):
        raise ValueError(
            f"as_functional needs an instance of a linen module, got the class "
            f"{model.__name__}; pass {model.__name__}(...)"
        )
    if not callable(model):
        raise ValueError(
            "as_functional needs a flax.linen.Module, a flax.nnx.Module or a factory "
            f"of one, got {type(model).__name__}"
        )
    return _from_nnx(model)


def _from_linen(module: linen.Module) -> FunctionalModel:
    takes_train = "train" in inspect.signature(type(module).__call__).parameters

    def flags(train: bool) -> dict[str, Any]:
        return {"train": train} if takes_train else {}

    # Under jit the forward pass that only finds the shapes is never run.
    draw = jax.jit(functools.partial(module.init, **flags(False)))

    def init(key: Array, x: Any) -> tuple[ArrayTree, State]:
        variables = dict(draw(key, x))
        return variables.pop("params", {}), variables

    def apply(
        params: ArrayTree,
        model_state: State,
        x: Any,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> tuple[Any, State]:
        rngs = {"dropout": key} if train and key is not None else {}
        try:
            outputs, updated = module.apply(
                {"params": params, **model_state},
                x,
                rngs=rngs,
                mutable=list(model_state) if train else [],
                **flags(train),
            )
        except errors.InvalidRngError as error:
            if rngs:
                raise
            raise ValueError(_missing_key(module)) from error
        return outputs, dict(updated) if train else model_state

    return FunctionalModel(init, apply)


def _from_nnx(model: Any) -> FunctionalModel:
    from flax import nnx  # a third of a second, which linen users need not pay

    is_instance = isinstance(model, nnx.Module)

    def build(key: Array) -> nnx.Module:
        module = model if is_instance else model(rngs=nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise ValueError(
                "as_functional expected the factory to return a flax.nnx.Module, got "
                f"{type(module).__name__}"
            )
        return module

    def split(module: nnx.Module) -> tuple:
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    def init(key: Array, x: Any) -> tuple[ArrayTree, State]:
        del x  # nnx modules know their shapes
        _, params, _, rest = split(build(key))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def apply(
        params: ArrayTree,
        model_state: State,
        x: Any,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> tuple[Any, State]:
        # The structure alone: no parameter is drawn or copied here.
        abstract = nnx.eval_shape(lambda: build(jax.random.key(0)))
        graphdef, param_slots, rng_slots, rest_slots = split(abstract)
        tags = sorted(
            {leaf.tag for leaf in jax.tree.leaves(rng_slots, is_leaf=_tagged)}
        )
        if train and tags and key is None:
            raise ValueError(_missing_key(abstract))
        nnx.replace_by_pure_dict(param_slots, params)
        nnx.replace_by_pure_dict(rest_slots, model_state)
        # copy=True: else BatchNorm would write to a variable of an outer trace.
        module = nnx.merge(graphdef, param_slots, rng_slots, rest_slots, copy=True)
        key = jax.random.key(0) if key is None else key
        keys: dict[str, Any] = {
            tag: jax.random.fold_in(key, i) for i, tag in enumerate(tags)
        }
        nnx.reseed(module, policy="match_shape", **keys)
        module.train() if train else module.eval()
        outputs = module(x)
        if not train:
            return outputs, model_state
        return outputs, nnx.to_pure_dict(split(module)[3])

    return FunctionalModel(init, apply)


def _tagged(node: Any) -> bool:
    return hasattr(node, "tag")


def _missing_key(module: Any) -> str:
    return (
        f"{type(module).__name__} draws random numbers in training; pass "
        "apply(..., train=True, key=jax.random.key(...))"
    )
