"""What a model is for, in one table: its ranking, its own lists, and how it goes on with lists that people began.

All learn from the same features of the same images, and the same validation images tune all of them. The model and the
captioning LSTM keep the best of their epochs by NDCG@5, the other baselines the best of ``TRIES`` settings. All lists
end at a threshold of the scores that is chosen there, too. The baselines also have what
:mod:`tagrank.evaluation.next_tag_baselines` tunes for the next tag.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tagrank.annotator import Annotator
from tagrank.evaluation.baselines import (
    Baseline,
    FrequencyPrior,
    LinearClassifier,
    ListsPerImage,
    MLPClassifier,
    NearestNeighbours,
)
from tagrank.evaluation.judgement import KS, Row, judge, scores
from tagrank.evaluation.next_tag_baselines import (
    ClassifierNext,
    NeighboursNext,
    Together,
    tune_exponents,
    tune_neighbours,
)
from tagrank.evaluation.next_tag_judgement import NextTags, ReadsGiven, judge_next_tags
from tagrank.features.labelled import LabelledImages
from tagrank.metrics import FloatArray, bootstrap_intervals, evaluate_lengths, summarise
from tagrank.ranker.presets import Preset
from tagrank.ranker.tag_ranker import TagRanker
from tagrank.training.fit import fit_ranker

NEIGHBOURS = (5, 10, 15, 20, 30, 50, 75, 100, 150, 200)
DECAYS = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
TRIES = len(DECAYS)
THRESHOLDS = 50
"""So many thresholds are tried for the length of a baseline's lists."""

CANDIDATES: dict[str, Sequence[Callable[[], Baseline]]] = {
    "frequency prior": [FrequencyPrior],
    "nearest neighbours": [lambda k=k: NearestNeighbours(k) for k in NEIGHBOURS],  # type: ignore[misc]
    "linear classifier": [lambda w=w: LinearClassifier(weight_decay=w) for w in DECAYS],  # type: ignore[misc]
    "two-layer classifier": [lambda w=w: MLPClassifier(weight_decay=w) for w in DECAYS],  # type: ignore[misc]
}


def contest(
    annotator: Annotator,
    train_images: LabelledImages,
    val_images: LabelledImages,
    images: LabelledImages,
    preset: Preset,
    *,
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """Fit and tune the baselines, and judge them beside the model.

    Args:
        annotator: the model, which was trained on the same features. It must read given tags.
        train_images: the images to fit on. Each has a list with a tag of the model.
        val_images: the images that tune, by which the model's epoch was chosen too.
        images: the images to judge by.
        preset: of the model, which the captioning LSTM has too.
        seed: of everything that is drawn at random.
        progress: show progress bars, on stderr.

    Returns:
        A row for each, the model first: ``name``, the means of :func:`tagrank.evaluation.judgement.judge`,
        ``list_f1`` and ``length_error`` of :func:`tagrank.metrics.evaluate_lengths`, ``next_tag@2`` to ``@4``, the
        share of lists whose tag at this position is found, given the tags before it; and ``intervals``.
    """
    vocabulary = annotator.vocabulary
    lists, val_lists = train_images.lists(vocabulary), val_images.lists(vocabulary)
    rows = [_model_row(annotator, "tagrank", val_images, images)]
    counted = Together.counted(lists, len(vocabulary))
    references, people = images.references(vocabulary), images.lists(vocabulary)
    for name, candidates in CANDIDATES.items():
        fitted = _fitted(candidates, train_images.inputs, lists, len(vocabulary), seed)
        baseline = _best(fitted, val_images.inputs, val_images.references(vocabulary))
        cut = above(baseline.scores(images.inputs), best_threshold(baseline.scores(val_images.inputs), val_lists))
        rankings = baseline.rank(images.inputs, max(KS))
        following: NextTags
        if isinstance(baseline, NearestNeighbours):
            following = NeighboursNext(train_images.inputs, lists, len(vocabulary))
            tune_neighbours(following, val_images.inputs, val_lists)
        else:
            log_scores = _log_scores(baseline)
            tuned = tune_exponents(log_scores(val_images.inputs), val_lists, counted)
            following = ClassifierNext(log_scores, [e for e, _ in tuned], [counted.lifts(s) for _, s in tuned])
        measures = scores(rankings, references) | evaluate_lengths(cut, people)
        rows.append(_row(name, measures, following, images, people))
    with tempfile.TemporaryDirectory() as folder:
        captioner = fit_ranker(
            train_images,
            val_images,
            vocabulary,
            replace(preset, conditioning="initial"),
            Path(folder),
            seed=seed,
            progress="captioning LSTM" if progress else None,
        )
    rows.append(_model_row(Annotator(captioner, vocabulary), "captioning LSTM", val_images, images))
    return rows


def best_threshold(values: Tensor, lists: ListsPerImage) -> float:
    """The threshold with the best ``list_f1`` of :func:`above`, of ``THRESHOLDS`` quantiles of the scores.

    Args:
        values: scores ``[B, V]`` of the images that tune.
        lists: of these images.
    """
    tried = values.flatten().quantile(torch.linspace(0, 1, THRESHOLDS)).tolist()
    f1 = [summarise(evaluate_lengths(above(values, threshold), lists))["list_f1"] for threshold in tried]
    best: float = tried[f1.index(max(f1))]
    return best


def above(values: Tensor, threshold: float) -> list[list[int]]:
    """For each row of scores ``[N, V]`` the tags that are not below a threshold, best first; at least one."""
    order = values.sort(dim=1, descending=True, stable=True).indices.tolist()
    counts = (values >= threshold).sum(dim=1).clamp(min=1).tolist()
    return [tags[:count] for tags, count in zip(order, counts, strict=True)]


def _model_row(annotator: Annotator, name: str, val_images: LabelledImages, images: LabelledImages) -> Row:
    judged = judge(annotator, images, name=name)
    people = images.lists(annotator.vocabulary)
    threshold = best_threshold(_all_scores(annotator, val_images), val_images.lists(annotator.vocabulary))
    cut = above(_all_scores(annotator, images), threshold)
    reader = annotator.completer or annotator.ranker
    assert isinstance(reader, TagRanker)
    measures = judged.per_image | evaluate_lengths(cut, people)
    return _row(judged.name, measures, ReadsGiven(reader), images, people)


def _all_scores(annotator: Annotator, images: LabelledImages) -> Tensor:
    """A model's score of each tag, ``[N, V]``."""
    scored = torch.zeros(len(images), len(annotator.vocabulary))
    for row, ranking in zip(scored, annotator.rank(images.inputs, top_k=len(annotator.vocabulary)), strict=True):
        row[ranking.tags] = torch.tensor(ranking.scores, dtype=row.dtype)
    return scored


def _row(
    name: str, measures: dict[str, FloatArray], following: NextTags, images: LabelledImages, people: ListsPerImage
) -> Row:
    judged = judge_next_tags(following, images.inputs, people)
    for key, values in judged.items():
        measure, _, position = key.partition("/")
        if measure == "hit@1":
            measures[f"next_tag@{position}"] = values
    return {"name": name, **summarise(measures), "intervals": bootstrap_intervals(measures)}


def _fitted(
    candidates: Sequence[Callable[[], Baseline]], features: Tensor, lists: ListsPerImage, num_tags: int, seed: int
) -> Iterator[Baseline]:
    for candidate in candidates:
        baseline = candidate()
        baseline.fit(features, lists, num_tags, seed)
        yield baseline


def _best(fitted: Iterable[Baseline], features: Tensor, references: Sequence[Sequence[int]]) -> Baseline:
    """The baseline with the best NDCG@5 on the validation images; of equal ones the first."""

    def ndcg(baseline: Baseline) -> float:
        return summarise(scores(baseline.rank(features, max(KS)), references))["ndcg@5"]

    return max(fitted, key=ndcg)


def _log_scores(baseline: Baseline) -> Callable[[Tensor], Tensor]:
    if isinstance(baseline, (LinearClassifier, MLPClassifier)):
        return baseline.log_scores
    # The prior is zero for a tag that nobody named.
    return lambda features: baseline.scores(features).clamp(min=1e-6).log()
