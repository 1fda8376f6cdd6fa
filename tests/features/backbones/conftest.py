"""What the tests of the libraries share: photographs, a Hub that cannot be reached, and its cache."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tagrank.errors import InputError
from tagrank.features.backbones import load_backbone


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Three RGB images of other sizes and proportions."""
    generator = np.random.default_rng(0)
    images = []
    for height, width in ((60, 90), (300, 200), (40, 40)):
        grid = generator.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        images.append(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    return images


@pytest.fixture
def refused() -> Callable[..., str]:
    """Calls ``load_backbone``, which has to fail, and gives the message, which has to be one line."""

    def call(name: str, weights: str | Path | None = None) -> str:
        with pytest.raises(InputError) as caught:
            load_backbone(name, weights)
        text = str(caught.value)
        assert "\n" not in text
        assert len(text) < 600
        return text

    return call


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Path]:
    """The Hugging Face Hub cannot be reached; what is called puts the files of a folder into its cache."""

    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("no network in tests")

    def too_late(*arguments: object, **options: object) -> None:
        raise AssertionError("a download was tried, which would repeat for half a minute")

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", too_late)

    def put(repository: str, folder: Path) -> Path:
        place = cache / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / "abc")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("abc")
        return place / "snapshots" / "abc"

    return put


@pytest.fixture(scope="session")
def scrambled() -> Callable[[nn.Module], dict[str, Any]]:
    """Gives a network's statistics other values than those it starts with. Returns its state dict."""

    def scramble(network: nn.Module) -> dict[str, Any]:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2.0)
        return {key: value.contiguous() for key, value in network.state_dict().items()}

    return scramble


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str, dict[str, Any]], Path]:
    """Writes a state dict into a file of this name."""

    def save(name: str, state: dict[str, Any]) -> Path:
        save_file(state, tmp_path / name)
        return tmp_path / name

    return save
