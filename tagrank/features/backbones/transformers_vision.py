"""``hf:ORG/NAME`` or ``hf:FOLDER``: vision models for transformers, such as CLIP, SigLIP, DINOv2 and ViT.

The feature is the embedding of the image (``get_image_features``, not normalised) if the model has a text tower, too,
and the pooled output otherwise. Checkpoints of classifiers have no weights for the pooler that some models put behind
their class token. Their feature is the class token itself, which is what their classifier read.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tagrank.errors import InputError
from tagrank.features.backbones.backbone import Backbone, Library, import_library, make_backbone, without_our_kernels
from tagrank.features.backbones.hub import hub_folder, weight_files
from tagrank.features.backbones.weights import digest, reading

if TYPE_CHECKING:
    from PIL.Image import Image

_PREFIX = "hf:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# What a processor does if it has this flag, and the settings of it.
_STEPS = {
    "do_resize": ("size", "resample", "crop_pct"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}


class Transformers(Library):
    form = "hf:ORG/NAME"

    def knows(self, name: str) -> bool:
        return name.startswith(_PREFIX)

    def check(self, name: str) -> None:
        place = name.removeprefix(_PREFIX)
        if "/" not in place and not Path(place).is_dir():
            raise InputError(
                f"backbone: expected hf:ORG/NAME of a model on the Hugging Face Hub, or hf:FOLDER; got {name!r:.120}"
            )
        import_library("transformers", name, "transformers")

    def feature_size(self, name: str) -> None:
        return None

    def load(self, name: str, weights: str | Path | None) -> Backbone:
        place = Path(name.removeprefix(_PREFIX) if weights is None else weights)
        if weights is None and not place.is_dir() and _REPOSITORY.fullmatch(str(place)):
            place = hub_folder(name, str(place))
        files = weight_files(name, place)
        label = f"sha256:{digest(name, files)}"
        with without_our_kernels(), _quiet(name), reading(place):
            auto = import_library("transformers", name, "transformers")
            options = {"local_files_only": True, "trust_remote_code": False}
            processor = auto.AutoImageProcessor.from_pretrained(place, **options)
            model, report = auto.AutoModel.from_pretrained(
                place, dtype=torch.float32, weights_only=True, output_loading_info=True, **options
            )
            network = _Pooled(model, _class_token(name, model, report["missing_keys"]))
        return make_backbone(name, network, _Preprocess(name, processor), label, _described(processor))


class _Pooled(nn.Module):
    """One vector for each image."""

    def __init__(self, model: Any, class_token: bool) -> None:
        super().__init__()
        self.model = model
        self.class_token = class_token
        self.paired = hasattr(model, "get_image_features")
        if self.paired and hasattr(model, "text_model"):
            del model.text_model

    def forward(self, images: Tensor) -> Tensor:
        compute = self.model.get_image_features if self.paired else self.model
        output = compute(pixel_values=images)
        if self.class_token:
            return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]
        pooled = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
        if pooled is None:
            kind = self.model.config.model_type
            raise InputError(
                f"backbone: models of type {kind} have no pooled output in transformers; choose another one"
            )
        # Convolutional networks keep height and width, which are 1.
        return pooled.flatten(1)


class _Preprocess:
    """A processor of transformers for one image."""

    def __init__(self, name: str, processor: Any) -> None:
        self._name = name
        self._processor = processor

    def __call__(self, image: "Image") -> Tensor:
        found = self._processor(images=image, return_tensors="pt")
        if "pixel_values" not in found or len(found["pixel_values"]) != 1:
            raise InputError(f"{self._name}: its preprocessing gives no pixels of a whole image; choose another one")
        return found["pixel_values"][0]  # type: ignore[no-any-return]


def _described(processor: Any) -> dict[str, Any]:
    """What identifies the preprocessing."""
    settings = processor.to_dict()
    keys = [key for step, of_step in _STEPS.items() if settings.get(step) for key in of_step]
    return {"processor": type(processor).__name__} | {
        key: settings[key] for key in keys if settings.get(key) is not None
    }


def _class_token(name: str, model: Any, missing: set[str]) -> bool:
    """Whether the class token is the feature, because the file has no weights of the pooler.

    Raises:
        ValueError: other weights are missing too.
    """
    others = sorted(key for key in missing if not key.startswith("pooler."))
    if others:
        more = f" and {len(others) - 3} more" if others[3:] else ""
        raise ValueError(f"not all weights are there: {', '.join(others[:3])}{more}")
    if not missing:
        return False
    if not hasattr(model.embeddings, "cls_token"):
        raise ValueError("the file lacks the pooler, and the model has no class token")
    model.pooler = None
    return True


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without progress bars and reports about weights: what is missing is looked at here."""
    logging = import_library("transformers.utils.logging", name, "transformers")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
