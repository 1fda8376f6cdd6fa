"""``hf:ORG/NAME`` and ``hf:FOLDER``: features are those of transformers itself, and no weight is drawn at random."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tagrank.features.backbones import check_backbone, is_known, load_backbone
from tagrank.features.backbones.backbone import without_our_kernels

with without_our_kernels():
    transformers: Any = pytest.importorskip("transformers")
    from transformers import (
        BitImageProcessor,
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
        ResNetConfig,
        ResNetModel,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
        SiglipVisionModel,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
        ViTMAEConfig,
        ViTMAEModel,
        ViTModel,
    )

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 32, "patch_size": 8}
TEXT = SMALL | {"vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
SQUARE = {"height": 32, "width": 32}

Make = Callable[[], tuple[Any, Any]]
MODELS: dict[str, Make] = {
    "clip": lambda: (
        CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)),
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
    ),
    "siglip": lambda: (
        SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)),
        SiglipImageProcessor(size=SQUARE),
    ),
    "dinov2": lambda: (
        Dinov2Model(Dinov2Config(**VISION)),
        BitImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE),
    ),
    "vit": lambda: (ViTModel(ViTConfig(**VISION)), ViTImageProcessor(size=SQUARE)),
    "resnet": lambda: (
        ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        BitImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE),
    ),
}


def direct(kind: str, folder: Path, images: Tensor) -> Tensor:
    """The features by a class of transformers that has no text tower."""
    if kind == "clip":
        return CLIPVisionModelWithProjection.from_pretrained(folder, projection_dim=12)(images).image_embeds
    cls = {"siglip": SiglipVisionModel, "dinov2": Dinov2Model, "vit": ViTModel, "resnet": ResNetModel}[kind]
    return cls.from_pretrained(folder)(images).pooler_output.flatten(1)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """A folder with a model and its preprocessing."""

    def write(kind: str, make: Make | None = None) -> Path:
        torch.manual_seed(0)
        for part in (make or MODELS[kind])():
            part.save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return write


@pytest.mark.parametrize("kind", MODELS)
def test_features(kind: str, written: Callable[..., Path], photographs: list[Image.Image]) -> None:
    folder = written(kind)
    backbone = load_backbone(f"hf:{folder}")
    images = torch.stack([backbone.transform(photograph) for photograph in photographs])
    with without_our_kernels():
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert torch.equal(images, processor(images=photographs, return_tensors="pt")["pixel_values"])
    assert images.dtype == torch.float32
    with torch.no_grad():
        features = backbone(images)
        torch.testing.assert_close(features, direct(kind, folder, images))
    assert features.std(dim=0).max() > 1e-4
    assert backbone.feature_size == features.shape[1] == (12 if kind == "clip" else 16)
    assert not backbone.train().training
    assert not any("text" in key for key in backbone.network.state_dict() if "text_projection" not in key)


def test_a_classifier_gives_what_it_reads(written: Callable[..., Path], photographs: list[Image.Image]) -> None:
    """Its file has no weights of the pooler, which transformers would draw at random."""
    make = MODELS["vit"]
    folder = written("classifier", lambda: (ViTForImageClassification(ViTConfig(**VISION, num_labels=5)), make()[1]))
    backbone = load_backbone(f"hf:{folder}")
    images = torch.stack([backbone.transform(photograph) for photograph in photographs])
    whole = ViTForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(whole.classifier(backbone(images)), whole(images).logits)


def test_half_precision_and_parts(written: Callable[..., Path]) -> None:
    folder = written("dinov2")
    images = torch.randn(1, 3, 32, 32)
    expected, spec = load_backbone(f"hf:{folder}")(images), load_backbone(f"hf:{folder}").spec
    model = Dinov2Model.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    parts = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(parts) > 2
    again = load_backbone(f"hf:{folder}")
    assert torch.equal(again(images), expected)
    assert again.spec["weights"] != spec["weights"]
    parts[1].rename(folder / "elsewhere")
    with pytest.raises(Exception, match="the folder lacks parts of the weights"):
        load_backbone(f"hf:{folder}")
    for part in folder.glob("model*"):
        part.unlink()
    model.half().save_pretrained(folder)
    half = load_backbone(f"hf:{folder}")(images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=2e-3, rtol=2e-3)


def test_of_the_hub(
    written: Callable[..., Path], hub_cache: Callable[[str, Path], Path], refused: Callable[..., str]
) -> None:
    folder = written("clip")
    text = refused("hf:org/clip")
    assert text.startswith("hf:org/clip: cannot get org/clip from the Hugging Face Hub (no network in tests), and the ")
    assert text.endswith("(hf download org/clip --local-dir FOLDER) and give the folder as weights (--weights FOLDER)")
    given = load_backbone("hf:org/clip", folder).spec
    assert given == {**load_backbone(f"hf:{folder}").spec, "backbone": "hf:org/clip"}
    assert "'processor': 'CLIPImageProcessor'" in given["preprocessing"]
    hub_cache("org/clip", folder)
    assert load_backbone("hf:org/clip").spec == given
    # The place where features were computed need not exist where they are used.
    assert load_backbone("hf:/not/here", folder).spec == {**given, "backbone": "hf:/not/here"}


def test_bad_folders(written: Callable[..., Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = written("vit")
    name = f"hf:{folder}"
    state = load_file(folder / "model.safetensors")
    lacking = {key: value for key, value in state.items() if not key.endswith("patch_embeddings.projection.weight")}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    assert "not all weights are there: embeddings.patch_embeddings.projection.weight" in refused(name)
    save_file(state | {"layernorm.bias": torch.full((16,), torch.nan)}, folder / "model.safetensors", {"format": "pt"})
    assert "expected finite values, got NaN or infinity in model.layernorm.bias" in refused(name)
    save_file(state | {"layernorm.bias": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    assert refused(name).startswith(f"{folder}: damaged, or has other things than weights (")
    (folder / "model.safetensors").write_bytes(b"junk" * 10)
    assert refused(name).startswith(f"{folder}: damaged, or has other things than weights (")
    (folder / "model.safetensors").unlink()
    torch.save({"a": print}, folder / "pytorch_model.bin")
    assert "damaged, or has other things than weights (" in refused(name)
    (folder / "pytorch_model.bin").unlink()
    (folder / "preprocessor_config.json").unlink()
    assert refused(name).endswith("the folder lacks preprocessor_config.json, model.safetensors")
    assert refused("hf:/not/here").startswith("/not/here: expected a folder with a model for transformers")
    assert "expected hf:ORG/NAME" in refused("hf:clip")


def test_preprocessing_that_does_not_fit(written: Callable[..., Path], refused: Callable[..., str]) -> None:
    folder = written("dinov2", lambda: (MODELS["dinov2"]()[0], BitImageProcessor(do_center_crop=False)))
    assert "expected preprocessing to pixels [3, h, w] of one size for all images" in refused(f"hf:{folder}")
    folder = written("vit", lambda: (MODELS["vit"]()[0], ViTImageProcessor(size={"height": 48, "width": 48})))
    assert "the network does not take what its preprocessing gives" in refused(f"hf:{folder}")


def test_models_without_a_pooled_output(written: Callable[..., Path], refused: Callable[..., str]) -> None:
    decoder = {f"decoder_{key}": value for key, value in SMALL.items()}
    folder = written("mae", lambda: (ViTMAEModel(ViTMAEConfig(**VISION, **decoder)), ViTImageProcessor(size=SQUARE)))
    assert "models of type vit_mae have no pooled output in transformers" in refused(f"hf:{folder}")


def test_code_in_a_folder_is_not_run(written: Callable[..., Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = written("vit")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    assert refused(f"hf:{folder}").startswith(f"{folder}: ")
    assert not (tmp_path / "ran").exists()


def test_nothing_is_printed(written: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = written("vit")
    capfd.readouterr()
    load_backbone(f"hf:{folder}")
    assert capfd.readouterr() == ("", "")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refused("hf:org/clip").endswith("pip install 'tagrank[transformers]'")
    assert is_known("hf:org/clip")
    monkeypatch.undo()
    check_backbone("hf:org/clip", 12)
