"""``open_clip:NAME/PRETRAINED``: the image tower of a model of open_clip, with its embedding (not normalised)."""

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tagrank.data.files import first_line
from tagrank.errors import InputError
from tagrank.features.backbones.backbone import Backbone, Library, import_library, make_backbone
from tagrank.features.backbones.hub import hub_file, safer_names
from tagrank.features.backbones.weights import digest, reading

_PREFIX = "open_clip:"
_PREPROCESSING = {"mean": "image_mean", "std": "image_std", "interpolation": "image_interpolation"}
_PREPROCESSING |= {"resize_mode": "image_resize_mode"}


class OpenCLIP(Library):
    form = "open_clip:NAME/PRETRAINED"

    def knows(self, name: str) -> bool:
        return name.startswith(_PREFIX)

    def check(self, name: str) -> None:
        open_clip = import_library("open_clip", name, "open-clip")
        model, _, tag = name.removeprefix(_PREFIX).partition("/")
        if model not in open_clip.list_models():
            near = difflib.get_close_matches(model, open_clip.list_models(), n=1)
            raise InputError(
                "backbone: expected open_clip:NAME/PRETRAINED with a name in open_clip.list_models()"
                f"{f', such as {near[0]}' if near else ''}; got {name!r:.80}"
            )
        if tag and not open_clip.get_pretrained_cfg(model, tag):
            raise InputError(f"backbone: expected {self.form} with {_choices(open_clip, model)}; got {name!r:.80}")

    def feature_size(self, name: str) -> int:
        open_clip = import_library("open_clip", name, "open-clip")
        return int(open_clip.get_model_config(name.removeprefix(_PREFIX).partition("/")[0])["embed_dim"])

    def load(self, name: str, weights: str | Path | None) -> Backbone:
        open_clip = import_library("open_clip", name, "open-clip")
        model_name, _, tag = name.removeprefix(_PREFIX).partition("/")
        config = open_clip.get_pretrained_cfg(model_name, tag)
        path = _pretrained_file(name, config) if weights is None else Path(weights)
        label = f"sha256:{digest(name, [path])}"
        with reading(path):
            # The activation belongs to the weights: with the other one the features are slightly wrong.
            quick_gelu = {"force_quick_gelu": True} if config.get("quick_gelu") else {}
            preprocessing = {ours: config[theirs] for theirs, ours in _PREPROCESSING.items() if theirs in config}
            model, _, transform = open_clip.create_model_and_transforms(
                model_name, pretrained=str(path), weights_only=True, **quick_gelu, **preprocessing
            )
        described = open_clip.get_model_preprocess_cfg(model)
        return make_backbone(name, _ImageTower(model), transform, label, described)


class _ImageTower(nn.Module):
    """``encode_image`` without what only texts need."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual = model.visual

    def forward(self, images: Tensor) -> Tensor:
        embedding = self.visual(images)
        # The tower of CoCa gives the embedding, and one vector for each patch.
        return embedding if isinstance(embedding, torch.Tensor) else embedding[0]


def _pretrained_file(name: str, config: dict[str, Any]) -> Path:
    """The file of the pretrained weights, downloaded if the cache does not have it."""
    if not config:
        choices = _choices(import_library("open_clip", name, "open-clip"), name.removeprefix(_PREFIX))
        raise InputError(
            f"backbone: expected open_clip:NAME/PRETRAINED with {choices}, or a file of weights (--weights); "
            f"got {name!r:.80}"
        )
    if config.get("hf_hub"):
        repository, _, file = config["hf_hub"].rpartition("/")
        return hub_file(name, repository, safer_names(file or "open_clip_pytorch_model.bin"), "open-clip")
    pretrained = import_library("open_clip.pretrained", name, "open-clip")
    try:
        return Path(pretrained.download_pretrained_from_url(config["url"]))
    except Exception as error:
        raise InputError(
            f"{name}: cannot get {config['url']} ({first_line(error)}); download the file elsewhere and give its path "
            "as weights (--weights)"
        ) from error


def _choices(open_clip: Any, model: str) -> str:
    """The pretrained weights of a model, for messages."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    return f"PRETRAINED one of {', '.join(tags[:8])}{', ...' if tags[8:] else ''}" if tags else "no PRETRAINED"
