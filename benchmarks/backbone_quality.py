"""Backbones compared by the tags that are ranked from their features, on a few labelled photographs.

Cross-validation: the photographs of a folder are dealt into parts, and each part is ranked by models that were fitted
to the others, for each backbone with the same parts. It is done again with other parts and random weights for each
seed. The scores of a photograph are averaged over the seeds. The difference of a backbone from the first has the
standard error of its mean over photographs. The ranker is a single member of the default preset; its best epoch is
chosen by the part that is ranked, for all backbones alike.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import describe, write
from benchmarks.quality import DEFAULT_DATA
from tagrank.annotator import Annotator
from tagrank.data.files import read_json
from tagrank.data.manifest import Manifest, read_manifest
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.evaluation.baselines import Baseline, LinearClassifier, NearestNeighbours
from tagrank.features.backbones import load_backbone
from tagrank.features.labelled import LabelledImages, load_labelled
from tagrank.metrics import evaluate_rankings
from tagrank.ranker.presets import PRESETS
from tagrank.training.fit import fit_ranker

BACKBONES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
RANKER = replace(PRESETS["default"], members=1)
METRICS = ("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "first_tag")

Rank = Callable[[LabelledImages, LabelledImages, Vocabulary, int], Sequence[Sequence[int]]]


def by_baseline(make: Callable[[], Baseline]) -> Rank:
    def rank(train: LabelledImages, held: LabelledImages, vocabulary: Vocabulary, seed: int) -> Sequence[Sequence[int]]:
        baseline = make()
        baseline.fit(train.inputs.float(), train.lists(vocabulary), len(vocabulary), seed)
        return baseline.rank(held.inputs.float(), 10)

    return rank


def by_ranker(
    train: LabelledImages, held: LabelledImages, vocabulary: Vocabulary, seed: int
) -> Sequence[Sequence[int]]:
    with tempfile.TemporaryDirectory() as folder:
        ranker = fit_ranker(train, held, vocabulary, RANKER, Path(folder), seed=seed)
    rankings = Annotator(ranker, vocabulary).rank(held.inputs.float(), decoder="headline", top_k=10)
    return [ranking.tags for ranking in rankings]


METHODS: dict[str, Rank] = {
    "nearest neighbours": by_baseline(lambda: NearestNeighbours(k=10)),
    "linear classifier": by_baseline(LinearClassifier),
    "single ranker": by_ranker,
}


def photographs(folder: Path) -> Manifest:
    """Those of ``val.jsonl`` that are in ``images/``."""
    manifest = read_manifest(folder / "val.jsonl")
    there = {path.name for path in (folder / "images").iterdir()}
    return Manifest(manifest.path, tuple(e for e in manifest.examples if e.image in there))


def cross_validate(images: LabelledImages, rank: Rank, seed: int, folds: int) -> NDArray[np.float64]:
    """The metrics of each photograph, ``[N, len(METRICS)]``."""
    order = np.random.default_rng(seed).permutation(len(images))
    scores = np.empty((len(images), len(METRICS)))
    for fold in range(folds):
        held = order[fold::folds].tolist()
        train, judged = images.take(np.setdiff1d(order, held).tolist()), images.take(held)
        vocabulary = Vocabulary.build(tags for example in train.examples for tags in example.lists)
        found = evaluate_rankings(rank(train, judged, vocabulary, seed), judged.references(vocabulary))
        scores[held] = np.stack([found[metric] for metric in METRICS], axis=1)
    return scores


def measure(args: argparse.Namespace) -> None:
    manifest = photographs(args.data)
    if len(manifest.examples) < args.folds:
        raise InputError(f"--data: expected at least {args.folds} labelled photographs in {args.data / 'images'}")
    sets = {
        name: load_labelled(manifest, backbone=load_backbone(name), images=args.data / "images")
        for name in args.backbones
    }
    described = {"photographs": len(manifest.examples), "folds": args.folds, "seeds": args.seeds}
    rows = kept(args, described)
    print(f"{'mean; difference from the first, its standard error':44} " + " ".join(f"{m:>22}" for m in METRICS))
    for method in args.only or METHODS:
        first = None
        for name, images in sets.items():
            runs = [cross_validate(images, METHODS[method], seed, args.folds) for seed in range(args.seeds)]
            scores = np.mean(runs, axis=0)
            first = scores if first is None else first
            rows.append(row(f"{method}, {name}", scores, scores - first, runs))
            print(line(rows[-1]), flush=True)
            if args.json:
                write(args.json, describe() | described | {"rows": rows})


def kept(args: argparse.Namespace, described: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the result file for methods that are not measured now, if it has the same settings."""
    before = read_json(args.json) if args.json and args.json.is_file() else {}
    if any(before.get(key) != value for key, value in described.items()):
        return []
    return [row for row in before["rows"] if row["name"].partition(",")[0] in set(METHODS) - set(args.only or METHODS)]


def row(
    name: str, scores: NDArray[np.float64], difference: NDArray[np.float64], runs: Sequence[NDArray[np.float64]]
) -> dict[str, Any]:
    """Means over photographs, the difference with its standard error, the deviation of the means of single seeds."""
    errors = difference.std(axis=0, ddof=1) / len(difference) ** 0.5
    columns = {
        "mean": scores.mean(axis=0),
        "deviation": np.std([run.mean(axis=0) for run in runs], axis=0, ddof=1 if len(runs) > 1 else 0),
        "difference": difference.mean(axis=0),
        "error": errors,
    }
    rounded = {key: dict(zip(METRICS, values.round(6).tolist(), strict=True)) for key, values in columns.items()}
    return {"name": name, **rounded}


def line(row: dict[str, Any]) -> str:
    cells = (f"{row['mean'][m]:.4f} {row['difference'][m]:+.4f} {row['error'][m]:.4f}" for m in METRICS)
    return f"{row['name']:44} " + " ".join(f"{cell:>22}" for cell in cells)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backbone_quality", description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with val.jsonl and images/")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, metavar="NAME", help="the first is compared with")
    parser.add_argument("--only", action="append", default=[], choices=METHODS, help="only this method")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and results to this file")
    try:
        measure(parser.parse_args(argv))
    except InputError as error:
        print(f"benchmarks.backbone_quality: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
