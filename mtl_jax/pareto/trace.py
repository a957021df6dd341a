"""Traces of a Pareto front: chains of steps along its tangents, from several starts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from mtl_jax import tree
from mtl_jax._types import (
    Array,
    ArrayTree,
    LossesFn,
    check_choice,
    check_count,
    check_range,
)
from mtl_jax.pareto.chain import BatchesFn, Chain, Move, Options, Point
from mtl_jax.pareto.directions import check_objectives
from mtl_jax.pareto.tangents import GUESSES, SOLVERS
from mtl_jax.solvers import vectors

_TOLERANCE = 1e-8  # smaller differences of losses are none, as in metrics.non_dominated


class Counts(NamedTuple):
    """What a trace spent; one count is one call over the given (or drawn) batches.

    All objectives together count once. Each step also linearises the gradient at one
    point, a gradient's cost on the Hessian's batches, which is not counted apart.
    """

    functions: Array
    """Evaluations of the losses, int32 ``(S, K)``: each is the forward pass of one of
    the ``gradients``, and none is made besides."""
    gradients: Array
    """Evaluations of all task gradients, int32 ``(S, K)``."""
    hvps: Array
    """Hessian-vector products, int32 ``(S, K)``."""


class Trace(NamedTuple):
    """Points and reports of :func:`trace_front`; point 0 of every chain is its start."""

    params: ArrayTree
    """Leaves ``(S, K, steps + 1, *p)``."""
    losses: Array
    """Means over the gradient batches of the step, ``(S, K, steps + 1, m)``."""
    alphas: Array
    """Min-norm weights of each point, not smoothed, ``(S, K, steps + 1, m)``."""
    residuals: Array
    """Relative residuals of the solves, ``(S, K, steps)``."""
    iterations: Array
    """Krylov iterations, int32 ``(S, K, steps)``."""
    dominated: Array
    """Whether another traced point is at least as good in all objectives and better in
    one (differences below 1e-8 are none), bool ``(S, K, steps + 1)``; true of points
    whose losses are not finite. With drawn batches, losses of different steps are from
    different batches, and the report is as noisy as they are."""
    counts: Counts
    """Evaluations spent."""
    ok: Array
    """Whether a tangent was found, see :func:`mtl_jax.pareto.tangent`, bool
    ``(S, K, steps)``. Without one the predictor does not move (but CG's last iterate
    before negative curvature is followed)."""
    stationarity: Array
    r""":math:`\|J^\top\alpha\| / \sum_i \alpha_i \|g_i\|` at each point,
    ``(S, K, steps + 1)``."""


def trace_front(
    losses_fn: LossesFn,
    starts: ArrayTree,
    betas: ArrayLike,
    *,
    steps: int,
    step_size: float | Array,
    batches: BatchesFn | None = None,
    seed: int | Array = 0,
    corrector: optax.GradientTransformation | None = None,
    corrector_steps: int = 0,
    heads: tree.HeadsSpec = None,
    correction: bool = True,
    momentum: float = 0.0,
    solver: str = "minres",
    damping: float | Array = 0.0,
    maxiter: int = 50,
    tol: float | Array = 1e-5,
    x0: str | None = None,
    loop: str = "map",
) -> Trace:
    r"""Follows the Pareto front from every start in every direction, in one program.

    .. math:: x \leftarrow x - s\, \frac{v}{\|v\|}, \qquad
        (H + \lambda I)\, v = J'^\top \beta

    At every point gradients, weights and Hessian are computed anew
    (:func:`mtl_jax.pareto.tangent`). Each step moves the parameters by ``step_size``
    (Euclidean). With :math:`\beta = e_i` objective ``i`` falls; ``-beta`` goes the other
    way. After each of these predictor steps ``corrector_steps`` steps of ``corrector``
    bring the point back to the front.

    Args:
        losses_fn: ``losses_fn(params, *args) -> losses (m,)``, pure and twice
            differentiable; ``args`` come from ``batches``.
        starts: near-stationary parameters, leaves ``(S, *p)``.
        betas: right-hand sides ``(K, m)``, e.g.
            ``both_ways(independent_directions(m))``; every start gets all of them.
        steps: predictor steps of each chain.
        step_size: :math:`s`, a number or a scalar.
        batches: pure function from a key to ``(gradient_batches, hvp_batches)``: two
            tuples of arguments, the leaves with a leading axis of batches, over which
            gradients (:func:`mtl_jax.pareto.mean_task_grads`) and products
            (:func:`mtl_jax.pareto.batched_hvp`) are averaged. It is called once per step,
            so that ``H`` is fixed during a solve, and at each corrector step; chains
            share the draws of a step. ``None``: ``losses_fn(params)``.
        seed: of the keys that ``batches`` gets.
        corrector: optax transformation of stacked task gradients, e.g.
            ``optax.chain(mtl_jax.mgda(m), optax.sgd(0.1))``; it also gets ``losses=``,
            and starts afresh after each predictor step.
        corrector_steps: its steps per predictor step, 0 for none.
        heads: parameters that neither predictor nor corrector moves, a bool mask or a
            path predicate (see ``tree.HeadsSpec``); gradients and Hessian leave them out.
        correction: see :func:`mtl_jax.pareto.correct_gradients`.
        momentum: of the moving averages of gradients and weights along each chain, see
            :func:`mtl_jax.pareto.pareto_expansion`. They begin as those of the start
            point, computed from the first step's batches (the notebooks of the release
            spend a full pass on it).
        solver: ``"minres"`` or ``"cg"``.
        damping: :math:`\lambda`.
        maxiter: Krylov iterations at most.
        tol: relative residual at which they stop.
        x0: ``None``, ``"mean"`` or ``"minus_mean"``, where the solver starts.
        loop: ``"map"``: one chain after another, memory of one; ``"vmap"``: all at once,
            the choice on accelerators. Networks with convolutions should use ``"map"`` on
            CPUs, which batch convolutions over weights badly. While some chains of a
            ``"vmap"`` still iterate, the others' products are made and thrown away: the
            counts are those that each chain needed.

    Returns:
        :class:`Trace`, leading axes ``(S, K)``.

    Raises:
        ValueError: for one objective, arguments whose shapes do not fit, unknown options,
            or corrector steps without a corrector.

    The program is compiled once for given functions, shapes and options; other starts,
    betas, step sizes, seeds, dampings and tolerances use it again. So pass the same
    function objects, not new lambdas. To let ``losses_fn`` or ``batches`` use large
    arrays without making them constants of the program, bind them with
    ``jax.tree_util.Partial(function, arrays)``.

    Matrix products have JAX's default precision: on a GPU call it inside
    ``jax.default_matmul_precision("highest")`` where TF32 would disturb the solves.

    Examples:
        >>> from mtl_jax.pareto import both_ways, independent_directions
        >>> def losses_fn(x):
        ...     return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)])
        >>> betas = both_ways(independent_directions(2))
        >>> trace = trace_front(
        ...     losses_fn, jnp.zeros((1, 4)), betas, steps=3, step_size=0.2
        ... )
        >>> print(trace.params[0, :, :, 0].round(3))
        [[ 0.   0.1  0.2  0.3]
         [ 0.  -0.1 -0.2 -0.3]]
        >>> print(trace.counts.gradients, trace.counts.hvps, bool(trace.dominated.any()))
        [[4 4]] [[3 3]] False

    References:
        Ma, Du and Matusik, *Efficient Continuous Pareto Exploration in Multi-Task
        Learning*, 2020, arXiv:2006.16434
    """
    check_choice("solver", solver, SOLVERS)
    check_choice("loop", loop, ("map", "vmap"))
    if x0 is not None:
        check_choice("x0", x0, GUESSES)
    check_count("steps", steps, 1)
    check_count("corrector_steps", corrector_steps, 0)
    check_range("step_size", step_size)
    check_range("momentum", momentum, 0, 1, open_high=True)
    check_range("damping", damping)
    if corrector_steps and corrector is None:
        raise ValueError(
            f"corrector_steps={corrector_steps} needs a corrector, e.g. "
            "optax.chain(mtl_jax.mgda(m), optax.sgd(0.1)); or set it to 0"
        )
    starts = _check_starts(starts)
    dtype = tree.accumulator_dtype(starts)
    betas = jnp.asarray(betas, dtype)
    if betas.ndim != 2 or betas.shape[0] < 1:
        raise ValueError(
            "betas must hold one right-hand side per row, shape (K, m) with K >= 1, got "
            f"shape {betas.shape}"
        )
    check_objectives(betas.shape[1])
    marks = tree.resolve_heads(heads, starts)
    options = Options(
        steps=steps,
        corrector=corrector if corrector_steps else None,
        corrector_steps=corrector_steps,
        held=None if marks is None else tuple(jax.tree.leaves(marks)),
        correction=correction,
        momentum=float(momentum),
        solver=solver,
        maxiter=maxiter,
        x0=x0,
        loop=loop,
    )
    return _trace_all(
        _as_partial(losses_fn),
        _as_partial(_no_batches if batches is None else batches),
        starts,
        betas,
        *(jnp.asarray(number, dtype) for number in (step_size, damping, tol)),
        jax.random.key(seed),
        options=options,
    )


@functools.partial(jax.jit, static_argnames="options")
def _trace_all(
    losses_fn: LossesFn,
    batches: BatchesFn,
    starts: ArrayTree,
    betas: Array,
    step_size: Array,
    damping: Array,
    tol: Array,
    key: Array,
    *,
    options: Options,
) -> Trace:
    chain = Chain(losses_fn, batches, step_size, damping, tol, key, options)
    over = jax.vmap if options.loop == "vmap" else _mapped

    def from_start(start: ArrayTree) -> tuple[Point, Move]:
        return over(lambda beta: chain.run(start, beta))(betas)

    points, moves = over(from_start)(starts)
    # The last point is reported, but not left.
    moves = jax.tree.map(lambda leaf: leaf[:, :, :-1], moves)
    evaluations = options.steps * (1 + options.corrector_steps) + 1
    evaluations = jnp.full(moves.ok.shape[:2], evaluations, jnp.int32)
    return Trace(
        params=points.params,
        losses=points.losses,
        alphas=points.alpha,
        residuals=moves.residual,
        iterations=moves.iterations,
        dominated=_dominated(points.losses),
        counts=Counts(
            functions=evaluations,
            gradients=evaluations,
            hvps=jnp.sum(moves.hvps, axis=2, dtype=jnp.int32),
        ),
        ok=moves.ok,
        stationarity=points.stationarity,
    )


def _mapped(function: Callable) -> Callable:
    return functools.partial(lax.map, function)


def _as_partial(function: Callable) -> Partial:
    """A pytree of the arrays bound to the function; the function itself is static."""
    return function if isinstance(function, Partial) else Partial(function)


def _no_batches(key: Array) -> tuple[tuple, tuple]:
    del key
    return (), ()


def _dominated(losses: Array) -> Array:
    """Which of the points ``(..., m)`` another one dominates."""
    points = losses.reshape(-1, losses.shape[-1])

    def by_any(point: Array) -> Array:
        worse = point[None] - points
        worse = jnp.where(jnp.abs(worse) < _TOLERANCE, 0, worse)
        return ((worse >= 0).all(axis=1) & (worse > 0).any(axis=1)).any()

    flags = lax.map(by_any, points, batch_size=min(256, points.shape[0]))
    flags = flags | ~jnp.isfinite(points).all(axis=1)
    return flags.reshape(losses.shape[:-1])


def _check_starts(starts: ArrayTree) -> ArrayTree:
    """The starts as arrays, or ``ValueError``."""
    starts = vectors.as_vector("starts", starts)
    shapes = [leaf.shape for leaf in jax.tree.leaves(starts)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            "all leaves of starts must share a leading axis of one or more starts, got "
            f"shapes {shapes}; for a single one add the axis: leaf[None]"
        )
    return starts
