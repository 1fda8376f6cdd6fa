"""A model and its baselines in one table."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagrank.annotator import Annotator
from tagrank.baselines import Baseline, FrequencyPrior, LinearClassifier, MLPClassifier, NearestNeighbours
from tagrank.data.labelled import LabelledImages
from tagrank.data.targets import encode_lists
from tagrank.decode import decode
from tagrank.metrics import evaluate_rankings, negative_log_likelihood, summarise
from tagrank.presets import PRESETS, Preset
from tagrank.runs import fit_ranker, hold_out

KS = (1, 3, 5, 10)

Row = dict[str, Any]


def evaluate(annotator: Annotator, images: LabelledImages, decoder: str | None = None, name: str = "tagrank") -> Row:
    """Judge a model by the lists of images it was not trained on.

    Args:
        annotator: the model.
        images: with features.
        decoder: as for :meth:`Annotator.rank`.
        name: what the row is called.

    Returns:
        ``name``, the means of :func:`tagrank.metrics.evaluate_rankings` at 1, 3, 5 and 10, and ``nll``, the mean
        negative log-likelihood of a list in nats (lists that no tag of the vocabulary is on do not count).
    """
    decoder = annotator.check_decoder(decoder)
    probabilities = annotator.probabilities(images.inputs)
    rankings = [r.tags for r in decode(probabilities, decoder, top_k=max(KS))]
    row = {"name": f"{name}, {decoder.replace('_', ' ')}", **_scores(rankings, images, annotator)}
    nll = _negative_log_likelihood(annotator, images, probabilities)
    return row if nll is None else row | {"nll": nll}


def evaluate_baselines(
    annotator: Annotator,
    train_images: LabelledImages,
    images: LabelledImages,
    *,
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """Fit what the model has to beat, on the features the model has, and judge it as the model is judged.

    Args:
        annotator: the model; its preset is that of the captioning LSTM among the baselines.
        train_images: to fit on, with features.
        images: to judge by, with features.
        seed: decides all that is drawn at random.
        progress: show progress bars, on stderr.

    Returns:
        A row for each: frequency prior, nearest neighbours, linear and two-layer classifier, captioning LSTM.
    """
    vocabulary = annotator.vocabulary
    lists = train_images.lists(vocabulary)
    kept = [i for i, image in enumerate(lists) if image]
    train_images, lists = train_images.take(kept), [lists[i] for i in kept]
    baselines: list[Baseline] = [FrequencyPrior(), NearestNeighbours(), LinearClassifier(), MLPClassifier()]
    rows = []
    for baseline in baselines:
        baseline.fit(train_images.inputs, lists, len(vocabulary), seed)
        rankings = baseline.rank(images.inputs, max(KS))
        rows.append({"name": baseline.name, **_scores(rankings, images, annotator)})

    with tempfile.TemporaryDirectory() as folder:
        kept, held_out = hold_out(len(train_images), seed)
        ranker = fit_ranker(
            train_images.take(kept),
            train_images.take(held_out),
            vocabulary,
            _preset(annotator),
            Path(folder),
            conditioning="initial",
            seed=seed,
            progress="captioning LSTM" if progress else None,
        )
    rows.append(evaluate(Annotator(ranker, vocabulary), images, name="captioning LSTM"))
    return rows


def _preset(annotator: Annotator) -> Preset:
    """The hyper-parameters the model was trained with; the default ones where it does not say."""
    fields = {key: value for key, value in annotator.training.items() if key in Preset.__dataclass_fields__}
    return Preset(**fields) if fields else PRESETS["default"]


def _scores(rankings: Sequence[Sequence[int]], images: LabelledImages, annotator: Annotator) -> dict[str, float]:
    return summarise(evaluate_rankings(rankings, images.references(annotator.vocabulary), KS))


def _negative_log_likelihood(annotator: Annotator, images: LabelledImages, probabilities: Tensor) -> float | None:
    """``None`` where no list has a tag that the model knows, and for a model with feedback, whose distributions
    :meth:`TagRanker.predict` gives along one list alone."""
    if annotator.ranker.feedback:
        return None
    lists = images.lists(annotator.vocabulary)
    kept = [i for i, image in enumerate(lists) if image]
    if not kept:
        return None
    probabilities = probabilities[kept]
    targets = encode_lists([lists[i] for i in kept], annotator.vocabulary.end, annotator.ranker.steps)
    log_p = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
    return float(negative_log_likelihood(log_p, targets).mean())
