"""One pull-back for all tasks through separate heads, against one for every task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.features import find_representation
from mtl_jax.models import Heads, cross_entropy
from mtl_jax.separable import separate_rows
from tests.networks import is_head, traced

BATCH, INPUTS, FEATURES = 6, 4, 3
QUICK = {"xla_backend_optimization_level": 0}  # compile time is most of these tests


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def encoder():
    return {"w": normal(0, INPUTS, FEATURES)}


def encode(params):
    return jnp.tanh(normal(1, BATCH, INPUTS) @ params["encoder"]["w"])


def check(losses_fn, params, separate):
    """Compares the rows with those of unit cotangents.

    Args:
        losses_fn: of ``params``, a function of ``encode(params)`` and heads.
        params: ``{"encoder": ..., "heads": ...}``.
        separate: whether one pass is enough; ``None`` is expected if not.
    """
    found = []

    def both(params):
        linear, trace = traced(losses_fn, params, is_head)
        pullback = trace.pullback
        variable = find_representation(pullback, trace.shared, trace.heads)
        rows = separate_rows(pullback, variable)
        found.append(rows is not None)
        part = pullback.part([pullback.input], [variable])
        (expected,) = jax.vmap(part)(jnp.eye(len(linear.losses)))
        return expected if rows is None else rows, expected

    rows, expected = jax.jit(both, compiler_options=QUICK)(params)
    assert found == [separate]
    assert rows.dtype == expected.dtype and rows.shape == expected.shape
    # float64: the same products, added up in another order.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-12 * scale)
    assert (np.abs(expected).reshape(len(expected), -1).max(1) > 0).all()


def dense_heads(tasks, units=2):
    return {
        f"head{t}": {"w": normal(10 + t, FEATURES, units), "b": normal(20 + t, units)}
        for t in range(tasks)
    }


def one_head(head, z):
    return z @ head["w"] + head["b"][None]


@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("hidden", [None, 4])
def test_stacked_heads(x64, tasks, hidden):
    del x64
    model = Heads(tasks, 3, hidden=hidden, param_dtype=jnp.float64)
    labels = jnp.arange(BATCH * tasks).reshape(BATCH, tasks) % 3
    heads = jax.jit(model.init)(jax.random.key(0), jnp.zeros((BATCH, FEATURES)))

    def losses_fn(params):
        return cross_entropy(model.apply(params["heads"], encode(params)), labels)

    check(losses_fn, {"encoder": encoder(), "heads": heads}, True)


def stack(losses):
    return jnp.stack(losses)


def concatenate(losses):
    return jnp.concatenate([loss[None] for loss in losses])


def scatter(losses):
    """Stores them one by one."""
    vector = jnp.zeros(len(losses))
    for t, loss in enumerate(losses):
        vector = vector.at[t].set(loss)
    return vector


@pytest.mark.parametrize(
    ("tasks", "collect"),
    [(1, stack), *[(t, c) for t in (2, 3, 4, 5) for c in (stack, concatenate)]],
)
def test_a_module_for_every_task(x64, tasks, collect):
    del x64

    def losses_fn(params):
        z, heads = encode(params), params["heads"].values()
        return collect([jnp.square(one_head(head, z) - 1).mean() for head in heads])

    check(losses_fn, {"encoder": encoder(), "heads": dense_heads(tasks)}, True)


def test_losses_in_parts(x64):
    """Concatenated from a stacked group and single ones: not known, so not in one."""
    del x64

    def losses_fn(params):
        z, heads = encode(params), list(params["heads"].values())
        group = jnp.stack([one_head(head, z).mean() for head in heads[:2]])
        return jnp.concatenate([group, one_head(heads[2], z).mean()[None]])

    check(losses_fn, {"encoder": encoder(), "heads": dense_heads(3)}, False)


def test_losses_indexed_and_put_together_again(x64):
    del x64

    def losses_fn(params):
        z = encode(params)
        out = jnp.stack([one_head(head, z) for head in params["heads"].values()])
        losses = jnp.square(out).mean((1, 2))
        return jnp.stack([losses[2], losses[0], losses[1]])

    params = {"encoder": encoder(), "heads": dense_heads(3)}
    check_either(losses_fn, params)


def check_either(losses_fn, params):
    """Where one pass may or may not do: its answer counts, if there is one."""
    try:
        check(losses_fn, params, True)
    except AssertionError:
        check(losses_fn, params, False)


def test_losses_stored_one_by_one(x64):
    del x64

    def losses_fn(params):
        z, heads = encode(params), params["heads"].values()
        return scatter([jnp.sin(one_head(head, z)).mean() for head in heads])

    check_either(losses_fn, {"encoder": encoder(), "heads": dense_heads(3)})


def test_two_layers_with_dropout_and_types_of_their_own(x64):
    """Regression, classification and a ranking of masked pairs, all weighted."""
    del x64
    heads = {
        f"head{t}": {"in": normal(30 + t, FEATURES, 4), "out": normal(40 + t, 4, 3)}
        for t in range(3)
    }
    key = jax.random.key(3)
    labels = jnp.arange(BATCH) % 3
    target = normal(5, BATCH, 3).at[1].set(jnp.nan)
    known = jnp.isfinite(target)

    def losses_fn(params):
        z, outs = encode(params), []
        for t, head in enumerate(params["heads"].values()):
            hidden = jax.nn.relu(z @ head["in"])
            keep = jax.random.bernoulli(jax.random.fold_in(key, t), 0.5, hidden.shape)
            outs.append(jnp.where(keep, hidden / 0.5, 0) @ head["out"])
        error = jnp.where(known, outs[0] - jnp.where(known, target, 0), 0)
        logp = jnp.take_along_axis(jax.nn.log_softmax(outs[1]), labels[:, None], 1)
        order = jax.nn.softplus(outs[2][1:, 0] - outs[2][:-1, 0])
        return jnp.stack(
            [0.3 * jnp.square(error).sum() / known.sum(), -logp.mean(), order.max()]
        )

    check(losses_fn, {"encoder": encoder(), "heads": heads}, True)


def test_stacked_heads_with_masks_and_constants(x64):
    """Labels missing for some examples of some tasks; losses scaled by constants."""
    del x64
    target = normal(6, 4, BATCH).at[1, 2:].set(jnp.nan).at[3, 0].set(jnp.nan)
    known = jnp.isfinite(target)
    keep = jax.random.bernoulli(jax.random.key(0), 0.5, (4, BATCH, FEATURES))

    def losses_fn(params):
        z = encode(params)[None] * keep
        out = jnp.einsum("tbi,ti->tb", z, params["heads"]["w"])
        error = jnp.where(known, out - jnp.where(known, target, 0), 0)
        losses = jnp.square(error).sum(1) / known.sum(1)
        return losses * jnp.array([1.0, 0.5, 2.0, 3.0]) / 4 + 7

    check(
        losses_fn, {"encoder": encoder(), "heads": {"w": normal(2, 4, FEATURES)}}, True
    )


@pytest.mark.parametrize("equation", ["bi,ti->tb", "bi,ti->bt", "bi,it->bt"])
def test_one_product_for_all_heads(x64, equation):
    """No copy of the representation for every head: the product sums over the tasks."""
    del x64
    tasks_last = equation.endswith("bt")
    shape = (FEATURES, 4) if "it" in equation else (4, FEATURES)

    def losses_fn(params):
        out = jnp.einsum(equation, encode(params), params["heads"]["w"])
        return jnp.square(out - 1).mean(0 if tasks_last else 1)

    check(losses_fn, {"encoder": encoder(), "heads": {"w": normal(2, *shape)}}, True)


MIXING = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, 0.0, 1.0]])

COUPLINGS = {
    "mixed by a matrix": lambda out: MIXING @ jnp.square(out).mean(1),
    "normalised by their sum": lambda out: (
        jnp.square(out).mean(1) / jnp.square(out).mean(1).sum()[None]
    ),
    "distance to the next head": lambda out: jnp.square(
        out - jnp.roll(out, 1, axis=0)
    ).mean(1),
    "cumulative": lambda out: jnp.cumsum(jnp.square(out).mean(1)),
    "softmax over the tasks": lambda out: jax.nn.softmax(out, axis=0).mean(1),
    "loss 0 added to all": lambda out: (
        jnp.square(out).mean(1) + jnp.square(out[0]).mean()[None]
    ),
    "first head through all": lambda out: jnp.square(out * out[:1]).mean(1),
    "sorted": lambda out: jnp.sort(jnp.square(out).mean(1)),
    "reversed": lambda out: jnp.square(out).mean(1)[::-1],
    "reversed by index": lambda out: jnp.square(out).mean(1)[np.array([2, 1, 0])],
    "transposed square": lambda out: jnp.square(out[:, :3]).T.mean(1),
    "reshaped": lambda out: jnp.square(out).reshape(2, 3, 3).mean((0, 2)),
    "halves": lambda out: jnp.square(out).reshape(6, 3).mean(1).reshape(3, 2).sum(1),
}
SEPARATE_AFTER_ALL = ("halves",)


@pytest.mark.parametrize("name", COUPLINGS)
def test_losses_that_see_other_heads(x64, name):
    """Never a wrong answer: none, or the right one."""
    del x64

    def losses_fn(params):
        out = jnp.einsum("bi,ti->tb", encode(params), params["heads"]["w"])
        return COUPLINGS[name](out)

    params = {"encoder": encoder(), "heads": {"w": normal(2, 3, FEATURES)}}
    if name in SEPARATE_AFTER_ALL:
        check_either(losses_fn, params)
    else:
        check(losses_fn, params, False)


def test_one_module_coupled_with_another(x64):
    del x64

    def losses_fn(params):
        z, heads = encode(params), list(params["heads"].values())
        first, second = (one_head(head, z) for head in heads)
        return jnp.stack([jnp.square(first).mean(), (first * second).mean()])

    check(losses_fn, {"encoder": encoder(), "heads": dense_heads(2)}, False)


def test_axes_of_the_same_size_are_not_mixed_up(x64):
    """Tasks, examples and features all three."""
    del x64
    x = normal(1, 3, 3)

    def losses_fn(params):
        z = jnp.tanh(x @ params["encoder"]["w"])
        out = jnp.einsum("bi,tij->jtb", z, params["heads"]["w"])
        out = jnp.square(out.transpose(2, 0, 1).reshape(3, 1, 3, 3)).mean((0, 1))
        return out.sum(0)

    params = {"encoder": {"w": normal(0, 3, 3)}, "heads": {"w": normal(2, 3, 3, 3)}}
    check(losses_fn, params, True)


def test_the_pass_costs_the_heads_once():
    """Multiply-adds of the program that gives the rows: T heads rather than T² ones."""
    tasks, width = 8, 16
    x = jnp.ones((BATCH, width))
    params = {
        "encoder": {"w": jnp.eye(width)},
        "heads": {"w": jnp.ones((tasks, width, width))},
    }

    def losses_fn(params):
        z = jnp.tanh(x @ params["encoder"]["w"])
        z = jnp.broadcast_to(z, (tasks, *z.shape))
        return jnp.square(jnp.einsum("tbi,tio->tbo", z, params["heads"]["w"])).mean(
            (1, 2)
        )

    def rows(params):
        _, trace = traced(losses_fn, params, is_head)
        assert trace.start is not trace.pullback.input
        return trace.rows

    cost = jax.jit(rows).lower(params).cost_analysis()
    heads = 2 * tasks * BATCH * width * width
    # Forward through the encoder, forward and back through the heads, and small change.
    assert cost["flops"] < 1.5 * (heads / tasks + 2 * heads)
