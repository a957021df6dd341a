"""``value_and_combined_grad``: every source against stored gradients and ``aggregate``."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import mtl_jax
from mtl_jax.combined import needs_gram
from mtl_jax.registry import METHODS, build_source
from mtl_jax.train import init_state, make_combined_step, make_train_step
from tests.helpers import slow_but
from tests.networks import is_head, mlp, probe

STORED = ("vmap", "unroll", "map")
EXACT = (*STORED, "auto", "layerwise", "gramian")
STRATEGIES = (*EXACT, "features")
WEIGHTINGS = sorted(name for name, spec in METHODS.items() if spec.weighting)
MASK = {"encoder": False, "heads": True}
T, RATE = 3, 0.05
QUICK = {"xla_backend_optimization_level": 0}  # compile time is most of these tests


def quick_jit(function):
    return jax.jit(function, compiler_options=QUICK)


def combined(losses_fn, weighting, strategy="auto", **options):
    return mtl_jax.value_and_combined_grad(
        losses_fn, weighting, strategy=strategy, **options
    )


def stored(
    losses_fn, weighting, heads=None, head_weights="unit", nonfinite="propagate"
):
    """The same pair of functions by way of stored gradients and ``aggregate``."""
    tx = mtl_jax.aggregate(
        weighting, heads=heads, head_weights=head_weights, nonfinite=nonfinite
    )
    # Summed over the tasks, a head's gradient keeps what a left-out task gave it.
    summed = heads if head_weights == "unit" and nonfinite == "propagate" else None
    source = mtl_jax.value_and_task_grads(losses_fn, strategy="vmap", heads=summed)

    def update(state, params, *args):
        losses, grads = source(params, *args)
        updates, state = tx.update(grads, state, params, losses=losses)
        return losses, updates, state

    return tx.init, update


def descend(init, update, params, batches):
    """Gradient descent, one step per batch; everything that the steps returned."""

    def step(carry, batch):
        params, state = carry
        losses, grads, state = update(state, params, batch)
        new = jax.tree.map(lambda p, g: p - RATE * g.astype(p.dtype), params, grads)
        return (new, state), (losses, grads, getattr(state, "aggregate", state))

    (params, _), history = lax.scan(step, (params, init(params)), batches)
    return params, history


def problem(num_tasks=T, steps=3, dtype=None, **sizes):
    """The network of ``networks.mlp`` and a batch for every step."""
    params, batch, losses_fn = mlp(num_tasks, dtype=dtype, **sizes)
    factors = jnp.linspace(1, 2, steps, dtype=dtype)
    batches = jax.tree.map(
        lambda leaf: leaf[None] * factors.reshape(-1, *[1] * leaf.ndim), batch
    )
    return params, batches, losses_fn


def close(actual, expected, tolerance):
    """All leaves, relative to the largest entry of each; keys must be equal."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for leaf, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        if jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
            leaf, other = map(jax.random.key_data, (leaf, other))
        scale = np.abs(np.asarray(other, np.float64)).max(initial=0)
        np.testing.assert_allclose(
            np.asarray(leaf, np.float64),
            np.asarray(other, np.float64),
            rtol=0,
            atol=tolerance * max(scale, 1e-6),
        )


# -- the same answer -----------------------------------------------------------------


@pytest.mark.parametrize("strategy", EXACT)
def test_strategies_equal_stored_gradients(x64, strategy):
    """With every way to mark heads, in float64 to 1e-9, over three steps."""
    del x64
    params, batches, losses_fn = problem()
    weighting = probe(T)
    options = [
        dict(heads=None),
        dict(heads=is_head),
        dict(heads=MASK),
        dict(heads=MASK, head_weights="weighted"),
    ]

    def both(params, batches):
        outs = []
        for option in options:
            ours = combined(losses_fn, weighting, strategy, **option)
            theirs = stored(losses_fn, weighting, **option)
            outs.append(
                (
                    descend(*ours, params, batches),
                    descend(*theirs, params, batches),
                )
            )
        return outs

    outs = quick_jit(both)(params, batches)
    for ours, theirs in outs:
        close(ours, theirs, 1e-9)
    by_predicate, by_mask, weighted = (ours[0]["heads"]["w"] for ours, _ in outs[1:])
    np.testing.assert_array_equal(by_predicate, by_mask)
    assert np.abs(weighted - by_mask).max() > 1e-3  # the option matters


@pytest.mark.parametrize("strategy", EXACT)
def test_strategies_in_float32(strategy):
    """Sums of a few hundred products in other orders: 1e-5 of the largest entry."""
    params, batches, losses_fn = problem(steps=2)
    ours = combined(losses_fn, probe(T), strategy, heads=is_head)
    theirs = stored(losses_fn, probe(T), is_head)

    def both(params, batches):
        return descend(*ours, params, batches), descend(*theirs, params, batches)

    close(*quick_jit(both)(params, batches), 1e-5)


def check_weighting(name, strategies):
    params, batches, losses_fn = problem()
    weighting = METHODS[name].weighting(T)
    weighting = weighting._replace(update=jax.jit(weighting.update))

    def all_of(params, batches):
        sources = [
            combined(losses_fn, weighting, strategy, heads=is_head)
            for strategy in strategies
        ]
        pairs = [stored(losses_fn, weighting, is_head), *sources]
        return [descend(*pair, params, batches) for pair in pairs]

    expected, *actual = quick_jit(all_of)(params, batches)
    for ours in actual:
        # Solvers stop a little earlier or later: still far below their tolerance.
        close(ours, expected, 1e-9)


@pytest.mark.parametrize(
    "name", slow_but(("mgda", "nash_mtl", "gradnorm", "pcgrad", "uw"), WEIGHTINGS)
)
def test_every_weighting(x64, name):
    del x64
    check_weighting(name, ["layerwise"])


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_with_every_strategy(x64, name):
    del x64
    check_weighting(name, EXACT)


def test_arguments_like_value_and_grad(x64):
    """``argnums``, ``has_aux`` and keyword arguments."""
    del x64
    params, batches, losses_fn = problem()
    batch = jax.tree.map(lambda leaf: leaf[0], batches)

    def with_aux(scale, params, batch, *, shift):
        losses = scale * losses_fn(params, batch) + shift * jnp.square(scale)
        return losses, {"mean": losses.mean()}

    scale = jnp.asarray(1.5)
    cases = [(1, is_head), ((0, 1), (False, MASK)), ((1,), MASK), (0, None)]

    def run(scale, params, batch):
        outs = []
        for argnums, heads in cases:
            args = (scale, params, batch)
            point = (
                args[argnums]
                if isinstance(argnums, int)
                else tuple(args[i] for i in argnums)
            )
            # One argument of several is a tuple of one for aggregate.
            marks = (heads,) if argnums == (1,) else heads
            tx = mtl_jax.aggregate(probe(T), heads=marks)
            value, stack = mtl_jax.value_and_task_grads(
                with_aux, argnums, has_aux=True, heads=heads
            )(*args, shift=0.2)
            expected, _ = tx.update(stack, tx.init(point), losses=value[0])
            for strategy in ("unroll", "layerwise", "gramian"):
                source = combined(
                    with_aux,
                    probe(T),
                    strategy,
                    argnums=argnums,
                    has_aux=True,
                    heads=heads,
                )
                ours = source.update(source.init(point), *args, shift=0.2)
                outs.append((ours[:2], (value, expected)))
        return outs

    for ours, expected in quick_jit(run)(scale, params, batch):
        close(ours, expected, 1e-9)


def test_eager_equals_jit_and_nothing_is_traced_twice():
    params, batches, losses_fn = problem()
    for strategy, every_k in (("layerwise", 2), ("gramian", 1)):
        source = combined(losses_fn, probe(T), strategy, heads=is_head, every_k=every_k)
        chex.clear_trace_counter()
        jitted = jax.jit(chex.assert_max_traces(source.update, n=1))
        state = source.init(params)
        chex.assert_trees_all_equal_shapes_and_dtypes(
            state, jax.eval_shape(source.init, params)
        )
        for i in range(2):
            batch = jax.tree.map(lambda leaf, i=i: leaf[i], batches)
            # Products at another optimisation level: float32 rounding.
            outs = source.update(state, params, batch)
            close(jitted(state, params, batch), outs, 1e-5)
            chex.assert_trees_all_equal_shapes_and_dtypes(state, outs[2])
            state = outs[2]


@pytest.mark.slow
def test_vmap_over_members(x64):
    del x64
    params, batches, losses_fn = problem()
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 1.1]), params)

    def run(members, batches):
        outs = []
        for strategy in ("layerwise", "gramian", "features"):
            source = combined(losses_fn, probe(T), strategy, heads=is_head, every_k=2)
            one = functools.partial(descend, *source)
            together = jax.vmap(one, (0, None))(members, batches)
            apart = [
                one(jax.tree.map(lambda leaf, i=i: leaf[i], members), batches)
                for i in range(2)
            ]
            outs.append(
                (together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart))
            )
        return outs

    for together, apart in quick_jit(run)(members, batches):
        close(together, apart, 1e-9)


@pytest.mark.parametrize(
    ("num_tasks", "sizes"),
    [(1, {}), (12, dict(inputs=1, width=1, examples=3))],
    ids=["one task", "more tasks than parameters"],
)
def test_few_and_many_tasks(x64, num_tasks, sizes):
    del x64
    params, batches, losses_fn = problem(num_tasks, **sizes)
    weighting = probe(num_tasks)

    def run(params, batches):
        outs = [descend(*stored(losses_fn, weighting, is_head), params, batches)]
        for strategy in ("auto", "layerwise", "gramian"):
            source = combined(losses_fn, weighting, strategy, heads=is_head)
            outs.append(descend(*source, params, batches))
        return outs

    expected, *outs = quick_jit(run)(params, batches)
    for ours in outs:
        close(ours, expected, 1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bfloat16_parameters(strategy):
    """Gradients in bfloat16, Gramian and weights in float32 and near the exact ones."""
    params, batches, losses_fn = problem(steps=1, dtype=jnp.bfloat16)
    source = combined(losses_fn, probe(T), strategy, heads=is_head)
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    losses, grads, state = quick_jit(source.update)(source.init(params), params, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    assert losses.dtype == jnp.bfloat16
    assert state.gram.dtype == state.aggregate.weights.dtype == jnp.float32
    # The parameters and data as they are, in float32.
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, batch))
    _, _, wide = quick_jit(source.update)(source.init(exact[0]), *exact)
    scale = np.abs(wide.gram).max()
    np.testing.assert_allclose(state.gram, wide.gram, rtol=0, atol=0.05 * scale)
    assert np.abs(state.gram - wide.gram).max() > 0


def test_errors():
    params, batches, losses_fn = problem()
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    source = combined(losses_fn, mtl_jax.weighting.mgda(4))
    with pytest.raises(ValueError, match="is for 4 tasks, losses_fn returned 3 losses"):
        source.update(source.init(params), params, batch)
    bad = {
        "strategy must be one of": dict(strategy="fast"),
        "head_weights must be one of": dict(head_weights="sum"),
        "feature_batch must be one of": dict(feature_batch="mean"),
        "nonfinite must be one of": dict(nonfinite="ignore"),
        "mark the task-specific parameters": dict(strategy="features"),
    }
    for every_k in (0, -1, 2.0, True, "2", None):
        bad[f"every_k must be a Python integer >= 1, got {every_k!r}"] = dict(
            every_k=every_k
        )
    for message, options in bad.items():
        with pytest.raises(ValueError, match=message) as error:
            combined(losses_fn, probe(T), **options)
        assert "\n" not in str(error.value)
    source = combined(lambda params, batch: losses_fn(params, batch).sum(), probe(T))
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        source.update(source.init(params), params, batch)


# -- what it costs -------------------------------------------------------------------


def flops(function, *args):
    """Floating point operations of the compiled program."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_which_weightings_need_the_gramian():
    cheap = {name for name in WEIGHTINGS if not needs_gram(METHODS[name].weighting(T))}
    assert cheap == {
        name for name in WEIGHTINGS if not METHODS[name].needs & {"gram", "gradients"}
    }
    losses_only = {"gls", "stch", "imtl_l", "famo", "pbi"}
    assert cheap == {"ls", "si", "rlw", "dwa", "uw"} | losses_only
    assert not needs_gram(
        mtl_jax.weighting.mgda(1)._replace(update=lambda s, c: (s.losses, c))
    )


@pytest.mark.parametrize("strategy", ["unroll", "gramian", "features"])
def test_weightings_of_the_losses_cost_one_pull_back(strategy):
    """The operations XLA counts: as many as the gradient of the summed loss takes."""
    params, batches, losses_fn = problem(
        num_tasks=8, inputs=24, width=24, examples=32, steps=1
    )
    batch = jax.tree.map(lambda leaf: leaf[0], batches)

    def plain(params, batch):
        losses, pull_back = jax.vjp(lambda p: losses_fn(p, batch), params)
        return losses, pull_back(jnp.ones_like(losses))

    def cost(weighting):
        source = combined(losses_fn, weighting, strategy, heads=is_head)
        state = source.init(params)
        return flops(lambda p, b: source.update(state, p, b)[:2], params, batch)

    budget = flops(plain, params, batch)
    assert cost(mtl_jax.weighting.ls(8)) < 1.1 * budget
    if strategy == "unroll":  # elsewhere XLA counts the body of a loop once
        assert cost(probe(8)) > 2 * budget


def dots(jaxpr):
    """Number of matrix products in a program, inner ones included."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "dot_general"
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += dots(inner)
    return count


def test_pull_backs_are_skipped_in_between():
    """They are in one branch of a condition; the other one's cost does not grow with T."""

    def branches(num_tasks):
        params, batches, losses_fn = problem(num_tasks, steps=1)
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        source = combined(losses_fn, probe(num_tasks), "unroll", every_k=5)
        jaxpr = jax.make_jaxpr(source.update)(source.init(params), params, batch).jaxpr
        (cond,) = [e for e in jaxpr.eqns if e.primitive.name == "cond"]
        outside = dots(jaxpr) - sum(dots(b.jaxpr) for b in cond.params["branches"])
        keep, refresh = (dots(branch.jaxpr) for branch in cond.params["branches"])
        return outside, keep, refresh

    few, many = branches(3), branches(10)
    assert few[:2] == many[:2]
    assert many[2] - few[2] >= 7 * 4  # seven more pull-backs of four products or more


# -- weights every k steps -----------------------------------------------------------


def replayed(losses_fn, weighting, params, batches, k):
    """Weights from the Gramian in every k-th step, by hand."""

    def step(carry, inputs):
        params, weights, inner = carry
        number, batch = inputs
        losses, rows = mtl_jax.value_and_task_grads(losses_fn)(params, batch)
        statistics = mtl_jax.Statistics(mtl_jax.tree.gram(rows["encoder"]), losses)
        fresh, moved = weighting.update(statistics, inner)
        due = number % k == 0
        weights = jnp.where(due, fresh, weights)
        inner = jax.tree.map(lambda a, b: jnp.where(due, a, b), moved, inner)
        grads = {
            "encoder": mtl_jax.tree.combine(weights, rows["encoder"]),
            "heads": jax.tree.map(lambda leaf: leaf.sum(0), rows["heads"]),
        }
        new = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
        return (new, weights, inner), (losses, grads, weights)

    steps = len(jax.tree.leaves(batches)[0])
    start = (params, jnp.ones(weighting.num_tasks), weighting.init())
    carry, history = lax.scan(step, start, (jnp.arange(steps), batches))
    return carry[0], history


@pytest.mark.parametrize("strategy", ["auto", "layerwise", "gramian", "features"])
def test_every_k_steps_equals_the_replay_by_hand(x64, strategy):
    del x64
    params, batches, losses_fn = problem(steps=11)
    weighting = probe(T)

    def run(params, batches):
        outs = []
        for k in (1, 2, 5):
            source = combined(losses_fn, weighting, strategy, heads=is_head, every_k=k)
            ours = descend(*source, params, batches)
            outs.append((ours, replayed(losses_fn, weighting, params, batches, k)))
        return outs

    for k, (ours, theirs) in zip(
        (1, 2, 5), quick_jit(run)(params, batches), strict=True
    ):
        weights = np.asarray(ours[1][2].weights)
        changed = (weights[1:] != weights[:-1]).any(1)
        np.testing.assert_array_equal(changed, np.arange(1, 11) % k == 0)
        if strategy != "features":  # which sees another Gramian
            params_, (losses, grads, aggregate) = ours
            close((params_, (losses, grads, aggregate.weights)), theirs, 1e-9)


def test_every_k_with_random_keys_and_eager_steps(x64):
    """PCGrad's key moves with the weights, not with the steps."""
    del x64
    params, batches, losses_fn = problem(steps=4)
    weighting = mtl_jax.weighting.pcgrad(T)
    source = combined(losses_fn, weighting, "vmap", heads=is_head, every_k=2)
    update, state = quick_jit(source.update), source.init(params)
    keys = [jax.random.key_data(state.aggregate.inner.key)]
    for i in range(4):
        batch = jax.tree.map(lambda leaf, i=i: leaf[i], batches)
        _, _, state = update(state, params, batch)
        keys.append(jax.random.key_data(state.aggregate.inner.key))
        assert int(state.age) == (i + 1) % 2
    same = [np.array_equal(a, b) for a, b in itertools.pairwise(keys)]
    assert same == [False, True, False, True]


# -- what is not finite --------------------------------------------------------------


@jax.custom_vjp
def zero_with_gradient(x, gradient):
    """Zero, with a gradient of one's own choice."""
    del gradient
    return jnp.zeros_like(x)


zero_with_gradient.defvjp(
    lambda x, gradient: (jnp.zeros_like(x), gradient),
    # Not a product: the other tasks' cotangents are zero, and 0 * inf is NaN.
    lambda gradient, cotangent: (
        jnp.where(cotangent == 0, 0, gradient),
        jnp.zeros_like(gradient),
    ),
)


def faulty(by_gradient, steps=8):
    """Batches of which some spoil the loss, the gradient or the labels of a task."""
    params, batches, losses_fn = problem(steps=steps)
    loss_fault = np.zeros((steps, T))
    grad_fault = np.zeros((steps, T))
    loss_fault[1, 1] = np.nan
    loss_fault[3] = np.inf  # all tasks
    if by_gradient:
        grad_fault[4, 0] = np.inf
        grad_fault[6, 2] = np.nan
        loss_fault[6, 1] = np.nan
    bad = (loss_fault != 0) | (grad_fault != 0)
    batches = batches | {
        "loss": jnp.asarray(loss_fault),
        "grad": jnp.asarray(grad_fault),
    }

    def with_faults(params, batch):
        losses = losses_fn(params, batch) + batch["loss"]
        if not by_gradient:
            return losses
        entry = params["encoder"]["b"][0]
        faults = [zero_with_gradient(entry, batch["grad"][t]) for t in range(T)]
        return losses + jnp.stack(faults)

    return params, batches, with_faults, bad


@pytest.mark.parametrize("strategy", ["unroll", "auto", "layerwise", "gramian"])
def test_skipping_equals_aggregate(x64, strategy):
    """A bad loss, a bad gradient, both, and all tasks bad: the documented answer."""
    del x64
    # A push-forward through a function with its own pull-back is undefined in JAX.
    params, batches, losses_fn, bad = faulty(by_gradient=strategy != "gramian")

    def run(params, batches):
        outs = []
        for nonfinite in ("skip_task", "skip_step"):
            ours = combined(
                losses_fn, probe(T), strategy, heads=is_head, nonfinite=nonfinite
            )
            theirs = stored(losses_fn, probe(T), is_head, nonfinite=nonfinite)
            outs.append([descend(*pair, params, batches) for pair in (ours, theirs)])
        return outs

    by_task, by_step = quick_jit(run)(params, batches)
    for ours, theirs in (by_task, by_step):
        finite, _ = ours
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(finite))
        # Without the losses, bad as they are.
        close((finite, *ours[1][1:]), (theirs[0], *theirs[1][1:]), 1e-9)
    lost = (bad.all(1), bad.any(1))
    for (ours, _), expected in zip((by_task, by_step), lost, strict=True):
        counts = ours[1][2]
        np.testing.assert_array_equal(counts.skipped_tasks, np.cumsum(bad, axis=0))
        np.testing.assert_array_equal(counts.skipped_steps, np.cumsum(expected))


@pytest.mark.parametrize(
    ("nonfinite", "every_k", "strategies"),
    [
        ("propagate", 1, ("auto", "layerwise", "gramian")),
        ("skip_task", 1, STRATEGIES),
        ("skip_step", 1, STRATEGIES),
        ("skip_task", 3, ("layerwise", "features")),
    ],
)
def test_labels_that_are_not_finite(nonfinite, every_k, strategies):
    """0 times NaN is NaN: tasks may be lost together, but never the parameters."""
    params, batches, losses_fn = problem(steps=8)
    y = np.asarray(batches["y"]).copy()
    y[2, 1, 0], y[3, :, 1], y[6, 0, 0] = np.nan, np.nan, np.inf
    x = np.asarray(batches["x"]).copy()
    x[4, 0, 0] = np.nan
    batches = {"x": jnp.asarray(x), "y": jnp.asarray(y)}

    def run(params, batches):
        outs = []
        for strategy in strategies:
            source = combined(
                losses_fn,
                probe(T),
                strategy,
                heads=is_head,
                nonfinite=nonfinite,
                every_k=every_k,
            )
            outs.append(descend(*source, params, batches))
        return outs

    for params_, (_, grads, aggregate) in quick_jit(run)(params, batches):
        finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves(params_)]
        assert all(finite) == (nonfinite != "propagate")
        if nonfinite == "propagate":
            continue
        skipped = np.diff(np.asarray(aggregate.skipped_steps), prepend=0)
        assert skipped[[3, 4]].all() and not skipped[[0, 1, 5, 7]].any()
        if nonfinite == "skip_step":
            assert skipped[[2, 6]].all()
        for leaf in jax.tree.leaves(grads):
            assert not np.asarray(leaf)[skipped == 1].any()
            assert np.asarray(leaf)[[0, 1, 5, 7]].any()
        tasks = np.asarray(aggregate.skipped_tasks)
        assert (tasks[-1] >= [3, 3, 2]).all()
        np.testing.assert_array_equal(tasks[1], 0)


@pytest.mark.parametrize("strategy", ["vmap", "layerwise"])
def test_a_lost_refresh_is_tried_again_in_the_next_step(x64, strategy):
    del x64
    params, batches, losses_fn = problem(steps=9)
    # Due in steps 0, 3, 6. Step 3 is lost, so is its first repetition.
    batches["y"] = batches["y"].at[3:5, 0, 0].set(jnp.nan)
    source = combined(
        losses_fn, probe(T), strategy, heads=is_head, nonfinite="skip_step", every_k=3
    )

    def step(carry, batch):
        params, state = carry
        _, grads, state = source.update(state, params, batch)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
        return (params, state), (state.aggregate.weights, state.gram, state.age)

    run = quick_jit(lambda p: lax.scan(step, (p, source.init(p)), batches))
    (params, state), (weights, gram, age) = run(params)
    np.testing.assert_array_equal(age, [1, 2, 0, 0, 0, 1, 2, 0, 1])
    for values in (weights, gram):
        values = np.asarray(values).reshape(9, -1)
        changed = (values[1:] != values[:-1]).any(1)
        np.testing.assert_array_equal(changed, [0, 0, 0, 0, 1, 0, 0, 1])
    assert int(state.aggregate.skipped_steps) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


# -- training ------------------------------------------------------------------------


def training_problem():
    params, batches, losses_fn = problem(steps=4)

    def with_state(params, model_state, batch, key):
        keep = jax.random.bernoulli(key, 0.8, batch["x"].shape)
        losses = losses_fn(params, batch | {"x": batch["x"] * keep})
        return losses, {"seen": model_state["seen"] + 1}

    return params, {"seen": jnp.zeros([], jnp.int32)}, batches, with_state


@pytest.mark.parametrize("name", ["pcgrad", "nash_mtl", "uw"])
def test_training_equals_that_with_stored_gradients(x64, name):
    """Also the random numbers: both states are keyed by the key of the run."""
    del x64
    params, model_state, batches, losses_fn = training_problem()
    weighting = mtl_jax.build_weighting(name, T)
    adam = optax.adam(1e-2)
    tx = optax.chain(mtl_jax.aggregate(weighting, heads=is_head), adam)
    source = combined(losses_fn, weighting, "layerwise", has_aux=True, heads=is_head)
    key = jax.random.key(3)
    start = init_state(params, model_state, tx, key)
    ours_start = init_state(params, model_state, adam, key, source=source)
    if name == "pcgrad":
        fresh = source.init(params).aggregate.inner.key
        ours_key = ours_start.source_state.aggregate.inner.key
        assert (jax.random.key_data(fresh) != jax.random.key_data(ours_key)).any()

    def run(start, ours_start):
        step = make_train_step(losses_fn, tx, heads=is_head)
        ours = make_combined_step(source, adam)
        return lax.scan(step, start, batches), lax.scan(ours, ours_start, batches)

    (state, records), (ours, our_records) = quick_jit(run)(start, ours_start)
    if name == "uw":  # needs no Gramian, so there is none to record
        assert not our_records.cosines[:, 0, 1].any()
        records = records._replace(cosines=our_records.cosines)
    close(our_records, records, 1e-8)
    close(ours.params, state.params, 1e-8)
    close(ours.source_state.aggregate, state.opt_state[0], 1e-8)
    assert int(ours.model_state["seen"]) == int(ours.step) == 4


def test_a_training_state_survives_flattening():
    params, model_state, batches, losses_fn = training_problem()
    source = combined(
        losses_fn,
        mtl_jax.weighting.pcgrad(T),
        "layerwise",
        has_aux=True,
        heads=is_head,
        every_k=2,
    )
    adam = optax.adam(1e-2)
    step = quick_jit(make_combined_step(source, adam))
    state = init_state(params, model_state, adam, jax.random.key(0), source=source)
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    state, _ = step(state, first)
    leaves, structure = jax.tree.flatten(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)

    def save(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return is_key, np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    saved = [save(leaf) for leaf in leaves]
    restored = [
        jax.random.wrap_key_data(jnp.asarray(v)) if is_key else jnp.asarray(v)
        for is_key, v in saved
    ]
    again, record = step(jax.tree.unflatten(structure, restored), first)
    expected, expected_record = step(state, first)
    chex.assert_trees_all_equal(record, expected_record)
    close(again, expected, 0.0)


# -- call strings --------------------------------------------------------------------


def test_call_strings(x64):
    del x64
    params, batches, losses_fn = problem()
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    expected = {
        "mgda(strategy=features)": combined(
            losses_fn, mtl_jax.weighting.mgda(T), "features", heads=is_head
        ),
        "mgda(strategy='features', head_weights=weighted, normalization=l2)": combined(
            losses_fn,
            mtl_jax.weighting.mgda(T, normalization="l2"),
            "features",
            heads=is_head,
            head_weights="weighted",
        ),
        "ls(weights=(1, 2, 3), strategy=gramian, every_k=50)": combined(
            losses_fn, mtl_jax.weighting.ls(T, weights=(1, 2, 3)), heads=is_head
        ),
    }
    for call, source in expected.items():
        ours = build_source(call, T, losses_fn, heads=is_head)
        outs = jax.jit(
            lambda p, b, pair=(ours, source): [
                s.update(s.init(p), p, b)[:2] for s in pair
            ]
        )(params, batch)
        close(*outs, 1e-12)
    ages = build_source("nash_mtl(every_k=50)", T, losses_fn, heads=is_head)
    state = jax.eval_shape(ages.update, ages.init(params), params, batch)[2]
    assert state.age.shape == ()
    # Options of the call go before those of the program.
    strict = build_source("mgda(every_k=2)", T, losses_fn, every_k=0)
    assert strict is not None
    assert build_source("mgda", T, losses_fn) is None
    assert build_source("graddrop(leak=0.5)", T, losses_fn) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("mgda(strateg=features)", "no option 'strateg'; did you mean 'strategy'"),
        ("mgda(strategy=feature)", "strategy must be one of"),
        ("nash_mtl(every_k=0)", "every_k must be a Python integer >= 1, got 0"),
        ("nash_mtl(every_k=fifty)", "every_k must be a Python integer"),
        ("mgda(head_weights=alpha)", "head_weights must be one of"),
        ("mgda(feature_batch=mean)", "feature_batch must be one of"),
        ("graddrop(strategy=vmap)", "gradients themselves and takes no strategy"),
        ("mgda(strategy=f.x)", "value of 'strategy' must be"),
        ("mgad(strategy=features)", "unknown method 'mgad'; did you mean 'mgda'"),
    ],
)
def test_bad_call_strings(call, message):
    with pytest.raises(ValueError, match=message) as error:
        build_source(call, T, lambda params: params, heads=is_head)
    assert "\n" not in str(error.value)


def test_sources_options_are_unknown_to_plain_methods():
    with pytest.raises(ValueError, match="no option 'strategy'"):
        mtl_jax.build("mgda(strategy=features)", T)
    with pytest.raises(ValueError, match="no option 'every_k'"):
        mtl_jax.build_weighting("nash_mtl(every_k=50)", T)
