import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagrank import TagRanker
from tagrank.data.targets import IGNORE, ListTargets, encode_lists, rank_weights

END = 7
lists = st.lists(st.lists(st.lists(st.integers(0, END - 1), max_size=6), max_size=4), max_size=5)


@given(lists_per_image=lists, steps=st.integers(1, 6))
def test_against_a_loop(lists_per_image: list[list[list[int]]], steps: int) -> None:
    rows, images = [], []
    for image, of_image in enumerate(lists_per_image):
        for tags in of_image:
            rows.append(([*tags, END] + [IGNORE] * steps)[:steps])
            images.append(image)
    targets = encode_lists(lists_per_image, END, steps)
    assert targets.targets.dtype == targets.image_index.dtype == torch.int64
    assert targets.targets.shape == (len(rows), steps)
    assert targets.targets.tolist() == rows
    assert targets.image_index.tolist() == images


def test_by_hand() -> None:
    targets = encode_lists([[[2, 0], [1]], [], [[0, 1, 2], [0, 1, 2, 3]]], end=4, steps=3)
    assert targets.targets.tolist() == [[2, 0, 4], [1, 4, IGNORE], [0, 1, 2], [0, 1, 2]]
    assert targets.image_index.tolist() == [0, 0, 2, 2]
    moved = targets.to("meta")
    assert moved.targets.device.type == moved.image_index.device.type == "meta"


def test_the_loss_skips_what_follows_the_end() -> None:
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        encode_lists([[[0]]], end=4, steps=0)
    for number in (4, -1):
        with pytest.raises(ValueError, match=rf"tag numbers in \[0, 4\), got {number} in a list of image 1"):
            encode_lists([[[0], [1]], [[2, number]]], end=4, steps=3)


def test_thirty_thousand_lists_are_quick() -> None:
    generator = np.random.default_rng(0)
    lists_per_image = [
        [generator.permutation(124)[: generator.integers(1, 9)].tolist() for _ in range(5)] for _ in range(6000)
    ]
    start = time.process_time()
    targets = encode_lists(lists_per_image, end=124, steps=14)
    assert time.process_time() - start < 1.0
    assert len(targets.targets) == 30_000


def test_mixed_images_have_the_lists_of_both() -> None:
    lists = encode_lists([[[0, 1]], [[2], [1]], [[0]]], end=3, steps=3)
    order, share = torch.tensor([2, 0, 1]), 0.75
    mixed = lists.mix(order, share)
    assert mixed.image_index.tolist() == sorted(mixed.image_index.tolist())
    expected = share * rank_weights(lists, 3) + (1 - share) * rank_weights(lists, 3)[order]
    # Image 1, with two lists, counts twice where it is mixed: its pairs are weighted by lists, not by images.
    torch.testing.assert_close(
        rank_weights(mixed, 3)[1:2].sum(), mixed_rank_sum(lists, order, share), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(rank_weights(mixed, 3)[0], expected[0])
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    ranker = TagRanker(4, 3, max_length=2, embedding_size=5, hidden_size=6).eval()
    own, other = ranker.loss(features, lists, "sum"), ranker.loss(features[order.argsort()], lists, "sum")
    torch.testing.assert_close(ranker.loss(features, mixed, "sum"), share * own + (1 - share) * other)
    torch.testing.assert_close(ranker.loss(features, mixed), (share * own + (1 - share) * other) / 4)


def mixed_rank_sum(lists: ListTargets, order: torch.Tensor, share: float) -> torch.Tensor:
    """Of image 1 by hand: two lists of its own with ``share``, and the one of image 0 with the rest."""
    assert order[1] == 0
    second = 1 / torch.log2(torch.tensor(3.0))
    return (share * 2 * 1.0 + (1 - share) * (1.0 + second)) / (2 * share + (1 - share))
