"""The comparison with torchjd: accuracy and timing; the whole of it where installed."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from experiments import bench_torchjd, programs, records, torchjd_peer

METHODS = ("nash_mtl", "cagrad", "upgrad")
needs_torchjd = pytest.mark.skipif(
    importlib.util.find_spec("torchjd") is None, reason="extra bench not installed"
)


@pytest.mark.parametrize("method", METHODS)
def test_our_accuracy_in_float32_and_float64(method):
    jacobian = bench_torchjd.jacobians(5, 200, 0.7)[0]
    weigh, combine = bench_torchjd._ours(method, 5)
    gram = mtl_jax.tree.gram(jnp.asarray(jacobian))
    weights = np.asarray(weigh(gram)[0])
    (exact,) = bench_torchjd._exact(method, [jacobian])
    rows = bench_torchjd._projections(gram)

    def judge(weights, reference):
        return bench_torchjd._accuracy(
            method, [jacobian], [weights], [reference], [rows]
        )

    ours = judge(weights, exact)
    assert ours["residual"] < 1e-5 and ours["error"] < 1e-5
    bent = judge(weights * np.linspace(1, 1.2, 5), exact)
    assert bent["error"] > 0.01
    np.testing.assert_allclose(
        combine(jnp.asarray(jacobian))[0], weights @ jacobian, rtol=1e-4, atol=1e-4
    )


def test_interleaved_times_every_program():
    calls = []
    recorders = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = programs.timings(recorders, rounds=4, seconds=60)
    assert [len(times[name]) for name in "ab"] == [4, 4]
    assert calls.count("a") == calls.count("b") == 2 + 2 * 4
    assert calls[4:8] == list("aabb")


@pytest.mark.skipif(
    importlib.util.find_spec("torchjd") is not None, reason="extra bench installed"
)
def test_says_what_to_install(tmp_path):
    with pytest.raises(ValueError, match=r"pip install -e \.\[bench\]"):
        bench_torchjd.run(tmp_path)


@needs_torchjd
@pytest.mark.slow
def test_record_with_torchjd(tmp_path, monkeypatch):
    monkeypatch.setattr(torchjd_peer, "MGDA_STEPS", (100, 500))
    path = bench_torchjd.run(
        tmp_path, tasks=(2,), num_params=50, batch_size=8, rounds=3, seconds=0.1
    )
    record = records.read_json(path)
    for cells in record["aggregation_ms"].values():
        for method, named in cells["T=2"].items():
            residual = named.pop("float64", {"residual": 0.0})["residual"]
            assert residual < 1e-9
            for cell in named.values():
                assert cell["weights"] > 0 and cell["update"] > 0
            if method not in ("pcgrad", "nash_mtl", "upgrad"):  # theirs are inexact
                assert max(cell["error"] for cell in named.values()) < 1e-3
    steps = record["steps_ms"]["T=2"]
    assert set(steps) == {"plain", "nash_mtl", "mgda", "upgrad"}
    cell = steps["mgda"]["torchjd, autogram"]
    assert cell["step"] >= cell["step_fastest"] > 0
