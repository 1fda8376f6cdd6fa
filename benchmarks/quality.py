"""Rank quality on real photographs: every baseline and every variant of the model, several seeds, one table.

Models are trained on ``train.jsonl`` with ``train_features.npz`` of a folder, and judged by ``val.jsonl`` with
``val_features.npz``, by which the best epoch is chosen too. The scores of each row and seed are written to the result
file as soon as they are known. A later run does not repeat what the file has under the same settings.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, write
from tagrank.annotator import Annotator
from tagrank.data.files import read_json
from tagrank.data.manifest import read_manifest
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.evaluation.baselines import Baseline, FrequencyPrior, LinearClassifier, MLPClassifier, NearestNeighbours
from tagrank.features.labelled import LabelledImages, load_labelled
from tagrank.metrics import evaluate_rankings, summarise
from tagrank.ranker.presets import PRESETS, Preset
from tagrank.ranker.scaling import signed_root
from tagrank.training.fit import fit_ranker

DEFAULT_DATA = Path(os.environ.get("TAGRANK_FLICKR8K", Path(__file__).parents[2] / "shared" / "data" / "flickr8k"))
RESULT = Path(__file__).parent / "results" / "quality.json"
METRICS = ("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "first_tag")
DECODER = "headline"
BASELINES = ("frequency prior", "nearest neighbours", "linear classifier", "two-layer classifier")

Scores = dict[str, float]


@dataclass(frozen=True)
class Variant:
    """A ranker to train.

    Attributes:
        preset: its hyper-parameters.
        lists: what it is trained on: ``"people's"`` lists, the ``"merged"`` list of each image, or ``"both"``.
        decoders: the decoders by which it is judged, each in a row of the table.
    """

    preset: Preset
    lists: str = "people's"
    decoders: tuple[str, ...] = (DECODER,)


@dataclass(frozen=True)
class Classifier:
    """A baseline to fit.

    Attributes:
        make: makes the baseline.
        lists: what it is fitted to, as for :class:`Variant`.
        signed_root: whether its features are replaced by their signed root.
        options: the arguments that ``make`` gives the baseline, for the record.
    """

    make: Callable[[], Baseline]
    lists: str = "people's"
    signed_root: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def contestants() -> dict[str, Variant | Classifier]:
    """All rows by name. Each ``single`` variant changes one thing in the default preset with a single ranker."""
    default = PRESETS["default"]
    single = replace(default, members=1)

    def one(**changes: Any) -> Variant:
        return Variant(replace(single, **changes))

    def classifier(lists: str = "people's", signed_root: bool = False, **options: Any) -> Classifier:
        return Classifier(lambda: MLPClassifier(**options), lists, signed_root, options)

    return {
        "frequency prior": Classifier(FrequencyPrior),
        "nearest neighbours": Classifier(NearestNeighbours),
        "linear classifier": Classifier(LinearClassifier),
        "two-layer classifier": classifier(),
        "two-layer, merged list": classifier("merged"),
        "two-layer, weights 1/position": classifier(weight="reciprocal"),
        "two-layer, signed root": classifier(signed_root=True),
        "two-layer, signed root, 5 members": classifier(signed_root=True, members=5),
        "default": Variant(default, decoders=(DECODER, "expected_gain", "greedy", "assignment")),
        "single": one(),
        "single, no skip": one(skip=False),
        "single, no auxiliary loss": one(auxiliary=0.0),
        "single, no signed root": one(signed_root=False),
        "single, features as they are": one(signed_root=False, standardise=False),
        "single, random start": one(start="random"),
        "single, no nonlinearity": one(activation=None),
        "single, merged list": Variant(single, lists="merged"),
        "single, merged list too": Variant(single, lists="both"),
        "single, H = 32": one(hidden_size=32),
        "single, H = 256": one(hidden_size=256),
        "single, no dropout": one(dropout=0.0, hidden_dropout=0.0),
        "single, hidden dropout 0.5": one(hidden_dropout=0.5),
        "single, constant schedule": one(schedule="constant"),
        "single, 20 epochs": one(epochs=20),
        "feedback": Variant(replace(single, feedback=True), decoders=("greedy",)),
        "captioning LSTM": Variant(replace(single, conditioning="initial"), decoders=("greedy",)),
        "paper": Variant(PRESETS["paper"], decoders=("greedy", "expected_gain", DECODER)),
    }


class Data:
    """Images to train on with their vocabulary, and images to judge by."""

    def __init__(self, folder: Path) -> None:
        self.train, self.val = (
            load_labelled(read_manifest(folder / f"{part}.jsonl"), features=folder / f"{part}_features.npz")
            for part in ("train", "val")
        )
        self.vocabulary = Vocabulary.build(tags for example in self.train.examples for tags in example.lists)
        self.references = self.val.references(self.vocabulary)

    def training_images(self, lists: str) -> LabelledImages:
        """The training images with the lists that a contestant is trained on."""
        kept = {"people's": lambda e: e.lists, "merged": lambda e: (e.tags,), "both": lambda e: (*e.lists, e.tags)}
        examples = [replace(e, lists=kept[lists](e)) for e in self.train.examples]
        return LabelledImages(examples, self.train.inputs, self.train.spec)

    def judge(self, rankings: Sequence[Sequence[int]]) -> Scores:
        scores = summarise(evaluate_rankings(rankings, self.references))
        return {metric: round(scores[metric], 6) for metric in METRICS}


def fit_classifier(classifier: Classifier, data: Data, seed: int) -> dict[str, Scores]:
    """Fit and judge a baseline."""
    images = data.training_images(classifier.lists)
    train, val = (x.float() for x in (images.inputs, data.val.inputs))
    if classifier.signed_root:
        train, val = signed_root(train), signed_root(val)
    baseline = classifier.make()
    baseline.fit(train, images.lists(data.vocabulary), len(data.vocabulary), seed)
    return {"": data.judge(baseline.rank(val, 10))}


def fit_variant(variant: Variant, data: Data, seed: int) -> dict[str, Scores]:
    """Train a ranker, and judge it with each decoder."""
    with tempfile.TemporaryDirectory() as folder:
        ranker = fit_ranker(
            data.training_images(variant.lists),
            data.val,
            data.vocabulary,
            variant.preset,
            Path(folder),
            seed=seed,
        )
    annotator = Annotator(ranker, data.vocabulary)
    rankings = {d: annotator.rank(data.val.inputs.float(), decoder=d, top_k=10) for d in variant.decoders}
    return {decoder: data.judge([r.tags for r in lists]) for decoder, lists in rankings.items()}


def settings(contestant: Variant | Classifier) -> str:
    """A digest of all that a contestant's figures depend on, except the code and the data."""
    described = asdict(contestant)
    if isinstance(contestant, Classifier):
        described["make"] = type(contestant.make()).__name__
    else:  # as result files have it
        described |= {name: described["preset"].pop(name) for name in ("conditioning", "feedback")}
        del described["preset"]["completer"]  # which these figures do not depend on
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def row(name: str, decoder: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds."""
    scores = {metric: [run["scores"][decoder][metric] for run in runs] for metric in METRICS}
    return {
        "name": name,
        "decoder": decoder or None,
        "seeds": len(runs),
        "mean": {metric: round(statistics.mean(values), 6) for metric, values in scores.items()},
        "deviation": {m: round(statistics.stdev(v), 6) if len(v) > 1 else None for m, v in scores.items()},
        "seconds": round(statistics.mean(run["seconds"] for run in runs), 1),
    }


def margins(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each metric, how far the default preset is ahead of the baseline that is best at this metric."""
    ours = [r for r in rows if r["name"] == "default" and r["decoder"] == DECODER]
    theirs = [r for r in rows if r["name"] in BASELINES]
    if not ours or not theirs:
        return {}
    return {m: round(ours[0]["mean"][m] - max(r["mean"][m] for r in theirs), 6) for m in METRICS}


def line(row: Mapping[str, Any]) -> str:
    cells = []
    for metric in METRICS:
        deviation = row["deviation"][metric]
        cells.append(f"{row['mean'][metric]:.4f} {'' if deviation is None else f'{deviation:.4f}':6}")
    name = row["name"] if row["decoder"] is None else f"{row['name']}: {row['decoder'].replace('_', ' ')}"
    return f"{name:40} {' '.join(cells)} {row['seeds']:2} seeds {row['seconds']:6.0f} s"


def measure(args: argparse.Namespace) -> None:
    """Train what is missing in the result file, print each row, and write the file after each training."""
    everyone = contestants()
    unknown = sorted(set(args.only) - set(everyone))
    if unknown:
        raise InputError(f"--only: expected names of rows ({', '.join(everyone)}); got {', '.join(unknown)}")
    if args.seeds < 1:
        raise InputError(f"--seeds: expected at least 1, got {args.seeds}")
    data = Data(args.data)
    described = describe() | {"data": {"train": len(data.train), "val": len(data.val), "tags": len(data.vocabulary)}}
    before = read_json(args.json) if args.json.is_file() else {}
    runs = {
        name: [run for run in before.get("runs", {}).get(name, []) if run["settings"] == settings(contestant)]
        for name, contestant in everyone.items()
    }
    print(f"{'mean and deviation over seeds':40} " + " ".join(f"{metric:13}" for metric in METRICS))
    for name in args.only or everyone:
        contestant = everyone[name]
        for seed in range(args.seeds):
            if any(run["seed"] == seed for run in runs[name]):
                continue
            start = time.process_time()
            fit = fit_classifier if isinstance(contestant, Classifier) else fit_variant
            scores = fit(contestant, data, seed)  # type: ignore[arg-type]
            seconds = round(time.process_time() - start, 1)
            done = {
                "seed": seed,
                "commit": described["commit"],
                "settings": settings(contestant),
                "seconds": seconds,
                "scores": scores,
            }
            runs[name] = sorted([*runs[name], done], key=lambda run: run["seed"])
            rows = table(runs)
            write(args.json, described | {"rows": rows, "margins": margins(rows), "runs": runs})
        for shown in table({name: runs[name]}):
            print(line(shown), flush=True)
    for metric, margin in margins(table(runs)).items():
        print(f"default against the best of the baselines, {metric}: {margin:+.4f}")


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each contestant and decoder that was measured."""
    return [row(name, decoder, done) for name, done in runs.items() if done for decoder in done[0]["scores"]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with the four files")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this row; may be repeated")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULT, help="the result file; what it has is not measured again")
    try:
        measure(parser.parse_args(argv))
    except InputError as error:
        print(f"benchmarks.quality: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
