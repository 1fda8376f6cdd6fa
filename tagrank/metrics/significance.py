"""How sure a mean over images is, and whether two models differ by more than the choice of the images.

The numbers account for the random choice of the images: another set of photographs of the same kind would give other
means. They do not account for the seed of training.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tagrank.metrics import FloatArray

RESAMPLES = 5_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """One measure of two models on the same images.

    Attributes:
        difference: mean of our model - mean of the other model, over the images for which both have the measure.
        interval: the 95% confidence interval of the difference, from the percentile bootstrap over images.
        p_value: of a two-sided permutation test: the probability of a difference at least as large in absolute value
            if the two models are exchangeable on each image.
        images: the number of images that the comparison uses.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    images: int

    @property
    def real(self) -> bool:
        """Whether the difference is significant at the 5% level."""
        return self.p_value < 1 - CONFIDENCE


def bootstrap_intervals(
    per_image: Mapping[str, FloatArray],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals for means over images (Efron, 1979).

    Args:
        per_image: arrays ``[N]`` by measure, NaN for an image that does not have the measure.
        confidence: of each interval, in (0, 1).
        resamples: how often ``N`` images are drawn, with replacement.
        seed: of the random draws.

    Returns:
        The lower and the upper end for each measure; a measure that no image has is left out.

    Raises:
        ValueError: the measures have different numbers of images, no image has a measure, or an option is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")
    names, values, there = _columns(per_image)
    images = len(values)
    rng = np.random.default_rng(seed)
    means = []
    for n in _chunks(resamples, images):
        drawn = rng.integers(images, size=(n, images)) + images * np.arange(n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * images).reshape(n, images).astype(np.float64)
        with np.errstate(invalid="ignore"):  # a draw of images that all lack a measure
            means.append((counts @ values) / (counts @ there))
    low, high = np.nanquantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def compare(
    ours: Mapping[str, FloatArray],
    other: Mapping[str, FloatArray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Test for each measure whether two models differ.

    Each p-value is for one measure: of twenty measures of equal models, one is expected to be below 0.05. There is no
    correction for the number of measures. Measures of the same lists are correlated, so a correction would be too
    strict.

    Args:
        ours: measures by name, ``[N]``, one value for each image.
        other: the measures of the other model, for the same images in the same order.
        resamples: of the bootstrap, and of the permutation test.
        seed: of both.

    Returns:
        A :class:`Comparison` for each measure that both models have, in the order of ``ours``.

    Raises:
        ValueError: the models have a measure for different numbers of images, or ``resamples`` is below 1.
    """
    for name in ours.keys() & other.keys():
        if len(ours[name]) != len(other[name]):
            raise ValueError(
                f"other: expected {len(ours[name])} values of {name!r} as ours has, got {len(other[name])}"
            )
    differences = {name: ours[name] - other[name] for name in ours if name in other}
    intervals = bootstrap_intervals(differences, resamples=resamples, seed=seed)
    names, values, there = _columns(differences)
    p_values = _permutation_tests(values, resamples, seed)
    rows = zip(names, values.sum(axis=0), there.sum(axis=0), p_values, strict=True)
    return {name: Comparison(float(s / n), intervals[name], float(p), int(n)) for name, s, n, p in rows}


def _permutation_tests(differences: FloatArray, resamples: int, seed: int) -> FloatArray:
    """The p-value of each column of ``[N, M]``. Swapping two models on an image flips the sign of their difference."""
    rng = np.random.default_rng(seed)
    # The tolerance counts equal sums that rounding makes differ in the last digits.
    least = np.abs(differences.sum(axis=0)) - 1e-9 * np.maximum(1.0, np.abs(differences).sum(axis=0))
    extreme = np.zeros(differences.shape[1])
    for n in _chunks(resamples, len(differences)):
        signs = rng.integers(2, size=(n, len(differences)), dtype=np.int8) * 2.0 - 1
        extreme += (np.abs(signs @ differences) >= least).sum(axis=0)
    # + 1: the observed arrangement is one of the possible arrangements.
    p_values: FloatArray = (extreme + 1) / (resamples + 1)
    return p_values


def _columns(per_image: Mapping[str, FloatArray]) -> tuple[list[str], FloatArray, FloatArray]:
    """The measures that at least one image has.

    Returns:
        Their names; their values ``[N, M]``, 0 for NaN; and ``[N, M]``, 1 for a value and 0 for NaN.
    """
    names = [name for name, values in per_image.items() if not np.isnan(values).all()]
    sizes = {len(values) for values in per_image.values()}
    if len(sizes) != 1 or not names:
        raise ValueError(
            "per_image: expected at least one measure with a value, and measures of equal length; "
            f"got lengths {sorted(sizes)}"
        )
    table = np.stack([per_image[name] for name in names], axis=1)
    there = ~np.isnan(table)
    return names, np.where(there, table, 0.0), there.astype(np.float64)


def _chunks(resamples: int, images: int) -> Iterator[int]:
    """Split ``resamples`` into numbers that are small enough for the memory."""
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    most = max(1, 2**22 // images)
    for start in range(0, resamples, most):
        yield min(most, resamples - start)
