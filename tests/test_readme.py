"""The README's table is current and its code runs."""

import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from experiments import methods

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_method_table_is_generated(capsys):
    methods.run(methods.MethodsConfig(format="markdown"))
    table = capsys.readouterr().out.strip()
    block = re.search(
        r"<!-- methods: begin.*?-->\n(.*?)<!-- methods: end", README, re.S
    )
    assert block is not None
    assert block.group(1).strip() == table, (
        "refresh the README's table: python -m experiments methods --format markdown"
    )


def test_ten_line_example_trains():
    code = re.search(r"```python\n(import jax.*?)```", README, re.S)
    assert code is not None
    names: dict = {}
    exec(code.group(1), names)
    keys = jax.random.split(jax.random.key(0), 6)
    params = {
        "trunk": jax.random.normal(keys[0], (4, 8)),
        "a": jax.random.normal(keys[1], (8,)),
        "b": jax.random.normal(keys[2], (8,)),
    }
    batch = tuple(
        jax.random.normal(keys[3], (16, 4))
        if i == 0
        else jax.random.normal(keys[3 + i], (16,))
        for i in range(3)
    )
    opt_state = names["tx"].init(params)
    history = []
    for _ in range(60):
        params, opt_state, losses = names["train_step"](params, opt_state, batch)
        history.append(np.asarray(losses))
    assert jnp.isfinite(jnp.stack(history)).all()
    assert (history[-1] < history[0]).all()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/guide.md", "docs/results/README.md"]
)
def test_linked_files_exist(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_example_of_combined_gradients_runs():
    code = re.search(
        r"```python\n(source = mtl_jax\.value_and_comb.*?)```", README, re.S
    )
    assert code is not None
    params = {"trunk": jnp.eye(4, 3), "heads": {"out": jnp.ones((3, 3))}}

    def losses_fn(params, batch):
        outputs = jnp.tanh(batch @ params["trunk"]) @ params["heads"]["out"]
        return jnp.square(outputs - 1).mean(axis=0)

    names = {
        "mtl_jax": mtl_jax,
        "losses_fn": losses_fn,
        "is_head": lambda path: path.startswith("heads/"),
        "params": params,
        "batch": jax.random.normal(jax.random.key(0), (8, 4)),
    }
    exec(code.group(1), names)
    assert names["losses"].shape == (3,)
    chex.assert_trees_all_equal_shapes(names["grads"], params)


def test_front_example_runs():
    code = re.search(r"```python\n(from mtl_jax\.pareto.*?)```", README, re.S)
    assert code is not None

    def losses_fn(x):
        return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)])

    names: dict = {"losses_fn": losses_fn, "starts": jnp.zeros((1, 2))}
    exec(code.group(1), names)
    # The front is the diagonal; the two chains of ten steps of 0.1 end at +-1 / sqrt(2).
    ends = jnp.stack([names["front"](0.0), names["front"](1.0)])
    chex.assert_trees_all_close(jnp.abs(ends), jnp.full((2, 2), 0.5**0.5), atol=1e-5)
    chex.assert_trees_all_close(names["params"][0], names["params"][1], atol=1e-6)
