"""Sparse networks on disk: bytes, the same predictions, and time of inference."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from experiments.explore_problems import EVAL_BATCH
from experiments.programs import interleaved
from experiments.sparse_problems import Network, SparseProblem
from mtl_jax import sparsity, tree

ROUNDS, BATCH = 11, 256


def save(params: Any, model_state: Any, path: Path) -> int:
    """Writes a network as a NumPy archive, not deflated, and returns its bytes."""
    named = {
        tree.path_name(place).replace("/", "."): np.asarray(leaf)
        for place, leaf in jax.tree_util.tree_leaves_with_path(
            {"params": params, "state": model_state}
        )
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **named)
    with records.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    records.write_bytes(path, buffer.getvalue())
    return len(buffer.getvalue())


def read(path: Path) -> tuple[Any, Any]:
    """Reads what :func:`save` wrote: ``(params, model_state)``, nested dictionaries."""
    whole: dict[str, Any] = {"params": {}, "state": {}}
    with np.load(path) as saved:
        for name in saved.files:
            node = whole
            *parents, last = name.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = saved[name]
    return whole["params"], whole["state"]


def compressed(
    net: Network,
    problem: SparseProblem,
    params: Any,
    model_state: Any,
    folder: Path,
    name: str,
    *,
    keep: bool = True,
) -> dict[str, Any]:
    """Compresses a network, saves it, reads it back and compares.

    Args:
        net: network.
        problem: data; the comparison is on the test split.
        params: masked parameters, with exact zeros and equal rows.
        model_state: the rest.
        folder: for the archives.
        name: of the archives.
        keep: whether the masked network's archive stays.

    Returns:
        ``bytes``, ``compressed_bytes`` (files), ``ratio``, ``agreement`` (share of equal
        predictions), ``largest_difference`` of logits, ``ms`` and ``compressed_ms`` for
        256 pictures.
    """
    whole_path, small_path = folder / f"{name}.npz", folder / f"{name}_compressed.npz"
    whole = save(params, model_state, whole_path)
    small = save(sparsity.compress(params), model_state, small_path)
    if not keep:
        whole_path.unlink()

    def logits(params: Any, state: Any, images: Any) -> Any:
        return net.model.apply(params, state, problem.prepare(images, None))[0]

    networks = [
        jax.device_put((params, model_state)),
        jax.device_put(read(small_path)),
    ]
    programs = [
        jax.jit(logits).lower(*pair, problem.test.inputs[:EVAL_BATCH]).compile()
        for pair in networks
    ]
    equal, largest, count = 0, 0.0, 0
    whole_batches = problem.test.count // EVAL_BATCH or 1
    for k in range(whole_batches):
        images = problem.test.inputs[k * EVAL_BATCH : (k + 1) * EVAL_BATCH]
        one, other = (
            np.asarray(program(*pair, images))
            for program, pair in zip(programs, networks, strict=True)
        )
        equal += int((one.argmax(-1) == other.argmax(-1)).sum())
        count += one.argmax(-1).size
        largest = max(largest, float(np.abs(one - other).max()))
    batch = jnp.asarray(problem.test.inputs[:BATCH])
    calls = {
        key: _call(jax.jit(logits), *pair, batch)
        for key, pair in zip(("ms", "compressed_ms"), networks, strict=True)
    }
    times = interleaved(calls, ROUNDS)
    return {
        "bytes": whole,
        "compressed_bytes": small,
        "ratio": round(whole / small, 3),
        "agreement": equal / count,
        "compared": count,
        "largest_difference": largest,
        **{key: round(1e3 * seconds, 3) for key, seconds in times.items()},
    }


def _call(function: Any, *args: Any) -> Any:
    return lambda: function(*args)
