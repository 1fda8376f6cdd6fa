import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagrank.data.targets import IGNORE, ListTargets, class_counts, encode_lists, rank_weights

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


def test_rank_weights_computed_by_hand() -> None:
    got = rank_weights(encode_lists([[[2, 0], [2]], [[1, 2, 0]], [[], [1]]], end=4, steps=3), num_tags=4)
    a, b = 1 / np.log2(3), 1 / np.log2(4)
    expected = [[a / 2, 0, 1, 0], [b, 1, a, 0], [0, 0.5, 0, 0]]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))


def test_rank_weights_by_reciprocal_position() -> None:
    got = rank_weights(encode_lists([[[2, 0], [2]], [[1, 2, 0]]], end=4, steps=3), num_tags=4, weight="reciprocal")
    torch.testing.assert_close(got, torch.tensor([[1 / 4, 0, 1, 0], [1 / 3, 1, 1 / 2, 0]]))


def test_rank_weights_of_images_without_lists() -> None:
    lists: list[list[list[int]]] = [[[0, 3, 1], [2]], [], [[4, 0, 1, 2, 3], []], []]
    want = np.zeros((4, 5))
    for image, of_image in enumerate(lists):
        for tags in of_image:
            want[image, tags] += 1 / np.log2(np.arange(2, len(tags) + 2)) / len(of_image)
    encoded = encode_lists(lists, end=5, steps=5)
    torch.testing.assert_close(rank_weights(encoded, 5, 4), torch.from_numpy(want).float())
    torch.testing.assert_close(rank_weights(encoded, 5), torch.from_numpy(want[:3]).float())


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


def test_class_counts_by_hand() -> None:
    """Two images, one with two lists; V + 1 = 5, S = 3."""
    lists = encode_lists([[[2, 0], []], [[1, 3, 0]]], end=4, steps=3)
    got = class_counts(lists, 2, 5)
    expected = torch.zeros(3, 2, 5)
    # tag 2, tag 0 and END of the first list; END of the second; three tags of the third
    for position, row, tag in [(0, 0, 2), (1, 0, 0), (2, 0, 4), (0, 0, 4), (0, 1, 1), (1, 1, 3), (2, 1, 0)]:
        expected[position, row, tag] += 1
    assert torch.equal(got, expected)
    each = class_counts(ListTargets(lists.targets, torch.arange(3)), 3, 5)  # a row for each list
    assert each[:, :2].sum(1).equal(got[:, 0])
    assert each[:, 2].equal(got[:, 1])


def test_rows_that_are_no_lists_count_nowhere() -> None:
    lists = encode_lists([[[2, 0], []], [], [[1, 3, 0]]], end=4, steps=3)
    targets = torch.full((5, 3), IGNORE)
    targets[[0, 1, 3]] = lists.targets
    padded = ListTargets(targets, torch.tensor([0, 0, 1, 2, 2]))
    assert padded.there.tolist() == [True, True, False, True, False]
    assert class_counts(padded, 3, 5).equal(class_counts(lists, 3, 5))
    assert rank_weights(padded, 4, 3).equal(rank_weights(lists, 4, 3))
