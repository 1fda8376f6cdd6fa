"""How a backbone is run: precision, memory that does not suffice, and numbers beyond float16."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torchvision.transforms.functional import pil_to_tensor

from tagrank.errors import InputError
from tagrank.features.backbones import Backbone, load_backbone
from tagrank.features.computing import CPU_BATCH, LARGEST_BATCH, Computation, autocast, default_batch_size
from tagrank.features.extraction import extract_features, single_core_threads
from tagrank.features.folders import find_images
from tagrank.features.images import use_image


def make_backbone(scale: float = 1.0) -> Backbone:
    """A frozen convolutional network with random weights. Its features are ``scale`` times what they would be."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[0].weight.data *= scale
    return Backbone(network, lambda _: torch.zeros(3, 32, 32), 64, {"backbone": "test"})


def make_pixels(count: int) -> list[Tensor]:
    return list(torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).unbind())


def expected_features(backbone: Backbone, pixels: Sequence[Tensor]) -> Tensor:
    """In float64, on the CPU, in the usual format."""
    with torch.no_grad():
        rows = backbone.double().cpu()(torch.stack(list(pixels)).double()).float()
    backbone.float()
    return rows


@pytest.mark.parametrize("count", [1, 5])
def test_rows_on_the_cpu(count: int) -> None:
    backbone, pixels = make_backbone(), make_pixels(count)
    rows = Computation(backbone).start(pixels)()
    torch.testing.assert_close(torch.stack(rows), expected_features(backbone, pixels))
    for row in rows:
        assert row.dtype == torch.float32
        assert not row.is_inference()
        assert row.untyped_storage().nbytes() == 4 * 64


@pytest.mark.photographs
@pytest.mark.parametrize("every", [100, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_float16_keeps_the_features_of_photographs(flickr8k: Path, every: int) -> None:
    """What GPUs compute in, on the CPU: why it is not bfloat16, with which some cosines are below 0.999."""
    backbone = load_backbone("efficientnet_lite0").eval().to(memory_format=torch.channels_last)
    paths = find_images([flickr8k / "images"])[::every]
    pixels = torch.stack([use_image(path, backbone.transform) for path in paths])
    with torch.inference_mode():
        expected = torch.cat([backbone(some) for some in pixels.split(4)])
        with torch.autocast("cpu", torch.float16):
            features = torch.cat([backbone(some).float() for some in pixels.split(4)])
    assert cosine_similarity(features, expected).min() > 0.9999


def test_float16_keeps_the_features() -> None:
    backbone, pixels = make_backbone(), make_pixels(8)
    expected = expected_features(backbone, pixels)
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        features = backbone(torch.stack(pixels).contiguous(memory_format=torch.channels_last)).float()
    assert cosine_similarity(features, expected).min() > 0.9999


def test_batch_sizes() -> None:
    assert default_batch_size(torch.device("cpu")) == CPU_BATCH
    assert Computation(make_backbone()).batch_size == CPU_BATCH
    assert Computation(make_backbone(), 3).batch_size == 3


@pytest.mark.parametrize("most", [1, 3, 8])
def test_batches_are_halved_until_they_fit(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    computation = Computation(make_backbone(), 8)
    asked: list[int] = []

    def launch(pixels: Sequence[Tensor]) -> Any:
        asked.append(len(pixels))
        if len(pixels) > most:
            raise torch.OutOfMemoryError
        return lambda: [pixel.mean() for pixel in pixels]

    monkeypatch.setattr(computation, "_launch", launch)
    pixels = make_pixels(8)
    assert computation._start_on_gpu(pixels)() == [pixel.mean() for pixel in pixels]
    fits = max(size for size in (8, 4, 2, 1) if size <= most)
    assert computation.batch_size == fits
    assert [size for size in asked if size <= most] == [fits] * (8 // fits)


def test_memory_for_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    computation = Computation(make_backbone(), 2)

    def launch(_: Sequence[Tensor]) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(computation, "_launch", launch)
    with pytest.raises(InputError, match=r"^cpu: not enough memory for one image of \[3, 32, 32\]$"):
        computation._start_on_gpu(make_pixels(2))


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 5])
def test_rows_on_a_gpu(count: int) -> None:
    backbone, pixels = make_backbone(), make_pixels(count)
    negative = [-pixel for pixel in pixels]
    expected, opposite = expected_features(backbone, pixels), expected_features(backbone, negative)
    computation = Computation(backbone.cuda())
    # Two batches on their way, as extract_features has them: neither overwrites the other.
    finish, again = computation.start(pixels), computation.start(negative)
    rows = finish()
    assert cosine_similarity(torch.stack(rows), expected).min() > 0.9999
    assert cosine_similarity(torch.stack(again()), opposite).min() > 0.9999
    for row in rows:
        assert row.dtype == torch.float32
        assert row.device.type == "cpu"
        assert not row.is_inference()
        assert row.untyped_storage().nbytes() == 4 * 64


@pytest.mark.gpu
def test_numbers_beyond_float16_are_computed_in_float32() -> None:
    backbone, pixels = make_backbone(scale=1e6), make_pixels(4)
    expected = expected_features(backbone, pixels)
    assert expected.max() > 65504
    backbone.cuda()
    with torch.inference_mode(), autocast(torch.device("cuda")):
        assert not backbone(torch.stack(pixels).cuda()).isfinite().all()
    assert cosine_similarity(torch.stack(Computation(backbone).start(pixels)()), expected).min() > 0.9999


@pytest.mark.gpu
def test_files_to_features_on_a_gpu(tmp_path: Path) -> None:
    """More batches than are on their way at a time, a file that cannot be read, and the order of the files."""
    backbone = make_backbone()
    backbone._preprocess = lambda image: pil_to_tensor(image) / 255
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number:02d}.png" for number in range(21)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    paths[9].write_bytes(b"")
    pixels = [backbone.transform(Image.open(path)) for path in paths if path != paths[9]]
    expected = expected_features(backbone, pixels)
    found = list(extract_features(backbone.cuda(), paths, batch_size=4))
    assert [path for path, _ in found] == paths
    assert isinstance(found[9][1], InputError)
    features = torch.stack([row for _, row in found if isinstance(row, Tensor)])
    assert cosine_similarity(features, expected).min() > 0.9999


@pytest.mark.gpu
def test_batches_on_a_gpu() -> None:
    size = default_batch_size(torch.device("cuda"))
    assert size <= LARGEST_BATCH
    assert size & (size - 1) == 0


@pytest.mark.exhaustive
def test_one_compilation_computes_batches_of_all_sizes(tmp_path: Path) -> None:
    """Also the smaller batch at the end, and in the threads that compute batches; a single image is not compiled."""
    from torch._dynamo.utils import counters

    backbone = make_backbone()
    expected = {count: Computation(backbone).start(make_pixels(count))() for count in (1, 2, 3, 4)}
    backbone.compile_network()
    assert backbone.state_dict().keys() == make_backbone().state_dict().keys()
    counters.clear()
    computation = Computation(backbone, executor=single_core_threads(2), workers=2)
    # Not by monkeypatch, which afterwards deletes the option.
    with torch._dynamo.config.patch(error_on_recompile=True):
        for count in (4, 4, 3, 2, 1, 4):
            torch.testing.assert_close(computation.start(make_pixels(count))(), expected[count], atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    for number in range(7):
        Image.new("RGB", (40, 40), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    found = list(extract_features(backbone, sorted(tmp_path.iterdir()), workers=2))
    assert len(found) == 7
    assert counters["stats"]["unique_graphs"] == 1


def test_where_nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nin three places")

    monkeypatch.setattr(torch, "compile", fails)
    backbone = make_backbone()
    with pytest.raises(InputError, match=r"^torch.compile does not work here: No working C\+\+ compiler found$"):
        backbone.compile_network()
    assert len(backbone(torch.zeros(2, 3, 32, 32))) == 2
