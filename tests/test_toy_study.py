"""The toy study: trajectories, invariance, published end points, records, picture."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import toy_plot, toy_table
from experiments.__main__ import main
from experiments.toy import simulate, usable_methods
from mtl_jax.data import TOY_STARTS, toy_losses


def simulated(methods, scales, steps, starts=TOY_STARTS, every=50):
    """Points (S, K, N + 1, 2) of each method, float64."""

    @jax.jit
    def program(starts, scales):
        return simulate(
            starts,
            scales,
            methods=methods,
            steps=steps,
            record_every=every,
            learning_rate=1e-3,
        )

    results = program(jnp.asarray(starts, jnp.float64), jnp.asarray(scales))
    return {method: np.asarray(results[method].points) for method in methods}


def reference(combine, start, scale, steps):
    """Adam (torch's and optax's defaults) in plain NumPy, without the library."""
    jacobian = jax.jit(jax.jacobian(lambda theta: toy_losses(theta, scale)))
    theta, first, second = np.array(start, float), np.zeros(2), np.zeros(2)
    for t in range(1, steps + 1):
        grad = combine(np.asarray(jacobian(jnp.asarray(theta))))
        first = 0.9 * first + 0.1 * grad
        second = 0.999 * second + 0.001 * grad**2
        size = np.sqrt(second / (1 - 0.999**t)) + 1e-8
        theta = theta - 1e-3 * first / (1 - 0.9**t) / size
    return theta


def nash(jacobian):
    a, b = np.linalg.norm(jacobian, axis=1)
    cosine = jacobian[0] @ jacobian[1] / (a * b)
    return (jacobian[0] / a + jacobian[1] / b) / np.sqrt(1 + cosine)


@pytest.mark.parametrize(
    "method, combine", [("ls", lambda g: g.sum(axis=0)), ("nash_mtl", nash)]
)
def test_grid_equals_single_runs_without_the_library(x64, method, combine):
    points = simulated([method], [0.1, 1.0], steps=300)[method]
    assert points.shape == (2, 5, 7, 2)
    np.testing.assert_array_equal(points[:, :, 0], np.stack([TOY_STARTS] * 2))
    for k in (0, 3, 4):  # from (0, 0), x is rounding errors that Adam blows up
        for s, scale in enumerate([0.1, 1.0]):
            end = reference(combine, TOY_STARTS[k], scale, 300)
            # rounding of 300 steps; a step moves by about 1e-3
            np.testing.assert_allclose(points[s, k, -1], end, atol=1e-9)


def test_vmapped_equals_single(x64):
    together = simulated(["pcgrad"], [0.1, 1.0], steps=500)["pcgrad"]
    alone = simulated(["pcgrad"], [1.0], steps=500, starts=TOY_STARTS[3:4])["pcgrad"]
    np.testing.assert_allclose(together[1, 3], alone[0, 0], atol=1e-9)


def test_nash_mtl_does_not_see_the_loss_scale(x64):
    points = simulated(["ls", "nash_mtl"], [0.1, 0.125, 1.0], steps=4000)
    # A power of two changes no rounding error: equal to the last bit. Other factors do,
    # and valleys and front amplify that (1.7e-4 at most over 35,000 steps, measured).
    np.testing.assert_array_equal(points["nash_mtl"][1], points["nash_mtl"][2])
    np.testing.assert_allclose(points["nash_mtl"][0], points["nash_mtl"][2], atol=1e-3)
    assert np.ptp(points["ls"], axis=0).max() > 0.5


GOLDEN = {
    # Final x per start at scale 0.1 from runs of the published PyTorch solvers, and the
    # allowed difference. Starts 1 and 3 cross log valleys of which each step hits another
    # part: there ls, pcgrad and cagrad are chaotic (starts moved by 1e-6 end up to 1
    # apart, measured) and are left out, nash_mtl moves by up to 0.03.
    "ls": ([None, -5.727, None, -5.727, -5.727], 1e-3),
    # The published solver clips two-task weights to [0.001, 0.999]; with that clip the
    # end points agree to 0.05, without (exact) to 0.08.
    "mgda": ([-2.02, 6.12, 6.94, -4.19, 7.00], 0.09),
    # With two tasks, the random order of projections makes no difference.
    "pcgrad": ([None, -3.35, None, -3.82, 5.04], 0.006),
    "cagrad(c=0.4)": ([None, -5.73, None, -5.73, -5.73], 0.006),
    "imtl_g": ([-2.27, 0.0, 2.43, -3.39, 5.30], 0.1),
    "nash_mtl": ([-2.936, 0.0, 2.939, -3.295, 4.909], 0.03),
}


def check_golden(method, points):
    expected, tolerance = GOLDEN[method]
    for k, x in enumerate(expected):
        if x is not None:
            assert points[k, -1, 0] == pytest.approx(x, abs=tolerance), (method, k)
            assert -8.45 < points[k, -1, 1] < -8.34, (method, k)


def test_ls_and_nash_mtl_reach_the_published_end_points(x64):
    points = simulated(["ls", "nash_mtl"], [0.1, 1.0], steps=35_000)
    check_golden("ls", points["ls"][0])
    check_golden("nash_mtl", points["nash_mtl"][0])
    check_golden("nash_mtl", points["nash_mtl"][1])
    assert points["ls"][0, 2, -1, 1] > 2  # stuck in a valley, as in the figure
    gap = np.abs(points["nash_mtl"][0, :, -1] - points["nash_mtl"][1, :, -1])
    assert gap.max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mgda", "pcgrad", "cagrad(c=0.4)", "imtl_g"])
def test_others_reach_the_published_end_points(x64, method):
    points = simulated([method], [0.1], steps=35_000)[method][0]
    check_golden(method, points)
    if method in ("pcgrad", "cagrad(c=0.4)"):
        assert points[2, -1, 1] > 0  # stuck in a valley, as in the figure


def toy(*options):
    return main(["toy", *map(str, options)])


def test_command_line_writes_records_and_picture(tmp_path, capsys):
    code = toy(
        *("--out", tmp_path / "run", "--methods", "ls", "si", "graddrop(leak=0.5)"),
        *("--steps", 100, "--record-every", 20, "--scales", 0.1),
    )
    assert code == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "skipping si" in captured.err
    assert "graddrop(leak=0.5)" in captured.out
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "summary.json", "table.csv", "trajectories.npz", "toy.png")
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["steps"] == 100 and config["versions"]["jax"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["scale_spread"] == {"ls": 0.0, "graddrop(leak=0.5)": 0.0}
    rows = summary["end_points"]
    assert len(rows) == 10 and summary["device"]
    with (folder / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["x"] for row in table] == [str(row["x"]) for row in rows]
    with np.load(folder / "trajectories.npz") as saved:
        assert saved["points"].shape == (2, 1, 5, 6, 2)
        np.testing.assert_array_equal(saved["steps"], [0, 20, 40, 60, 80, 100])
        ends = saved["points"][..., -1, :].reshape(-1, 2)
    np.testing.assert_allclose(ends, [(row["x"], row["y"]) for row in rows], atol=1e-5)
    assert (folder / "toy.png").read_bytes().startswith(b"\x89PNG")


def test_picture_needs_only_the_record(tmp_path):
    starts = TOY_STARTS[None, None, :, None]
    points = np.concatenate([starts, starts - 1, starts - 2], axis=3)
    content = toy_table.as_npz(
        methods=np.array(["ls"]),
        scales=np.array([0.1]),
        steps=[0, 50, 100],
        points=points,
    )
    (tmp_path / "trajectories.npz").write_bytes(content)
    path = toy_plot.draw(tmp_path)
    assert path == tmp_path / "toy.png" and path.stat().st_size > 5000


@pytest.mark.parametrize(
    "options, code, message",
    [
        (("--methods", "nash"), 2, "unknown method 'nash'"),
        (("--methods", "cagrad(c=-1)"), 2, "c must lie in"),
        (("--methods", "si", "uw"), 2, "no method left"),
        (("--steps", "120"), 2, "multiple of record_every=50"),
        (("--steps", "0"), 2, "at least record_every"),
        (("--scales", "-1"), 2, "scales must be positive"),
        (("--learning-rate", "0"), 2, "learning_rate must be positive"),
        (
            ("--methods", "ls", "--steps", "50", "--learning-rate", "1e200"),
            3,
            "ls left the finite numbers before step 50",
        ),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, options, code, message):
    out = tmp_path / "run"
    assert toy("--out", out, *options) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (out / "summary.json").exists()


def test_methods_are_kept_in_order_and_once():
    assert usable_methods(["nash_mtl", "ls", "nash_mtl"]) == ["nash_mtl", "ls"]
