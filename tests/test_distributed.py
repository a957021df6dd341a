"""Processes that train together end where one process ends."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mtl_jax.sharding import make_mesh
from tests.distributed_worker import train

ROOT = pathlib.Path(__file__).parent.parent
PROCESSES, DEVICES_EACH = 2, 2
LIMIT = 120
"""Seconds; they take about ten. A machine at full load must not fail the test."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def workers(script, *arguments, logs):
    """Starts the processes; whatever happens, none of them outlives the block."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES_EACH}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    port, processes = free_port(), []
    try:
        for index in range(PROCESSES):
            command = [sys.executable, "-W", "error", "-m", script, str(index)]
            command += [str(PROCESSES), str(port), *map(str, arguments)]
            with open(logs / f"{index}.log", "w") as log:
                processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=log, stderr=log
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def finish(processes, logs):
    """Waits for all; one that fails, or takes too long, fails the test at once."""
    deadline = time.monotonic() + LIMIT
    while True:
        codes = [process.poll() for process in processes]
        texts = "\n".join((logs / f"{i}.log").read_text() for i in range(len(codes)))
        assert not any(codes), f"exit codes {codes}:\n{texts}"
        if None not in codes:
            return
        assert time.monotonic() < deadline, f"still running after {LIMIT} s:\n{texts}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What the processes computed: parameters and records by dtype."""
    folder = tmp_path_factory.mktemp("distributed")
    out = folder / "results.npz"
    with workers("tests.distributed_worker", out, logs=folder) as processes:
        finish(processes, folder)
    with np.load(out) as results:
        return {
            dtype: [results[name] for name in sorted(results) if dtype in name]
            for dtype in ("float32", "float64", "documented")
        }


# Sums in another order; five steps of Adam and the solver amplify the rounding. In
# float32 the gradients' relative error, 1e-6 or so, enters every step of size 1e-2.
TOLERANCES = {"float32": {"rtol": 1e-3, "atol": 1e-4}, "float64": {"atol": 1e-12}}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("devices", "model"), [(4, 2), (1, 1)])
def test_two_processes_equal_one(together, dtype, devices, model):
    """... with as many devices in all, and with one device."""
    with jax.enable_x64(dtype == "float64"):
        alone = train(make_mesh(jax.devices()[:devices], model=model), dtype)
    assert len(alone) == len(together[dtype])
    for found, expected in zip(together[dtype], alone, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, **TOLERANCES[dtype])


def test_the_documented_program_runs_on_both(together):
    """The snippet of ``docs/scaling.md`` for several hosts: the losses of its last step."""
    (losses,) = together["documented"]
    assert losses.shape == (3,)
    assert np.isfinite(losses).all()


def test_a_failing_process_ends_the_others(tmp_path):
    """It would else wait for its peer: here the first one's arguments are refused."""
    with workers("tests.distributed_worker", logs=tmp_path) as processes:
        with pytest.raises(AssertionError, match="exit codes"):
            finish(processes, tmp_path)
    assert all(process.poll() is not None for process in processes)
