"""One expansion step in one program, against SciPy's MINRES on the host."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from experiments import records
from experiments.explore import ExploreConfig
from experiments.explore_point import Point, Tools
from experiments.explore_problems import losses_on
from experiments.programs import Program, compile_program, seconds_of
from mtl_jax import pareto

Array = jax.Array
Record = dict[str, Any]
ROUNDS = 3
WAYS = {
    "device": "one program: gradients, weights, MINRES, step",
    "host": "SciPy's MINRES calls a jitted product, the gradient differentiated forwards",
    "host_linearised": "SciPy's MINRES calls a jitted product, linearised once per step",
}


def compare(tools: Tools, config: ExploreConfig, params: Any) -> Record:
    """Times one step of each way in turn, in this process, with the same batches.

    Gradients, weights, right-hand side, damping and number of iterations are the same;
    the tolerance is 0, so that none stops early. Memory is XLA's: temporaries and results
    of the largest program of a way, arguments not counted.
    """
    examples, beta = tools.problem.train, np.eye(tools.problem.num_tasks)[0]
    key = jax.random.key(config.seed)
    device = compile_program(_step(tools, config, beta), examples, params, key)
    at = compile_program(tools.at, examples, params, key)
    point: Point = at.call()
    flat, unravel = ravel_pytree(params)
    fresh = compile_program(_product(tools, unravel), examples, point, flat)
    linearise = compile_program(_linearise(tools), examples, point)
    kept = compile_program(lambda f, v: _flat(f(unravel(v))), linearise.call(), flat)
    gradient = compile_program(_weighted(tools), examples, point)

    def with_fresh(here: Point) -> Callable[[Any], Any]:
        return lambda v: _function(fresh)(examples, here, v)

    def with_kept(here: Point) -> Callable[[Any], Any]:
        linear = _function(linearise)(examples, here)
        return lambda v: _function(kept)(linear, v)

    hosts = {
        "host": _Host(config, at.call, with_fresh, beta),
        "host_linearised": _Host(config, at.call, with_kept, beta),
    }
    calls: dict[str, Callable[[], Any]] = {"device": device.call, **hosts}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(seconds_of(call))
    _, info, direction = device.call()
    direction = np.asarray(_flat(direction))
    products = {"device": int(info.iterations)}
    products |= {name: host.products for name, host in hosts.items()}
    megabytes = {
        "device": device.megabytes,
        "host": max(at.megabytes, fresh.megabytes),
        "host_linearised": max(at.megabytes, linearise.megabytes, kept.megabytes),
    }
    seconds = {name: statistics.median(values) for name, values in times.items()}
    rows: dict[str, Record] = {
        name: {
            "seconds": records.rounded(seconds[name]),
            "all_seconds": records.rounded(times[name]),
            "times_device": round(seconds[name] / seconds["device"], 3),
            "products": products[name],
            "megabytes": round(megabytes[name], 1),
        }
        for name in calls
    }
    for name, host in hosts.items():
        cosine = float(host.direction @ direction)
        rows[name]["cosine_to_device"] = records.rounded(cosine)
    parts = {
        "gradients_seconds": at.call,
        "weighted_gradient_seconds": gradient.call,
        "linearised_product_seconds": kept.call,
        "fresh_product_seconds": fresh.call,
    }
    return {
        "ways": WAYS,
        "parameters": int(flat.size),
        "rounds": ROUNDS,
        "maxiter": config.maxiter,
        "rows": rows,
        "parts": {name: records.rounded(_median(call)) for name, call in parts.items()},
    }


class _Host:
    """A step whose solver is SciPy's; the last one's direction and products are kept."""

    def __init__(
        self,
        config: ExploreConfig,
        at: Callable[[], Point],
        multiply_at: Callable[[Point], Callable[[Any], Any]],
        beta: np.ndarray,
    ) -> None:
        self.config, self.at, self.multiply_at = config, at, multiply_at
        self.beta = beta.astype(np.float32)
        self.products, self.direction = 0, np.zeros(0, np.float32)

    def __call__(self) -> Any:
        config, point = self.config, self.at()
        multiply = self.multiply_at(point)
        right, unravel = ravel_pytree(_right_hand_side(config, point, self.beta))
        right, self.products = np.asarray(right), 0

        def matvec(vector: np.ndarray) -> np.ndarray:
            self.products += 1
            image = np.asarray(multiply(jnp.asarray(vector, right.dtype)))
            return image + np.float32(config.damping) * vector

        linear: Any = scipy.sparse.linalg.LinearOperator
        operator = linear((right.size, right.size), matvec=matvec, dtype=right.dtype)
        found, _ = scipy.sparse.linalg.minres(
            operator, right, rtol=0.0, maxiter=config.maxiter
        )
        self.direction = found / np.linalg.norm(found)
        direction = unravel(jnp.asarray(self.direction, right.dtype))
        return _moved(point.params, direction, config.step_size)


def _function(program: Program) -> Callable[..., Any]:
    """The compiled function of a program, without its arguments."""
    call: Any = program.call
    return call.func


def _median(call: Callable[[], Any]) -> float:
    seconds_of(call)
    return statistics.median(seconds_of(call) for _ in range(5))


def _flat(params: Any) -> Array:
    return ravel_pytree(params)[0]


def _moved(params: Any, direction: Any, size: float) -> Any:
    return jax.tree.map(lambda leaf, d: leaf - size * d, params, direction)


def _right_hand_side(config: ExploreConfig, point: Point, beta: np.ndarray) -> Any:
    grads = point.grads
    if config.correction:
        grads = pareto.correct_gradients(grads, point.alpha)
    return jax.tree.map(lambda leaf: jnp.tensordot(beta, leaf, axes=1), grads)


def _step(tools: Tools, config: ExploreConfig, beta: np.ndarray) -> Callable[..., Any]:
    def step(examples: Any, params: Any, key: Array) -> Any:
        point = tools.at(examples, params, key)
        found = tools.solve_with(
            examples, point, jnp.float32(beta), maxiter=config.maxiter, tol=0.0
        )
        moved = _moved(params, found.direction, config.step_size)
        return moved, found.info, found.direction

    return step


def _loss_gradient(tools: Tools, examples: Any, point: Point) -> Callable[[Any], Any]:
    losses_fn, rows = losses_on(tools.problem, examples), point.rows[0]
    return jax.grad(lambda params: point.alpha @ losses_fn(params, rows))


def _weighted(tools: Tools) -> Callable[..., Any]:
    """The gradient on the Hessian's batch: what products are compared with."""
    return lambda examples, point: _loss_gradient(tools, examples, point)(point.params)


def _product(tools: Tools, unravel: Callable[[Any], Any]) -> Callable[..., Any]:
    def product(examples: Any, point: Point, vector: Array) -> Array:
        gradient = _loss_gradient(tools, examples, point)
        return _flat(jax.jvp(gradient, (point.params,), (unravel(vector),))[1])

    return product


def _linearise(tools: Tools) -> Callable[..., Any]:
    def linearise(examples: Any, point: Point) -> Any:
        return jax.linearize(_loss_gradient(tools, examples, point), point.params)[1]

    return linearise
