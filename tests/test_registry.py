"""Call strings and the registry's entries."""

import inspect

import numpy as np
import pytest

import mtl_jax
from mtl_jax.registry import METHODS, parse


def test_every_method_is_public_and_documented():
    for name, spec in METHODS.items():
        assert getattr(mtl_jax, name) is spec.factory
        if spec.weighting is not None:
            assert getattr(mtl_jax.weighting, name) is spec.weighting
        doc = inspect.getdoc(spec.factory)
        assert doc and "Args:" in doc and "Returns:" in doc
        assert spec.arxiv is None or f"arXiv:{spec.arxiv}" in doc
        signature = inspect.signature(spec.factory)
        first, *options = signature.parameters.values()
        assert first.name == "num_tasks"
        assert signature.return_annotation == "optax.GradientTransformationExtraArgs"
        assert all(option.kind is option.KEYWORD_ONLY for option in options)


def test_call_strings():
    assert parse("mgda")[1] == {}
    assert parse(" cagrad( c = 0.4 ) ")[1] == {"c": 0.4}
    spec, options = parse("ls(weights=(0.25, 0.75), reduction='mean')")
    assert spec.name == "ls"
    assert options == {"weights": (0.25, 0.75), "reduction": "mean"}
    assert parse("mgda()")[1] == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("nashmtl", "unknown method 'nashmtl'; did you mean 'nash_mtl'"),
        ("cagrad(d=1)", "no option 'd'"),
        ("cagrad(0.4)", "must be given by name"),
        ("cagrad(c=__import__('os'))", "value of 'c' must be a number"),
        ("cagrad(**{'c': 1})", "must be given by name"),
        ("cagrad(c=1, c=2)", "option 'c' is given twice"),
        ("cagrad(c=)", "cannot read method"),
        ("__import__('os').system('true')", "must be given by name"),
        ("mtl_jax.cagrad", "write name or name"),
        ("", "cannot read method"),
    ],
)
def test_bad_call_strings_give_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        mtl_jax.build(call, 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        "cagrad(c=-0.1)",
        "cagrad(c='big')",
        "cagrad(rescale='half')",
        "mgda(normalization='l1')",
        "mgda(solver='magic')",
        "dwa(temperature=0)",
        "dwa(window=0)",
        "uw(learning_rate=-1)",
        "graddrop(leak=2)",
        "nash_mtl(max_norm=0)",
        "ls(weights=(1, 2, 3))",
        "ls(weights=(1, float))",
        "upgrad(preference=(1, 1e400))",
        "aligned_mtl(scale='max')",
        "rlw(distribution='cauchy')",
        "pcgrad(reduction='max')",
        "gradnorm(parametrization='exp')",
    ],
)
def test_bad_hyper_parameters_are_refused_at_construction(call):
    with pytest.raises(ValueError):
        mtl_jax.build(call, 2)


def test_numbers_of_numpy_are_numbers():
    mtl_jax.fairgrad(2, alpha=np.float32(0.5))
    mtl_jax.famo(2, weight_decay=np.int64(0))
    for bad in (np.float32(-1), np.float32("nan"), np.bool_(True), 1j, None):
        with pytest.raises(ValueError, match="alpha must"):
            mtl_jax.fairgrad(2, alpha=bad)


def test_build_weighting_refuses_elementwise_rules():
    with pytest.raises(ValueError, match="is no weighting"):
        mtl_jax.build_weighting("graddrop", 2)
