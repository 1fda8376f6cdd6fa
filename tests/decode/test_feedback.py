"""Decoders of models with feedback against all lists of a tiny vocabulary, scored by teacher forcing."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import OutputTags, decode_feedback
from tagrank.decode.feedback import expectations
from tagrank.errors import InputError
from tagrank.recurrence import trace

TAGS, LONGEST = 4, 3
VOCABULARY = Vocabulary(["ant", "bee", "cat", "dog"])
ALL = OutputTags(VOCABULARY)
VARIANTS: list[dict[str, Any]] = [{"feedback": True}, {"conditioning": "initial", "bias": True}]
EVERYTHING = TAGS * TAGS**LONGEST


def make(options: dict[str, Any], seed: int = 0) -> TagRanker:
    torch.manual_seed(seed)
    model = TagRanker(5, TAGS, max_length=LONGEST, embedding_size=6, hidden_size=7, **options).double().eval()
    # Untrained, the distributions would be nearly uniform, and the last digits would decide the order of the tags.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def features(batch: int = 3) -> Tensor:
    return torch.randn(batch, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def written(model: TagRanker, image: Tensor, end: bool = True) -> dict[tuple[int, ...], float]:
    """Every sequence of up to S tags (repeats included), and its probability, with END if it has fewer than S tags."""
    sequences = list(itertools.product(range(TAGS), repeat=model.steps))
    tags = torch.tensor(sequences)
    p = model(image.expand(len(tags), -1), tags[:, :-1]).detach().softmax(-1).numpy()
    out: dict[tuple[int, ...], float] = {}
    for row, sequence in enumerate(sequences):
        for n in range(model.steps + 1):
            start = math.prod(p[row, t, sequence[t]] for t in range(n))
            out[sequence[:n]] = start * p[row, n, TAGS] if end and n < model.steps else start
    if end:
        assert sum(out.values()) == pytest.approx(1.0)
    return out


def distinct(tags: tuple[int, ...]) -> bool:
    return len(set(tags)) == len(tags)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("seed", range(5))
def test_beam_is_the_most_likely_list_of_distinct_tags(options: dict[str, Any], seed: int) -> None:
    model, images = make(options, seed), features()
    with trace() as kernels:
        rankings = decode_feedback(model, images, "beam", ALL, beams=EVERYTHING)
    assert kernels
    for image, ranking in zip(images, rankings, strict=True):
        lists = {y: p for y, p in written(model, image).items() if 0 < len(y) < model.steps and distinct(y)}
        assert tuple(ranking.tags) == max(lists, key=lambda y: lists[y])


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_beam_of_a_given_length_is_the_most_likely_beginning(options: dict[str, Any], top_k: int) -> None:
    model, images = make(options), features()
    for image, ranking in zip(
        images, decode_feedback(model, images, "beam", ALL, top_k=top_k, beams=EVERYTHING), strict=True
    ):
        starts = {y: p for y, p in written(model, image, end=False).items() if len(y) == top_k and distinct(y)}
        assert tuple(ranking.tags) == max(starts, key=lambda y: starts[y])


def test_beam_lists_are_of_all_lengths() -> None:
    # A score divided by the length, or one that omits END, would make all lists long.
    lengths = set()
    for seed in range(8):
        model = make({"feedback": True}, seed)
        with torch.no_grad():
            model.classifier.bias[TAGS] -= seed
        lengths |= {len(r.tags) for r in decode_feedback(model, features(), "beam", ALL)}
    assert {1, 2} <= lengths


@pytest.mark.parametrize("options", VARIANTS)
def test_a_wide_beam_finds_lists_at_least_as_likely_as_a_narrow_one(options: dict[str, Any]) -> None:
    for seed in range(6):
        model, images = make(options, seed), features()
        narrow, wide = (decode_feedback(model, images, "beam", ALL, beams=n) for n in (1, EVERYTHING))
        for image, a, b in zip(images, narrow, wide, strict=True):
            lists = written(model, image)
            assert lists[tuple(a.tags)] <= lists[tuple(b.tags)] * (1 + 1e-12)


@pytest.mark.parametrize("options", VARIANTS)
def test_samples_converge_to_the_expectations_over_all_lists(options: dict[str, Any]) -> None:
    model, images = make(options), features()
    errors = []
    for samples in (16, 4096):
        got = expectations(model, images, ALL, samples)
        worst = 0.0
        for row, image in enumerate(images):
            gain, on_list, length = np.zeros(TAGS), np.zeros(TAGS), 0.0
            for y, p in written(model, image).items():
                length += p * len(y)
                on_list[list(set(y))] += p
                for t, v in enumerate(y):
                    gain[v] += p / math.log2(t + 2)
            for a, b in ((got.gain[row], gain), (got.on_list[row], on_list), (got.length[row], length)):
                worst = max(worst, float(np.abs(a - b).max()))
        errors.append(worst)
    # The error of plain Monte Carlo would fall only by a factor of 16.
    assert errors[1] < errors[0] / 30
    assert errors[1] < 2e-3


def test_expected_gain_orders_by_gain_and_takes_the_expected_length() -> None:
    model, images = make({"feedback": True}), features()
    expected = expectations(model, images, ALL, 64)
    for row, (full, chosen) in enumerate(
        zip(
            decode_feedback(model, images, "expected_gain", ALL, top_k=TAGS),
            decode_feedback(model, images, "expected_gain", ALL),
            strict=True,
        )
    ):
        assert full.tags == sorted(range(TAGS), key=lambda v: -expected.gain[row, v])
        assert full.scores == pytest.approx([expected.on_list[row, v] for v in full.tags])
        assert chosen.tags == full.tags[: max(1, round(float(expected.length[row])))]


@pytest.mark.parametrize("options", VARIANTS)
def test_greedy_is_the_list_that_predict_follows(options: dict[str, Any]) -> None:
    model, images = make(options), features(6)
    p = model.predict(images)
    for row, ranking in enumerate(decode_feedback(model, images, "greedy", ALL)):
        used: list[int] = []
        for t in range(model.steps):
            best = max((v for v in range(TAGS) if v not in used), key=lambda v: float(p[row, t, v]))
            if t > 0 and p[row, t, best] < p[row, t, TAGS]:
                break
            used.append(best)
        assert ranking.tags == used


@pytest.mark.parametrize("decoder", ["greedy", "beam", "expected_gain"])
def test_an_image_is_ranked_alike_whatever_is_beside_it(decoder: str) -> None:
    model, images = make({"feedback": True}), features(9)
    together = decode_feedback(model, images, decoder, ALL, samples=16)
    for image, ranking in zip(images, together, strict=True):
        (single,) = decode_feedback(model, image.unsqueeze(0), decoder, ALL, samples=16)
        assert single.tags == ranking.tags
        assert single.scores == pytest.approx(ranking.scores, abs=1e-12)


@pytest.mark.parametrize("decoder", ["greedy", "beam", "expected_gain"])
def test_more_tags_than_positions_and_thresholds(decoder: str) -> None:
    model, images = make({"feedback": True}), features()
    longer = decode_feedback(model, images, decoder, ALL, top_k=99)
    assert [sorted(r.tags) for r in longer] == [list(range(TAGS))] * 3
    for ranking, kept in zip(
        longer, decode_feedback(model, images, decoder, ALL, threshold=0.3, top_k=99), strict=True
    ):
        assert kept.tags == [v for v, score in zip(*ranking, strict=True) if score >= 0.3]


@pytest.mark.parametrize("decoder", ["greedy", "beam", "expected_gain"])
def test_excluded_tags_and_synonyms(decoder: str) -> None:
    model, images = make({"feedback": True}), features(8)
    output = OutputTags(VOCABULARY, exclude=["cat"], synonyms={"insect": ["ant", "bee"]})
    for ranking in decode_feedback(model, images, decoder, output, top_k=4):
        assert sorted(output.vocabulary.tag(v) for v in ranking.tags) == ["dog", "insect"]
    got = expectations(model, images, output, 4096)
    for row, image in enumerate(images):
        lists = written(model, image)
        either = sum(p for y, p in lists.items() if {0, 1} & set(y))
        assert got.on_list[row, 0] == pytest.approx(either, abs=3e-3)
        assert got.length[row] == pytest.approx(sum(p * sum(v != 2 for v in y) for y, p in lists.items()), abs=5e-3)


def test_beam_with_excluded_tags_is_the_most_likely_list_without_them() -> None:
    model, images = make({"feedback": True}), features(6)
    output = OutputTags(VOCABULARY, include=["bee", "cat", "dog"])
    rankings = decode_feedback(model, images, "beam", output, beams=EVERYTHING)
    for image, ranking in zip(images, rankings, strict=True):
        lists = {
            y: p for y, p in written(model, image).items() if 0 < len(y) < model.steps and distinct(y) and 0 not in y
        }
        assert tuple(ranking.tags) == max(lists, key=lambda y: lists[y])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "assignment"}, "decoder: expected one of 'expected_gain', 'beam', 'greedy'; got 'assignment'"),
        ({"beams": 0}, "beams: expected at least 1, got 0"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"top_k": 0}, "top_k: expected at least 1, got 0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_feedback(make({"feedback": True}), features(), output=ALL, **({"decoder": "beam"} | options))


def test_an_annotator_takes_the_decoders_of_its_model() -> None:
    reads = Annotator(make({"feedback": True}).float(), VOCABULARY)
    does_not = Annotator(make({}).float(), VOCABULARY)
    assert (reads.check_decoder(None), does_not.check_decoder(None)) == ("expected_gain", "headline")
    with pytest.raises(InputError, match=r"this model reads its own tags: .*; got 'assignment'"):
        reads.rank(features(), decoder="assignment")
    with pytest.raises(InputError, match=r"this model does not read its own tags: .*; got 'beam'"):
        does_not.rank(features(), decoder="beam")
    with pytest.raises(InputError, match="decoder: expected one of headline, expected_gain, greedy, assignment, beam"):
        reads.rank(features(), decoder="viterbi")
    assert len(reads.rank(features(), decoder="beam", batch_size=2)) == 3
