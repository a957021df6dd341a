"""``pareto_manifold``: a whole Pareto front trained as one ensemble of networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mtl_jax import tree
from mtl_jax._types import (
    Array,
    ArrayTree,
    StackedTree,
    State,
    Weighting,
    check_num_tasks,
    check_range,
)
from mtl_jax.pareto.balancing import Points, Rule, make_rule
from mtl_jax.pareto.members import count_members
from mtl_jax.pareto.multi_forward import multi_forward_penalty
from mtl_jax.pareto.simplex_samplers import Draw, check_count, make_sampler
from mtl_jax.solvers.scaling import full_precision


class ManifoldState(NamedTuple):
    """State of :func:`pareto_manifold`."""

    alphas: Array
    """The points at which the next gradients are to be taken, ``(W, M)``."""
    weights: Array
    """Task weights of the last step's points, regulariser included, ``(W, T)``; ones
    before the first."""
    penalty: Array
    """The multi-forward regulariser at the last step's points, before its factor, ``()``;
    zero where the factor is."""
    key: Array
    """Random key of the points after the next, typed ``()``."""
    inner: State
    """State of the balancing."""


def pareto_manifold(
    num_tasks: int,
    *,
    num_members: int | None = None,
    preferences: Any = None,
    samples: int = 1,
    sampler: str | Callable[[Array], Array] | Any = "dirichlet",
    concentration: float | Sequence[float] = 1.0,
    balance: str | Weighting = "ls",
    epsilon: float = 1e-3,
    window: int = 25,
    regularizer: float | Array = 0.0,
    temperature: float | Array = 1.0,
    gate: bool = False,
    heads: tree.HeadsSpec = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Pareto manifold learning: every mixture of ``M`` members is to be Pareto optimal.

    .. math:: \min_{\theta_1 \dots \theta_M} \mathbb{E}_\alpha \sum_t (\alpha^\top P)_t
        L_t\Big(\sum_m \alpha_m \theta_m\Big)

    Each step takes ``W`` points :math:`\alpha_w` of the simplex. With task weights
    :math:`c_{wt}` there, member ``m`` gets
    :math:`\sum_w \alpha_{wm} \sum_t c_{wt} \nabla L_t(\theta(\alpha_w))`: the sum over the
    points, as in the released code, not the mean. Gradients come in as leaves
    ``(W, T, *p)``, see :func:`mtl_jax.pareto.value_and_manifold_grads`; updates go out as
    ``(M, *p)``, shaped like the stacked members that optax's ``params`` are here.

    Args:
        num_tasks: ``T``.
        num_members: ``M``; by default ``T``, or the rows of ``preferences``.
        preferences: :math:`P`, the members' own task weights, ``(M, T)``, each row on the
            simplex; by default the identity, member ``t`` for task ``t``.
        samples: ``W``, points of each step.
        sampler: where they come from: ``"dirichlet"``, independent; ``"stratified"``, the
            same distribution, but the first entries (and the later ones' shares of the
            rest) fall into ``W`` strata of equal probability, one each; ``"grid"``, ``W``
            of the points of ``simplex_grid(M)`` without replacement; an array ``(N, M)``
            of points instead of that grid (all of them, if ``N = W``); or a function
            ``sampler(key) -> (W, M)``.
        concentration: of the Dirichlet distribution, > 0, a number or ``M`` of them: 1 is
            uniform, larger ones prefer the middle.
        balance: the task weights :math:`c_{wt}` at a point with preferences
            :math:`v_w = P^\top \alpha_w`:

            * ``"ls"``: :math:`v_{wt}`;
            * ``"gradnorm"``: :math:`v_{wt} / (\|\nabla L_t\| + \epsilon)`, the norm over
              all members' parameters;
            * ``"rwa"``: :math:`\omega_t v_{wt}` with
              :math:`\omega_t = 1 - \bar L_t / \sum_s \bar L_s`, the mean losses of the last
              ``window`` points before this step; 1 until there are so many, with one task,
              and while a mean is negative. (The release recomputes them between the
              points of one step.)
            * ``"full"``: both factors;
            * a weighting such as ``mtl_jax.weighting.nash_mtl(T)``: :math:`v_{wt}` times
              its weights for the Gramian and the losses of that point. One state passes
              through the points in turn. No released code has this.
        epsilon: :math:`\epsilon` of ``"gradnorm"``, > 0.
        window: length of the running averages.
        regularizer: factor :math:`\lambda \ge 0` of
            :func:`mtl_jax.pareto.multi_forward_penalty`. Its derivatives in the losses
            are added to the task weights, so it costs no backward pass.
        temperature: of the regulariser.
        gate: whether the regulariser only counts while :math:`\lambda R` is less than
            the weighted losses, :math:`\sum_{wt} c_{wt} L_{wt}`. The released code does
            so; it makes the objective discontinuous, and means never where losses are
            negative.
        heads: parameters left out of norms and Gramians, a bool mask or a path predicate
            (see ``tree.HeadsSpec``). They are members' parameters like all others: their
            gradients come stacked ``(W, T, *p)``, too, and get the same weights.
        seed: of the points.

    Returns:
        ``optax.GradientTransformationExtraArgs``: ``init(members)``,
        ``update(grads, state, members, losses=losses)`` with ``losses (W, T)``, which
        ``"ls"`` and ``"gradnorm"`` without regulariser do not need.
        ``optax.tree.get(state, "alphas")`` are the points for the next gradients;
        ``"weights"`` and ``"penalty"`` report on the last step. Chain any optimiser
        after it. Wrappers that expect the updates' shapes to stay must come after it, too.

    Raises:
        ValueError: for hyper-parameters out of range and shapes that do not fit; from
            ``update``, for gradients that are not ``(W, T, *p)``, or missing losses.

    Examples:
        >>> import mtl_jax
        >>> from mtl_jax import pareto
        >>> def losses_fn(x):
        ...     return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)])
        >>> tx = optax.chain(pareto.pareto_manifold(2, samples=3), optax.sgd(0.1))
        >>> grads_fn = pareto.value_and_manifold_grads(losses_fn)
        >>> @jax.jit
        ... def step(members, state):
        ...     alphas = optax.tree.get(state, "alphas")
        ...     losses, grads = grads_fn(members, alphas)
        ...     updates, state = tx.update(grads, state, members, losses=losses)
        ...     return optax.apply_updates(members, updates), state
        >>> members = jnp.zeros((2, 1))
        >>> state = tx.init(members)
        >>> for _ in range(200):
        ...     members, state = step(members, state)
        >>> print(members.round(3))
        [[ 1.]
         [-1.]]

    References:
        Dimitriadis, Frossard and Fleuret, *Pareto Manifold Learning*, 2023,
        arXiv:2210.09759
    """
    rule = make_manifold_rule(
        num_tasks,
        num_members=num_members,
        preferences=preferences,
        samples=samples,
        sampler=sampler,
        concentration=concentration,
        balance=balance,
        epsilon=epsilon,
        window=window,
        regularizer=regularizer,
        temperature=temperature,
        gate=gate,
        heads=heads,
        seed=seed,
    )

    def init_fn(params: ArrayTree) -> ManifoldState:
        return rule.init(params)

    def update_fn(
        updates: StackedTree,
        state: State,
        params: ArrayTree | None = None,
        *,
        losses: Array | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, State]:
        del params, extra_args
        return rule.apply(updates, state, losses)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class ManifoldRule(NamedTuple):
    """What :func:`pareto_manifold` does, apart from the gradients."""

    balance: Rule
    draw: Draw
    preferences: np.ndarray
    samples: int
    regularizer: float | Array
    temperature: float | Array
    gate: bool
    heads: tree.HeadsSpec
    seed: int

    @property
    def regularized(self) -> bool:
        """Whether the regulariser's factor may differ from zero."""
        return isinstance(self.regularizer, jax.Array) or self.regularizer > 0

    def init(self, members: ArrayTree) -> ManifoldState:
        num_members, num_tasks = self.preferences.shape
        count_members(members, num_members)
        tree.resolve_heads(self.heads, members)
        dtype = tree.accumulator_dtype(members)
        key, draw_key = jax.random.split(jax.random.key(self.seed))
        return ManifoldState(
            alphas=self.draw(draw_key, dtype),
            weights=jnp.ones((self.samples, num_tasks), dtype),
            penalty=jnp.zeros([], dtype),
            key=key,
            inner=self.balance.init(dtype),
        )

    def apply(
        self, grads: StackedTree, state: ManifoldState, losses: Array | None
    ) -> tuple[ArrayTree, ManifoldState]:
        """Gradients ``(W, T, *p)`` to updates ``(M, *p)`` and the new state."""
        check_point_grads(grads, *state.weights.shape)
        shared = None
        if self.balance.needs_grads:
            marks = tree.resolve_heads(self.heads, grads)
            shared = jax.tree.leaves(grads)
            if marks is not None:
                pairs = zip(shared, jax.tree.leaves(marks), strict=True)
                shared = [leaf for leaf, is_head in pairs if not is_head]
        new_state = self.update(state, losses, shared)
        return spread(state.alphas, new_state.weights, grads), new_state

    @full_precision
    def update(
        self, state: ManifoldState, losses: Array | None, shared: list[Array] | None
    ) -> ManifoldState:
        """The state after a step; its ``weights`` are those of the step."""
        dtype = state.alphas.dtype
        losses = self._check_losses(losses)
        wide = None if losses is None else losses.astype(dtype)
        preferences = state.alphas @ jnp.asarray(self.preferences, dtype)
        points = Points(state.alphas, preferences, wide, shared)
        weights, inner = self.balance.update(points, state.inner)
        weights, penalty = weights.astype(dtype), jnp.zeros([], dtype)
        if self.regularized:
            assert wide is not None
            penalty, slopes = jax.value_and_grad(multi_forward_penalty)(
                wide, preferences, temperature=self.temperature
            )
            factor = jnp.asarray(self.regularizer, dtype)
            if self.gate:
                factor = jnp.where(
                    factor * penalty < jnp.sum(weights * wide), factor, 0
                )
            weights = weights + factor * slopes
        key, draw_key = jax.random.split(state.key)
        return ManifoldState(self.draw(draw_key, dtype), weights, penalty, key, inner)

    def _check_losses(self, losses: Any) -> Array | None:
        if losses is None:
            if not (self.regularized or self.balance.needs_losses):
                return None
            raise ValueError(
                "the regulariser and the balances 'rwa' and 'full' need the losses: call "
                "update(grads, state, members, losses=losses) with losses of shape (W, T)"
            )
        wanted = (self.samples, self.preferences.shape[1])
        if jnp.shape(losses) != wanted:
            raise ValueError(
                f"losses must have shape (W, T) = {wanted}, the losses of every task at "
                f"every sampled point, got {jnp.shape(losses)}"
            )
        return lax.stop_gradient(jnp.asarray(losses))


def make_manifold_rule(
    num_tasks: int,
    *,
    num_members: int | None = None,
    preferences: Any = None,
    samples: int = 1,
    sampler: Any = "dirichlet",
    concentration: float | Sequence[float] = 1.0,
    balance: str | Weighting = "ls",
    epsilon: float = 1e-3,
    window: int = 25,
    regularizer: float | Array = 0.0,
    temperature: float | Array = 1.0,
    gate: bool = False,
    heads: tree.HeadsSpec = None,
    seed: int = 0,
) -> ManifoldRule:
    """Checks the options of :func:`pareto_manifold`."""
    check_num_tasks(num_tasks)
    check_count("window", window, 1)
    check_range("epsilon", epsilon, 0, open_low=True)
    check_range("regularizer", regularizer, 0)
    check_range("temperature", temperature, 0, open_low=True)
    table = _preferences(preferences, num_members, num_tasks)
    return ManifoldRule(
        balance=make_rule(balance, num_tasks, epsilon=epsilon, window=window),
        draw=make_sampler(sampler, len(table), samples, concentration),
        preferences=table,
        samples=samples,
        regularizer=regularizer,
        temperature=temperature,
        gate=gate,
        heads=heads,
        seed=seed,
    )


def spread(alphas: Array, weights: Array, grads: StackedTree) -> ArrayTree:
    r"""Returns :math:`\sum_{wt} \alpha_{wm} c_{wt} g_{wt}`, leaves ``(M, *p)``.

    Args:
        alphas: ``(W, M)``.
        weights: ``(W, T)``, of the same dtype.
        grads: leaves ``(W, T, *p)``.
    """
    coefficients = alphas.T[:, :, None] * weights[None, :, :]

    def leaf_spread(leaf: Array) -> Array:
        dtype = jnp.promote_types(leaf.dtype, coefficients.dtype)
        return lax.dot_general(
            coefficients.astype(dtype),
            leaf.astype(dtype),
            (((1, 2), (0, 1)), ((), ())),
            precision=lax.Precision.HIGHEST,
        ).astype(leaf.dtype)

    return jax.tree.map(leaf_spread, grads)


def check_point_grads(grads: StackedTree, samples: int, num_tasks: int) -> None:
    """Raises ``ValueError`` unless every leaf is floating point ``(W, T, *p)``."""
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    if not leaves:
        raise ValueError("the tree of gradients has no leaves")
    for path, leaf in leaves:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if shape[:2] != (samples, num_tasks) or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"leaf {tree.path_name(path) or '(the whole tree)'!r} of the gradients has "
                f"shape {shape} and dtype {dtype}, expected floating point "
                f"({samples}, {num_tasks}, ...): one gradient per sampled point and task "
                "(mtl_jax.pareto.value_and_manifold_grads returns them so)"
            )


def _preferences(
    preferences: Any, num_members: int | None, num_tasks: int
) -> np.ndarray:
    """The members' task weights ``(M, T)``, float64."""
    if num_members is not None:
        check_count("num_members", num_members, 1)
    if preferences is None:
        if num_members not in (None, num_tasks):
            raise ValueError(
                f"with num_members={num_members} for {num_tasks} tasks say what each "
                "member stands for: preferences of shape (M, T), one row of task weights "
                "per member"
            )
        return np.eye(num_tasks)
    table = np.asarray(preferences, np.float64)
    rows = table.shape[0] if num_members is None and table.ndim == 2 else num_members
    if table.shape != (rows, num_tasks):
        raise ValueError(
            f"preferences must have shape (M, T) = ({rows or 'M'}, {num_tasks}), got "
            f"{table.shape}"
        )
    sums = table.sum(axis=1)
    if not (table >= 0).all() or not np.allclose(sums, 1, atol=1e-3):
        raise ValueError(
            "each row of preferences must lie on the simplex (entries >= 0 with sum 1), "
            f"got the rows {table.tolist()}"
        )
    return table
