"""The folder of a trained model: ``model.safetensors``, ``config.json``, ``vocabulary.json``, ``familiar.safetensors``.

``config.json`` has the SHA-256 of the others under ``files``, and a checksum of its own; configurations of earlier
versions have neither. The last, which says what photographs the model knows, is not in their folders. A model that goes
on with lists that people began has the weights for it in ``completer.safetensors``. Nothing in the folder is unpickled.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tagrank.data.files import reason, sha256, write_atomically
from tagrank.data.schema import read_as
from tagrank.data.sealed import seal
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone, load_backbone
from tagrank.features.familiarity import Familiarity
from tagrank.metrics import Calibration
from tagrank.model_files import COMPLETER, CONFIG, FAMILIARITY, VOCABULARY, WEIGHTS, check_model
from tagrank.ranker.config import check_positive
from tagrank.ranker.ensemble import Ranker, build_ranker
from tagrank.ranker.tag_ranker import TagRanker

FORMAT = 1
MAX_LENGTH = 100_000
"""The longest list of a model that is loaded."""
MAX_SIZE = 2**31 - 1
"""The largest side of a tensor of a model that is loaded."""


@dataclass(frozen=True)
class SavedModel:
    """What a model folder holds.

    Attributes:
        ranker: the ranker.
        vocabulary: its tags.
        backbone_spec: ``Backbone.spec`` of the backbone of its features, or ``None`` if that is not known.
        backbone: the backbone, if it was trained with the ranker; the folder then has its weights too.
        training: how the model was trained, for the record.
        calibration: of the scores of its tags.
        familiarity: what its training photographs were like, or ``None`` if that is not known.
        completer: goes on with lists that people began, or ``None``.
    """

    ranker: Ranker
    vocabulary: Vocabulary
    backbone_spec: Mapping[str, str] | None
    backbone: Backbone | None
    training: Mapping[str, Any]
    calibration: Calibration = Calibration()
    familiarity: Familiarity | None = None
    completer: TagRanker | None = None


@dataclass(frozen=True)
class _Config:
    """The content of ``config.json``. :class:`tagrank.ranker.config.RankerConfig` checks the options of the ranker."""

    format: int
    ranker: dict[str, Any]
    backbone: dict[str, str] | None
    backbone_trained: bool
    training: dict[str, Any]
    files: dict[str, str] | None = None
    calibration: Calibration = Calibration()
    completer: dict[str, Any] | None = None


def save_model(folder: Path, model: SavedModel) -> None:
    """Write a model folder.

    Each file is replaced as a whole, and ``config.json`` is written last: a folder that has it is complete.

    Args:
        folder: made if it does not exist.
        model: what to write.

    Raises:
        InputError: the folder cannot be written.
    """
    from safetensors.torch import save

    config = {
        "format": FORMAT,
        "ranker": model.ranker.config(),
        "backbone": model.backbone_spec,
        "backbone_trained": model.backbone is not None,
        "training": model.training,
    }
    if model.calibration != Calibration():
        config["calibration"] = asdict(model.calibration)
    files = {
        WEIGHTS: save(_tensors(_modules(model.ranker, model.backbone))),
        VOCABULARY: model.vocabulary.encoded(),
    }
    if model.familiarity is not None:
        files[FAMILIARITY] = model.familiarity.encoded()
    if model.completer is not None:
        config["completer"] = model.completer.config()
        files[COMPLETER] = save(_tensors({"completer": model.completer}))
    config["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, [content])
        if COMPLETER not in files:  # of a model that was here before
            (folder / COMPLETER).unlink(missing_ok=True)
        write_atomically(folder / CONFIG, [seal(config, indent=2)])
    except OSError as error:
        raise InputError(f"{folder}: the model cannot be written: {reason(error)}") from error


def load_model(folder: Path) -> SavedModel:
    """Read a model folder.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    check_model(folder)
    config = read_as(folder / CONFIG, _Config, "the configuration of a model", sealed=True)
    spec = config.backbone
    try:
        if config.format != FORMAT:
            raise InputError(f"{folder / CONFIG}: expected format {FORMAT}, got {config.format}")
        if (spec is None and config.backbone_trained) or (spec is not None and "backbone" not in spec):
            raise ValueError(f"backbone: expected its name under 'backbone', got {spec!r:.60}")
        _check_sizes(folder / WEIGHTS, "ranker", config.ranker)
        ranker = build_ranker(config.ranker)
        completer = None if config.completer is None else _completer(folder / COMPLETER, config.completer)
        backbone = load_backbone(spec["backbone"], "none") if config.backbone_trained and spec else None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / CONFIG}: not the configuration of a model: {error}") from error
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    _load_weights(folder / WEIGHTS, _modules(ranker, backbone))
    if completer is not None:
        _load_weights(folder / COMPLETER, {"completer": completer})
    familiarity = None
    if config.files is not None:
        _check_files(folder, config.files)
        if FAMILIARITY in config.files:
            familiarity = Familiarity.load(folder / FAMILIARITY, ranker.feature_size)
    return SavedModel(ranker, vocabulary, spec, backbone, config.training, config.calibration, familiarity, completer)


def _completer(path: Path, options: dict[str, Any]) -> TagRanker:
    """The completer of a configuration, without its weights."""
    if options.get("feedback") is not True or "members" in options:
        raise ValueError("completer: expected a single model with feedback")
    _check_sizes(path, "completer", options)
    return TagRanker(**options)


def _check_sizes(path: Path, prefix: str, options: dict[str, Any]) -> None:
    """Compare the configuration of a ranker with the header of its weights, before memory is taken for them.

    Args:
        path: of the weights.
        prefix: of its tensors' names.
        options: its configuration.

    Raises:
        ValueError: the configuration is of no ranker.
        TypeError: an option is not known.
        InputError: the weights do not fit, or cannot be read.
    """
    shapes = {name: shape for name, shape in _header(path).items() if name.startswith(f"{prefix}.")}
    members = options.get("members", 1)
    check_positive(members=members)
    if "backend" in options:
        raise ValueError("backend: is no option of a model; it depends on the machine")
    if members > len(shapes):
        raise InputError(f"{path}: does not fit {CONFIG}: {members} members, but {len(shapes)} tensors")
    check_positive(max_length=options.get("max_length", 1))
    if options.get("max_length", 1) > MAX_LENGTH:
        raise ValueError(f"max_length: expected at most {MAX_LENGTH}, got {options['max_length']}")
    for name in ("feature_size", "num_tags", "embedding_size", "hidden_size"):
        size = options.get(name, 1)
        check_positive(**{name: size})
        if size > MAX_SIZE:
            raise ValueError(f"{name}: expected at most {MAX_SIZE}, got {size}")
    with torch.device("meta"):
        state = build_ranker(options).state_dict()
    for name, tensor in state.items():
        got = shapes.get(f"{prefix}.{name}")
        if got != list(tensor.shape):
            raise InputError(f"{path}: does not fit {CONFIG}: {name}: expected {list(tensor.shape)}, got {got}")


def _header(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file, by name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged, or not a safetensors file: {error}") from error


def _check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Compare the digests in the configuration with those of the files."""
    if digests.keys() - {FAMILIARITY, COMPLETER} != {WEIGHTS, VOCABULARY}:
        raise InputError(
            f"{folder / CONFIG}: files: expected digests of {WEIGHTS} and {VOCABULARY}, got {digests!r:.60}"
        )
    for name, expected in digests.items():
        try:
            got = sha256(folder / name)
        except OSError as error:
            raise InputError(f"{folder / name}: {reason(error)}") from error
        if got != expected:
            raise InputError(f"{folder / name}: damaged, or of another model: its digest is not the one in {CONFIG}")


def _modules(ranker: Ranker, backbone: Backbone | None) -> dict[str, nn.Module]:
    """The modules whose weights are saved, by the prefix of their tensors' names."""
    modules: dict[str, nn.Module] = {"ranker": ranker}
    return modules if backbone is None else modules | {"backbone": backbone}


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """What is saved of the modules, with their prefixes."""
    return {
        f"{prefix}.{name}": tensor.detach().cpu().contiguous()
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def _load_weights(path: Path, modules: Mapping[str, nn.Module]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged, or not a safetensors file: {error}") from error
    for prefix, module in modules.items():
        own = {k.removeprefix(f"{prefix}."): t for k, t in tensors.items() if k.startswith(f"{prefix}.")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise InputError(f"{path}: does not fit {CONFIG}: {' '.join(str(error).split())}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{path}: {name} has values that are not finite")
