"""``open_clip:NAME/PRETRAINED``: features are what ``encode_image`` gives, with the preprocessing of the weights."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tagrank.errors import InputError
from tagrank.features.backbones import check_backbone, load_backbone
from tagrank.features.backbones.backbone import without_our_kernels

with without_our_kernels():
    open_clip = pytest.importorskip("open_clip")

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
CONFIGS = {
    "tiny": {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-resnet": {"embed_dim": 12, "vision_cfg": VISION | {"layers": [1, 1, 1, 1], "width": 16}, "text_cfg": TEXT},
    "tiny-timm": {
        "embed_dim": 12,
        "vision_cfg": {
            "image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "",
            "timm_proj": "linear",
        },
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "tiny-coca": {
        "embed_dim": 12,
        "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT | {"attn_pooler_heads": 2},
        "custom_text": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The small models, registered with open_clip."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in CONFIGS:
        del open_clip.factory._MODEL_CONFIGS[name]


def file_of(name: str, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    path = tmp_path / f"{name}.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_features(name: str, tmp_path: Path, photographs: list[Image.Image]) -> None:
    path = file_of(name, tmp_path)
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(path))
    model.eval()
    backbone = load_backbone(f"open_clip:{name}", path)
    images = torch.stack([backbone.transform(photograph) for photograph in photographs])
    assert torch.equal(images, torch.stack([preprocess(photograph) for photograph in photographs]))
    with torch.no_grad():
        features = backbone(images)
        torch.testing.assert_close(features, model.encode_image(images, normalize=False))
    assert features.std(dim=0).max() > 1e-4
    assert backbone.feature_size == features.shape[1] == 12
    # No parameter of the text tower is kept.
    assert {key.split(".")[1] for key in backbone.network.state_dict()} <= {
        key.split(".")[1] for key in model.state_dict() if key.startswith("visual.")
    }
    check_backbone(f"open_clip:{name}", 12)
    with pytest.raises(InputError, match="expected 12 per image"):
        check_backbone(f"open_clip:{name}", 13)


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Pretrained weights of the model ``tiny``, under the name ``odd``, with a preprocessing of their own."""
    config = {"hf_hub": "org/tiny/", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear"}
    config |= {"resize_mode": "squash", "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"odd": config})
    return config


@pytest.mark.usefixtures("pretrained")
def test_preprocessing_and_activation_belong_to_the_weights(
    tmp_path: Path, photographs: list[Image.Image], hub_cache: Callable[[str, Path], Path]
) -> None:
    (tmp_path / "repository").mkdir()
    path = file_of("tiny", tmp_path).rename(tmp_path / "repository" / "open_clip_pytorch_model.bin")
    hub_cache("org/tiny", path.parent)
    backbone = load_backbone("open_clip:tiny/odd")
    model, _, preprocess = open_clip.create_model_and_transforms(
        "tiny", pretrained=str(path), force_quick_gelu=True, image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6),
        image_interpolation="bilinear", image_resize_mode="squash",
    )  # fmt: skip
    image = backbone.transform(photographs[0])
    assert torch.equal(image, preprocess(photographs[0]))
    plain = load_backbone("open_clip:tiny", path)
    assert not torch.allclose(image, plain.transform(photographs[0]), atol=0.1)
    with torch.no_grad():
        expected = model.eval().encode_image(image.unsqueeze(0))
        torch.testing.assert_close(backbone(image.unsqueeze(0)), expected)
        assert not torch.allclose(plain(image.unsqueeze(0)), expected, atol=1e-5)
    assert "'mean': (0.1, 0.2, 0.3)" in backbone.spec["preprocessing"]
    assert backbone.spec == {**plain.spec, "backbone": "open_clip:tiny/odd"} | {
        "preprocessing": backbone.spec["preprocessing"]
    }
    # The same file by its path.
    assert load_backbone("open_clip:tiny/odd", path).spec == backbone.spec


@pytest.mark.usefixtures("pretrained")
def test_no_network(refused: Callable[..., str]) -> None:
    text = refused("open_clip:tiny/odd")
    assert text.startswith("open_clip:tiny/odd: cannot get org/tiny from the Hugging Face Hub (no network in tests)")
    assert text.endswith("give its path as weights (--weights)")


@pytest.mark.usefixtures("pretrained")
def test_names(refused: Callable[..., str]) -> None:
    assert "such as ViT-B-32; got 'open_clip:ViT-B-33/x'" in refused("open_clip:ViT-B-33/x")
    assert "with PRETRAINED one of odd; got 'open_clip:tiny/even'" in refused("open_clip:tiny/even")
    assert "or a file of weights (--weights); got 'open_clip:tiny'" in refused("open_clip:tiny")


def test_bad_files(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = file_of("tiny-resnet", tmp_path)
    assert refused("open_clip:tiny", path).startswith(f"{path}: damaged, or has other things than weights (Error")
    state = torch.load(file_of("tiny", tmp_path), weights_only=True)
    del state["visual.ln_post.bias"]
    torch.save(state, path)
    assert refused("open_clip:tiny", path).startswith(f"{path}: damaged, or has other things than weights (Error")
    torch.save({"state_dict": {"visual.proj": print}}, path)
    assert "Weights only load failed" in refused("open_clip:tiny", path)
    assert "no such file or directory" in refused("open_clip:tiny", tmp_path / "nowhere.pt")


def test_without_open_clip(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert refused("open_clip:ViT-B-32/openai").endswith("pip install 'tagrank[open-clip]'")
