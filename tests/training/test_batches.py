"""Batches: each image once, with its lists, those with the longest lists first; spans that cover what lists need."""

import random
from itertools import combinations, pairwise

import pytest
import torch

from tagrank.data.targets import encode_lists
from tagrank.ranker.stacked import Span
from tagrank.training.batches import SPAN, ListDataset, epoch_order, spans_of

END, STEPS = 9, 6


def images(count: int = 50) -> list[list[list[int]]]:
    draw = random.Random(0)
    return [[draw.sample(range(END), draw.randint(0, 8)) for _ in range(draw.randint(0, 4))] for _ in range(count)]


def test_a_batch_has_the_inputs_and_the_lists_of_its_images() -> None:
    lists = images()
    inputs = torch.arange(50.0).half().unsqueeze(1)
    data = ListDataset(inputs, lists, END, STEPS)
    seen = []
    for batch, numbers in data.batches(epoch_order(50, 3, 1), 16):
        assert batch.inputs.dtype == torch.float32
        assert batch.inputs[:, 0].tolist() == numbers
        wanted = encode_lists([lists[i] for i in numbers], END, STEPS)
        given = batch.lists()
        assert given.targets[given.there].equal(wanted.targets)
        assert given.image_index[given.there].equal(wanted.image_index)
        needed = [max((min(len(tags) + 1, STEPS) for tags in lists[i]), default=0) for i in numbers]
        assert needed == sorted(needed, reverse=True)
        assert batch.spans == spans_of(needed)
        seen += numbers
    assert sorted(seen) == list(range(50))


def test_an_epoch_has_an_order_of_its_own() -> None:
    assert epoch_order(50, 3, 1).equal(epoch_order(50, 3, 1))
    assert not epoch_order(50, 3, 1).equal(epoch_order(50, 3, 2))
    assert not epoch_order(50, 3, 1).equal(epoch_order(50, 4, 1))


@pytest.mark.parametrize("count", [1, 5, 128])
def test_spans_are_the_cheapest(count: int) -> None:
    draw = random.Random(count)
    for _ in range(5):
        lengths = sorted((min(7, int(draw.expovariate(0.4))) for _ in range(count)), reverse=True)
        falls = [row for row in range(1, count) if lengths[row] < lengths[row - 1]]

        def cost(cuts: tuple[int, ...], lengths: list[int] = lengths) -> int:
            edges = [0, *cuts, count]
            return sum((b - a) * max(1, lengths[a]) + SPAN for a, b in pairwise(edges))

        got = spans_of(lengths)
        assert sum(span.rows for span in got) == count
        least = min(cost(cuts) for number in range(len(falls) + 1) for cuts in combinations(falls, number))
        assert sum(span.rows * span.steps + SPAN for span in got) == least
        start = 0
        for span in got:
            assert all(length <= span.steps for length in lengths[start : start + span.rows])
            start += span.rows


def test_spans_by_hand() -> None:
    assert spans_of([3, 2, 0]) == (Span(3, 3),)
    assert spans_of([7] * 40 + [4] * 40 + [0] * 40) == (Span(40, 7), Span(40, 4), Span(40, 1))
