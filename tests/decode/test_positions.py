"""Decoders against brute force over all lists, and the rules of length, threshold and ties."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tagrank.decode import decode


def distributions(seed: int, batch: int, steps: int, num_tags: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, steps, num_tags + 1, generator=generator, dtype=torch.float64) * 1.5).softmax(-1)


def draws(p: Tensor) -> dict[tuple[int, ...], float]:
    """Every sequence the model can write for one image (repeats included), with its probability."""
    steps, end = p.shape[0], p.shape[1] - 1
    out: dict[tuple[int, ...], float] = {}
    for n in range(steps + 1):
        for tags in itertools.product(range(end), repeat=n):
            prob = math.prod(float(p[t, v]) for t, v in enumerate(tags))
            out[tags] = prob * (float(p[n, end]) if n < steps else 1.0)
    assert sum(out.values()) == pytest.approx(1.0)
    return out


shapes = st.tuples(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 4), st.integers(1, 4))


@given(shapes)
@settings(max_examples=25)
def test_scores_are_the_probability_of_being_on_the_list(shape: tuple[int, int, int, int]) -> None:
    p = distributions(*shape)
    num_tags = shape[3]
    for image, ranking in zip(p, decode(p, top_k=num_tags), strict=True):
        everything = draws(image)
        for tag, score in zip(ranking.tags, ranking.scores, strict=True):
            assert score == pytest.approx(sum(q for tags, q in everything.items() if tag in tags))


@given(shapes)
@settings(max_examples=25)
def test_assignment_is_the_most_likely_list(shape: tuple[int, int, int, int]) -> None:
    p = distributions(*shape)
    for image, ranking in zip(p, decode(p, "assignment"), strict=True):
        lists = {
            tags: q for tags, q in draws(image).items() if 0 < len(tags) < p.shape[1] and len(set(tags)) == len(tags)
        }
        assert lists[tuple(ranking.tags)] == pytest.approx(max(lists.values()))


@given(shapes)
@settings(max_examples=25)
def test_assignment_of_a_given_length(shape: tuple[int, int, int, int]) -> None:
    p = distributions(*shape)
    length = min(2, shape[3])
    for image, ranking in zip(p, decode(p, "assignment", top_k=length), strict=True):
        best = max(
            math.prod(float(image[t, v]) for t, v in enumerate(tags))
            for tags in itertools.permutations(range(shape[3]), length)
        )
        assert math.prod(float(image[t, v]) for t, v in enumerate(ranking.tags)) == pytest.approx(best)


@given(shapes)
@settings(max_examples=25)
def test_expected_gain_ranks_by_the_expected_dcg(shape: tuple[int, int, int, int]) -> None:
    p = distributions(*shape)
    for image, ranking in zip(p, decode(p, "expected_gain", top_k=shape[3]), strict=True):
        gain = np.zeros(shape[3])
        for tags, q in draws(image).items():
            for t, v in enumerate(tags):
                gain[v] += q / math.log2(t + 2)
        assert sorted(ranking.tags) == list(range(shape[3]))
        ranked = gain[ranking.tags]
        assert (np.diff(ranked) <= 1e-9).all()
        expected = sum(len(tags) * q for tags, q in draws(image).items())
        if abs(expected % 1 - 0.5) > 1e-6:
            (chosen,) = decode(image.unsqueeze(0))
            assert len(chosen.tags) == min(max(1, round(expected)), shape[3])
            assert chosen.tags == ranking.tags[: len(chosen.tags)]


def test_greedy_takes_the_best_unused_tag_and_ends_with_end() -> None:
    p = torch.tensor([[[0.6, 0.3, 0.0, 0.1], [0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [0.1, 0.1, 0.2, 0.6]]])
    (ranking,) = decode(p, "greedy")
    assert ranking.tags == [0, 1]
    (longer,) = decode(p, "greedy", top_k=3)
    assert longer.tags == [0, 1, 2]


def test_a_list_is_never_empty_nor_longer_than_the_vocabulary() -> None:
    ends = torch.tensor([[[0.1, 0.1, 0.8]] * 3])
    never = torch.tensor([[[0.6, 0.4, 0.0]] * 5])
    for decoder in ("greedy", "assignment", "expected_gain", "headline"):
        assert len(decode(ends, decoder)[0].tags) == 1
        assert decode(never, decoder, top_k=9)[0].tags == [0, 1]
    for decoder in ("greedy", "expected_gain", "headline"):
        assert decode(never, decoder)[0].tags == [0, 1]
    # Of lists that never end, the shorter list is more likely.
    assert decode(never, "assignment")[0].tags == [0]


@pytest.mark.parametrize("decoder", ["greedy", "assignment", "expected_gain", "headline"])
def test_ties_go_to_the_first_of_the_vocabulary(decoder: str) -> None:
    p = torch.full((2, 3, 6), 1 / 6)
    assert [r.tags for r in decode(p, decoder, top_k=3)] == [[0, 1, 2]] * 2


def test_threshold_keeps_order_and_filters() -> None:
    p = distributions(3, 4, 4, 6)
    for decoder in ("greedy", "assignment", "expected_gain", "headline"):
        for full, kept in zip(decode(p, decoder, threshold=0.0), decode(p, decoder, threshold=0.4), strict=True):
            assert kept.tags == [v for v, s in zip(*full, strict=True) if s >= 0.4]
        for ranking in decode(p, decoder, threshold=0.2, top_k=2):
            assert len(ranking.tags) <= 2
            assert all(score >= 0.2 for score in ranking.scores)


def test_more_tags_than_positions() -> None:
    p = distributions(0, 2, 2, 5)
    for decoder in ("greedy", "assignment", "expected_gain", "headline"):
        for ranking in decode(p, decoder, top_k=4):
            assert len(set(ranking.tags)) == 4


@given(shapes)
@settings(max_examples=25)
def test_headline_is_expected_gain_except_for_its_first_tag(shape: tuple[int, int, int, int]) -> None:
    p = distributions(*shape)
    num_tags = shape[3]
    got = decode(p, "headline", top_k=num_tags)
    plain = decode(p, "expected_gain", top_k=num_tags)
    for image, ours, theirs in zip(p, got, plain, strict=True):
        squared = [0.0] * num_tags
        for tags, probability in draws(image).items():
            for t, v in enumerate(tags):
                squared[v] += probability / math.log2(2 + t) ** 2
        assert squared[ours.tags[0]] == pytest.approx(max(squared))
        assert ours.tags[1:] == [v for v in theirs.tags if v != ours.tags[0]]


def test_headline_prefers_what_comes_first() -> None:
    # Tag 0 is always second or third. Tag 1 is first for half of the people.
    p = torch.tensor([[[0.0, 0.5, 0.25, 0.25, 0], [0.7, 0, 0.15, 0.15, 0], [0.3, 0, 0.35, 0.35, 0]]])
    assert decode(p, "expected_gain", top_k=1)[0].tags == [0]
    assert decode(p, "headline", top_k=1)[0].tags == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probabilities": torch.zeros(2, 3)}, r"expected shape \[B, S, V \+ 1\], got \[2, 3\]"),
        ({"probabilities": torch.full((1, 2, 3), float("nan"))}, "expected finite"),
        ({"probabilities": torch.full((1, 2, 3), 1.0)}, "sum to 1"),
        (
            {"decoder": "viterbi"},
            "decoder: expected one of 'headline', 'expected_gain', .*; got 'viterbi'",
        ),
        ({"top_k": 0}, "top_k: expected at least 1, got 0"),
        ({"threshold": 1.5}, r"threshold: expected a probability in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(**({"probabilities": torch.full((1, 2, 3), 1 / 3)} | arguments))  # type: ignore[arg-type]
