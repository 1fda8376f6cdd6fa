"""Images are recognised when both name and features are the same, and not when only one is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tagrank.data.manifest import Example
from tagrank.errors import InputError
from tagrank.features.labelled import LabelledImages
from tagrank.features.seen import SEEN, digests, read_seen, write_seen


def images(count: int = 400) -> LabelledImages:
    examples = [Example(f"a/{i}.jpg", ("dog",), (("dog",),)) for i in range(count)]
    # After a ReLU all features are positive.
    features = (torch.randn(count, 300, generator=torch.Generator().manual_seed(0)) + 1).relu()
    return LabelledImages(examples, features)


def test_an_image_is_known_again_elsewhere() -> None:
    some = images()
    known = digests(some)
    assert len(np.unique(known)) == len(some)
    moved = LabelledImages([replace(e, image=e.image.replace("a/", "b/c/")) for e in some.examples], some.inputs)
    np.testing.assert_array_equal(digests(moved), known)
    np.testing.assert_array_equal(digests(some.take([3, 8])), known[[3, 8]])
    assert (digests(replace(some, inputs=some.inputs.half().float())) == known).mean() > 0.98


def test_others_under_the_same_names_are_not_known() -> None:
    some = images()
    others = LabelledImages(some.examples, some.inputs.flip(0))
    renamed = LabelledImages([replace(e, image=f"x{e.image[2:]}") for e in some.examples], some.inputs)
    for different in (others, renamed):
        assert not np.isin(digests(different), digests(some)).any()


def test_written_and_read_back(tmp_path: Path) -> None:
    assert len(read_seen(tmp_path)) == 0
    known = digests(images())
    write_seen(tmp_path, known[:300], known[200:])
    np.testing.assert_array_equal(read_seen(tmp_path), np.sort(known))
    (tmp_path / SEEN).write_bytes(b"{}")
    with pytest.raises(InputError, match=r"seen\.safetensors: damaged"):
        read_seen(tmp_path)
