"""Reliability and calibration, compared with figures by hand and with simulated truth."""

import math

import numpy as np
import pytest

from tagrank.metrics import Calibration, reliability


def test_reliability_by_hand() -> None:
    found = reliability([0.0, 0.04, 0.55, 0.58, 1.0, 1.0], [0.0, 0.4, 1.0, 0.5, 1.0, 0.5])
    np.testing.assert_allclose(found.predicted, [0.02, 0.565, 1.0])
    np.testing.assert_allclose(found.observed, [0.2, 0.75, 0.75])
    assert found.counts.tolist() == [2, 2, 2]
    assert found.error == pytest.approx((0.18 + 0.185 + 0.25) / 3)
    assert math.isnan(reliability([], []).error)
    assert reliability([0.5], [1.0]).error == 0.5


def test_bins_count_by_their_size() -> None:
    assert reliability([0.1] * 9 + [0.9], [0.1] * 9 + [0.4]).error == pytest.approx(0.05)


@pytest.mark.parametrize(("temperature", "shift"), [(1.0, 0.0), (2.0, 0.0), (0.5, 1.0), (1.3, -0.7)])
def test_a_known_fault_is_found_and_corrected(temperature: float, shift: float) -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(-1, 2, 40_000)
    said = 1 / (1 + np.exp(-odds))
    true = 1 / (1 + np.exp(-(odds / temperature + shift)))
    happened = rng.random(40_000) < true
    found = Calibration.fit(said, happened)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.shift == pytest.approx(shift, abs=0.06)
    np.testing.assert_allclose(found(said), true, atol=0.02)
    before, after = reliability(said, happened).error, reliability(found(said), happened).error
    assert after < 0.01
    assert after < before or (temperature, shift) == (1.0, 0.0)


def test_the_order_stays_and_certainty_too() -> None:
    p = np.array([0.0, 1e-300, 1e-9, 0.2, 0.5, 0.9, 1.0])
    for calibration in (Calibration(2.0, 1.0), Calibration(0.2, -5.0)):
        q = calibration(p)
        assert (np.diff(q) >= 0).all()
        assert (q[0], q[-1]) == (0.0, 1.0)
    assert Calibration()(p) is p
    assert Calibration(2.0, 0.0)(np.array([0.5]))[0] == 0.5


def test_little_and_impossible_truth() -> None:
    assert Calibration.fit([0.1] * 999, [1.0] * 999) == Calibration()
    extreme = Calibration.fit([0.0, 1.0] * 1000, [1.0, 0.0] * 1000)
    assert 0 < extreme.temperature < math.inf
    assert math.isfinite(extreme.shift)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0, 0.0), "temperature: expected a finite number above 0, got 0.0"),
        ((math.inf, 0.0), "temperature: expected a finite number above 0, got inf"),
        ((math.nan, 0.0), "temperature: expected a finite number above 0, got nan"),
        (("2", 0.0), "temperature: expected a finite number above 0, got '2'"),
        ((1.0, math.nan), "shift: expected a finite number, got nan"),
        ((1.0, True), "shift: expected a finite number, got True"),
    ],
)
def test_values_that_are_none(values: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration(*values)
