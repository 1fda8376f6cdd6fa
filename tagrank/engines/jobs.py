"""What is done with images, for whoever runs it: this process, or workers elsewhere, which get it pickled."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from tagrank.annotator import Annotator
from tagrank.decode import TagList
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone
from tagrank.features.extraction import extract_features
from tagrank.features.image_sources import ImageSource

S = TypeVar("S", bound=ImageSource)
T = TypeVar("T", covariant=True)


class Job(Protocol[T]):
    """Makes a result of each image."""

    def to(self, device: str) -> object:
        """Compute on a device."""

    def run(self, images: Iterable[S], workers: int | None = None) -> Iterator[tuple[S, T | InputError]]:
        """Each image as it was given, in this order, with its result or with the error that says what is wrong.

        Args:
            images: the images.
            workers: how many cores to use; by default all of this process.
        """


@dataclass(frozen=True)
class FeatureJob:
    """The features of images: :func:`tagrank.features.extraction.extract_features`."""

    backbone: Backbone

    def to(self, device: str) -> object:
        """Compute on a device."""
        return self.backbone.to(device)

    def run(self, images: Iterable[S], workers: int | None = None) -> Iterator[tuple[S, Tensor | InputError]]:
        """As :meth:`Job.run`: float32 ``[D]`` of each image."""
        return extract_features(self.backbone, images, workers=workers)


@dataclass(frozen=True)
class AnnotateJob:
    """The lists of images: :meth:`tagrank.annotator.Annotator.annotate`, or ``suggest`` if a list was begun.

    Attributes:
        annotator: with its backbone loaded.
        options: keyword arguments of the method.
        given: the beginning of the list, if the job is how it goes on.
    """

    annotator: Annotator
    options: Mapping[str, Any]
    given: Sequence[str] | None = None

    def to(self, device: str) -> object:
        """Compute on a device."""
        return self.annotator.to(device)

    def run(self, images: Iterable[S], workers: int | None = None) -> Iterator[tuple[S, TagList | InputError]]:
        """As :meth:`Job.run`: a :class:`~tagrank.decode.Suggestion` of each image if a list was begun."""
        if self.given is not None:
            return self.annotator.suggest(images, self.given, workers=workers, **self.options)
        return self.annotator.annotate(images, workers=workers, **self.options)
