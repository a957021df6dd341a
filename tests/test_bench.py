"""The step-time benchmark runs and writes its record."""

import pytest

from experiments import bench, records


def test_bench_writes_ratios(tmp_path, capsys):
    config = bench.BenchConfig(
        out=tmp_path, tasks=(2,), methods=("mgda",), batch_size=8, repeats=2
    )
    record = records.read_json(bench.run(config))
    assert set(record["steps"]) == {"plain", "mgda"}
    plain, mgda = record["steps"]["plain"], record["steps"]["mgda"]
    assert plain["ratio_2"] == 1
    assert mgda["ratio_2"] == pytest.approx(mgda["ms_2"] / plain["ms_2"], abs=0.01)
    assert record["device"] and "T = 2" in capsys.readouterr().out
