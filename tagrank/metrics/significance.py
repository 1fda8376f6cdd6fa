"""How sure a mean over images is, and whether two models differ by more than the choice of the images.

Only the choice of the images counts as random here: another set of photographs of the same kind would give other means.
The numbers do not say what another seed of training would give.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tagrank.metrics.rankings import FloatArray

RESAMPLES = 5_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """One measure of two models on the same images.

    Attributes:
        difference: our mean minus the other model's mean, over the images for which both have the measure.
        interval: the 95% confidence interval of the difference, by the percentile bootstrap over images.
        p_value: the probability of a difference at least as large in absolute value if the two models can be exchanged
            on each image: a two-sided permutation test over images.
        images: the number of images for which both models have the measure.
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
        per_image: arrays ``[N]`` by measure; NaN if an image does not have the measure.
        confidence: of each interval, in (0, 1).
        resamples: how many times ``N`` images are drawn, with replacement.
        seed: of the random generator.

    Returns:
        The lower and the upper end of each measure's interval. A measure that no image has is left out.

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
        with np.errstate(invalid="ignore"):  # 0 / 0 if none of the drawn images has the measure
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

    The p-values are not corrected for the number of measures: for equal models, one in twenty is expected to be below
    0.05. Measures of the same lists are correlated, so a correction for their number would be too strict.

    Args:
        ours: measures by name, ``[N]``, one value for each image.
        other: the other model's measures of the same images, in the same order.
        resamples: how many times images are drawn by the bootstrap, and signs by the permutation test.
        seed: of both random generators.

    Returns:
        A :class:`Comparison` for each measure that both models have, in the order of ``ours``.

    Raises:
        ValueError: the two models have different numbers of images, or ``resamples`` is below 1.
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
    """The p-value of each column of ``[N, M]``. To exchange two models on an image is to flip the difference's sign."""
    rng = np.random.default_rng(seed)
    # Equal sums that are added up in different orders differ in the last digits. They must count as equal.
    least = np.abs(differences.sum(axis=0)) - 1e-9 * np.maximum(1.0, np.abs(differences).sum(axis=0))
    extreme = np.zeros(differences.shape[1])
    for n in _chunks(resamples, len(differences)):
        signs = rng.integers(2, size=(n, len(differences)), dtype=np.int8) * 2.0 - 1
        extreme += (np.abs(signs @ differences) >= least).sum(axis=0)
    # The observed signs are themselves one of the possible arrangements.
    p_values: FloatArray = (extreme + 1) / (resamples + 1)
    return p_values


def _columns(per_image: Mapping[str, FloatArray]) -> tuple[list[str], FloatArray, FloatArray]:
    """The measures that any image has: names, values ``[N, M]`` with 0 for NaN, and which are there (1 or 0)."""
    names = [name for name, values in per_image.items() if not np.isnan(values).all()]
    sizes = {len(values) for values in per_image.values()}
    if len(sizes) != 1 or not names:
        raise ValueError(
            f"per_image: expected at least one measure, all of the same images; got numbers of images {sorted(sizes)}"
        )
    table = np.stack([per_image[name] for name in names], axis=1)
    there = ~np.isnan(table)
    return names, np.where(there, table, 0.0), there.astype(np.float64)


def _chunks(resamples: int, images: int) -> Iterator[int]:
    """Split ``resamples`` into parts that bound the memory."""
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    most = max(1, 2**22 // images)
    for start in range(0, resamples, most):
        yield min(most, resamples - start)
