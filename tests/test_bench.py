"""The benchmarks of steps run at tiny sizes and write their records."""

import pytest

from experiments import bench_methods, bench_networks, bench_strategies, records


@pytest.mark.slow
def test_methods_have_ratios(tmp_path, capsys):
    path = bench_methods.run(
        tmp_path, tasks=(2,), methods=("mgda",), batch_size=8, repeats=2
    )
    record = records.read_json(path)
    assert set(record["steps"]) == {"plain", "mgda"}
    plain, mgda = record["steps"]["plain"], record["steps"]["mgda"]
    assert plain["ratio_2"] == 1
    assert mgda["ratio_2"] == pytest.approx(mgda["ms_2"] / plain["ms_2"], abs=0.01)
    assert record["device"] and "T = 2" in capsys.readouterr().out


def test_strategies_have_ratios_and_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(
        bench_networks.NETWORKS, "mlp", lambda t: bench_networks.mlp(t, 4, width=8)
    )
    for strategies in ((), ("features",)):  # the second run replaces the first
        path = bench_strategies.run(
            tmp_path, networks=("mlp",), tasks=(3,), strategies=strategies, repeats=2
        )
    record = records.read_json(path)
    rows = record["networks"]["mlp"]["rows"]
    assert set(rows) == {"plain", "features", "every_k=50"}
    for row in rows.values():
        for cell, plain in zip(row.values(), rows["plain"].values(), strict=True):
            assert cell["ratio"] == pytest.approx(cell["ms"] / plain["ms"], rel=0.01)
            assert cell["mb_ratio"] == pytest.approx(cell["mb"] / plain["mb"], rel=0.01)
    every = rows["every_k=50"]["3"]
    mean = (every["refresh_ms"] + 49 * every["keep_ms"]) / 50
    assert every["ms"] == pytest.approx(mean, rel=0.01)
    assert "T = 3" in capsys.readouterr().out


@pytest.mark.slow
def test_slow_programs_are_not_run_at_more_tasks(tmp_path, monkeypatch):
    monkeypatch.setitem(
        bench_networks.NETWORKS, "mlp", lambda t: bench_networks.mlp(t, 4, width=8)
    )
    monkeypatch.setattr(bench_strategies, "LIMIT", 0.0)
    path = bench_strategies.run(
        tmp_path, networks=("mlp",), tasks=(1, 2), strategies=("map",), repeats=1
    )
    row = records.read_json(path)["networks"]["mlp"]["rows"]["map"]
    assert "ms" in row["1"] and "ms" not in row["2"] and row["2"]["mb"] > 0


@pytest.mark.slow
def test_programs_that_would_compile_for_long_are_left_out(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(
        bench_networks.NETWORKS, "mlp", lambda t: bench_networks.mlp(t, 4, width=8)
    )
    monkeypatch.setattr(bench_strategies, "COMPILE_LIMIT", 1e-6)
    path = bench_strategies.run(
        tmp_path, networks=("mlp",), tasks=(1, 2), strategies=("map",), repeats=1
    )
    row = records.read_json(path)["networks"]["mlp"]["rows"]["map"]
    assert set(row) == {"1"} and "T = 2" in capsys.readouterr().out
