"""The files of a model's folder by name, whether a folder has them, and what tells models apart. Needs no torch."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tagrank.errors import InputError

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocabulary.json"
FAMILIARITY = "familiar.safetensors"
"""Not in the folders of earlier versions, nor of models that were not made by a training."""
COMPLETER = "completer.safetensors"
"""Only in the folders of models that were trained with a completer."""
SEEN = "seen.safetensors"
"""Digests of the images that the model has seen: see :mod:`tagrank.features.seen`."""
EVALUATION = "evaluation.json"
"""If somebody wants it in the model card: what ``tagrank evaluate --json`` wrote."""
CARD = "README.md"
"""For people: see :mod:`tagrank.model_card`."""


def check_model(folder: Path) -> None:
    """Make sure that a folder has the files of a trained model.

    Raises:
        InputError: it is no folder, or a file is missing.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the folder of a trained model, it is not a folder")
    for name in (CONFIG, VOCABULARY, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: not a model: {name} is missing; an interrupted training goes on with --resume")


def is_exported(path: Path) -> bool:
    """Whether a path is that of an exported model, by its name."""
    return path.suffix == ".onnx" and not path.is_dir()


def check_model_or_file(path: Path) -> None:
    """Make sure that a path is the folder of a trained model, or an ONNX file.

    Raises:
        InputError: it is neither.
    """
    if path.suffix == ".pt2" and path.is_file():
        raise InputError(
            f"{path}: expected the folder of a trained model, or an .onnx file of tagrank export; a program of "
            "torch.export runs in torch itself (torch.export.load)"
        )
    if not is_exported(path):
        check_model(path)
    elif not path.is_file():
        raise InputError(f"{path}: no such file")


def model_digest(ranker: Any, tags: Sequence[str]) -> str:
    """A digest of a model's vocabulary, and of its ranker's configuration and weights.

    Args:
        ranker: the model's. One that was read from an exported file has the digest of the model as ``model``.
        tags: the vocabulary.
    """
    written = getattr(ranker, "model", None)
    if isinstance(written, str):
        return written
    value = hashlib.sha256(json.dumps([ranker.config(), tuple(tags)]).encode())
    for name, tensor in sorted(ranker.state_dict().items()):
        value.update(name.encode())
        value.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return value.hexdigest()[:32]
