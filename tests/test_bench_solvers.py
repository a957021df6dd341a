"""The solver times: every T, a record, and the flags of the solvers."""

import numpy as np

from experiments import bench_solvers, records


def test_record_and_table(tmp_path, capsys):
    names = ("min norm, closed form", "Nash", "PCGrad")
    path = bench_solvers.run(
        tmp_path, tasks=(2, 3), names=names, gramians=2, seconds=0.01
    )
    record = records.read_json(path)
    times = record["microseconds"]
    assert tuple(times) == names and record["device"]
    assert times["min norm, closed form"]["T=3"] is None  # only for two tasks
    for cell in (times["Nash"]["T=3"], times["PCGrad"]["T=2"]):
        assert cell["easy"] > 0 and cell["hard"] > 0 and cell["not_ok"] == 0
    assert "T=3" in capsys.readouterr().out


def test_solvers_that_stop_early_are_counted():
    solver = bench_solvers.SOLVERS["min norm, Frank-Wolfe"]
    cell = bench_solvers.cell(solver, 20, 2, 0.01)
    assert cell["not_ok"] == 4  # 250 steps are too few for 20 tasks


def test_hard_gramians_are_badly_scaled():
    for gram in bench_solvers.random_gramians(10, 2, hard=True):
        norms = np.sqrt(np.diag(gram))
        assert gram.dtype == np.float32 and norms.max() > 100 * norms.min()
