"""How features are standardised, also those that do not vary."""

import pytest
import torch

from tagrank import TagRanker
from tagrank.ranker.scaling import mean_and_deviation


def test_one_deviation_for_all_entries() -> None:
    mean, deviation = mean_and_deviation(torch.tensor([[1.0, 0.0], [3.0, 10.0]]))
    assert mean.tolist() == [2.0, 5.0]
    assert deviation.item() == pytest.approx(13**0.5)  # the root of the mean of 1 and 25


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 3e4])
@pytest.mark.parametrize("rounding", [None, torch.float16, torch.float32])
def test_features_that_are_all_alike(size: float, rounding: torch.dtype | None) -> None:
    """Without variance, features are divided by 1: what differs later is as far away as it is."""
    generator = torch.Generator().manual_seed(0)
    row = size * torch.rand(1, 300, generator=generator)
    features = row.repeat(50, 1)
    if rounding is not None:  # one unit in the last place, in a thousandth of the entries
        flips = torch.rand(features.shape, generator=generator) < 1e-3
        features = torch.where(flips, features * (1 + torch.finfo(rounding).eps), features).to(rounding).float()
    mean, deviation = mean_and_deviation(features)
    assert deviation == 1
    torch.testing.assert_close(mean, row[0], rtol=1e-3, atol=1e-7)


def test_a_single_image() -> None:
    features = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    ranker = TagRanker(6, 2, max_length=2, embedding_size=4, hidden_size=4, standardise=True)
    ranker.standardise_by(features[:1])
    assert ranker.feature_deviation == 1
    assert torch.equal(ranker.feature_mean, features[0])
    assert ranker.predict(features).isfinite().all()
    with pytest.raises(ValueError, match="expected at least one image, got none"):
        ranker.standardise_by(features[:0])


def test_little_variance_is_variance() -> None:
    features = 1 + 1e-3 * torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    assert mean_and_deviation(features)[1].item() == pytest.approx(1e-3, rel=0.1)
