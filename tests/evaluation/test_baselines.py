import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from tagrank.data.targets import encode_lists, rank_weights
from tagrank.evaluation.baselines import (
    Baseline,
    FrequencyPrior,
    LinearClassifier,
    ListsPerImage,
    MLPClassifier,
    NearestNeighbours,
)
from tagrank.metrics import evaluate_rankings, summarise

BASELINES: list[Callable[[], Baseline]] = [FrequencyPrior, NearestNeighbours, LinearClassifier, MLPClassifier]
SEEING = BASELINES[1:]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On sets as small as these, threads only get into each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_set(count: int, seed: int, *, xor: bool = False) -> tuple[Tensor, list[list[list[int]]]]:
    """Images with two noisy lists each; the order of six tags follows six features, strongest first.

    With ``xor`` the first tag depends on the product of two features, which no linear model can compute.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 8, generator=generator)
    strength = features[:, :6].clone()
    if xor:
        strength = torch.stack([sign * features[:, 0] * features[:, 1] * 3 for sign in (1, -1)], dim=1)
    lists = []
    for row in strength:
        noisy = row + 0.3 * torch.randn(2, len(row), generator=generator)
        lists.append([scores.argsort(descending=True)[:3].tolist() for scores in noisy])
    return features * 0.4 + 0.2, lists


def ndcg3(baseline: Baseline, features: Tensor, lists: ListsPerImage) -> float:
    rankings = baseline.rank(features, top_k=3)
    return summarise(evaluate_rankings(rankings, [ranked[0] for ranked in lists], ks=(3,)))["ndcg@3"]


def weights_of(lists: ListsPerImage) -> Tensor:
    return rank_weights(encode_lists(lists, 6, 6), 6)


def test_members_are_averaged() -> None:
    features, lists = make_set(60, seed=0)
    baseline = MLPClassifier(members=3)
    baseline.fit(features, lists, num_tags=6)
    networks = list(baseline._network.networks)  # type: ignore[union-attr,arg-type]
    probabilities = [network(features).sigmoid() for network in networks]
    assert len(probabilities) == 3
    assert not torch.equal(probabilities[0], probabilities[1])
    mean = sum(probabilities) / 3
    for row, ranking in zip(mean, baseline.rank(features), strict=True):
        assert (row[ranking].diff() <= 1e-6).all()
    with pytest.raises(ValueError, match="members: expected at least 1, got 0"):
        LinearClassifier(members=0)


def test_frequency_prior_ranks_by_mean_rank_weight_with_ties_by_index() -> None:
    prior = FrequencyPrior()
    # Tag 1 is named more often, tag 3 earlier; 0 and 4 are never named, 2 and 5 equally.
    prior.fit(torch.zeros(2, 3), [[[3, 1], [3, 1]], [[2, 1], [5, 1]]], num_tags=6)
    a = 1 / np.log2(3)
    assert a > 0.5
    assert prior.rank(torch.zeros(2, 3)) == [[1, 3, 2, 5, 0, 4]] * 2
    assert prior.rank(torch.zeros(1, 3), top_k=2) == [[1, 3]]


def test_nearest_neighbours_agree_with_all_pairs_in_float64() -> None:
    features, lists = make_set(700, seed=0)
    queries, _ = make_set(300, seed=1)
    baseline = NearestNeighbours(k=7)
    baseline.fit(features, lists, num_tags=6)
    got = baseline.rank(queries)
    mean = features.double().mean(dim=0)
    similarity = cosine_similarity(queries.double() - mean, features.double() - mean)
    weights = weights_of(lists).double().numpy()
    for row, ranking in zip(similarity, got, strict=True):
        nearest = np.argsort(-row)[:7]
        scores = (row[nearest, None] * weights[nearest]).sum(axis=0)
        assert (np.diff(scores[ranking]) <= 1e-6).all()


def test_neighbours_at_the_same_distance_all_vote() -> None:
    # Two training images are equal and disagree: neither may win by its place in memory.
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    baseline = NearestNeighbours(k=1)
    baseline.fit(features, [[[2]], [[1]], [[0]]], num_tags=3)
    assert baseline.rank(torch.tensor([[3.0, 0.0], [-3.0, 0.0]])) == [[1, 2, 0], [0, 1, 2]]


def test_more_neighbours_than_images() -> None:
    baseline = NearestNeighbours()
    baseline.fit(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), [[[0]], [[1]]], num_tags=2)
    assert baseline.rank(torch.tensor([[0.0, 5.0]])) == [[1, 0]]


@pytest.mark.parametrize("make", SEEING)
def test_baselines_that_see_the_image_beat_the_prior(make: Callable[[], Baseline]) -> None:
    features, lists = make_set(600, seed=0)
    held_out = make_set(200, seed=1)
    prior, baseline = FrequencyPrior(), make()
    prior.fit(features, lists, num_tags=6)
    baseline.fit(features, lists, num_tags=6)
    assert ndcg3(prior, *held_out) < 0.6
    assert ndcg3(baseline, *held_out) > 0.8


def test_two_layers_learn_what_one_layer_cannot() -> None:
    features, lists = make_set(1000, seed=0, xor=True)
    held_out = make_set(300, seed=1, xor=True)
    linear, mlp = LinearClassifier(), MLPClassifier()
    linear.fit(features, lists, num_tags=2)
    mlp.fit(features, lists, num_tags=2)
    first = [
        np.mean([ranking[0] == ranked[0][0] for ranking, ranked in zip(b.rank(held_out[0]), held_out[1], strict=True)])
        for b in (linear, mlp)
    ]
    assert first[0] < 0.65
    assert first[1] > 0.8


@pytest.mark.parametrize("make", [LinearClassifier, MLPClassifier])
def test_only_the_seed_decides(make: Callable[[], Baseline]) -> None:
    features, lists = make_set(150, seed=0)
    state = torch.get_rng_state()
    logits = []
    for seed in (3, 3, 4):
        baseline = make()
        baseline.fit(features, lists, num_tags=6, seed=seed)
        logits.append(baseline._network(features))  # type: ignore[attr-defined]
        torch.rand(5)
    torch.set_rng_state(state)
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("make", BASELINES)
def test_the_global_generator_is_left_alone(make: Callable[[], Baseline]) -> None:
    features, lists = make_set(60, seed=0)
    before = torch.get_rng_state()
    baseline = make()
    baseline.fit(features, lists, num_tags=6)
    baseline.rank(features)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("make", BASELINES)
def test_rankings_are_permutations_and_do_not_depend_on_the_batch(make: Callable[[], Baseline]) -> None:
    features, lists = make_set(60, seed=0)
    baseline = make()
    baseline.fit(features, lists, num_tags=9)
    rankings = baseline.rank(features)
    assert all(sorted(ranking) == list(range(9)) for ranking in rankings)
    assert baseline.rank(features[7:8]) == rankings[7:8]
    assert baseline.rank(features, top_k=4) == [ranking[:4] for ranking in rankings]
    assert baseline.rank(features, top_k=99) == rankings
    assert all(set(ranking[6:]) == {6, 7, 8} for ranking in rankings), "tags that nobody names come last"


@pytest.mark.parametrize("make", SEEING)
def test_features_that_are_all_the_same_give_the_prior(make: Callable[[], Baseline]) -> None:
    _, lists = make_set(60, seed=0)
    features = torch.ones(60, 5)
    baseline, prior = make(), FrequencyPrior()
    baseline.fit(features, lists, num_tags=6)
    prior.fit(features, lists, num_tags=6)
    if isinstance(baseline, NearestNeighbours):
        # After centring, no image is similar to any other: all tags have the same score.
        assert baseline.rank(features[:1]) == [[0, 1, 2, 3, 4, 5]]
    else:
        weights = weights_of(lists).mean(dim=0)
        ranked = weights[torch.tensor(baseline.rank(features[:1])[0])]
        assert (ranked.diff() < 0.02).all()


@pytest.mark.parametrize("make", BASELINES)
def test_rank_before_fit_and_bad_arguments_are_errors(make: Callable[[], Baseline]) -> None:
    baseline = make()
    with pytest.raises(RuntimeError, match="rank was called before fit"):
        baseline.rank(torch.zeros(1, 8))
    with pytest.raises(ValueError, match=r"lists_per_image: expected tag numbers in \[0, 6\), got 6 in .* image 1"):
        baseline.fit(torch.zeros(2, 8), [[[0]], [[6]]], num_tags=6)
    with pytest.raises(ValueError, match="image 1 has none"):
        baseline.fit(torch.zeros(2, 8), [[[0]], []], num_tags=6)
    features, lists = make_set(20, seed=0)
    baseline.fit(features, lists, num_tags=6)
    with pytest.raises(ValueError, match="top_k: expected at least 1 or None, got 0"):
        baseline.rank(features, top_k=0)


@pytest.mark.parametrize("make", SEEING)
def test_bad_features_are_errors(make: Callable[[], Baseline]) -> None:
    features, lists = make_set(20, seed=0)
    baseline = make()
    with pytest.raises(ValueError, match=r"features: expected shape \[20, D\], got \[19, 8\]"):
        baseline.fit(features[1:], lists, num_tags=6)
    broken = features.clone()
    broken[4, 2] = float("nan")
    with pytest.raises(ValueError, match="row 4 has NaN or infinity"):
        baseline.fit(broken, lists, num_tags=6)
    baseline.fit(features, lists, num_tags=6)
    with pytest.raises(ValueError, match=r"features: expected shape \[N, 8\], got \[20, 7\]"):
        baseline.rank(features[:, 1:])
    with pytest.raises(ValueError, match="row 4 has NaN or infinity"):
        baseline.rank(broken)


def test_no_images_and_no_neighbours_are_errors() -> None:
    with pytest.raises(ValueError, match="expected at least one image"):
        FrequencyPrior().fit(torch.zeros(0, 8), [], num_tags=6)
    with pytest.raises(ValueError, match="k: expected at least 1 neighbour, got 0"):
        NearestNeighbours(k=0)


@pytest.mark.photographs
def test_numbers_on_photographs(flickr8k: Path) -> None:
    """The baselines must stay as strong as they can be: to beat weak baselines proves nothing."""
    train, val = ([json.loads(line) for line in (flickr8k / f"{s}.jsonl").open()] for s in ("train", "val"))
    number = {tag: i for i, tag in enumerate(sorted({t for image in train for t in image["tags"]}))}
    lists = [[[number[tag] for tag in ranked] for ranked in image["lists"]] for image in train]
    references = [[number[tag] for tag in image["tags"]] for image in val]
    x, y = (
        torch.from_numpy(np.load(flickr8k / f"{s}_features.npz")["features"].astype(np.float32))
        for s in ("train", "val")
    )
    for baseline, at_1, at_5 in (
        (FrequencyPrior(), 0.23, 0.34),
        (NearestNeighbours(), 0.60, 0.61),
        (LinearClassifier(), 0.64, 0.63),
        (MLPClassifier(), 0.66, 0.66),
    ):
        baseline.fit(x, lists, len(number))
        scores = summarise(evaluate_rankings(baseline.rank(y, top_k=10), references))
        assert scores["ndcg@1"] > at_1, baseline.name
        assert scores["ndcg@5"] > at_5, baseline.name
