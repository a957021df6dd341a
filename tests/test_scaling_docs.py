"""The snippets of ``docs/scaling.md`` run, and its table follows from its formulas."""

import pathlib
import re

import jax
import numpy as np
import optax
import pytest

from tests.sharded import problem

TEXT = (pathlib.Path(__file__).parent.parent / "docs" / "scaling.md").read_text()
ONE_MACHINE, FSDP, COMBINED, POD = re.findall(r"```python\n(.*?)```", TEXT, re.S)
PARAMETERS, FEATURES, REFRESH = 1e9, 32 * 1024 * 2048, 50


def given():
    """What the snippets leave to their reader."""
    params, batch, losses_fn = problem(3)
    batch = jax.tree.map(np.asarray, batch)
    return {
        "init_params": lambda key: params,
        "losses_fn": losses_fn,
        "losses_only": lambda params, batch: losses_fn(params, {}, batch, None)[0],
        "batches": [batch] * 4,
    }


def check_trained(names):
    """Four steps on one batch lower the losses, from and to the shardings asked for."""
    before = names["losses_only"](names["init_params"](None), names["batches"][0])
    assert int(names["state"].step) == 4
    assert (np.asarray(names["record"].losses) < np.asarray(before)).all()
    params = names["state"].params
    wrong = [
        path
        for (path, leaf), at in zip(
            jax.tree_util.tree_leaves_with_path(params),
            jax.tree.leaves(names["params_at"]),
            strict=True,
        )
        if not leaf.sharding.is_equivalent_to(at, leaf.ndim)
    ]
    assert not wrong
    kernel = params["encoder"]["0"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2


@pytest.mark.slow
def test_one_machine():
    names = given()
    exec(ONE_MACHINE, names)
    check_trained(names)

    exec(FSDP, names)
    expected = names["losses_only"](names["state"].params, names["batches"][0])
    pieces = jax.device_put(names["state"].params, names["pieces_at"])
    losses, _ = jax.jit(names["fsdp_losses_fn"])(pieces, {}, names["batches"][0], None)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    kernel = pieces["encoder"]["0"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4

    before = np.asarray(expected)
    exec(COMBINED, names)
    np.testing.assert_allclose(names["losses"], before, rtol=1e-5)
    assert int(optax.tree.get(names["carry"], "age")) == 1
    after = names["losses_only"](names["carry"][0], names["batches"][0])
    assert (np.asarray(after) < before).all()


def run_pod_snippet():
    """Of every process; ``tests/distributed_worker.py`` calls it."""
    assert "jax.distributed.initialize()" in POD
    names = given()
    size = len(names["batches"][0]["x"]) // jax.process_count()
    own = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
    names["local_batches"] = [
        jax.tree.map(lambda leaf: leaf[own], batch) for batch in names["batches"]
    ]
    exec(POD.replace("jax.distributed.initialize()", ""), names)
    check_trained(names)
    return np.asarray(names["record"].losses)


def rows():
    """The table: gradients' memory and payload of one step, in GB."""
    stored = {t: ((t + 1) * PARAMETERS, t * PARAMETERS) for t in (3, 10, 40)}
    yield "plain", "any", PARAMETERS, PARAMETERS
    for t, (memory, traffic) in stored.items():
        yield "stored", t, memory, traffic
    for t in stored:
        yield "`gramian`", t, PARAMETERS, (t + 1) * PARAMETERS
    for t in stored:
        yield "`features`", t, PARAMETERS + t * FEATURES, PARAMETERS
    for t, (memory, traffic) in stored.items():
        mean = (traffic + (REFRESH - 1) * PARAMETERS) / REFRESH
        yield f"stored, `every_k={REFRESH}`", t, memory, mean


def table():
    for name, tasks, *numbers in rows():
        cells = [
            f"{n * size / 1e9:.3g} GB" for n in numbers for size in (4, 2)
        ]  # float32, bfloat16
        yield f"| {name} | {tasks} | {' | '.join(cells)} |"


@pytest.mark.parametrize("row", list(table()))
def test_the_table_follows_from_the_formulas(row):
    assert row in TEXT


def test_the_conclusions_follow_from_the_table():
    state = 3 * 4  # parameters and two moments, GB
    assert f"{state} + {11 * 4} GB" in TEXT and f"({state + 41 * 4} GB)" in TEXT
    assert f"({state} + {41 * 4})/8 = {(state + 41 * 4) / 8:.0f}" in TEXT
    seconds = 2 * 7 / 8 * 4 / 200
    assert f"{40 * seconds:.1f} s, against {seconds:.3f} s" in TEXT
    means = [f"{(t + REFRESH - 1) / REFRESH:.2f}" for t in (3, 10, 40)]
    assert "{}, {} and {} plain steps'".format(*means) in TEXT
