"""The next tag of lists that people began: measures by hand, baselines by brute force, and who should win."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.data.manifest import Example
from tagrank.data.vocabulary import Vocabulary
from tagrank.evaluation.next_tag_baselines import (
    ClassifierNext,
    NeighboursNext,
    Together,
    beginnings_of,
    best_exponents,
    clues,
    fit_next_tag_baselines,
)
from tagrank.evaluation.next_tag_judgement import (
    LeavesOutGiven,
    ReadsGiven,
    completion_rows,
    judge_next_tags,
)
from tagrank.features.labelled import LabelledImages
from tagrank.metrics import evaluate_next_tags
from tagrank.ranker.presets import Preset
from tagrank.ranker.scaling import signed_root
from tagrank.training.completing import fit_completer

LISTS = [[[0, 1, 2], [2]], [], [[3, 0], [1, 3, 0, 2]]]


def test_measures_by_hand() -> None:
    log_p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]]).log()
    got = evaluate_next_tags(log_p, torch.tensor([0, 1, 0]), torch.tensor([0, 0, 2]), 3)
    assert got["hit@1"].tolist() == pytest.approx([0.5, math.nan, 0.0], nan_ok=True)  # of equal tags the first is ahead
    assert got["hit@3"].tolist() == pytest.approx([1.0, math.nan, 0.0], nan_ok=True)
    assert got["nll"].tolist() == pytest.approx([math.log(2), math.nan, math.log(10)], nan_ok=True)


def test_beginnings() -> None:
    image, given, following = beginnings_of(LISTS, 2)
    assert (image.tolist(), given.tolist(), following.tolist()) == ([0, 2, 2], [[0], [3], [1]], [1, 0, 3])
    image, given, following = beginnings_of(LISTS, 4)
    assert (image.tolist(), given.tolist(), following.tolist()) == ([2], [[1, 3, 0]], [2])
    assert beginnings_of([[[0]]], 2).given.shape == (0, 1)


def test_the_model_reads_the_true_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagrank.evaluation.next_tag_judgement.BATCH", 2)
    torch.manual_seed(0)
    model = TagRanker(5, 4, max_length=4, embedding_size=6, hidden_size=7, feedback=True, skip=True).eval()
    features = torch.randn(3, 5)
    for position in (2, 3, 4):
        image, given, _ = beginnings_of(LISTS, position)
        got = ReadsGiven(model).log_p(features, image, given)
        for row, (number, tags) in enumerate(zip(image.tolist(), given.tolist(), strict=True)):
            previous = torch.tensor([tags + [0] * (4 - len(tags))])
            p = model(features[number : number + 1], previous)[0, len(tags)].softmax(-1)[:4].detach()
            p[tags] = 0
            torch.testing.assert_close(got[row].exp(), p / p.sum())


def test_a_model_without_feedback_leaves_the_given_tags_out() -> None:
    torch.manual_seed(0)
    annotator = Annotator(TagRanker(5, 4, max_length=2, embedding_size=6, hidden_size=7), Vocabulary([*"abcd"]))
    features = torch.randn(3, 5)
    image, given, _ = beginnings_of(LISTS, 3)
    got = LeavesOutGiven(annotator).log_p(features, image, given)
    expected = annotator.probabilities(features)[image, 2, :4].scatter(1, given, 0.0)
    torch.testing.assert_close(got.exp(), expected / expected.sum(1, keepdim=True))


def test_tags_that_occur_together() -> None:
    counted = Together.counted(LISTS, 4)
    assert counted.next[0].tolist() == [0, 1, 1, 0]
    assert counted.after[1].tolist() == [1, 0, 2, 1]
    assert counted.both[2].tolist() == [2, 2, 0, 1]
    lift = counted.lifts(10.0).after
    prior = (counted.after.sum(0) + 0.5) / (counted.after.sum() + 2.0)
    assert float(lift[1, 2]) == pytest.approx(math.log((2 + 10 * prior[2]) / 14 / prior[2]), rel=1e-5)


def test_exponents_are_the_best() -> None:
    generator = torch.Generator().manual_seed(0)
    clue = torch.randn(200, 5, 2, generator=generator)
    given = torch.zeros(200, 1, dtype=torch.int64)
    scores = (clue @ torch.tensor([0.7, -0.4]))[:, 1:]
    following = 1 + torch.distributions.Categorical(logits=scores).sample()
    exponents, loss = best_exponents(clue, given, following)

    def at(values: Tensor) -> float:
        log_p = (clue @ values)[:, 1:].log_softmax(1)
        return float(-log_p[torch.arange(200), following - 1].mean())

    assert loss == pytest.approx(at(exponents), rel=1e-5)
    for step in (torch.tensor([0.05, 0.0]), torch.tensor([0.0, 0.05])):
        assert at(exponents) < min(at(exponents + step), at(exponents - step))


def test_neighbours_vote_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    train, images = torch.randn(4, 6, generator=generator), torch.randn(2, 6, generator=generator)
    lists = [[[0, 1, 2]], [[1, 0], [0, 2]], [[3]], [[0, 1, 3], [2, 0]]]
    neighbours = NeighboursNext(train, lists, 4)
    given = torch.tensor([[0, 1], [0, 1]])
    alike, having, anything = neighbours.votes(images, torch.tensor([0, 1]), given, 0.5)
    rooted = signed_root(train)
    mean, deviation = rooted.mean(0), (rooted - rooted.mean(0)).square().mean().sqrt()

    def direction(x: Tensor) -> np.ndarray:
        scaled = ((signed_root(x) - mean) / deviation).numpy()
        return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True))

    cosines = direction(images) @ direction(train).T
    for row in range(2):
        weights = np.exp((cosines[row] - cosines[row].max()) / 0.5)
        expected = np.zeros((3, 4))
        for i, image in enumerate(lists):
            for tags in image:
                if tags[:2] == [0, 1] and len(tags) > 2:
                    expected[0, tags[2]] += weights[i]
                if {0, 1} <= set(tags):
                    expected[1, tags] += weights[i]
                expected[2, tags] += weights[i]
        expected[:, [0, 1]] = 0
        for got, votes in zip((alike, having, anything), expected, strict=True):
            np.testing.assert_allclose(got[row].numpy(), votes, rtol=1e-4)
    p = neighbours.combined(alike, having, anything, given, 1.0, 3.0).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(2))
    assert (p[:, :2] == 0).all()


def sequels(count: int, seed: int) -> tuple[Tensor, list[list[list[int]]]]:
    """The image says whether 0 or 1 comes first; the first tag, and nothing in the image, says what comes next."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(count, 8, generator=generator)
    lists = []
    for row in features:
        firsts = (torch.rand(3, generator=generator) < 0.3 + 0.4 * (row[0] > 0.5)).tolist()
        lists.append([[0, 2, 4, 6] if first else [1, 3, 5, 7] for first in firsts])
    return features, lists


def images_of(features: Tensor, lists: Sequence[Sequence[Sequence[int]]]) -> LabelledImages:
    named = [tuple(tuple("abcdefgh"[v] for v in tags) for tags in image) for image in lists]
    return LabelledImages([Example(f"{i}.png", tags[0], tags) for i, tags in enumerate(named)], features)


@pytest.fixture(scope="module")
def baselines() -> list[ClassifierNext | NeighboursNext]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tagrank.evaluation.baselines.MIN_STEPS", 60)
        return fit_next_tag_baselines(*sequels(200, 0), 8)


def test_a_model_that_reads_lists_knows_what_a_classifier_cannot(
    baselines: list[ClassifierNext | NeighboursNext],
) -> None:
    (features, lists), (val, val_lists) = sequels(200, 0), sequels(50, 1)
    vocabulary = Vocabulary([*"abcdefgh"])
    preset = Preset(
        embedding_size=16, hidden_size=16, bias=True, skip=True, learning_rate=0.03, batch_size=32, epochs=12
    )
    completer = fit_completer(images_of(features, lists), vocabulary, preset)
    ours = judge_next_tags(ReadsGiven(completer), val, val_lists)
    classifier, reweighted, neighbours = (judge_next_tags(baseline, val, val_lists) for baseline in baselines)
    for position in (2, 3, 4):
        assert ours[f"hit@1/{position}"].mean() == 1.0
        assert ours[f"nll/{position}"].mean() < 0.2
        assert classifier[f"hit@1/{position}"].mean() < 0.8
        # Co-occurrence and neighbours' lists solve this one: they are no straw men.
        assert reweighted[f"hit@1/{position}"].mean() == neighbours[f"hit@1/{position}"].mean() == 1.0


def test_baselines_are_probabilities_without_the_given_tags(baselines: list[ClassifierNext | NeighboursNext]) -> None:
    features, lists = sequels(60, 2)
    image, given, _ = beginnings_of(lists, 3)
    for baseline in baselines:
        p = baseline.log_p(features, image, given).exp()
        torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
        assert (p.gather(1, given) == 0).all()
        # Beginnings longer than those tuned take the values of the last.
        longer = torch.cat([given, torch.tensor([[6, 7]]).expand(len(given), -1)], dim=1)
        assert baseline.log_p(features, image, longer).isfinite().any(1).all()


def test_only_the_reweighted_classifier_reads_the_tags() -> None:
    log_scores, given = torch.rand(2, 8).log(), torch.tensor([[0, 3], [3, 0]])
    assert clues(log_scores, given, None).shape == (2, 8, 1)
    lifts = Together.counted([[[0, 1, 2]], [[3, 2]]], 8).lifts(3.0)
    with_tags = clues(log_scores, given, lifts)
    assert with_tags.shape == (2, 8, 6)
    torch.testing.assert_close(with_tags[0, :, 2], lifts.after[3])
    torch.testing.assert_close(with_tags[0, :, 4], lifts.after[0])


def test_rows_of_a_model_with_and_without_a_completer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagrank.evaluation.baselines.MIN_STEPS", 2)
    monkeypatch.setattr("tagrank.evaluation.baselines.EPOCHS", 1)
    (features, lists), (val, val_lists) = sequels(80, 0), sequels(20, 1)
    vocabulary = Vocabulary([*"abcdefgh"])
    torch.manual_seed(0)
    ranker = TagRanker(8, 8, max_length=4, embedding_size=6, hidden_size=7)
    completer = TagRanker(8, 8, max_length=4, embedding_size=6, hidden_size=7, feedback=True)
    train, judged = images_of(features, lists), images_of(val, val_lists)
    names = [row["name"] for row in completion_rows(Annotator(ranker, vocabulary, completer=completer), judged)]
    assert names == ["tagrank, reads the given tags", "tagrank, leaves the given tags out"]
    names = [row["name"] for row in completion_rows(Annotator(completer, vocabulary), judged)]
    assert names == ["tagrank, reads the given tags"]
    rows = completion_rows(Annotator(ranker, vocabulary), judged, train)
    assert [row["name"] for row in rows] == [
        "tagrank, leaves the given tags out",
        "two-layer classifier, given tags removed",
        "two-layer classifier, reweighted by co-occurrence",
        "nearest neighbours' lists",
    ]
    for row in rows:
        assert row.keys() - {"name", "intervals"} == {f"{m}/{t}" for m in ("hit@1", "hit@3", "nll") for t in (2, 3, 4)}
        low, high = row["intervals"]["nll/2"]
        assert low <= row["nll/2"] <= high
    assert completion_rows(Annotator(ranker, vocabulary), images_of(val, [[[0]]] * 20)) == []
