"""What a multi-task step sends between devices, counted in the compiled program."""

import collections

import jax
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mtl_jax
from mtl_jax import sharding, tree
from mtl_jax.train import init_state, make_train_step
from tests.hlo import collectives
from tests.sharded import (
    RULES,
    Training,
    check_no_jacobian_moves,
    compiled,
    count,
    is_head,
    mesh_of,
    plain_collectives,
    problem,
    sent,
)

FSDP_RULES = ((lambda path: path.endswith("kernel"), P("data")),)


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


@pytest.mark.parametrize("every_k", [1, 50])
@pytest.mark.parametrize("strategy", ["vmap", "gramian", "features"])
def test_traffic_of_combined_gradients(strategy, every_k):
    """With S shared and H head parameters, P = S + H; the losses are T numbers more.

    A push-forward needs the whole task gradient, so "gramian" saves memory, no traffic.
    """
    num_tasks, mesh = 3, mesh_of(8, 1)
    params, batch, losses_fn = problem(num_tasks)
    source = mtl_jax.value_and_combined_grad(
        lambda params, batch: losses_fn(params, {}, batch, None)[0],
        mtl_jax.weighting.imtl_g(num_tasks),
        strategy=strategy,
        heads=is_head,
        every_k=every_k,
    )
    state = source.init(params)
    everywhere = NamedSharding(mesh, P())
    run = compiled(
        source.update,
        jax.device_put(state, everywhere),
        jax.device_put(params, everywhere),
        jax.device_put(batch, sharding.batch_sharding(mesh)),
        out_shardings=everywhere,
    )
    shared, heads = count(params["encoder"]), count(params["heads"])
    numbers = {
        "vmap": num_tasks * shared + heads,
        "gramian": num_tasks * shared + shared + heads + num_tasks**2,
        "features": shared + heads + num_tasks**2,
    }[strategy]
    # Of the program's two branches one runs; that with kept weights sends P and losses.
    numbers += (shared + heads + num_tasks) * (every_k > 1)
    found = collectives(run.as_text())
    assert {c.op for c in found} == {"all-reduce"}
    assert sent(found) == numbers + num_tasks


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
