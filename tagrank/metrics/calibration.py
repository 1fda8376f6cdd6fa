"""Whether probabilities mean what they say: of what has the probability 0.7, seven tenths should come true."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

BINS = 10
LEAST = 1000
"""With fewer probabilities nothing is fitted."""
LARGEST = 5.0
"""Bound of what is fitted."""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: probabilities in bins of equal width, each with what came true.

    Attributes:
        predicted: ``[b]``, the mean probability in each bin that is not empty, ascending.
        observed: ``[b]``, the mean of what came true.
        counts: ``[b]``, how many probabilities there are in the bin.
    """

    predicted: FloatArray
    observed: FloatArray
    counts: NDArray[np.int64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean difference of the two, weighted by the counts; NaN if all are 0."""
        if not len(self.counts):
            return float("nan")
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.counts))


def reliability(probabilities: ArrayLike, truth: ArrayLike, bins: int = BINS) -> Reliability:
    """The reliability diagram (Naeini, Cooper and Hauskrecht, 2015) of probabilities.

    Args:
        probabilities: ``[N]`` in [0, 1].
        truth: ``[N]`` in [0, 1]: whether it came true, or the share of cases in which it did.
        bins: how many bins of equal width.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(truth, np.float64)
    bin_of = np.minimum((p * bins).astype(np.int64), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    there = counts > 0
    predicted, observed = (np.bincount(bin_of, w, minlength=bins)[there] / counts[there] for w in (p, y))
    return Reliability(predicted, observed, counts[there])


@dataclass(frozen=True)
class Calibration:
    """Corrects probabilities: their log-odds are divided by ``temperature``, and ``shift`` is added.

    Corrected probabilities keep their order, and 0 and 1 stay what they are. By default nothing is changed.
    """

    temperature: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        for name, low in (("temperature", 0.0), ("shift", -np.inf)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not low < value < np.inf:
                raise ValueError(f"{name}: expected a finite number{' above 0' if low == 0 else ''}, got {value!r:.60}")

    def __call__(self, probabilities: FloatArray) -> FloatArray:
        """The corrected probabilities."""
        if self == Calibration():
            return probabilities
        with np.errstate(divide="ignore", over="ignore"):
            odds = (np.log(probabilities) - np.log1p(-probabilities)) / self.temperature + self.shift
            result: FloatArray = 1.0 / (1.0 + np.exp(-odds))
        return result

    @classmethod
    def fit(cls, probabilities: ArrayLike, truth: ArrayLike) -> "Calibration":
        """The calibration with the least cross-entropy (Platt, 1999; without the shift it is temperature scaling).

        Args:
            probabilities: ``[N]`` in [0, 1], of photographs that were not trained on.
            truth: ``[N]`` in [0, 1].

        Returns:
            The calibration; one that changes nothing if there are fewer than :data:`LEAST` probabilities.
        """
        from scipy.optimize import minimize

        p, y = np.asarray(probabilities, np.float64), np.asarray(truth, np.float64)
        if len(p) < LEAST:
            return cls()
        # A probability of 0 or 1 that turns out wrong would cost infinitely much at any temperature.
        p = np.clip(p, 1e-6, 1 - 1e-6)
        odds = np.log(p) - np.log1p(-p)

        def cross_entropy(scale_and_shift: FloatArray) -> tuple[float, FloatArray]:
            z = scale_and_shift[0] * odds + scale_and_shift[1]
            wrong = 1.0 / (1.0 + np.exp(-z)) - y
            return float(np.mean(np.logaddexp(0.0, z) - y * z)), np.array([np.mean(wrong * odds), np.mean(wrong)])

        found = minimize(cross_entropy, [1.0, 0.0], jac=True, bounds=[(1 / LARGEST, LARGEST), (-LARGEST, LARGEST)])
        scale, shift = found.x.tolist()
        return cls(1.0 / scale, shift)
