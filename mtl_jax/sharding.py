"""Where parameters, optimiser states and batches lie on a mesh of devices.

Rules on parameters' paths give shardings; optimiser moments follow their parameters,
all else is replicated. The step itself (:mod:`mtl_jax.train`) knows nothing of devices:
place its inputs, :func:`constrain` its losses, and jit it with ``out_shardings``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtl_jax import tree
from mtl_jax._types import ArrayTree

Rule = tuple[str | Callable[[str], bool], PartitionSpec]
"""A regular expression (``re.search``) or predicate of the leaf's path, and its spec."""


def make_mesh(devices: Sequence[Any] | None = None, *, model: int = 1) -> Mesh:
    """Returns a mesh with the axes ``("data", "model")``, for the compiler to partition.

    Args:
        devices: all devices of all processes by default.
        model: size of the axis ``model``; the axis ``data`` gets the rest.

    Raises:
        ValueError: if ``model`` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if model < 1 or len(devices) % model:
        raise ValueError(
            f"model must divide the number of devices, {len(devices)}, got {model}"
        )
    shape = (len(devices) // model, model)
    return jax.make_mesh(
        shape, ("data", "model"), (AxisType.Auto,) * 2, devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: axis 0 split over ``data``."""
    return NamedSharding(mesh, PartitionSpec("data"))


def param_shardings(
    params: ArrayTree, mesh: Mesh, rules: Sequence[Rule] = ()
) -> ArrayTree:
    """Returns a sharding for every parameter: the first rule that matches its path.

    Args:
        params: arrays or ``jax.ShapeDtypeStruct``.
        mesh: the devices.
        rules: pairs ``(pattern, spec)``, see ``Rule``; parameters that no rule matches
            are replicated.

    Returns:
        ``NamedSharding`` leaves in the structure of ``params``.

    Raises:
        ValueError: for a rule that matches no parameter, and for a spec that does not fit
            the parameter's shape or the mesh.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> params = {"dense": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}}
        >>> mesh = make_mesh(jax.devices()[:1])
        >>> shardings = param_shardings(params, mesh, [("kernel$", P(None, "model"))])
        >>> kernel, bias = shardings["dense"]["kernel"], shardings["dense"]["bias"]
        >>> print(tuple(kernel.spec), bias.is_fully_replicated)
        (None, 'model') True
    """
    matched = [False] * len(rules)

    def sharding_of(path: tuple, leaf: Any) -> NamedSharding:
        name = tree.path_name(path)
        hits = [i for i, (pattern, _) in enumerate(rules) if _matches(pattern, name)]
        for i in hits:
            matched[i] = True
        spec = rules[hits[0]][1] if hits else PartitionSpec()
        _check_spec(name, jnp.shape(leaf), spec, mesh)
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(sharding_of, params)
    if not all(matched):
        raise ValueError(
            f"the rule for {rules[matched.index(False)][0]!r} matches no parameter; "
            "paths look like 'encoder/Dense_0/kernel'"
        )
    return shardings


def state_shardings(state: Any, params: ArrayTree, shardings: ArrayTree) -> Any:
    """Returns a sharding for every leaf of a training or optimiser state.

    A leaf that mirrors a parameter, that is, whose path ends with the parameter's path and
    whose shape is the parameter's (the parameters themselves, moments, averages), is
    sharded like it, also with one more axis in front (averages of task gradients, ``(T,
    *p)``); everything else is replicated. This also holds inside
    ``optax.partition`` and ``optax.masked``, whose states lack some parameters.

    Args:
        state: for example a :class:`mtl_jax.train.TrainState` or ``tx.init(params)``;
            arrays or, from ``jax.eval_shape``, their shapes.
        params: the parameters, or their shapes.
        shardings: from :func:`param_shardings`.

    Returns:
        ``NamedSharding`` leaves in the structure of ``state``, for ``jax.device_put`` and
        for ``out_shardings`` of the jitted step.

    Raises:
        ValueError: if ``shardings`` does not have the structure of ``params``.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    if structure != jax.tree.structure(shardings):
        raise ValueError(
            "shardings must have the structure of params (param_shardings makes them so),"
            f" got {jax.tree.structure(shardings)}, expected {structure}"
        )
    by_path = {
        path: (jnp.shape(leaf), sharding)
        for (path, leaf), sharding in zip(
            leaves, jax.tree.leaves(shardings), strict=True
        )
    }
    mesh = jax.tree.leaves(shardings)[0].mesh
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharding_of(path: tuple, leaf: Any) -> NamedSharding:
        # From the whole path to none of it: the longest parameter path decides.
        for start in range(len(path) + 1):
            shape, sharding = by_path.get(path[start:], (None, None))
            if sharding is not None and shape == jnp.shape(leaf):
                return sharding
            if sharding is not None and shape == jnp.shape(leaf)[1:]:
                return NamedSharding(mesh, PartitionSpec(None, *sharding.spec))
        return replicated

    return jax.tree_util.tree_map_with_path(sharding_of, state)


def constrain(
    losses_fn: Callable[..., Any], shardings: ArrayTree
) -> Callable[..., Any]:
    """Returns ``losses_fn`` with its first argument, and so its gradients, held sharded.

    The transpose of the constraint holds the task gradients, in every strategy, to
    ``(T, *p)`` with ``p`` sharded like its parameter. Without it the compiler chooses,
    and may move a whole ``(T, *p)`` between devices to reach the parameter's sharding.

    Args:
        losses_fn: any function of the parameters and further arguments.
        shardings: from :func:`param_shardings`.

    Returns:
        A function with the arguments and results of ``losses_fn``.

    Examples:
        Parameters that lie in pieces on the axis of the batch (FSDP) are gathered inside,
        once for all tasks; a leaf's task gradients are reduced and cut where they arise::

            replicated = param_shardings(params, mesh)
            losses_fn = constrain(constrain(losses_fn, replicated), shardings)
    """

    @functools.wraps(losses_fn)
    def constrained(params: ArrayTree, *args: Any, **kwargs: Any) -> Any:
        params = lax.with_sharding_constraint(params, shardings)
        return losses_fn(params, *args, **kwargs)

    return constrained


def _matches(pattern: str | Callable[[str], bool], name: str) -> bool:
    return bool(pattern(name) if callable(pattern) else re.search(pattern, name))


def _check_spec(
    name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh
) -> None:
    """Raises ``ValueError`` unless the mesh axes of ``spec`` divide ``shape``."""
    given = f"parameter {name!r} of shape {shape} cannot be sharded as {spec}"
    if len(spec) > len(shape):
        raise ValueError(
            f"{given}: the spec has {len(spec)} entries, at most {len(shape)} fit"
        )
    for dim, entry in enumerate(spec):
        axes = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
        parts = 1
        for axis in axes:
            if axis not in mesh.shape:
                raise ValueError(
                    f"{given}: the mesh has no axis {axis!r}, only {mesh.axis_names}"
                )
            parts *= mesh.shape[axis]
        if shape[dim] % parts:
            raise ValueError(
                f"{given}: dimension {dim} has size {shape[dim]}, which must be a "
                f"multiple of {parts}, the size of the mesh axes {axes}"
            )
