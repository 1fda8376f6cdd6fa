"""The stream of features: order, errors in their places, batches, and threads that end with it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tagrank.errors import InputError
from tagrank.features.backbones import load_backbone
from tagrank.features.extraction import (
    all_readable,
    extract_features,
    map_batches,
    pixels_needed,
    single_core_threads,
)
from tagrank.features.folders import find_images
from tagrank.features.images import read_image
from tagrank.features.store import open_features


@pytest.mark.photographs
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_efficientnet_lite0_on_photographs(flickr8k: Path, every: int) -> None:
    stored = open_features(flickr8k / "val_features.npz")
    paths = find_images([flickr8k / "images"])
    assert len(paths) == 200
    paths = paths[::every]
    found = list(all_readable(extract_features(load_backbone("efficientnet_lite0"), paths)))
    assert [path for path, _ in found] == paths
    features = torch.stack([feature for _, feature in found])
    expected = stored.rows([path.name for path in paths])
    similarity = F.cosine_similarity(features, expected)
    assert similarity.min() > 0.99
    # The directions agree; the values agree too, up to rounding to float16.
    torch.testing.assert_close(features, expected, atol=5e-3, rtol=5e-3)


@pytest.fixture
def folder(tmp_path: Path) -> list[Path]:
    """Seven pictures, of which the third is empty and the sixth missing."""
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        Image.new("RGB", (64, 64), (30 * number, 10, 10)).save(path)
    paths[2].write_bytes(b"")
    paths[5].unlink()
    return paths


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (2, 3), (5, 2), (64, 2)])
def test_extract_features(folder: list[Path], batch_size: int, workers: int) -> None:
    backbone = load_backbone("small_cnn")
    found = list(extract_features(backbone, iter(folder), batch_size=batch_size, workers=workers))
    assert [path for path, _ in found] == folder
    assert [(path, str(error)) for path, error in found if isinstance(error, InputError)] == [
        (folder[2], f"{folder[2]}: the file is empty"),
        (folder[5], f"{folder[5]}: no such file or directory"),
    ]
    # The backbone is in training mode again. While it computed, batch normalisation used the running statistics.
    assert backbone.training
    backbone.eval()
    for path, feature in found:
        if isinstance(feature, InputError):
            continue
        expected = backbone(backbone.transform(read_image(path)).unsqueeze(0))[0]
        torch.testing.assert_close(feature, expected)
        assert feature.dtype == torch.float32
        assert not feature.is_inference()
        assert not feature.requires_grad
        assert feature.untyped_storage().nbytes() == 4 * 256


def test_all_readable(folder: list[Path]) -> None:
    backbone = load_backbone("small_cnn")
    found = all_readable(extract_features(backbone, folder, batch_size=1))
    assert [next(found)[0], next(found)[0]] == folder[:2]
    with pytest.raises(InputError, match="the file is empty"):
        next(found)
    assert backbone.training
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("features")]


def test_extract_features_of_nothing_and_with_wrong_sizes(folder: list[Path]) -> None:
    backbone = load_backbone("small_cnn")
    assert list(extract_features(backbone, [])) == []
    for name in ("batch_size", "workers"):
        with pytest.raises(ValueError, match=f"^{name}: expected at least 1, got 0$"):
            next(extract_features(backbone, folder, **{name: 0}))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_errors_keep_their_places_and_do_not_count(batch_size: int) -> None:
    bad = InputError("bad")
    values: list[int | InputError] = [bad, 1, 2, bad, bad, 3, 4, 5, bad]
    paths = [Path(str(number)) for number in range(len(values))]
    batches: list[list[int]] = []

    def double(batch: list[int]) -> list[int]:
        batches.append(batch)
        return [2 * value for value in batch]

    found = list(map_batches(double, zip(paths, values, strict=True), batch_size))
    assert found == list(zip(paths, [bad, 2, 4, bad, bad, 6, 8, 10, bad], strict=True))
    assert batches == [[1, 2, 3, 4, 5][start : start + batch_size] for start in range(0, 5, batch_size)]


def test_extract_features_left_early(folder: list[Path]) -> None:
    backbone = load_backbone("small_cnn")
    found = extract_features(backbone, folder[:2] * 1000, batch_size=1)
    next(found)
    found.close()
    assert backbone.training
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("features")]


def test_extract_features_reads_a_little_ahead(folder: list[Path]) -> None:
    asked = 0

    def paths() -> Any:
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield folder[0]

    found = extract_features(load_backbone("small_cnn"), paths(), batch_size=4, workers=2)
    next(found)
    # Three batches are computed or wait for a thread, and two are decoded.
    assert 4 <= asked <= 20


def test_files_that_are_all_unreadable(folder: list[Path]) -> None:
    """Each is reported with its batch, not at the end of all files."""
    asked = 0

    def paths() -> Iterator[Path]:
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield folder[2]

    found = extract_features(load_backbone("small_cnn"), paths(), batch_size=4)
    assert [str(next(found)[1]) for _ in range(3)] == [f"{folder[2]}: the file is empty"] * 3
    assert asked <= 12
    found.close()


def test_pixels_needed() -> None:
    """64 x 64 for the small network, of which the shorter side has two and a half times as many."""
    assert pixels_needed(load_backbone("small_cnn")) == 160


@pytest.mark.photographs
def test_large_photographs_have_the_features_of_their_whole_pixels(flickr8k: Path, tmp_path: Path) -> None:
    """Photographs of two megapixels, each of nine others: finer detail than theirs is rare."""
    backbone = load_backbone("efficientnet_lite0").eval()
    small = find_images([flickr8k / "images"])
    paths = [tmp_path / f"{number}.jpg" for number in range(2)]
    for number, path in enumerate(paths):
        whole = Image.new("RGB", (1632, 1224))
        for tile in range(9):
            picture = Image.open(small[9 * number + tile]).resize((544, 408))
            whole.paste(picture, (tile % 3 * 544, tile // 3 * 408))
        whole.save(path, quality=92)
    features = torch.stack([row for _, row in all_readable(extract_features(backbone, paths))])
    with torch.inference_mode():
        expected = backbone(torch.stack([backbone.transform(read_image(path)) for path in paths]))
    assert not torch.equal(features, expected)
    assert F.cosine_similarity(features, expected).min() > 0.999


def test_threads_elsewhere_keep_their_cores() -> None:
    """PyTorch takes one core in the stream's threads, and as many as before in the caller's and in later ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        pool = single_core_threads(2)
        assert list(pool.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
        pool.shutdown()
        found: list[int] = []
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert [torch.get_num_threads(), *found] == [3, 3]
    finally:
        torch.set_num_threads(before)
