"""Dominance, distances and hypervolume: closed forms, brute force and moocore."""

import itertools
import sys

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from mtl_jax import metrics

integer_points = hnp.arrays(
    float,
    st.tuples(st.integers(1, 5), st.integers(1, 3)),
    elements=st.integers(0, 4).map(float),
)


def zdt2(parts):
    first = np.arange(parts + 1) / parts
    return np.stack([first, 1 - first**2], axis=1)


def sphere(seed, count, objectives):
    """Random points around a spherical front: dominated ones and duplicates too."""
    rng = np.random.default_rng(seed)
    points = np.abs(rng.normal(size=(count, objectives)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points *= 1 + 0.3 * np.maximum(rng.normal(size=(count, 1)), 0)
    return np.concatenate([points, points[:3]])


def inclusion_exclusion(points, reference):
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, size):
            sides = np.maximum(reference - np.max(chosen, axis=0), 0)
            total += (-1) ** (size + 1) * np.prod(sides)
    return total


# -- hypervolume


def test_hypervolume_of_the_zdt2_front():
    # Staircase sums of squares: 1/3 and 0.54333 in the limit.
    for parts in (1, 10, 1000):
        inner = (parts - 1) * (2 * parts - 1) / (6 * parts**2)
        points = zdt2(parts)
        np.testing.assert_allclose(
            metrics.hypervolume(points, [1, 1]), inner, rtol=1e-12, atol=1e-12
        )
        np.testing.assert_allclose(
            metrics.hypervolume(points, [1.1, 1.1]), inner + 0.21, rtol=1e-12
        )
    assert metrics.hypervolume(zdt2(3000), [1, 1]) == pytest.approx(1 / 3, abs=2e-4)
    assert metrics.hypervolume(zdt2(3000), [1.1, 1.1]) == pytest.approx(
        0.54333, abs=2e-4
    )


def test_hypervolume_of_a_simplex_in_three_objectives():
    # Points (i, j, k) / n with i + j + k = n: of the n^3 little cubes, those at corners
    # with i + j + k < n are not dominated.
    parts = 12
    points = [
        (i, j, parts - i - j) for i in range(parts + 1) for j in range(parts + 1 - i)
    ]
    left_out = parts * (parts + 1) * (parts + 2) / 6
    volume = metrics.hypervolume(np.array(points) / parts, [1, 1, 1])
    np.testing.assert_allclose(volume, 1 - left_out / parts**3, rtol=1e-12)


@hypothesis.given(integer_points)
def test_hypervolume_is_inclusion_exclusion(points):
    reference = np.full(points.shape[1], 3.0)  # some points are outside or on it
    expected = inclusion_exclusion(points, reference)
    assert metrics.hypervolume(points, reference) == pytest.approx(expected, abs=1e-12)


@hypothesis.given(integer_points, st.randoms(use_true_random=False))
def test_hypervolume_ignores_order_duplicates_and_dominated_points(points, random):
    reference = np.full(points.shape[1], 4.5)
    volume = metrics.hypervolume(points, reference)
    order = random.sample(range(len(points)), len(points))
    assert metrics.hypervolume(points[order], reference) == pytest.approx(volume)
    worse = points + np.eye(points.shape[1])[0]
    more = np.concatenate([points, points[:1], worse])
    assert metrics.hypervolume(more, reference) == pytest.approx(volume)
    front = points[metrics.non_dominated(points)]
    assert metrics.hypervolume(front, reference) == pytest.approx(volume)


@hypothesis.given(integer_points)
def test_hypervolume_grows_with_every_point_that_is_not_covered(points):
    reference = np.full(points.shape[1], 5.0)
    rest, last = points[1:], points[:1]
    gain = metrics.hypervolume(points, reference) - metrics.hypervolume(rest, reference)
    covered = len(rest) > 0 and metrics.coverage(rest, last) == 1
    assert gain == pytest.approx(0) if covered else gain > 0.5


def test_points_outside_the_reference_add_nothing():
    # The released helper gives 1 + (3 - 1) (0.5 - 5) for these, a negative volume.
    assert metrics.hypervolume([[0, 1], [1, 5]], [1, 2]) == 1
    assert metrics.hypervolume([[0.5, 0], [-9, 3]], [1, 3]) == 1.5
    assert metrics.hypervolume([[2, 0, 0], [0, 0, 2]], [2, 2, 2]) == 0
    assert metrics.hypervolume(np.zeros((0, 4)), [1, 1, 1, 1]) == 0
    assert metrics.hypervolume([[3.0], [1.0]], [4.0]) == 3


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_hypervolume_agrees_with_moocore(objectives):
    moocore = pytest.importorskip("moocore")
    for seed, count in enumerate((1, 7, 60)):
        points = sphere(seed, count, objectives)
        for reference in (np.full(objectives, 1.1), np.linspace(0.5, 1.5, objectives)):
            np.testing.assert_allclose(
                metrics.hypervolume(points, reference),
                moocore.hypervolume(points, ref=reference),
                rtol=1e-12,
                atol=1e-14,
            )


def test_four_objectives_by_hand():
    pytest.importorskip("moocore")
    points = [[0, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 3]]
    assert metrics.hypervolume(points, [2, 2, 2, 2]) == pytest.approx(8 + 2 - 1)


def test_without_moocore_four_objectives_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "moocore", None)
    with pytest.raises(ImportError, match="4 objectives needs the package moocore"):
        metrics.hypervolume(np.zeros((1, 4)), np.ones(4))


# -- dominance


def test_non_dominated_by_hand():
    points = [[1, 3], [2, 2], [3, 1], [3, 3], [2, 2], [3, 2]]
    weak = [True, True, True, False, True, False]
    np.testing.assert_array_equal(metrics.non_dominated(points), weak)
    # (3, 2) is worse than (2, 2) in one objective only, (3, 3) in both.
    strict = [True, True, True, False, True, True]
    np.testing.assert_array_equal(metrics.non_dominated(points, strict=True), strict)
    assert metrics.non_dominated(np.zeros((0, 2))).shape == (0,)


def test_differences_below_the_tolerance_are_none():
    points = np.array([[0, 0], [1e-9, 0.5e-9], [1e-7, 0]])
    np.testing.assert_array_equal(metrics.non_dominated(points), [True, True, False])
    exact = metrics.non_dominated(points, tolerance=0)
    np.testing.assert_array_equal(exact, [True, False, False])
    # Worse in one by much, better in the other by next to nothing: dominated.
    np.testing.assert_array_equal(
        metrics.non_dominated([[0, 1e-9], [1, 0]]), [True, False]
    )


def released_rule(points):
    """The released helper's rule, point by point."""
    keep = []
    for x in points:
        difference = x - points
        difference[np.abs(difference) < 1e-8] = 0
        beaten = (difference >= 0).all(1) & (difference > 0).any(1)
        keep.append(not beaten.any())
    return keep


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_non_dominated_agrees_with_the_release_and_with_moocore(objectives):
    points = sphere(0, 80, objectives)
    marks = metrics.non_dominated(points)
    assert objectives == 1 or 5 < marks.sum() < len(points)
    np.testing.assert_array_equal(marks, released_rule(points))
    if objectives > 1:
        moocore = pytest.importorskip("moocore")
        expected = moocore.is_nondominated(points, keep_weakly=True)
        np.testing.assert_array_equal(marks, expected)


def test_many_points_are_compared_in_blocks():
    points = np.random.default_rng(0).uniform(size=(3000, 2))
    order = np.argsort(points[:, 0])
    best = np.minimum.accumulate(points[order, 1])
    expected = np.empty(3000, bool)
    expected[order] = points[order, 1] <= best
    np.testing.assert_array_equal(metrics.non_dominated(points), expected)
    assert metrics.coverage(points[expected], points) == 1


@hypothesis.given(integer_points, st.integers(0, 3))
def test_epsilon_keeps_more_and_zero_is_the_weak_rule(points, epsilon):
    exact = metrics.non_dominated(points, tolerance=0)
    np.testing.assert_array_equal(metrics.epsilon_non_dominated(points, 0), exact)
    kept = metrics.epsilon_non_dominated(points, epsilon)
    larger = metrics.epsilon_non_dominated(points, epsilon + 0.5)
    assert (kept >= exact).all() and (larger >= kept).all()
    # Sets never become empty, and strict dominance drops fewer.
    assert exact.any() and (exact <= metrics.non_dominated(points, strict=True)).all()


def test_epsilon_non_dominated_by_hand():
    points = [[1, 3], [2, 2], [3, 1], [3, 3]]
    expected = [True, True, True, False]
    np.testing.assert_array_equal(metrics.epsilon_non_dominated(points, 0), expected)
    # (2, 2) is better than (3, 3) by 1 in both, which is not more than 1 in one.
    np.testing.assert_array_equal(metrics.epsilon_non_dominated(points, 1), [True] * 4)
    np.testing.assert_array_equal(metrics.epsilon_non_dominated(points, 0.9), expected)
    # One epsilon per objective, as multiples of the least values in the released code.
    np.testing.assert_array_equal(
        metrics.epsilon_non_dominated(points, [0.5, 1.5]), [True] * 4
    )


# -- distances


def test_coverage_by_hand():
    better, worse = [[0, 1], [1, 0]], [[0, 1], [1, 1], [2, 2], [0.5, 0.5]]
    assert metrics.coverage(better, worse) == 0.75
    assert metrics.coverage(worse, better) == 0.5
    assert metrics.coverage(np.zeros((0, 2)), worse) == 0
    assert metrics.coverage(worse, worse) == 1


def test_front_gap_of_shifted_points():
    front = zdt2(50)
    gaps = metrics.front_gap(front + np.array([[1e-3, 0.0]]), front)
    assert gaps.shape == (51,)
    np.testing.assert_allclose(gaps, 1e-3)
    np.testing.assert_array_equal(metrics.front_gap(front, front), 0)
    by_hand = np.linalg.norm(front[:, None] - np.array([[[2.0, 2.0]]]), axis=2).min()
    assert metrics.front_gap([[2.0, 2.0]], front)[0] == pytest.approx(by_hand)


@pytest.mark.parametrize("objectives", [2, 3])
def test_additive_epsilon_and_gaps_agree_with_moocore(objectives):
    moocore = pytest.importorskip("moocore")
    points, front = sphere(1, 30, objectives), sphere(2, 40, objectives)
    assert metrics.additive_epsilon(points, front) == pytest.approx(
        moocore.epsilon_additive(points, ref=front), abs=1e-14
    )
    assert metrics.front_gap(front, points).mean() == pytest.approx(
        moocore.igd(points, ref=front)
    )


def test_additive_epsilon_is_the_shift_that_covers():
    points, front = sphere(3, 20, 3), sphere(4, 20, 3)
    shift = metrics.additive_epsilon(points, front)
    assert metrics.coverage(points - shift - 1e-12, front) == 1
    assert metrics.coverage(points - shift + 1e-9, front) < 1
    assert metrics.additive_epsilon(front + 0.25, front) == pytest.approx(0.25)


# -- errors


@pytest.mark.parametrize(
    "function",
    [
        metrics.non_dominated,
        lambda points: metrics.epsilon_non_dominated(points, 0),
        lambda points: metrics.hypervolume(points, [1, 1]),
        lambda points: metrics.front_gap(points, [[1, 1]]),
        lambda points: metrics.front_gap([[1, 1]], points),
        lambda points: metrics.coverage(points, [[1, 1]]),
        lambda points: metrics.additive_epsilon(points, [[1, 1]]),
    ],
)
def test_bad_points_are_named(function):
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="must be finite, but row 1 is"):
            function([[1.0, 2.0], [bad, 1.0]])
    for shaped in ([1.0, 2.0], np.zeros((2, 2, 2)), np.zeros((2, 0))):
        with pytest.raises(ValueError, match=r"must have shape \(n, m\)"):
            function(shaped)


def test_bad_arguments_are_named():
    points = [[1.0, 2.0]]
    for reference in (1.0, [1.0], [1, 1, 1], [np.nan, 1]):
        with pytest.raises(ValueError, match="one finite point of 2 objectives"):
            metrics.hypervolume(points, reference)
    for tolerance in (-1, np.nan):
        with pytest.raises(ValueError, match="tolerance"):
            metrics.non_dominated(points, tolerance=tolerance)
    for epsilon in (-1, np.nan, [0, -1]):
        with pytest.raises(ValueError, match="finite and not negative"):
            metrics.epsilon_non_dominated(points, epsilon)
    with pytest.raises(ValueError, match="one number or 2"):
        metrics.epsilon_non_dominated(points, [1, 1, 1])
    for function in (metrics.coverage, metrics.front_gap, metrics.additive_epsilon):
        with pytest.raises(ValueError, match="equally many objectives"):
            function(points, [[1, 2, 3]])
        with pytest.raises(ValueError, match="is empty"):
            function(points, np.zeros((0, 2)))
    with pytest.raises(ValueError, match="points is empty"):
        metrics.additive_epsilon(np.zeros((0, 2)), points)
