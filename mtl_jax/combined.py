"""``value_and_combined_grad``: losses in, one combined gradient out, cheaply."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax import tree
from mtl_jax._types import (
    Array,
    ArrayTree,
    LossesFn,
    State,
    Statistics,
    Weighting,
    check_choice,
    check_count,
)
from mtl_jax.features import Split
from mtl_jax.sources import STRATEGIES, Source, make_source
from mtl_jax.transforms.aggregate import AggregateState, apply_policy, init_aggregate
from mtl_jax.transforms.nonfinite import POLICIES, good_tasks


class CombinedState(NamedTuple):
    """State of :func:`value_and_combined_grad`."""

    aggregate: AggregateState
    """Weights, the weighting's own state, and the counts of what was not finite."""
    gram: Array
    """The Gramian of the last weights, ``(T, T)``; zeros where none is looked at."""
    age: Array
    """Steps since the weights were computed, int32 ``()``; 0: they are due."""


class CombinedGrad(NamedTuple):
    """Pair of pure functions that :func:`value_and_combined_grad` returns."""

    init: Callable[[ArrayTree], CombinedState]
    """``init(params) -> state``."""
    update: Callable[..., tuple[Any, ArrayTree, CombinedState]]
    """``update(state, *args, **kwargs) -> (value, grads, state)``, see
    :func:`value_and_combined_grad`."""


def value_and_combined_grad(
    losses_fn: LossesFn | Split,
    weighting: Weighting,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    strategy: str = "auto",
    heads: tree.HeadsSpec = None,
    head_weights: str = "unit",
    every_k: int = 1,
    feature_batch: str = "flatten",
    nonfinite: str = "propagate",
) -> CombinedGrad:
    r"""Creates functions that return the losses and one combined gradient.

    .. math:: \Delta = \sum_t w_t \nabla_\theta L_t, \qquad w = w(G, L)

    The same answer as :func:`mtl_jax.value_and_task_grads` followed by
    :func:`mtl_jax.aggregate`, but a source that knows the weighting need not store the
    ``T`` task gradients. A weighting that looks at the losses only (or at nothing) costs
    one pull-back, with every strategy.

    Args:
        losses_fn: as for :func:`mtl_jax.value_and_task_grads`, or a
            :class:`mtl_jax.Split`.
        weighting: from :mod:`mtl_jax.weighting`. What :func:`mtl_jax.aggregate` takes of
            other batches (``held_out``, ``independent``, ``revisited_losses``) is not
            known here: the batch at hand stands in.
        argnums: which positional argument(s) to differentiate, as in ``jax.grad``.
        has_aux: whether ``losses_fn`` returns a pair ``(losses, aux)``.
        strategy: where the Gramian comes from:

            * ``"vmap"``, ``"unroll"``, ``"map"``: from the stored task gradients, see
              :func:`mtl_jax.value_and_task_grads`. Memory ``T·P``.
            * ``"layerwise"``: the gradients of dense and convolution kernels are never
              formed where it is cheaper to go through the layer's inputs ``x_n`` and
              output cotangents ``δ_tn``:
              :math:`\sum_{nm} (x_n \cdot x_m)(δ_{sn} \cdot δ_{tm})`. Then one weighted
              pull-back. Far below ``T`` backward passes where a batch has fewer tokens
              than a layer has features, and never ``T·P`` of memory at once.
            * ``"gramian"``: for each task in turn a pull-back and a push-forward give one
              column of :math:`J Jᵀ`, then one weighted pull-back. About twice the time,
              but the memory of one gradient whatever ``T``. The push-forward runs in the
              network's own precision: with bfloat16 activations the Gramian is less
              accurate than from stored gradients. Functions with ``jax.custom_vjp`` have
              no push-forward and cannot be used.
            * ``"features"``: MGDA-UB for any weighting. The Gramian is that of the
              gradients with respect to the shared representation, and the encoder is
              pulled back once. An upper-bound surrogate: equal to the others where the
              encoder's Jacobian has orthogonal columns of one length. Needs ``heads``, or
              a :class:`mtl_jax.Split`.
            * ``"auto"``: ``"layerwise"`` where it saves more operations than its last
              pull-back costs, else stored task gradients.
        heads: task-specific parameters, a bool mask or a path predicate (see
            ``mtl_jax.tree.HeadsSpec``); they are left out of the Gramian. For
            ``"features"`` they say where the encoder ends: at the last array through
            which alone the shared parameters act on the losses. A :class:`mtl_jax.Split`
            says so itself, and ``heads`` is not looked at.
        head_weights: ``"unit"``: heads get the plain sum of their gradients (Algorithm 2
            of Sener & Koltun); ``"weighted"``: the same weights as the shared parameters
            (their released code).
        every_k: the weights are computed in every ``k``-th step and kept in between
            (Nash-MTL-k), which skips the pull-backs that they take: such a step costs one.
            Under ``vmap`` nothing is skipped.
        feature_batch: the product of two representation gradients: ``"flatten"``, over
            all entries, examples included (the paper); ``"sum"``, of their sums over the
            examples (LibMTL's ``rep_grad``), which must be axis 0 of the representation:
            where the encoder ends in a transpose, say so with a :class:`mtl_jax.Split`.
        nonfinite: see :func:`mtl_jax.aggregate`. Where one pull-back serves all tasks a
            non-finite task cannot always be left out: 0 times infinity is not 0. The two
            skipping policies skip the whole step then.

    Returns:
        A :class:`CombinedGrad`. ``update(state, *args, **kwargs)`` takes the arguments of
        ``losses_fn`` and returns ``(value, grads, state)``: ``value`` is the losses
        ``(T,)``, or ``(losses, aux)``; ``grads`` are shaped like the differentiated
        argument(s); ``optax.tree.get(state, "weights")`` reads the weights.

    Raises:
        ValueError: for unknown options; from ``update`` if ``losses_fn`` does not return
            ``T`` floating point losses, or no representation is found.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> def losses_fn(x):
        ...     return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 3) ** 2)])
        >>> source = mtl_jax.value_and_combined_grad(
        ...     losses_fn, mtl_jax.weighting.mgda(2), strategy="gramian"
        ... )
        >>> x = jnp.zeros(2)
        >>> losses, grads, state = source.update(source.init(x), x)
        >>> print(losses, grads)
        [ 2. 18.] [0. 0.]

    References:
        Sener & Koltun, *Multi-Task Learning as Multi-Objective Optimization*, 2018,
        arXiv:1810.04650 (features); Navon et al., *Multi-Task Learning as a Bargaining
        Game*, 2022, arXiv:2202.01017 (every k)
    """
    check_choice("strategy", strategy, STRATEGIES)
    check_choice("head_weights", head_weights, ("unit", "weighted"))
    check_choice("feature_batch", feature_batch, ("flatten", "sum"))
    check_choice("nonfinite", nonfinite, POLICIES)
    check_count("every_k", every_k, 1)
    if strategy == "features" and isinstance(losses_fn, Split) and argnums != 0:
        raise ValueError(
            f"a Split takes the parameters as its first argument, got argnums={argnums!r}"
        )
    if strategy == "features" and not isinstance(losses_fn, Split) and heads is None:
        raise ValueError(
            "strategy='features' must know where the encoder ends: mark the "
            "task-specific parameters with heads=, or pass losses_fn as "
            "mtl_jax.Split(encode, losses)"
        )
    num_tasks = weighting.num_tasks

    def init(params: ArrayTree) -> CombinedState:
        state = init_aggregate(weighting, params)
        gram = jnp.zeros((num_tasks, num_tasks), state.weights.dtype)
        return CombinedState(state, gram, jnp.zeros([], jnp.int32))

    def update(
        state: CombinedState, *args: Any, **kwargs: Any
    ) -> tuple[Any, ArrayTree, CombinedState]:
        def step(state: CombinedState, kept: bool) -> tuple[Any, Any, CombinedState]:
            source = make_source(
                losses_fn,
                argnums,
                has_aux,
                heads,
                args,
                kwargs,
                strategy=strategy,
                feature_batch=feature_batch,
            )
            if source.losses.shape[0] != num_tasks:
                raise ValueError(
                    f"the weighting is for {num_tasks} tasks, losses_fn returned "
                    f"{source.losses.shape[0]} losses"
                )
            kinds = _Step(source, weighting, head_weights, nonfinite)
            grads, state = kinds.keep(state) if kept else kinds.refresh(state)
            return source.value, grads, state

        if every_k == 1:
            return step(state, False)
        # The forward pass is in both branches: what it keeps for the pull-back would
        # otherwise have to be written out at the border, which costs a tenth of a step.
        value, grads, state = lax.cond(
            state.age == 0,
            functools.partial(step, kept=False),
            functools.partial(step, kept=True),
            state,
        )
        return value, grads, state._replace(age=state.age % every_k)

    return CombinedGrad(init, update)


def needs_gram(weighting: Weighting) -> bool:
    """Whether a weighting looks at the Gramian, found out by tracing it."""
    num_tasks = weighting.num_tasks

    def probe(gram: Array, losses: Array, state: State) -> Any:
        return weighting.update(Statistics(gram, losses), state)

    jaxpr = jax.make_jaxpr(probe)(
        jnp.eye(num_tasks), jnp.ones(num_tasks), weighting.init()
    ).jaxpr
    gram = jaxpr.invars[0]
    used = [atom for equation in jaxpr.eqns for atom in equation.invars]
    return any(atom is gram for atom in [*used, *jaxpr.outvars])


class _Step(NamedTuple):
    """The two kinds of step: with new weights and with kept ones."""

    source: Source
    weighting: Weighting
    head_weights: str
    nonfinite: str

    def refresh(self, state: CombinedState) -> tuple[ArrayTree, CombinedState]:
        with_gram = needs_gram(self.weighting)
        gram, shared = (
            self.source.gram() if with_gram else (self._no_gram(), self._pull_back)
        )
        grads, aggregate, gram = self._take(state, gram, shared, self.weighting.update)
        lost = aggregate.skipped_steps > state.aggregate.skipped_steps
        gram = gram.astype(state.gram.dtype) if with_gram else state.gram
        kept = jnp.where(lost, state.gram, gram)
        # A lost refresh is tried again in the next step.
        age = jnp.where(lost, 0, 1).astype(state.age.dtype)
        return grads, CombinedState(aggregate, kept, age)

    def keep(self, state: CombinedState) -> tuple[ArrayTree, CombinedState]:
        old = state.aggregate

        def same(statistics: Statistics, inner: State) -> tuple[Array, State]:
            del statistics
            return old.weights, inner

        grads, new, _ = self._take(state, self._no_gram(), self._pull_back, same)
        new = new._replace(weights=old.weights)
        return grads, state._replace(aggregate=new, age=state.age + 1)

    def _take(
        self,
        state: CombinedState,
        gram: Array,
        shared: Callable[[Array, Array], Any],
        choose: Callable[[Statistics, State], tuple[Array, State]],
    ) -> tuple[ArrayTree, AggregateState, Array]:
        """Chooses weights and combines by the policy for what is not finite.

        Args:
            state: before the step.
            gram: ``(T, T)``.
            shared: weights ``(T,)`` and which tasks are usable -> shared gradients.
            choose: statistics and state of the weighting -> weights and new state.
        """
        source, old = self.source, state.aggregate
        statistics = Statistics(gram, source.losses)
        mask, good = jnp.ones(source.losses.shape, bool), None
        if self.nonfinite != "propagate":
            good = good_tasks(gram, source.losses, old.last_losses, heads=[])
            statistics, mask = Statistics(good.gram, good.losses), good.mask
        weights, inner = choose(statistics, old.inner)
        if good is not None:
            weights = good.fold(weights)
        new = old._replace(weights=weights.astype(old.weights.dtype), inner=inner)
        unit = mask.astype(weights.dtype)
        on_heads = unit if self.head_weights == "unit" else weights * unit
        shared_grads, head_grads = shared(weights, mask), source.heads(on_heads)
        assert statistics.gram is not None
        if good is None:
            return source.join(shared_grads, head_grads), new, statistics.gram
        head_grads = jax.tree.map(
            # What a left-out task spoils in its own head.
            lambda leaf: jnp.where(mask.all() | jnp.isfinite(leaf), leaf, 0),
            head_grads,
        )
        grads = source.join(shared_grads, head_grads)
        skip_step = self.nonfinite == "skip_step"
        grads, new = apply_policy(grads, new, old, good, lost=skip_step & ~mask.all())
        return grads, new, statistics.gram

    def _pull_back(self, weights: Array, mask: Array) -> Any:
        return self.source.shared(jnp.where(mask, weights, 0))

    def _no_gram(self) -> Array:
        """Stands for a Gramian that nobody looks at."""
        num_tasks = self.weighting.num_tasks
        return jnp.eye(num_tasks, dtype=tree.accumulator_dtype(self.source.losses))
