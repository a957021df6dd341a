"""One of several processes that train together: ``INDEX COUNT PORT OUT``.

Every process feeds its own part of the batch. The first writes to ``OUT.npz`` what
``tests/test_distributed.py`` compares.
"""

import sys

import jax
import numpy as np

STEPS = 5


def train(mesh, dtype):
    """Adam steps with ``nash_mtl`` on ``mesh``; returns parameters and records, flat."""
    import jax.numpy as jnp
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    import mtl_jax
    from mtl_jax import sharding
    from mtl_jax.train import init_state, make_train_step
    from tests.sharded import RULES, problem

    params, batch, losses_fn = problem(2, dtype)
    tx = optax.chain(mtl_jax.nash_mtl(2), optax.adam(1e-2))

    def init():
        return init_state(params, {}, tx, jax.random.key(0))

    shapes = jax.eval_shape(init)
    shardings = sharding.param_shardings(shapes.params, mesh, RULES)
    placed = sharding.state_shardings(shapes, shapes.params, shardings)
    everywhere = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(
        make_train_step(sharding.constrain(losses_fn, shardings), tx),
        donate_argnums=0,
        out_shardings=(placed, everywhere),
        compiler_options={"xla_backend_optimization_level": 0},  # quick to compile
    )
    rows = sharding.batch_sharding(mesh)
    size = len(batch["x"]) // jax.process_count()
    own = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
    batch = {
        name: jax.make_array_from_process_local_data(rows, np.asarray(value[own]))
        for name, value in batch.items()
    }
    state, records = jax.jit(init, out_shardings=placed)(), []
    for _ in range(STEPS):
        state, record = step(state, batch)
        records.append(record)
    results = jax.jit(lambda tree: tree, out_shardings=everywhere)(
        (state.params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *records))
    )
    return [np.asarray(leaf) for leaf in jax.tree.leaves(results)]


def main(index, count, port, out):
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    from mtl_jax.sharding import make_mesh

    assert jax.process_count() == count
    mesh = make_mesh(model=2)
    results = {}
    for name in ("float32", "float64"):
        with jax.enable_x64(name == "float64"):
            for i, leaf in enumerate(train(mesh, name)):
                results[f"{name}/{i:03d}"] = leaf
    from tests.test_scaling_docs import run_pod_snippet

    results["documented"] = run_pod_snippet()
    if index == 0:
        np.savez(out, **results)
    jax.distributed.shutdown()


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main(*map(int, sys.argv[1:4]), sys.argv[4])
