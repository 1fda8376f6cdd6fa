"""A model's lists judged by people's lists: the measures of each image, and their means as a row of a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagrank.annotator import Annotator
from tagrank.data.targets import encode_lists
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import OutputTags
from tagrank.features.labelled import LabelledImages
from tagrank.metrics import FloatArray, evaluate_order, evaluate_rankings, summarise
from tagrank.metrics.significance import bootstrap_intervals

KS = (1, 3, 5, 10)

Row = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """A model's lists of some images, and the measures of each image.

    Attributes:
        name: the name of the row in a table.
        rankings: the model's tags by index, at most ten for each image.
        references: people's list for each image, which the ranking was compared with.
        per_image: arrays ``[N]`` by measure; NaN for an image that does not have the measure.
    """

    name: str
    rankings: Sequence[Sequence[int]]
    references: Sequence[Sequence[int]]
    per_image: dict[str, FloatArray]

    def row(self) -> Row:
        """``name``, the mean of each measure, and ``intervals``: the ends of their 95% confidence intervals."""
        return {"name": self.name, **summarise(self.per_image), "intervals": bootstrap_intervals(self.per_image)}


def judge(
    annotator: Annotator,
    images: LabelledImages,
    decoder: str | None = None,
    name: str = "tagrank",
    *,
    output: OutputTags | None = None,
    **options: Any,
) -> Judgement:
    """Judge a model by the lists of images it was not trained on.

    Args:
        annotator: the model.
        images: the images, with features.
        decoder: as for :meth:`Annotator.rank`.
        name: the name of the row.
        output: as for :meth:`Annotator.rank`; its names replace the tags in people's lists too.
        **options: ``beams``, ``samples`` and ``threshold`` of :meth:`Annotator.rank`.

    Returns:
        The first ten tags of each image with :func:`tagrank.metrics.evaluate_rankings` at 1, 3, 5 and 10,
        :func:`tagrank.metrics.evaluate_order`, and ``nll``, the negative log-likelihood of the image's lists in nats.
        ``nll`` ignores lists without a tag of the vocabulary, and is NaN if an image has only such lists.
    """
    decoder = annotator.check_decoder(decoder)
    rankings = [r.tags for r in annotator.rank(images.inputs, decoder=decoder, top_k=max(KS), output=output, **options)]
    named, vocabulary = renamed(images, annotator, output)
    references = named.references(vocabulary)
    per_image = {**scores(rankings, references), "nll": _negative_log_likelihood(annotator, images)}
    return Judgement(f"{name}, {decoder.replace('_', ' ')}", rankings, references, per_image)


def renamed(
    images: LabelledImages, annotator: Annotator, output: OutputTags | None
) -> tuple[LabelledImages, Vocabulary]:
    """Images with people's lists under the shown names, and the vocabulary of these names."""
    if output is None:
        return images, annotator.vocabulary
    return images.renamed(output.rename), output.vocabulary


def scores(rankings: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, FloatArray]:
    return {**evaluate_rankings(rankings, references, KS), **evaluate_order(rankings, references)}


def _negative_log_likelihood(annotator: Annotator, images: LabelledImages) -> FloatArray:
    """``nll`` of each image, over the model's original tags, whichever tags are shown."""
    lists = images.lists(annotator.vocabulary)
    kept = [i for i, image in enumerate(lists) if image]
    nll = np.full(len(images), np.nan)
    if kept:
        targets = encode_lists([lists[i] for i in kept], annotator.vocabulary.end, annotator.ranker.steps)
        nll[kept] = annotator.negative_log_likelihood(images.inputs[kept], targets)
    return nll
