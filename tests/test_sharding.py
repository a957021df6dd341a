"""Sharded training equals training on one device, and sends no more than it must."""

import collections
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mtl_jax
from mtl_jax import sharding, tree
from mtl_jax.train import init_state, make_train_step
from tests.hlo import collectives

NAMES = sorted(mtl_jax.METHODS)
WIDTHS = (40, 32, 48, 24)
BATCH = 8
# Sizes are such that the smallest kernel's task gradients on one device (T x 1152 / 4)
# outweigh any activations' (T x 4 x 48): a collective's size tells them apart.
RULES = (
    ("encoder/0/kernel", P(None, "model")),
    ("encoder/1/kernel", P("model", None)),
    (r"heads/\d+/kernel", P("model", None)),
    ("encoder/.*/bias", P("model")),
)
FSDP_RULES = ((lambda path: path.endswith("kernel"), P("data")),)
MOVES = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def is_head(path):
    return path.startswith("heads/")


def problem(num_tasks, dtype=jnp.float32):
    """A regression: two shared layers and a linear head per task."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(0.3 * rng.normal(size=shape), dtype)

    def dense(fan_in, fan_out):
        return {"kernel": draw(fan_in, fan_out), "bias": draw(fan_out)}

    a, b, c, d = WIDTHS
    params = {
        "encoder": {"0": dense(a, b), "1": dense(b, c)},
        "heads": {str(t): dense(c, d) for t in range(num_tasks)},
    }
    batch = {"x": draw(BATCH, a), "y": draw(BATCH, num_tasks, d)}

    def affine(layer, x):
        return x @ layer["kernel"] + layer["bias"][None]

    def losses_fn(params, model_state, batch, key):
        del key
        hidden = jnp.tanh(affine(params["encoder"]["0"], batch["x"]))
        hidden = jnp.tanh(affine(params["encoder"]["1"], hidden))
        outs = [affine(params["heads"][str(t)], hidden) for t in range(num_tasks)]
        errors = jnp.stack(outs, 1) - batch["y"]
        return jnp.square(errors).mean((0, 2)), model_state

    return params, batch, losses_fn


def mesh_of(data, model):
    return sharding.make_mesh(jax.devices()[: data * model], model=model)


def compiled(step, *args, **kwargs):
    """Little optimisation of the machine code: it takes longer than to run it."""
    lowered = jax.jit(step, donate_argnums=0, **kwargs).lower(*args)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


class Training:
    """A compiled step, its initial state and batch; on ``mesh``, or one device."""

    def __init__(
        self, call, num_tasks, mesh=None, rules=(), dtype=jnp.float32, **options
    ):
        params, batch, losses_fn = problem(num_tasks, dtype)
        tx = optax.chain(mtl_jax.build(call, num_tasks), optax.adam(1e-2))
        if options.get("heads"):
            weighting = mtl_jax.build_weighting(call, num_tasks)
            method = mtl_jax.aggregate(weighting, heads=options["heads"])
            tx = optax.chain(method, optax.adam(1e-2))
        placement = {}
        state = init_state(params, {}, tx, jax.random.key(0))
        if mesh is not None:
            shardings = sharding.param_shardings(params, mesh, rules)
            losses_fn = sharding.constrain(losses_fn, shardings)
            self.shardings = sharding.state_shardings(state, params, shardings)
            state = jax.device_put(state, self.shardings)
            batch = jax.device_put(batch, sharding.batch_sharding(mesh))
            placement["out_shardings"] = (self.shardings, NamedSharding(mesh, P()))
        step = make_train_step(losses_fn, tx, **options)
        self.step = compiled(step, state, batch, **placement)
        self.state, self.batch, self.params = state, batch, params

    def collectives(self):
        return collectives(self.step.as_text())


@functools.cache
def plain_collectives(mesh, rules=(), num_tasks=3):
    """Of an ordinary data-parallel step on the sum of the losses."""
    params, batch, losses_fn = problem(num_tasks)
    shardings = sharding.param_shardings(params, mesh, rules)
    losses_fn, adam = sharding.constrain(losses_fn, shardings), optax.adam(1e-2)

    def step(state, batch):
        params, moments = state

        def total(params):
            losses, _ = losses_fn(params, {}, batch, None)
            return losses.sum(), losses

        grads, losses = jax.grad(total, has_aux=True)(params)
        updates, moments = adam.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), losses

    state = (params, adam.init(params))
    placed = sharding.state_shardings(state, params, shardings)
    state = jax.device_put(state, placed)
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    out = (placed, NamedSharding(mesh, P()))
    return collectives(compiled(step, state, batch, out_shardings=out).as_text())


def count(params, mesh=None, rules=()):
    """Numbers in ``params``, or those of them that one device holds."""
    leaves = jax.tree.leaves(params)
    if mesh is None:
        return sum(leaf.size for leaf in leaves)
    shardings = jax.tree.leaves(sharding.param_shardings(params, mesh, rules))
    return sum(
        math.prod(s.shard_shape(leaf.shape))
        for leaf, s in zip(leaves, shardings, strict=True)
    )


def sent(found, op=None, groups=None):
    """Numbers, over all executions, in the results of the given collectives."""
    return sum(
        c.executions * sum(c.sizes)
        for c in found
        if op in (None, c.op) and groups in (None, c.groups)
    )


def check_no_jacobian_moves(found, params, num_tasks, mesh):
    """Nothing as large as one kernel's task gradients goes through a moving collective."""
    kernels = [leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    bound = num_tasks * min(kernels) // mesh.shape["model"]
    for c in found:
        if c.op in MOVES:
            assert c.executions * sum(c.sizes) < bound, c


# -- rules ---------------------------------------------------------------------------


def test_the_first_matching_rule_decides_and_the_rest_is_replicated():
    mesh = mesh_of(4, 2)
    params = problem(2)[0]
    rules = (("encoder/0", P()), *RULES, (is_head, P("data")))
    shardings = sharding.param_shardings(jax.eval_shape(lambda: params), mesh, rules)
    chex.assert_trees_all_equal_structs(params, shardings)
    encoder, heads = shardings["encoder"], shardings["heads"]
    assert encoder["0"]["kernel"].spec == P()  # by the first rule, not the second
    assert encoder["1"]["kernel"].spec == P("model", None)
    assert encoder["1"]["bias"].spec == P("model")
    assert heads["1"]["kernel"].spec == P("model", None)
    assert heads["1"]["bias"].spec == P("data")
    plain = sharding.param_shardings(params, mesh)
    assert all(s.is_fully_replicated for s in jax.tree.leaves(plain))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            ("bias", P(None, "model")),
            r"'bias' of shape \(6,\).*\(None, 'model'\).*2 entries",
        ),
        (("kernel", P("model")), r"'kernel' of shape \(5, 8\).*size 5.*multiple of 2"),
        (("bias", P(("data", "model"))), r"'bias'.*size 6.*multiple of 8"),
        (("bias", P("batch")), r"'bias'.*no axis 'batch'.*data"),
        (("kernal", P("model")), r"'kernal' matches no parameter"),
    ],
)
def test_specs_that_do_not_fit_are_named(rule, message):
    params = {"kernel": jnp.zeros((5, 8)), "bias": jnp.zeros(6)}
    with pytest.raises(ValueError, match=message):
        sharding.param_shardings(params, mesh_of(4, 2), [rule])


def test_the_model_axis_must_divide_the_devices():
    assert dict(sharding.make_mesh(model=4).shape) == {"data": 2, "model": 4}
    for model in (3, 0):
        with pytest.raises(ValueError, match=rf"devices, 8, got {model}"):
            sharding.make_mesh(model=model)


def test_states_follow_their_parameters():
    mesh = mesh_of(4, 2)
    params = problem(2)[0]
    shardings = sharding.param_shardings(params, mesh, RULES)
    tx = optax.chain(mtl_jax.nash_mtl(2), optax.adamw(1e-3))
    state = jax.eval_shape(
        lambda: init_state(params, {"seen": jnp.zeros(())}, tx, jax.random.key(0))
    )
    placed = sharding.state_shardings(state, params, shardings)
    chex.assert_trees_all_equal_structs(placed, state)
    assert placed.params == shardings
    assert optax.tree.get(placed, "mu") == optax.tree.get(placed, "nu") == shardings
    rest = [placed.model_state, placed.key, placed.step, placed.opt_state[0]]
    assert all(s.is_fully_replicated for s in jax.tree.leaves(rest))
    with pytest.raises(ValueError, match="structure of params"):
        sharding.state_shardings(state, params, shardings["encoder"])


def test_states_of_partitioned_optimisers_follow_too():
    mesh = mesh_of(4, 2)
    params = {
        "kernel": jnp.zeros((4, 4)),
        "inner": {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(2)},
    }
    rules = [("^kernel", P("model")), ("inner/kernel", P(None, "model"))]
    shardings = sharding.param_shardings(params, mesh, rules)
    labels = {"kernel": "a", "inner": "b"}
    tx = optax.partition({"a": optax.adam(1.0), "b": optax.adafactor(1.0)}, labels)
    placed = sharding.state_shardings(tx.init(params), params, shardings)
    a, b = placed.inner_states["a"].inner_state, placed.inner_states["b"].inner_state
    assert optax.tree.get(a, "mu")["kernel"].spec == P("model")
    # The longest path decides: not the rule of the outer "kernel". Factors and
    # placeholders of other shapes are replicated.
    moment = optax.tree.get(b, "v")["inner"]
    factors = sharding.state_shardings(
        {"v": params["inner"], "row": {"inner": {"kernel": jnp.zeros(4)}}},
        params,
        shardings,
    )
    assert jax.tree.leaves(moment)
    assert factors["row"]["inner"]["kernel"].spec == P()
    whole = sharding.state_shardings({"ema": params}, params, shardings)
    assert whole["ema"] == shardings


# -- equal to one device -------------------------------------------------------------


def check_equals_one_device(call, shape):
    """Two steps of Adam in float64 on ``mesh``, from and to its shardings.

    The devices only add in another order, about 1e-16 relative; Adam's first steps divide
    every gradient by its own size, and iterative solvers stop at their own tolerance:
    1e-10 leaves room for both, and none for a wrong factor or a stale shard.
    """
    mesh = mesh_of(*shape)
    one = Training(call, 3, dtype=jnp.float64)
    many = Training(call, 3, mesh, RULES, jnp.float64)
    state, expected = many.state, one.state
    for _ in range(2):
        before = state
        state, record = many.step(state, many.batch)
        expected, expected_record = one.step(expected, one.batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
        chex.assert_trees_all_close(
            jax.device_get((state.params, record)),
            jax.device_get((expected.params, expected_record)),
            rtol=1e-10,
            atol=1e-10,
        )
    for leaf, asked in zip(
        jax.tree.leaves(state), jax.tree.leaves(many.shardings), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(asked, leaf.ndim)
    kernel = optax.tree.get(state.opt_state[1], "mu")["encoder"]["0"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (40, 32 // shape[1])

    found = many.collectives()
    check_no_jacobian_moves(found, many.params, 3, mesh)
    over_data = tuple(map(tuple, np.arange(8).reshape(shape).T.tolist()))
    assert sent(found, groups=over_data) == 3 * count(many.params, mesh, RULES) + 3


@pytest.mark.parametrize("call", NAMES)
def test_every_method_equals_one_device(call, x64):
    del x64
    check_equals_one_device(call, (4, 2))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
@pytest.mark.parametrize("call", NAMES)
def test_every_method_equals_one_device_on_other_meshes(call, shape, x64):
    del x64
    check_equals_one_device(call, shape)


# -- traffic -------------------------------------------------------------------------


@pytest.mark.parametrize("num_tasks", [2, 3])
@pytest.mark.parametrize("strategy", ["vmap", "unroll", "map"])
def test_data_parallel_traffic(strategy, num_tasks):
    """Against the plain step's P + T numbers: T P + T, in all-reduces over all devices.

    The Gramian costs nothing: every device has the whole task gradients by then.
    """
    mesh = mesh_of(8, 1)
    everyone = (tuple(range(8)),)
    training = Training("imtl_g", num_tasks, mesh, strategy=strategy)
    found, plain = training.collectives(), plain_collectives(mesh, num_tasks=num_tasks)
    size = count(training.params)
    assert {(c.op, c.groups) for c in found + plain} == {("all-reduce", everyone)}
    assert sent(plain) == size + num_tasks
    assert sent(found) == num_tasks * size + num_tasks
    assert sum(c.executions * c.bytes for c in found) == 4 * num_tasks * (size + 1)


def test_heads_are_reduced_once():
    mesh = mesh_of(8, 1)
    training = Training("mgda", 2, mesh, strategy="vmap", heads=is_head)
    found = training.collectives()
    shared, heads = count(training.params["encoder"]), count(training.params["heads"])
    assert {c.op for c in found} == {"all-reduce"}
    assert sent(found) == 2 * shared + heads + 2


@pytest.mark.parametrize("strategy", ["vmap", "unroll", "map"])
def test_model_parallel_traffic(strategy):
    """Over ``data`` T P' + T numbers, P' those of one device; T x T ones over ``model``."""
    num_tasks, mesh = 3, mesh_of(4, 2)
    training = Training("imtl_g", num_tasks, mesh, RULES, strategy=strategy)
    found, plain = training.collectives(), plain_collectives(mesh, RULES)
    over_data = ((0, 2, 4, 6), (1, 3, 5, 7))
    over_model = ((0, 1), (2, 3), (4, 5), (6, 7))
    assert {c.groups for c in found + plain} == {over_data, over_model}
    check_no_jacobian_moves(found, training.params, num_tasks, mesh)
    local = count(training.params, mesh, RULES)
    assert sent(plain, groups=over_data) == local + num_tasks
    assert sent(found, "all-reduce", over_data) == num_tasks * local + num_tasks
    # Over model the plain step sends activations forward and their gradients back; here
    # these go back T times. The rest are Gramians: one for each sharded leaf, for the
    # method and for the record.
    shapes = collections.Counter(
        shape for c in found if c.groups == over_model for shape in c.shapes
    )
    sharded = sum(
        not s.is_fully_replicated for s in jax.tree.leaves(training.shardings.params)
    )
    assert shapes[(num_tasks, num_tasks)] == 2 * sharded
    gramians = 2 * sharded * num_tasks**2
    activations = sent(plain, groups=over_model)
    assert sent(found, groups=over_model) - gramians <= num_tasks * activations


def test_fsdp_gathers_parameters_only():
    """Parameters in pieces on ``data``: gathered once for all tasks, never their J."""
    num_tasks, mesh = 3, mesh_of(8, 1)
    params, batch, losses_fn = problem(num_tasks)
    shardings = sharding.param_shardings(params, mesh, FSDP_RULES)
    replicated = sharding.param_shardings(params, mesh)
    fsdp_losses = sharding.constrain(
        sharding.constrain(losses_fn, replicated), shardings
    )
    tx = optax.chain(mtl_jax.imtl_g(num_tasks), optax.adam(1e-2))
    state = init_state(params, {}, tx, jax.random.key(0))
    placed = sharding.state_shardings(state, params, shardings)
    step = make_train_step(fsdp_losses, tx, strategy="vmap")
    run = compiled(
        step,
        jax.device_put(state, placed),
        jax.device_put(batch, sharding.batch_sharding(mesh)),
        out_shardings=(placed, NamedSharding(mesh, P())),
    )
    found = collectives(run.as_text())
    kernels = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    sharded = sum(leaf.ndim == 2 for leaf in jax.tree.leaves(params))
    assert {c.op for c in found} == {"all-gather", "all-reduce"}
    assert sent(found, "all-gather") == kernels
    gramians = 2 * sharded * num_tasks**2
    assert sent(found, "all-reduce") == num_tasks * (count(params) + 1) + gramians


def test_the_check_catches_a_gramian_that_gathers(monkeypatch):
    """A reshape to (T, p) before the product, as one would write it first."""

    def reshaping_gram(task_grads):
        rows = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(task_grads)]
        return sum(row @ row.T for row in rows)

    monkeypatch.setattr(tree, "gram", reshaping_gram)
    mesh = mesh_of(4, 2)
    training = Training("imtl_g", 3, mesh, RULES, strategy="vmap")
    with pytest.raises(AssertionError, match="all-gather"):
        check_no_jacobian_moves(training.collectives(), training.params, 3, mesh)


def test_the_check_catches_unconstrained_task_gradients(monkeypatch):
    monkeypatch.setattr(sharding, "constrain", lambda losses_fn, shardings: losses_fn)
    mesh = mesh_of(4, 2)
    training = Training("imtl_g", 3, mesh, RULES, strategy="vmap")
    with pytest.raises(AssertionError, match="all-to-all"):
        check_no_jacobian_moves(training.collectives(), training.params, 3, mesh)


# -- meshes with explicit axes -------------------------------------------------------


@pytest.mark.parametrize("spec", [P(None, "data", "model"), P(None, None, "model")])
def test_stacked_algebra_on_explicit_axes(spec):
    """There a contraction over sharded axes must say where its result lies."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    rng = np.random.default_rng(0)
    stack = {
        "kernel": jnp.asarray(rng.normal(size=(3, 8, 4)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
    }
    tx = mtl_jax.nash_mtl(3)
    weights = jnp.array([0.2, 0.3, 0.5])

    def everything(stack):
        params = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), stack)
        return (
            tree.gram(stack),
            tree.combine(weights, stack),
            tree.scale_tasks(weights, stack),
            tree.zero_tasks(weights > 0.25, stack),
            tree.task_norms(stack),
            tree.finite_tasks(stack),
            tx.update(stack, tx.init(params), params)[0],
        )

    expected = jax.jit(everything)(stack)
    placed = {
        "kernel": jax.device_put(stack["kernel"], NamedSharding(mesh, spec)),
        "bias": jax.device_put(stack["bias"], NamedSharding(mesh, P(None, "model"))),
    }
    with jax.set_mesh(mesh):
        found = jax.jit(everything)(placed)
    assert found[1]["kernel"].sharding.spec == P(*spec[1:])
    chex.assert_trees_all_close(
        jax.device_get(found), jax.device_get(expected), rtol=1e-4, atol=1e-6
    )
