"""Settings of the whole suite: 8 host devices, strict ranks, seeded hypothesis."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,  # the same examples on every run
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("default")


@pytest.fixture
def x64():
    """Runs the test under 64-bit mode."""
    with jax.enable_x64(True):
        yield
