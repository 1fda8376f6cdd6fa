"""``timm:NAME``: features are those of timm itself, and no file of other weights is taken for the right one."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image
from torch import nn

from tagrank.errors import InputError
from tagrank.features.backbones import check_backbone, is_known, load_backbone

timm = pytest.importorskip("timm")

State = dict[str, Any]
Save = Callable[[str, State], Path]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def state(scrambled: Callable[[nn.Module], State]) -> State:
    """Weights of test_resnet, with its classifier of 1,000 classes."""
    torch.manual_seed(0)
    return scrambled(timm.create_model("test_resnet"))


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_resnet", "test_convnext", "test_vit3"])
def test_features(
    saved: Save, photographs: list[Image.Image], scrambled: Callable[[nn.Module], State], name: str
) -> None:
    torch.manual_seed(1)
    state = scrambled(timm.create_model(name))
    direct = timm.create_model(name, num_classes=0).eval()
    assert direct.load_state_dict(state, strict=False).missing_keys == []
    preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(direct), is_training=False)

    backbone = load_backbone(f"timm:{name}", saved("weights.safetensors", state))
    images = torch.stack([backbone.transform(photograph) for photograph in photographs])
    assert torch.equal(images, torch.stack([preprocess(photograph) for photograph in photographs]))
    with torch.no_grad():
        features = backbone(images)
        torch.testing.assert_close(features, direct(images))
    assert features.std(dim=0).max() > 1e-4
    assert backbone.feature_size == features.shape[1]
    assert not backbone.train().training
    check_backbone(f"timm:{name}", backbone.feature_size)
    with pytest.raises(InputError, match=f"expected {backbone.feature_size} per image"):
        check_backbone(f"timm:{name}", backbone.feature_size + 1)


def test_spec(saved: Save, state: State) -> None:
    first = load_backbone("timm:test_resnet", saved("a.safetensors", state)).spec
    assert first["backbone"] == "timm:test_resnet"
    assert "'input_size': (3, 160, 160)" in first["preprocessing"]
    assert load_backbone("timm:test_resnet", saved("b.safetensors", state)).spec == first
    other = load_backbone("timm:test_resnet", saved("a.safetensors", {**state, "fc.bias": state["fc.bias"] + 1})).spec
    assert other["weights"] != first["weights"]
    assert {**other, "weights": first["weights"]} == first


def test_the_classifier_may_be_missing_or_another(saved: Save, state: State, tmp_path: Path) -> None:
    images = torch.randn(1, 3, 160, 160)
    expected = load_backbone("timm:test_resnet", saved("whole.safetensors", state))(images)
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    twenty = {**state, "fc.weight": torch.zeros(20, len(state["fc.weight"][0])), "fc.bias": torch.zeros(20)}
    assert len(headless) == len(state) - 2
    # What timm's own training script writes.
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "run.pth.tar")
    for path in (saved("less.safetensors", headless), saved("20.safetensors", twenty), tmp_path / "run.pth.tar"):
        assert torch.equal(load_backbone("timm:test_resnet", path)(images), expected), path


def test_bad_files(saved: Save, state: State, tmp_path: Path, refused: Refused) -> None:
    lacking = {key: value for key, value in state.items() if not key.startswith("layer1.")}
    for name, wrong in {
        "lacking": lacking,
        "lacking, no classifier": {key: value for key, value in lacking.items() if not key.startswith("fc.")},
        "another": timm.create_model("test_efficientnet").state_dict(),
        "shapes": {**state, "conv1.0.weight": torch.zeros(1, 2, 3, 3)},
    }.items():
        assert "not weights of timm:test_resnet: " in refused("timm:test_resnet", saved(f"{name}.safetensors", wrong))
    nan = {**state, "layer1.0.bn1.bias": torch.full_like(state["layer1.0.bn1.bias"], torch.nan)}
    assert "expected finite values" in refused("timm:test_resnet", saved("nan.safetensors", nan))
    code = tmp_path / "code.pth"
    torch.save({"state_dict": state, "when": print}, code)
    assert refused("timm:test_resnet", code).startswith(f"{code}: damaged, or has other things than weights (")
    torch.save({"state_dict": {"epoch": 3}}, code)
    assert "it has other things than tensors" in refused("timm:test_resnet", code)
    nowhere = tmp_path / "nowhere.pth"
    assert refused("timm:test_resnet", nowhere).startswith(f"{nowhere}: no such file or directory; expected a file")


def test_names(refused: Refused) -> None:
    assert "with a name in timm.list_models(), such as resnet50; got 'timm:resnet5O'" in refused("timm:resnet5O")
    assert "expected pretrained weights of timm's resnet50 (a1_in1k, " in refused("timm:resnet50.a9")
    assert "(it has none), got 'timm:resnet50_mlp.a'" in refused("timm:resnet50_mlp.a")
    assert "timm has no pretrained weights for it; give a file (--weights)" in refused("timm:resnet50_mlp")
    assert is_known("timm:anything")


def test_pretrained_weights_come_from_the_cache(
    hub_cache: Callable[[str, Path], Path], state: State, tmp_path: Path, saved: Save
) -> None:
    (tmp_path / "repository").mkdir()
    path = saved("repository/model.safetensors", state)
    hub_cache("timm/test_resnet.r160_in1k", path.parent)
    backbone = load_backbone("timm:test_resnet")
    assert backbone.spec == load_backbone("timm:test_resnet", path).spec
    assert load_backbone("timm:test_resnet.r160_in1k").spec["weights"] == backbone.spec["weights"]


def test_pretrained_weights_are_downloaded(
    monkeypatch: pytest.MonkeyPatch, state: State, saved: Save, refused: Refused
) -> None:
    path = saved("model.safetensors", state)
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(path)

    files = ["README.md", "pytorch_model.bin", "model.safetensors"]
    listing = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda api, repository, timeout: listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_backbone("timm:test_resnet").spec == load_backbone("timm:test_resnet", path).spec
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    listing.siblings = listing.siblings[:1]
    assert "Hub (it has no model.safetensors or " in refused("timm:test_resnet")


def test_no_network(refused: Refused) -> None:
    text = refused("timm:resnet50")
    assert text.startswith("timm:resnet50: cannot get timm/resnet50.a1_in1k from the Hugging Face Hub (no network in ")
    assert text.endswith(
        "download model.safetensors of timm/resnet50.a1_in1k elsewhere and give its path as weights (--weights)"
    )


def test_without_timm(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refused("timm:resnet50").endswith("pip install 'tagrank[timm]'")
    assert is_known("timm:resnet50")
