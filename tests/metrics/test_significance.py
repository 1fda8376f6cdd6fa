"""Intervals and tests against those of scipy, and their coverage and error rate on data with a known truth."""

import numpy as np
import pytest
from scipy import stats

from tagrank.metrics.significance import bootstrap_intervals, compare


def test_intervals_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    per_image = {"a": rng.exponential(size=300), "b": rng.random(300)}
    got = bootstrap_intervals(per_image, resamples=20_000)
    for name, values in per_image.items():
        expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
        assert got[name] == pytest.approx(tuple(expected.confidence_interval), rel=0.01)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    draws = {str(i): rng.random(80) for i in range(400)}
    covered = np.mean([low < 0.5 < high for low, high in bootstrap_intervals(draws, confidence=0.8).values()])
    assert covered == pytest.approx(0.8, abs=0.06)


def test_an_image_without_a_measure_is_left_out() -> None:
    rng = np.random.default_rng(2)
    values = np.where(np.arange(400) % 2, rng.random(400), np.nan)
    low, high = bootstrap_intervals({"tau": values, "none": np.full(400, np.nan)}, resamples=20_000)["tau"]
    half = values[~np.isnan(values)]
    assert (high - low) / 2 == pytest.approx(1.96 * half.std() / np.sqrt(200), rel=0.05)
    assert (low + high) / 2 == pytest.approx(half.mean(), abs=0.005)


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.06])
def test_p_values_agree_with_scipy(shift: float) -> None:
    rng = np.random.default_rng(3)
    ours = rng.random(120)
    other = ours + rng.normal(scale=0.2, size=120) - shift
    got = compare({"ndcg": ours}, {"ndcg": other}, resamples=20_000)["ndcg"]
    expected = stats.permutation_test(
        (ours, other),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=4,
    )
    assert got.difference == pytest.approx(expected.statistic)
    # scipy doubles the smaller tail, which is equal except for the noise of either p-value.
    assert got.p_value == pytest.approx(expected.pvalue, abs=0.03)
    assert got.images == 120
    assert got.interval[0] < got.difference < got.interval[1]


def test_all_arrangements_of_a_few_images() -> None:
    # Four equal differences have 16 sign patterns; two of them are as extreme as the observed pattern.
    got = compare({"x": np.ones(4)}, {"x": np.zeros(4)}, resamples=40_000)["x"]
    assert got.p_value == pytest.approx(2 / 16, abs=0.01)
    assert not got.real
    assert compare({"x": np.ones(40)}, {"x": np.zeros(40)})["x"].real


def test_equal_models_are_called_different_in_one_case_of_twenty() -> None:
    rng = np.random.default_rng(5)
    names = [str(i) for i in range(600)]
    ours, other = ({name: rng.random(60) for name in names} for _ in range(2))
    found = np.mean([c.real for c in compare(ours, other, resamples=1000).values()])
    assert found == pytest.approx(0.05, abs=0.025)
    same = compare(ours, ours, resamples=10)["0"]
    assert (same.difference, same.p_value, same.interval) == (0.0, 1.0, (0.0, 0.0))


def test_comparison_is_over_images_for_which_both_have_the_measure() -> None:
    ours = {"tau": np.array([1.0, np.nan, 0.5, 0.0]), "only ours": np.ones(4)}
    other = {"tau": np.array([0.0, 1.0, np.nan, 0.0]), "only theirs": np.ones(4)}
    got = compare(ours, other)
    assert list(got) == ["tau"]
    assert (got["tau"].difference, got["tau"].images) == (0.5, 2)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="other: expected 3 values of 'x' as ours has, got 2"):
        compare({"x": np.ones(3)}, {"x": np.ones(2)})
    with pytest.raises(ValueError, match="and measures of equal length"):
        bootstrap_intervals({"x": np.ones(3), "y": np.ones(2)})
    with pytest.raises(ValueError, match="expected at least one measure with a value"):
        bootstrap_intervals({"x": np.full(3, np.nan)})
    with pytest.raises(ValueError, match="resamples: expected at least 1, got 0"):
        bootstrap_intervals({"x": np.ones(3)}, resamples=0)
    with pytest.raises(ValueError, match=r"confidence: expected a number in \(0, 1\), got 95"):
        bootstrap_intervals({"x": np.ones(3)}, confidence=95)
