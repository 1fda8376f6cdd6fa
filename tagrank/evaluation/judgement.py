"""A model's lists judged by people's lists: the measures of each image, and their means as a row of a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagrank.annotator import Annotator
from tagrank.data.targets import encode_lists
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import OutputTags, Ranking
from tagrank.features.labelled import LabelledImages, share_of_lists
from tagrank.metrics import (
    FloatArray,
    Reliability,
    bootstrap_intervals,
    evaluate_order,
    evaluate_rankings,
    reliability,
    summarise,
)

KS = (1, 3, 5, 10)

Row = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """One list per image, and the measures of each list.

    Attributes:
        name: the name of the row in a table.
        rankings: for each image at most ten tags, by index.
        references: for each image people's list, with which the ranking was compared.
        per_image: arrays ``[N]`` by measure; NaN if an image does not have the measure.
        calibration: how well the scores of the ranked tags agree with the share of people's lists that have them; None
            if the tags have no scores.
    """

    name: str
    rankings: Sequence[Sequence[int]]
    references: Sequence[Sequence[int]]
    per_image: dict[str, FloatArray]
    calibration: Reliability | None = None

    def row(self) -> Row:
        """``name``, the mean of each measure, and ``intervals``: the ends of each mean's 95% confidence interval."""
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
    """Judge a model by people's lists of images that it was not trained on.

    Args:
        annotator: the model.
        images: people's lists, and features.
        decoder: as for :meth:`Annotator.rank`.
        name: the name of the row; the decoder's name is added.
        output: as for :meth:`Annotator.rank`. Tags in people's lists get its names too.
        **options: ``beams``, ``samples`` and ``threshold`` of :meth:`Annotator.rank`.

    Returns:
        The first ten tags of each image with :func:`tagrank.metrics.evaluate_rankings` at 1, 3, 5 and 10,
        :func:`tagrank.metrics.evaluate_order`, and ``nll``, the negative log-likelihood of the image's lists in nats.
        ``nll`` ignores lists without a tag of the vocabulary, and is NaN if an image has no other lists.
    """
    decoder = annotator.check_decoder(decoder)
    ranked = annotator.rank(images.inputs, decoder=decoder, top_k=max(KS), output=output, **options)
    rankings = [ranking.tags for ranking in ranked]
    named, vocabulary = renamed(images, annotator, output)
    references = named.references(vocabulary)
    per_image = {**scores(rankings, references), "nll": _negative_log_likelihood(annotator, images)}
    calibration = _reliability(ranked, named, vocabulary)
    return Judgement(f"{name}, {decoder.replace('_', ' ')}", rankings, references, per_image, calibration)


def renamed(
    images: LabelledImages, annotator: Annotator, output: OutputTags | None
) -> tuple[LabelledImages, Vocabulary]:
    """The images with people's lists under the names that are shown, and the vocabulary of these names."""
    if output is None:
        return images, annotator.vocabulary
    return images.renamed(output.rename), output.vocabulary


def scores(rankings: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, FloatArray]:
    """The measures of each image that need only its list and people's list."""
    return {**evaluate_rankings(rankings, references, KS), **evaluate_order(rankings, references)}


def _reliability(ranked: Sequence[Ranking], named: LabelledImages, vocabulary: Vocabulary) -> Reliability:
    """The scores of ranked tags beside the shares of people's lists that have these tags."""
    probabilities, shares = [], []
    for ranking, example in zip(ranked, named.examples, strict=True):
        probabilities += ranking.scores
        shares += [share_of_lists(vocabulary.tag(tag), example.lists) for tag in ranking.tags]
    return reliability(probabilities, shares)


def _negative_log_likelihood(annotator: Annotator, images: LabelledImages) -> FloatArray:
    """``[N]``, of people's lists in the model's own tags: which tags are shown, and their names, do not matter."""
    lists = images.lists(annotator.vocabulary)
    kept = [i for i, image in enumerate(lists) if image]
    nll = np.full(len(images), np.nan)
    if kept:
        targets = encode_lists([lists[i] for i in kept], annotator.vocabulary.end, annotator.ranker.steps)
        nll[kept] = annotator.negative_log_likelihood(images.inputs[kept], targets)
    return nll
