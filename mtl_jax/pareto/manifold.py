"""``pareto_manifold``: a whole Pareto front trained as one ensemble of networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optax

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, StackedTree, State, Weighting
from mtl_jax.pareto.balancing import Rule
from mtl_jax.pareto.manifold_rule import ManifoldState, make_manifold_rule


def pareto_manifold(
    num_tasks: int,
    *,
    num_members: int | None = None,
    preferences: Any = None,
    samples: int = 1,
    sampler: str | Callable[[Array], Array] | Any = "dirichlet",
    concentration: float | Sequence[float] = 1.0,
    balance: str | Weighting | Rule = "ls",
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
            * ``"full"``: both factors (in the release the norms are those of
              :math:`\omega_t L_t`, so that :math:`\omega_t` all but cancels);
            * a weighting such as ``mtl_jax.weighting.nash_mtl(T)``: :math:`v_{wt}` times
              its weights for the Gramian and the losses of that point. One state passes
              through the points in turn. No released code has this;
            * :func:`mtl_jax.pareto.cosmos_balance` or
              :func:`mtl_jax.pareto.epo_balance`: the weights of those methods for the
              preference :math:`v_w`.
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
        after it. Wrappers that expect the updates' shapes to stay must come after it, too:
        ``optax.apply_if_finite`` around the optimiser skips steps with NaN, for example.

    Raises:
        ValueError: for hyper-parameters out of range and shapes that do not fit; from
            ``update``, for gradients that are not ``(W, T, *p)``, or missing losses.

    Examples:
        >>> import jax, jax.numpy as jnp, optax
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
