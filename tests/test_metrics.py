"""Scores against hand values and a published table."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mtl_jax.metrics import delta_m, mean_rank

# Nash-MTL (arXiv:2202.01017), QM9: 11 mean absolute errors, lower is better.
QM9_SINGLE = [
    *(0.0671, 0.1814, 60.576, 53.915, 0.5027, 4.539),
    *(58.838, 64.244, 63.852, 66.223, 0.07212),
]
QM9 = {  # method: errors, published mean rank, published Δm
    "LS": (
        [0.106, 0.325, 73.57, 89.67, 5.19, 14.06, 143.4, 144.2, 144.6, 140.3, 0.128],
        *(6.8, 177.6),
    ),
    "SI": (
        [0.309, 0.345, 149.8, 135.7, 1.00, 4.50, 55.3, 55.75, 55.82, 55.27, 0.112],
        *(4.0, 77.8),
    ),
    "RLW": (
        [0.113, 0.340, 76.95, 92.76, 5.86, 15.46, 156.3, 157.1, 157.6, 153.0, 0.137],
        *(8.2, 203.8),
    ),
    "DWA": (
        [0.107, 0.325, 74.06, 90.61, 5.09, 13.99, 142.3, 143.0, 143.4, 139.3, 0.125],
        *(6.4, 175.3),
    ),
    "UW": (
        [0.386, 0.425, 166.2, 155.8, 1.06, 4.99, 66.4, 66.78, 66.80, 66.24, 0.122],
        *(5.3, 108.0),
    ),
    "MGDA": (
        [0.217, 0.368, 126.8, 104.6, 3.22, 5.69, 88.37, 89.4, 89.32, 88.01, 0.120],
        *(5.9, 120.5),
    ),
    "PCGrad": (
        [0.106, 0.293, 75.85, 88.33, 3.94, 9.15, 116.36, 116.8, 117.2, 114.5, 0.110],
        *(5.0, 125.7),
    ),
    "CAGrad": (
        [0.118, 0.321, 83.51, 94.81, 3.21, 6.93, 113.99, 114.3, 114.5, 112.3, 0.116],
        *(5.7, 112.8),
    ),
    "IMTL-G": (
        [0.136, 0.287, 98.31, 93.96, 1.75, 5.69, 101.4, 102.4, 102.0, 100.1, 0.096],
        *(4.7, 77.2),
    ),
    "Nash-MTL": (
        [0.102, 0.248, 82.95, 81.89, 2.42, 5.38, 74.5, 75.02, 75.10, 74.16, 0.093],
        *(2.5, 62.0),
    ),
}


@pytest.mark.parametrize("method", QM9)
def test_delta_m_reproduces_the_published_qm9_table(method):
    errors, _, published = QM9[method]
    # The printed errors have three digits, which moves Δm by half a point.
    assert delta_m(errors, QM9_SINGLE, False) == pytest.approx(published, abs=0.6)


def test_mean_rank_reproduces_the_published_qm9_table():
    ranks = mean_rank([row[0] for row in QM9.values()], False)
    published = [row[1] for row in QM9.values()]
    np.testing.assert_allclose(ranks, published, atol=0.11)  # one digit, ties


def test_delta_m_by_hand():
    # accuracy 90 -> 81 is 10 % worse, error 2 -> 1 is 50 % better: (10 - 50) / 2
    assert delta_m([81, 1], [90, 2], [True, False]) == -20
    assert delta_m([0.5], [0.5], True) == 0


def test_mean_rank_averages_ties():
    table = [[3.0, 1.0], [3.0, 2.0], [1.0, 3.0]]
    np.testing.assert_array_equal(mean_rank(table, True), [2.25, 1.75, 2])
    np.testing.assert_array_equal(mean_rank(table, [True, False]), [1.25, 1.75, 3])


@hypothesis.given(
    st.lists(
        st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6
    ),
    st.booleans(),
)
def test_mean_rank_always_averages_to_the_middle(table, higher):
    ranks = mean_rank(table, higher)
    # The ranks of n methods add up to n (n + 1) / 2, with ties as without.
    np.testing.assert_allclose(ranks.mean(), (len(table) + 1) / 2, rtol=1e-12)
    order = np.random.default_rng(0).permutation(len(table))
    permuted = mean_rank(np.array(table)[order], higher)
    np.testing.assert_allclose(permuted, ranks[order], rtol=1e-12)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="same length"):
        delta_m([1.0, 2.0], [1.0], True)
    with pytest.raises(ValueError, match="zeros"):
        delta_m([1.0], [0.0], True)
    with pytest.raises(ValueError, match="one bool or 2"):
        delta_m([1.0, 2.0], [1.0, 2.0], [True])
    with pytest.raises(ValueError, match=r"\(methods, metrics\)"):
        mean_rank([1.0, 2.0], True)
