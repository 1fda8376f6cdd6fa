"""A trained model: a ranker, its vocabulary and the backbone of its features.

A model is saved as a folder with ``model.safetensors``, ``config.json`` and ``vocabulary.json``. Loading unpickles
nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tagrank.data.files import read_json, reason, write_atomically
from tagrank.data.targets import ListTargets
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import (
    DECODERS,
    FEEDBACK_DECODERS,
    OutputTags,
    RankedTag,
    Ranking,
    decode_model,
    default_decoder,
    read_synonyms,
    read_thresholds,
)
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone, load_backbone
from tagrank.features.extraction import extract_features
from tagrank.metrics import FloatArray, negative_log_likelihood
from tagrank.options import ListOptions
from tagrank.ranker.ensemble import Ranker, build_ranker

FORMAT = 1
WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocabulary.json"


class Annotator:
    """A trained ranker with its vocabulary and backbone: from photographs or features to ranked tags.

    Args:
        ranker: the model.
        vocabulary: the ranker's tags.
        backbone_spec: ``Backbone.spec`` of the backbone that computed the features; ``None`` if it is unknown.
        backbone: the backbone itself, if it was trained with the ranker; it is then saved with the ranker.
        training: the settings of the training, saved as a record.

    Raises:
        ValueError: the size of the vocabulary is not the ranker's number of tags.
    """

    def __init__(
        self,
        ranker: Ranker,
        vocabulary: Vocabulary,
        backbone_spec: Mapping[str, str] | None = None,
        *,
        backbone: Backbone | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        if len(vocabulary) != ranker.num_tags:
            raise ValueError(f"vocabulary: expected {ranker.num_tags} tags like the ranker, got {len(vocabulary)}")
        self.ranker = ranker.eval()
        self.vocabulary = vocabulary
        self.backbone_spec = dict(backbone_spec) if backbone_spec else None
        self.training = dict(training or {})
        self._trained = None if backbone is None else backbone.requires_grad_(False).eval()
        if self._trained is not None and self.backbone_spec is not None:
            self._trained.spec = self.backbone_spec
        self._backbone = self._trained

    @property
    def default_decoder(self) -> str:
        """:func:`tagrank.decode.default_decoder`."""
        return default_decoder(self.ranker)

    def backbone(self, weights: str | Path | None = None) -> Backbone:
        """The backbone of the model's features, loaded by the first call.

        Args:
            weights: as for :func:`tagrank.features.backbones.load_backbone`; needed if the model was trained with a
                local file.

        Raises:
            InputError: the backbone is unknown, cannot be loaded, or differs from the backbone of the training.
        """
        if self._backbone is None:
            spec = self.backbone_spec
            if spec is None:
                raise InputError(
                    "the model was trained on features of an unknown backbone: it can rank features, not photographs; "
                    "name the backbone when training (--backbone)"
                )
            backbone = load_backbone(spec["backbone"], weights)
            if any(backbone.spec.get(key) != value for key, value in spec.items()):
                raise InputError(
                    f"the model was trained on features of {_describe(spec)}, the backbone loaded is "
                    f"{_describe(backbone.spec)}; give the weights it was trained with (--weights)"
                )
            self._backbone = backbone.eval()
        return self._backbone

    def probabilities(self, features: Tensor, batch_size: int = 256) -> Tensor:
        """Equation (9) for features ``[N, D]``: ``[N, S, V + 1]`` on the CPU.

        The ranker's device computes one batch at a time.

        Raises:
            InputError: the features do not have the size that the model takes.
        """
        return torch.cat([self.ranker.predict(batch).cpu() for batch in self._batches(features, batch_size)])

    def _batches(self, features: Tensor, batch_size: int) -> Iterator[Tensor]:
        if features.dim() != 2 or features.shape[1] != self.ranker.feature_size:
            raise InputError(
                f"features: the model takes {self.ranker.feature_size} per image, got shape {list(features.shape)}"
            )
        weight = next(self.ranker.parameters())
        return (batch.to(weight.device, weight.dtype) for batch in features.split(batch_size))

    def rank(
        self,
        features: Tensor,
        *,
        decoder: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        output: OutputTags | None = None,
        beams: int = 8,
        samples: int = 64,
        batch_size: int = 256,
    ) -> list[Ranking]:
        """Ranked lists of tag indices for features ``[N, D]``.

        Args:
            features: as for :meth:`probabilities`.
            decoder: a decoder for this model; see :func:`tagrank.decode.decode_model`. Default: the model's default.
            top_k: rank this many tags, instead of as many as the model chooses.
            threshold: keep tags at least this likely to be on a person's list.
            output: which tags may be on a list, and the score that each needs. Default: all tags.
            beams: how many lists the decoder ``"beam"`` keeps.
            samples: lists drawn per image from a model with feedback.
            batch_size: images at a time.

        Raises:
            InputError: the decoder does not exist, or is not one for this kind of model.
        """
        decoder = self.check_decoder(decoder)
        if len(features) == 0:
            return []
        options: dict[str, Any] = {"top_k": top_k, "threshold": threshold, "beams": beams, "samples": samples}
        return [
            ranking
            for batch in self._batches(features, batch_size)
            for ranking in decode_model(self.ranker, batch, decoder, output=output, **options)
        ]

    def rank_options(self, lists: ListOptions) -> dict[str, Any]:
        """The keyword arguments of :meth:`rank` for some options; tag names and files become an ``OutputTags``.

        Args:
            lists: how lists are chosen, and which tags they show.

        Raises:
            InputError: the decoder is not one for this kind of model, a file cannot be read, or the model lacks a tag.
        """
        self.check_decoder(lists.decoder)
        output = OutputTags(
            self.vocabulary,
            include=lists.include,
            exclude=lists.exclude,
            thresholds=read_thresholds(lists.thresholds) if isinstance(lists.thresholds, Path) else lists.thresholds,
            synonyms=read_synonyms(lists.synonyms) if isinstance(lists.synonyms, Path) else lists.synonyms,
        )
        return {
            "decoder": lists.decoder,
            "beams": lists.beams,
            "samples": lists.samples,
            "threshold": lists.threshold,
            "output": output,
        }

    def negative_log_likelihood(self, features: Tensor, lists: ListTargets, batch_size: int = 256) -> FloatArray:
        """Equation (10) for each image: :func:`tagrank.metrics.negative_log_likelihood` of people's lists.

        A model with feedback reads the tags of each list as its previous tags, in one pass (teacher forcing).

        Args:
            features: as for :meth:`probabilities`.
            lists: people's lists of these images, at least one for each image, in the order of the images.
            batch_size: images at a time; for a model with feedback, lists at a time.

        Returns:
            ``[N]`` float64, in nats per list.
        """
        if not self.ranker.feedback:
            p = self.probabilities(features, batch_size)
            return negative_log_likelihood(p.clamp(min=torch.finfo(p.dtype).tiny).log(), lists)
        rows = self._batches(features[lists.image_index], batch_size)
        previous = lists.targets[:, :-1].clamp(min=0).split(batch_size)
        chosen = []
        with torch.no_grad():
            for batch, tags, targets in zip(rows, previous, lists.targets.split(batch_size), strict=True):
                log_p = self.ranker(batch, tags.to(batch.device)).log_softmax(-1)
                one_per_row = ListTargets(targets, torch.arange(len(targets)))
                chosen.append(negative_log_likelihood(log_p, one_per_row))
        per_list = np.concatenate(chosen)
        counts = np.bincount(lists.image_index.numpy(), minlength=len(features))
        mean: FloatArray = np.bincount(lists.image_index.numpy(), per_list, minlength=len(features)) / counts
        return mean

    def check_decoder(self, decoder: str | None) -> str:
        """Check that a decoder exists and is one for this kind of model; ``None`` gives the default decoder.

        Raises:
            InputError: the decoder does not exist, or is not one for this kind of model.
        """
        known = list(dict.fromkeys([*DECODERS, *FEEDBACK_DECODERS]))
        if decoder is None:
            return self.default_decoder
        if decoder not in known:
            raise InputError(f"decoder: expected one of {', '.join(known)}; got {decoder!r}")
        takes = FEEDBACK_DECODERS if self.ranker.feedback else tuple(DECODERS)
        if decoder not in takes:
            kind = "reads its own tags" if self.ranker.feedback else "does not read its own tags"
            raise InputError(f"decoder: this model {kind}: expected one of {', '.join(takes)}; got {decoder!r}")
        return decoder

    def annotate(
        self, paths: Sequence[Path], *, batch_size: int = 32, **options: Any
    ) -> Iterator[tuple[Path, list[RankedTag] | InputError]]:
        """Ranked tags for photographs, in the order given.

        Args:
            paths: image files.
            batch_size: photographs at a time.
            **options: keyword arguments of :meth:`rank`, except ``batch_size``.

        Yields:
            The path and its tags, or the path and an error that says what is wrong with the file.

        Raises:
            ValueError: ``paths`` is one path.
        """
        if isinstance(paths, (str, Path)):
            raise ValueError(f"paths: expected a sequence of paths, got {str(paths)!r:.60}")
        self.check_decoder(options.get("decoder"))
        rows = extract_features(self.backbone(), paths, batch_size=batch_size)
        while batch := list(islice(rows, batch_size)):
            features = [row for _, row in batch if isinstance(row, Tensor)]
            rankings = iter(self.rank(torch.stack(features), **options) if features else ())
            for path, row in batch:
                yield path, row if isinstance(row, InputError) else self.tags(next(rankings), options.get("output"))

    def tags(self, ranking: Ranking, output: OutputTags | None = None) -> list[RankedTag]:
        """A ranking with tags instead of indices.

        Args:
            ranking: from :meth:`rank`.
            output: the ``output`` that :meth:`rank` was called with.
        """
        vocabulary = self.vocabulary if output is None else output.vocabulary
        return [
            RankedTag(vocabulary.tag(v), rank, score)
            for rank, (v, score) in enumerate(zip(ranking.tags, ranking.scores, strict=True), start=1)
        ]

    def save(self, folder: str | Path) -> None:
        """Write the model folder.

        Each file is replaced as a whole. The configuration is written last: a folder with a configuration is complete.

        Raises:
            InputError: the folder cannot be written.
        """
        from safetensors.torch import save

        folder = Path(folder)
        tensors = {f"ranker.{name}": t for name, t in self.ranker.state_dict().items()}
        if self._trained is not None:
            tensors |= {f"backbone.{name}": t for name, t in self._trained.state_dict().items()}
        config = {
            "format": FORMAT,
            "ranker": self.ranker.config(),
            "backbone": self.backbone_spec,
            "backbone_trained": self._trained is not None,
            "training": self.training,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / WEIGHTS, [save({k: t.detach().cpu().contiguous() for k, t in tensors.items()})])
            self.vocabulary.save(folder / VOCABULARY)
            write_atomically(folder / CONFIG, [json.dumps(config, indent=2).encode(), b"\n"])
        except OSError as error:
            raise InputError(f"{folder}: the model cannot be written: {reason(error)}") from error

    @classmethod
    def load(cls, folder: str | Path) -> "Annotator":
        """Read a model folder.

        Raises:
            InputError: a file is missing or damaged, or the files contradict each other.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: expected the folder of a trained model, it is not a folder")
        for name in (CONFIG, VOCABULARY, WEIGHTS):
            if not (folder / name).is_file():
                raise InputError(f"{folder}: not a model: {name} is missing")
        config = read_json(folder / CONFIG)
        try:
            if config["format"] != FORMAT:
                raise InputError(f"{folder / CONFIG}: expected format {FORMAT}, got {config['format']!r}")
            ranker = build_ranker(config["ranker"])
            spec, trained, training = config["backbone"], config["backbone_trained"], config["training"]
            named = isinstance(spec, dict) and "backbone" in spec and all(isinstance(v, str) for v in spec.values())
            if not (named or spec is None):
                raise ValueError(f"backbone: expected strings by name, with the key 'backbone'; got {spec!r:.60}")
            if not isinstance(training, dict):
                raise ValueError(f"training: expected settings by name, got {training!r:.60}")
            backbone = load_backbone(spec["backbone"], "none") if trained else None
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder / CONFIG}: not the configuration of a model: {error}") from error
        vocabulary = Vocabulary.load(folder / VOCABULARY)
        modules: dict[str, torch.nn.Module] = {"ranker": ranker}
        if backbone is not None:
            modules["backbone"] = backbone
        _load_weights(folder / WEIGHTS, modules)
        try:
            return cls(ranker, vocabulary, spec, backbone=backbone, training=training)
        except ValueError as error:
            raise InputError(f"{folder}: {error}") from error


def _load_weights(path: Path, modules: Mapping[str, torch.nn.Module]) -> None:
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


def _describe(spec: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in spec.items())
