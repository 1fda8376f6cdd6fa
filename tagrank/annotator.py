"""A trained model in use: a ranker, its vocabulary, and the backbone that computes its features."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

from tagrank.data.targets import ListTargets
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import (
    NextTag,
    OutputTags,
    RankedTag,
    Ranking,
    Suggestion,
    TagList,
    check_decoder,
    decode_model,
    default_decoder,
    read_synonyms,
    read_thresholds,
)
from tagrank.decode.completion import check_beginning, check_finite, complete_lists, is_one_for_each, one_for_each
from tagrank.errors import InputError, InputWarning
from tagrank.features.backbones import Backbone, load_backbone
from tagrank.features.computing import default_batch_size
from tagrank.features.devices import find_device
from tagrank.features.extraction import extract_features, map_batches
from tagrank.features.familiarity import Familiarity
from tagrank.features.image_sources import ImageSource, is_image
from tagrank.metrics import Calibration, FloatArray, negative_log_likelihood
from tagrank.model_card import write_card
from tagrank.model_folder import SavedModel, load_model, save_model
from tagrank.model_hub import Source, copy_records, download, import_hub, is_on_hub, split_name, upload
from tagrank.options import ListOptions
from tagrank.ranker.ensemble import Ranker
from tagrank.ranker.tag_ranker import TagRanker

S = TypeVar("S", bound=ImageSource)


class Annotator:
    """A trained ranker whose results are tags instead of indices.

    Args:
        ranker: the model.
        vocabulary: its tags.
        backbone_spec: ``Backbone.spec`` of the backbone that computes its features; ``None`` if that is not known.
        backbone: the backbone, if it was trained with the ranker; it is then saved with the ranker.
        training: how the ranker was trained, for the record.
        calibration: of the scores of its tags.
        familiarity: what the training photographs were like; ``None`` if that is not known.
        completer: a model with feedback for lists that people began, of the same features and tags; ``None`` if the
            ranker itself is to go on with them.

    Attributes:
        source: where the model was read: its name with the commit, if it is of a hub. ``None`` if it was not read.

    Raises:
        ValueError: the sizes of the vocabulary and the ranker differ, or the completer's do, or it has no feedback.
    """

    def __init__(
        self,
        ranker: Ranker,
        vocabulary: Vocabulary,
        backbone_spec: Mapping[str, str] | None = None,
        *,
        backbone: Backbone | None = None,
        training: Mapping[str, Any] | None = None,
        calibration: Calibration = Calibration(),
        familiarity: Familiarity | None = None,
        completer: TagRanker | None = None,
    ) -> None:
        if len(vocabulary) != ranker.num_tags:
            raise ValueError(f"vocabulary: expected {ranker.num_tags} tags like the ranker, got {len(vocabulary)}")
        if completer is not None:
            sizes = [(model.feature_size, model.num_tags) for model in (ranker, completer)]
            if sizes[0] != sizes[1] or not completer.feedback:
                raise ValueError("completer: expected a model with feedback, for features and tags like the ranker's")
        self.ranker = ranker.eval()
        self.completer = None if completer is None else completer.eval()
        self.vocabulary = vocabulary
        self.backbone_spec = dict(backbone_spec) if backbone_spec else None
        self.training = dict(training or {})
        self.calibration = calibration
        self.familiarity = familiarity
        self._trained = None if backbone is None else backbone.requires_grad_(False).eval()
        if self._trained is not None and self.backbone_spec is not None:
            self._trained.spec = self.backbone_spec
        self._backbone = self._trained
        self.source: Source | None = None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.ranker.parameters()).device

    def to(self, device: str | torch.device) -> "Annotator":
        """Compute on another device, such as ``"cuda"``: the ranker, and the backbone, also if it is loaded later.

        Returns:
            This annotator.
        """
        self.ranker.to(device)
        if self.completer is not None:
            self.completer.to(device)
        if self._backbone is not None:
            self._backbone.to(device)
        return self

    def describe(self) -> dict[str, str]:
        """What is known of the model, each under a word."""
        first = ", ".join(self.vocabulary.tags[:5]) + (", ..." if len(self.vocabulary) > 5 else "")
        preset = ", ".join(f"{key} {self.training[key]}" for key in ("preset", "seed") if key in self.training)
        source = {} if self.source is None else {"source": self.source.name}
        return source | {
            "tags": f"{len(self.vocabulary)} ({first})",
            "longest list": str(self.ranker.steps - 1),
            "features": f"{self.ranker.feature_size}, of {(self.backbone_spec or {}).get('backbone', 'any backbone')}",
            "decoder": self.default_decoder,
            "given tags": "read" if self.reads_given else "left out",
            "training": preset or "not recorded",
            "device": str(self.device),
        }

    def __repr__(self) -> str:
        return f"Annotator({'; '.join(f'{name}: {value}' for name, value in self.describe().items())})"

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        rows = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self.describe().items())
        return f"<table><caption>Annotator</caption>{''.join(rows)}</table>"

    @property
    def default_decoder(self) -> str:
        """:func:`tagrank.decode.default_decoder`."""
        return default_decoder(self.ranker)

    @property
    def reads_given(self) -> bool:
        """Whether :meth:`suggest` reads the tags that were given. If not, the model only leaves them out."""
        return self.completer is not None or self.ranker.feedback

    def backbone(self, weights: str | Path | None = None) -> Backbone:
        """The backbone that computes the model's features. It is loaded by the first call.

        Args:
            weights: as for :func:`tagrank.features.backbones.load_backbone`, if a local file was used in training. A
                model that has its backbone with it needs none, and warns.

        Raises:
            InputError: the backbone is not known, cannot be loaded, or differs from that of the training.
        """
        if weights is not None and self._trained is not None:
            warnings.warn("weights: are not used: the model has its backbone with it", InputWarning, stacklevel=2)
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
                    f"the model was trained on features of {_describe(spec)}, but the loaded backbone is "
                    f"{_describe(backbone.spec)}; give the weights it was trained with (--weights)"
                )
            self._backbone = backbone.eval().to(self.device)
        return self._backbone

    def probabilities(self, features: Tensor, batch_size: int = 256) -> Tensor:
        """Equation (9) for features ``[N, D]``: ``[N, S, V + 1]``, on the CPU.

        The ranker computes them on its own device, one batch at a time.

        Raises:
            InputError: the features do not have the size that the model takes, or are so large, or the weights are,
                that no probabilities are left.
        """
        p = torch.cat([self.ranker.predict(batch).cpu() for batch in self._batches(features, batch_size)])
        check_finite(p)
        return p

    def _batches(self, features: Tensor, batch_size: int) -> Iterator[Tensor]:
        self._check(features)
        weight = next(self.ranker.parameters())
        return (batch.to(weight) for batch in features.split(batch_size))

    def _check(self, features: Tensor) -> None:
        if features.dim() != 2 or features.shape[1] != self.ranker.feature_size:
            raise InputError(
                f"features: the model takes {self.ranker.feature_size} per image, got shape {list(features.shape)}"
            )

    def unlike(self, features: Tensor) -> FloatArray:
        """How unlike the training photographs these are, ``[N]`` in [0, 1): see :mod:`tagrank.features.familiarity`.

        NaN if the model does not know what its training photographs were like.

        Args:
            features: as for :meth:`probabilities`.
        """
        if self.familiarity is None:
            return np.full(len(features), np.nan)
        return self.familiarity.unlike(features)

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
            decoder: as for :func:`tagrank.decode.decode_model`, which also explains the following arguments.
            top_k: this many tags, instead of a length chosen by the model.
            threshold: keep tags at least this likely to be on a person's list.
            output: which tags may be on a list, and their thresholds; all tags if left out.
            beams: lists that the decoder ``"beam"`` keeps at each position.
            samples: lists drawn per image from a model with feedback.
            batch_size: number of images computed at a time.

        Raises:
            InputError: the decoder does not exist, or is not one for this kind of model.
        """
        decoder = self.check_decoder(decoder)
        if len(features) == 0:
            return []
        options: dict[str, Any] = {"top_k": top_k, "threshold": threshold, "beams": beams, "samples": samples}
        options["calibration"] = self.calibration
        try:
            return [
                ranking
                for batch in self._batches(features, batch_size)
                for ranking in decode_model(self.ranker, batch, decoder, output=output, **options)
            ]
        except ValueError:
            if not self.ranker.feedback:
                self.probabilities(features, batch_size)  # raises an InputError if they are what is wrong
            raise

    def rank_options(self, lists: ListOptions) -> dict[str, Any]:
        """The keyword arguments of :meth:`rank` for options: names and files become tags of this model.

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

        A model with feedback reads the tags of each list, all in one pass (teacher forcing).

        Args:
            features: as for :meth:`probabilities`.
            lists: people's lists; each image must have at least one.
            batch_size: number of images computed at a time; with feedback, of lists.

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
                each_its_image = ListTargets(targets, torch.arange(len(targets)))
                chosen.append(negative_log_likelihood(log_p, each_its_image))
        per_list = np.concatenate(chosen)
        counts = np.bincount(lists.image_index.numpy(), minlength=len(features))
        mean: FloatArray = np.bincount(lists.image_index.numpy(), per_list, minlength=len(features)) / counts
        return mean

    def check_decoder(self, decoder: str | None) -> str:
        """The decoder to use, which is the default decoder for ``None``.

        Raises:
            InputError: the decoder does not exist, or does not go with this model.
        """
        return check_decoder(self.ranker, decoder)

    @overload
    def annotate(
        self,
        images: ImageSource,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        members: bool = False,
        **options: Any,
    ) -> TagList: ...

    @overload
    def annotate(
        self,
        images: Iterable[S],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        members: bool = False,
        **options: Any,
    ) -> Iterator[tuple[S, TagList | InputError]]: ...

    def annotate(
        self,
        images: ImageSource | Iterable[S],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        members: bool = False,
        **options: Any,
    ) -> TagList | Iterator[tuple[S, TagList | InputError]]:
        """Ranked tags for a photograph, or for several.

        Args:
            images: an image, or any number of them: a path, the bytes of a file, a PIL image, or an array of pixels
                (:data:`tagrank.features.image_sources.ImageSource`).
            batch_size: how many photographs go through the backbone at a time; by default what suits the device.
            workers: how many threads read photographs, and compute if the backbone is on a CPU; by default as many as
                there are cores.
            members: whether lists say which tags stand behind a name of synonyms (:attr:`TagList.members`). Lists are
                then decoded twice.
            **options: the options of :meth:`rank` except ``batch_size``.

        Returns:
            The tags of one image, which also say how unlike the training photographs it is. For several images an
            iterator: each image as it was given with its tags, or with the error that says why it cannot be read.

        Raises:
            InputError: the decoder does not exist or does not go with this model, the backbone cannot be loaded, or
                ``images`` is one image and cannot be read.
        """
        self.check_decoder(options.get("decoder"))
        if is_image(images):
            ((_, tags),) = self._annotated([cast(S, images)], batch_size, workers, options, members)
            if isinstance(tags, InputError):
                raise tags
            return tags
        return self._annotated(cast(Iterable[S], images), batch_size, workers, options, members)

    def _annotated(
        self,
        images: Iterable[S],
        batch_size: int | None,
        workers: int | None,
        options: Mapping[str, Any],
        members: bool,
    ) -> Iterator[tuple[S, TagList | InputError]]:
        def annotated(features: list[Tensor]) -> list[TagList]:
            rows = torch.stack(features)
            rankings, unlike = self.rank(rows, **options), self.unlike(rows).tolist()
            lists = (self.tags(ranking, options.get("output")) for ranking in rankings)
            below = self._members(rows, options) if members else [{}] * len(rows)
            return [TagList(*one) for one in zip(lists, unlike, below, strict=True)]

        features = extract_features(self.backbone(), images, batch_size=batch_size, workers=workers)
        yield from map_batches(annotated, features, batch_size or default_batch_size(self.device))

    def _members(self, features: Tensor, options: Mapping[str, Any]) -> list[dict[str, tuple[str, ...]]]:
        """For each image, the names of synonyms with those of their tags that a list without synonyms has."""
        output: OutputTags | None = options.get("output")
        if output is None or not output.shown_as:
            return [{}] * len(features)
        found = []
        for ranking in self.rank(features, **{**options, "output": None}):
            members: dict[str, tuple[str, ...]] = {}
            for tag in map(self.vocabulary.tag, ranking.tags):
                if (name := output.shown_as.get(tag)) is not None:
                    members[name] = (*members.get(name, ()), tag)
            found.append(members)
        return found

    def complete(
        self,
        features: Tensor,
        given: Sequence[str] | Sequence[Sequence[str]] = (),
        *,
        decoder: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        output: OutputTags | None = None,
        beams: int = 8,
        samples: int = 64,
        batch_size: int = 256,
    ) -> list[Suggestion]:
        """How lists go on that people began, for features ``[N, D]``.

        The completer goes on with them if the model has one, else the ranker: :attr:`reads_given` says whether the
        suggestions depend on what was given.

        Args:
            features: as for :meth:`probabilities`.
            given: the beginning of the list, its first tag first: one beginning for all images, or a list with one for
                each image. An empty one is a list that was not begun yet.
            decoder: writes the rest: as for :meth:`rank`, for the model that goes on.
            top_k: so many tags in the rest and in ``next``. If left out, the model chooses the length of the rest, and
                ``next`` has five.
            threshold: keep the tags of the rest that are at least this likely to be in it.
            output: which tags may come, their names and thresholds; all tags if left out. The given tags have these
                names too, and need not be among those that may come.
            beams: as for :meth:`rank`.
            samples: as for :meth:`rank`.
            batch_size: number of images computed at a time.

        Raises:
            InputError: a given tag is not one of the model's or comes twice, there is another number of beginnings than
                of images, the decoder is not one for the model that goes on, or the features do not fit.
        """
        model = self.ranker if self.completer is None else self.completer
        decoder = check_decoder(model, decoder)
        shown = OutputTags(self.vocabulary) if output is None else output
        beginnings = [check_beginning(tags, shown) for tags in one_for_each(given, len(features))]
        options: dict[str, Any] = {"top_k": top_k, "threshold": threshold, "beams": beams, "samples": samples}
        self._check(features)
        completions = complete_lists(
            model, features, beginnings, decoder, output=shown, batch_size=batch_size, **options
        )
        return [
            Suggestion(
                [tag._replace(rank=tag.rank + len(beginning)) for tag in self.tags(rest, shown)],
                unlike,
                given=[shown.vocabulary.tag(tag) for tag in beginning],
                next=[NextTag(tag.tag, tag.score) for tag in self.tags(following, shown)],
                end=end,
                reads_given=self.reads_given,
            )
            for (rest, following, end), beginning, unlike in zip(
                completions, beginnings, self.unlike(features).tolist(), strict=True
            )
        ]

    @overload
    def suggest(
        self,
        images: ImageSource,
        given: Sequence[str] = (),
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        **options: Any,
    ) -> Suggestion: ...

    @overload
    def suggest(
        self,
        images: Iterable[S],
        given: Sequence[str] | Sequence[Sequence[str]] = (),
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        **options: Any,
    ) -> Iterator[tuple[S, Suggestion | InputError]]: ...

    def suggest(
        self,
        images: ImageSource | Iterable[S],
        given: Sequence[str] | Sequence[Sequence[str]] = (),
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        **options: Any,
    ) -> Suggestion | Iterator[tuple[S, Suggestion | InputError]]:
        """How the list of a photograph goes on that a person began, or the lists of several photographs.

        Args:
            images: as for :meth:`annotate`.
            given: as for :meth:`complete`; the order of its tags matters. If it has a beginning for each image,
                ``images`` is read to its end first.
            batch_size: as for :meth:`annotate`.
            workers: as for :meth:`annotate`.
            **options: the options of :meth:`complete` except ``batch_size``.

        Returns:
            The suggestion for one image; for several an iterator, as for :meth:`annotate`.

        Raises:
            InputError: as for :meth:`complete`, the backbone cannot be loaded, or ``images`` is one image and cannot
                be read.
        """
        one = is_image(images)
        sources = [cast(S, images)] if one else cast(Iterable[S], images)
        if is_one_for_each(given):
            sources = [*sources]
            beginnings = one_for_each(given, len(sources))
        else:
            beginnings = [cast(Sequence[str], given)]
        check_decoder(self.ranker if self.completer is None else self.completer, options.get("decoder"))
        output = options.get("output") or OutputTags(self.vocabulary)
        for beginning in beginnings:
            check_beginning(beginning, output)
        results = self._suggested(sources, cycle(beginnings), batch_size, workers, options)
        if not one:
            return results
        ((_, suggestion),) = results
        if isinstance(suggestion, InputError):
            raise suggestion
        return suggestion

    def _suggested(
        self,
        images: Iterable[S],
        beginnings: Iterator[Sequence[str]],
        batch_size: int | None,
        workers: int | None,
        options: Mapping[str, Any],
    ) -> Iterator[tuple[S, Suggestion | InputError]]:
        def suggested(batch: list[tuple[Tensor, Sequence[str]]]) -> list[Suggestion]:
            return self.complete(torch.stack([row for row, _ in batch]), [given for _, given in batch], **options)

        features = extract_features(self.backbone(), images, batch_size=batch_size, workers=workers)
        rows = (
            (image, row if isinstance(row, InputError) else (row, given))
            for (image, row), given in zip(features, beginnings, strict=False)
        )
        yield from map_batches(suggested, rows, batch_size or default_batch_size(self.device))

    def tags(self, ranking: Ranking, output: OutputTags | None = None) -> list[RankedTag]:
        """The tags of a ranking: names of the vocabulary, or of ``output`` if the ranking was made with it."""
        vocabulary = self.vocabulary if output is None else output.vocabulary
        return [
            RankedTag(vocabulary.tag(v), rank, score)
            for rank, (v, score) in enumerate(zip(ranking.tags, ranking.scores, strict=True), start=1)
        ]

    def save(self, folder: str | Path) -> None:
        """Write the model folder: see :func:`tagrank.model_folder.save_model`.

        Raises:
            InputError: the folder cannot be written.
        """
        model = SavedModel(
            self.ranker,
            self.vocabulary,
            self.backbone_spec,
            self._trained,
            self.training,
            self.calibration,
            self.familiarity,
            self.completer,
        )
        save_model(Path(folder), model)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> "Annotator":
        """Read a model folder.

        Args:
            folder: what ``tagrank train`` made.
            device: where the ranker and the backbone compute, as for :func:`tagrank.features.devices.find_device`:
                ``"auto"`` takes a GPU if there is one.

        Raises:
            InputError: a file is missing or damaged, the files contradict each other, or there is no such device.
        """
        place = find_device(device)
        model = load_model(Path(folder))
        try:
            annotator = cls(
                model.ranker,
                model.vocabulary,
                model.backbone_spec,
                backbone=model.backbone,
                training=model.training,
                calibration=model.calibration,
                familiarity=model.familiarity,
                completer=model.completer,
            )
        except ValueError as error:
            raise InputError(f"{folder}: {error}") from error
        annotator.source = Source.of(Path(folder))
        return annotator.to(place)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        *,
        device: str | torch.device = "cpu",
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "Annotator":
        """Read a model from a folder or from a model hub. Only safetensors and JSON are read, and nothing is run.

        ``annotator.source`` records the commit that was read. Give it as the revision to read the same model again.

        Args:
            name: a folder; or a model on the hub, ``ORG/NAME`` or ``ORG/NAME@REVISION``. A folder of this name comes
                first, unless the name begins with ``hf:``.
            revision: as for :func:`tagrank.model_hub.download`, which explains the following arguments too.
            device: as for :meth:`load`.
            cache_dir: where copies of models of the hub are.
            token: for models that not everybody may read.
            local_files_only: whether to stay off the network.

        Raises:
            InputError: as :func:`tagrank.model_hub.download` and :meth:`load`; or ``name`` is a folder, and there is a
                revision.
        """
        folder = Path(name)
        if is_on_hub(str(name)) or not (folder.is_dir() or isinstance(name, Path)):
            options: dict[str, Any] = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
            folder = download(str(name), revision, **options).folder
        elif revision is not None:
            raise InputError(f"revision: {name} is a folder, which has no revisions; got {revision!r}")
        return cls.load(folder, device)

    def save_pretrained(
        self, folder: str | Path, *, license: str | None = None, data: str | None = None, name: str | None = None
    ) -> None:
        """Write the model folder with what else belongs to it on a hub: the model card, the evaluation if there is one.

        Args:
            folder: made if it does not exist.
            license: as for :func:`tagrank.model_card.write_card`, which explains the following arguments too.
            data: what the model was trained on.
            name: of the model on the hub.

        Raises:
            InputError: the folder cannot be written, or ``huggingface_hub`` is not installed.
        """
        import_hub()  # which the card needs: without it nothing is written
        folder = Path(folder)
        self.save(folder)
        if self.source is not None:
            copy_records(self.source.folder, folder)
        write_card(folder, name=name, license=license, data=data)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        data: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Put the model on a model hub: what :meth:`save_pretrained` writes, as one commit.

        Args:
            repo_id: ``ORG/NAME``.
            license: as for :meth:`save_pretrained`.
            data: as for :meth:`save_pretrained`.
            revision: as for :func:`tagrank.model_hub.upload`, which explains the following arguments too.
            private: whether a new repository is private.
            commit_message: of the commit.
            token: with the permission to write.

        Returns:
            ``hf:ORG/NAME@COMMIT``, which the command line takes as a model.

        Raises:
            InputError: as :func:`tagrank.model_hub.upload`.
        """
        repo, _ = split_name(repo_id, revision)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license, data=data, name=repo)
            options: dict[str, Any] = {"revision": revision, "private": private, "token": token}
            return upload(Path(folder), repo_id, message=commit_message, **options)


def _describe(spec: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in spec.items())
