"""The baselines' rows of the table: the models to beat, fitted and judged in the same way as the model."""

import tempfile
from dataclasses import replace
from pathlib import Path

from tagrank.annotator import Annotator
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import OutputTags
from tagrank.evaluation.baselines import Baseline, FrequencyPrior, LinearClassifier, MLPClassifier, NearestNeighbours
from tagrank.evaluation.judgement import KS, Judgement, Row, judge, renamed, scores
from tagrank.features.labelled import LabelledImages
from tagrank.ranker.presets import PRESETS, Preset
from tagrank.training.fit import fit_ranker
from tagrank.training.splits import hold_out


def evaluate_baselines(
    annotator: Annotator,
    train_images: LabelledImages,
    images: LabelledImages,
    *,
    output: OutputTags | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """Fit the baselines on features of the model's kind, and judge them as the model is judged.

    Args:
        annotator: the model. The captioning LSTM, one of the baselines, has its hyper-parameters.
        train_images: the images to fit on, with features.
        images: the images to judge by, with features.
        output: as the model was judged with. The baselines learn from lists under its names, are judged by such lists,
            and rank only tags that it shows. Its thresholds apply only to the captioning LSTM, because only this
            baseline has probabilities.
        seed: of everything that is drawn at random.
        progress: show progress bars, on stderr.

    Returns:
        A row for each baseline: frequency prior, nearest neighbours, linear and two-layer classifier, captioning LSTM.
    """
    named, vocabulary = renamed(train_images, annotator, output)
    named = _with_lists(named, vocabulary)
    lists = named.lists(vocabulary)
    judged, _ = renamed(images, annotator, output)
    references = judged.references(vocabulary)
    shown = set(range(len(vocabulary)) if output is None else output.tags.tolist())
    top_k = max(KS) + len(vocabulary) - len(shown)
    baselines: list[Baseline] = [FrequencyPrior(), NearestNeighbours(), LinearClassifier(), MLPClassifier()]
    rows = []
    for baseline in baselines:
        baseline.fit(named.inputs, lists, len(vocabulary), seed)
        rankings = [[tag for tag in tags if tag in shown][: max(KS)] for tags in baseline.rank(images.inputs, top_k)]
        rows.append(Judgement(baseline.name, rankings, references, scores(rankings, references)).row())

    # Like the model, the captioning LSTM learns the tags under their own names. They are renamed when it is judged.
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
            progress="captioning LSTM, validated by images to train on" if progress else None,
        )
    captioner = Annotator(ranker, annotator.vocabulary)
    rows.append(judge(captioner, images, name="captioning LSTM", output=output).row())
    return rows


def _with_lists(images: LabelledImages, vocabulary: Vocabulary) -> LabelledImages:
    """The images that have a list with a tag of the vocabulary."""
    return images.take([i for i, lists in enumerate(images.lists(vocabulary)) if lists])


def _preset(annotator: Annotator) -> Preset:
    """The hyper-parameters of the model's training. Those that were not recorded have their default."""
    fields = {key: value for key, value in annotator.training.items() if key in Preset.__dataclass_fields__}
    return replace(PRESETS["default"], **fields)
