"""A model and its baselines in one table."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tagrank.annotator import Annotator
from tagrank.data.targets import encode_lists
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import OutputTags
from tagrank.evaluation.baselines import Baseline, FrequencyPrior, LinearClassifier, MLPClassifier, NearestNeighbours
from tagrank.features.labelled import LabelledImages
from tagrank.metrics import FloatArray, evaluate_order, evaluate_rankings, summarise
from tagrank.metrics.significance import bootstrap_intervals
from tagrank.ranker.presets import PRESETS, Preset
from tagrank.training.fit import fit_ranker
from tagrank.training.splits import hold_out

KS = (1, 3, 5, 10)

Row = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """A model's lists of some images, and the measures of each.

    Attributes:
        name: what judged lists are called in a table.
        rankings: tags by index, ten or fewer an image.
        references: people's lists that they were compared with.
        per_image: arrays ``[N]`` by measure; NaN where an image does not have it.
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
        images: with features.
        decoder: as for :meth:`Annotator.rank`.
        name: what the row is called.
        output: as for :meth:`Annotator.rank`; people's lists are brought under its names too.
        **options: ``beams``, ``samples`` and ``threshold`` of :meth:`Annotator.rank`.

    Returns:
        The first ten tags of each image with :func:`tagrank.metrics.evaluate_rankings` at 1, 3, 5 and 10,
        :func:`tagrank.metrics.evaluate_order`, and ``nll``, the negative log-likelihood of the image's lists in nats
        (lists that no tag of the vocabulary is on do not count; NaN where an image has no other).
    """
    decoder = annotator.check_decoder(decoder)
    rankings = [r.tags for r in annotator.rank(images.inputs, decoder=decoder, top_k=max(KS), output=output, **options)]
    named, vocabulary = _named(images, annotator, output)
    references = named.references(vocabulary)
    per_image = {**_scores(rankings, references), "nll": _negative_log_likelihood(annotator, images)}
    return Judgement(f"{name}, {decoder.replace('_', ' ')}", rankings, references, per_image)


def evaluate_baselines(
    annotator: Annotator,
    train_images: LabelledImages,
    images: LabelledImages,
    *,
    output: OutputTags | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """Fit what the model has to beat, on the features the model has, and judge it as the model is judged.

    Args:
        annotator: the model; its preset is that of the captioning LSTM among the baselines.
        train_images: to fit on, with features.
        images: to judge by, with features.
        output: what the model was judged with: the baselines learn and are judged by lists under its names, and rank no
            tags but those that it shows. Its thresholds go for the captioning LSTM alone, which has probabilities too.
        seed: decides all that is drawn at random.
        progress: show progress bars, on stderr.

    Returns:
        A row for each: frequency prior, nearest neighbours, linear and two-layer classifier, captioning LSTM.
    """
    named, vocabulary = _named(train_images, annotator, output)
    named = _with_lists(named, vocabulary)
    lists = named.lists(vocabulary)
    judged, _ = _named(images, annotator, output)
    references = judged.references(vocabulary)
    shown = set(range(len(vocabulary)) if output is None else output.tags.tolist())
    top_k = max(KS) + len(vocabulary) - len(shown)
    baselines: list[Baseline] = [FrequencyPrior(), NearestNeighbours(), LinearClassifier(), MLPClassifier()]
    rows = []
    for baseline in baselines:
        baseline.fit(named.inputs, lists, len(vocabulary), seed)
        rankings = [[tag for tag in tags if tag in shown][: max(KS)] for tags in baseline.rank(images.inputs, top_k)]
        rows.append(Judgement(baseline.name, rankings, references, _scores(rankings, references)).row())

    # As the model: trained on the tags as they are, which are brought under their names when it is judged.
    train_images = _with_lists(train_images, annotator.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        kept, held_out = hold_out(len(train_images), seed)
        ranker = fit_ranker(
            train_images.take(kept),
            train_images.take(held_out),
            annotator.vocabulary,
            replace(_preset(annotator), conditioning="initial", feedback=False),
            Path(folder),
            seed=seed,
            progress="captioning LSTM" if progress else None,
        )
    captioner = Annotator(ranker, annotator.vocabulary)
    rows.append(judge(captioner, images, name="captioning LSTM", output=output).row())
    return rows


def _named(
    images: LabelledImages, annotator: Annotator, output: OutputTags | None
) -> tuple[LabelledImages, Vocabulary]:
    """Images with people's lists under the names that are shown, and these names."""
    if output is None:
        return images, annotator.vocabulary
    return images.renamed(output.rename), output.vocabulary


def _with_lists(images: LabelledImages, vocabulary: Vocabulary) -> LabelledImages:
    """Those of the images that people said something about in these words."""
    return images.take([i for i, lists in enumerate(images.lists(vocabulary)) if lists])


def _preset(annotator: Annotator) -> Preset:
    """The hyper-parameters the model was trained with; the default ones where it does not say."""
    fields = {key: value for key, value in annotator.training.items() if key in Preset.__dataclass_fields__}
    return replace(PRESETS["default"], **fields)


def _scores(rankings: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, FloatArray]:
    return {**evaluate_rankings(rankings, references, KS), **evaluate_order(rankings, references)}


def _negative_log_likelihood(annotator: Annotator, images: LabelledImages) -> FloatArray:
    """Per image, by the model as it was trained: its own tags, whatever is shown of them."""
    lists = images.lists(annotator.vocabulary)
    kept = [i for i, image in enumerate(lists) if image]
    nll = np.full(len(images), np.nan)
    if kept:
        targets = encode_lists([lists[i] for i in kept], annotator.vocabulary.end, annotator.ranker.steps)
        nll[kept] = annotator.negative_log_likelihood(images.inputs[kept], targets)
    return nll
