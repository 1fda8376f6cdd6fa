"""Lists that a person began, on real photographs: the completer against its baselines, several seeds, one table.

Models are trained on ``train.jsonl`` with ``train_features.npz`` of a folder, and judged by ``val.jsonl`` with
``val_features.npz``, which neither training nor tuning sees. Intervals are over draws of images and of seeds, paired.

Few lists reach position 4. So there is also a cross-validation on the images to train on, of which there are several
times as many: each part of them judges models that were trained and tuned on the other parts.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe, write
from benchmarks.quality import DEFAULT_DATA, Data
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.evaluation.next_tag_baselines import beginnings_of, fit_next_tag_baselines
from tagrank.evaluation.next_tag_judgement import POSITIONS, ReadsGiven, judge_next_tags
from tagrank.features.labelled import LabelledImages
from tagrank.metrics import FloatArray
from tagrank.ranker.presets import PRESETS
from tagrank.training.completing import fit_completer

RESULT = Path(__file__).parent / "results" / "completion.json"
OURS = "completer"
DRAWS = 5_000

Judged = dict[str, dict[str, FloatArray]]
"""By the name of a row and the name of a measure: a value for each image, NaN if an image has no such list."""


def run(folder: Path, seed: int) -> tuple[Judged, dict[str, float]]:
    """Train and judge everyone with one seed. Returns the measures, and processor seconds by what was trained."""
    return judge_all(Data(folder), seed)


def run_part(folder: Path, parts: int, part: int) -> tuple[Judged, dict[str, float]]:
    """:func:`run`, but judged by a part of the images to train on and trained on the others. The part is the seed."""
    data = Data(folder)
    images, numbers = data.train, range(len(data.train))
    data.train = images.take([i for i in numbers if i % parts != part])
    data.val = images.take([i for i in numbers if i % parts == part])
    return judge_all(data, part)


def judge_all(data: Data, seed: int) -> tuple[Judged, dict[str, float]]:
    """Train and judge everyone on these images."""
    torch.set_num_threads(1)
    lists, val = data.val.lists(data.vocabulary), data.val.inputs.float()
    start = time.process_time()
    completer = fit_completer(data.train, data.vocabulary, PRESETS["default"], seed)
    trained = time.process_time()
    judged = {OURS: judge_next_tags(ReadsGiven(completer), val, lists)}
    fitting = time.process_time()
    train_lists = data.train.lists(data.vocabulary)
    baselines = fit_next_tag_baselines(data.train.inputs.float(), train_lists, len(data.vocabulary), seed)
    fitted = time.process_time()
    judged |= {baseline.name: judge_next_tags(baseline, val, lists) for baseline in baselines}
    return judged, {OURS: round(trained - start, 1), "baselines": round(fitted - fitting, 1)}


def counts(images: LabelledImages, vocabulary: Vocabulary) -> dict[str, dict[str, int]]:
    """How many lists and images judge each position."""
    found = {str(t): beginnings_of(images.lists(vocabulary), t).image for t in POSITIONS}
    return {t: {"lists": len(image), "images": len(image.unique())} for t, image in found.items()}


def interval(differences: FloatArray) -> tuple[float, float]:
    """The 95% interval of the mean of ``[seeds, images]``, by a bootstrap that draws both; NaN columns are left out."""
    values = differences[:, ~np.isnan(differences).any(0)]
    seeds, images = values.shape
    rng = np.random.default_rng(0)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    of_images = rng.multinomial(images, np.full(images, 1 / images), DRAWS) / images
    means = ((of_seeds @ values) * of_images).sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return round(float(low), 6), round(float(high), 6)


def rows(runs: Sequence[Judged]) -> list[dict[str, Any]]:
    """For each contestant the mean of each measure and, if there are several seeds, the deviation over them."""
    table: list[dict[str, Any]] = []
    for name in runs[0]:
        means = {key: [float(np.nanmean(judged[name][key])) for judged in runs] for key in runs[0][name]}
        row = {"name": name, "mean": {key: round(float(np.mean(values)), 6) for key, values in means.items()}}
        if len(runs) > 1:
            row["deviation"] = {key: round(float(np.std(values, ddof=1)), 6) for key, values in means.items()}
        table.append(row)
    return table


def margins(runs: Sequence[Judged], table: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each measure, how far the completer is ahead of the best baseline, and the interval of this difference."""
    ahead = {}
    for key in table[0]["mean"]:
        better = -1.0 if key.startswith("nll") else 1.0
        best = max(table[1:], key=lambda row: better * row["mean"][key])["name"]
        differences = np.stack([better * (judged[OURS][key] - judged[best][key]) for judged in runs])
        mean = round(float(np.nanmean(differences)), 6)
        ahead[key] = {"best": best, "ahead": mean, "interval": interval(differences)}
    return ahead


def pooled(parts: Sequence[Judged]) -> Judged:
    """The measures of the images of all parts."""
    return {
        name: {key: np.concatenate([judged[name][key] for judged in parts]) for key in parts[0][name]}
        for name in parts[0]
    }


def _print(title: str, table: Sequence[Mapping[str, Any]], ahead: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"{title}:")
    for row in table:
        print(f"{row['name']:50} " + " ".join(f"{key} {value:.4f}" for key, value in row["mean"].items()))
    for key, margin in ahead.items():
        low, high = margin["interval"]
        print(f"{key}: {margin['ahead']:+.4f} ({low:+.4f} to {high:+.4f}) ahead of {margin['best']}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.completion", description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with the four files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parts", type=int, default=6, help="of the images to train on, for cross-validation")
    parser.add_argument("--workers", type=int, default=1, help="processes; each takes a seed or a part at a time")
    parser.add_argument("--json", type=Path, default=RESULT, help="the result file")
    args = parser.parse_args(argv)
    try:
        if args.seeds < 2:
            raise InputError(f"--seeds: expected at least 2, for their deviation; got {args.seeds}")
        if args.parts < 2:
            raise InputError(f"--parts: expected at least 2, one of which judges; got {args.parts}")
        data = Data(args.data)
        tasks = [partial(run, args.data, seed) for seed in range(args.seeds)]
        tasks += [partial(run_part, args.data, args.parts, part) for part in range(args.parts)]
        if args.workers == 1:
            runs = [task() for task in tasks]
        else:
            with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
                runs = [future.result() for future in [pool.submit(task) for task in tasks]]
        runs, parts = runs[: args.seeds], [measures for measures, _ in runs[args.seeds :]]
        judged = [measures for measures, _ in runs]
        table = rows(judged)
        ahead = margins(judged, table)
        seconds = {name: round(float(np.mean([s[name] for _, s in runs])), 1) for name in runs[0][1]}
        together = [pooled(parts)]
        crossed = {"parts": args.parts, "judged": counts(data.train, data.vocabulary), "rows": rows(together)}
        crossed["margins"] = margins(together, crossed["rows"])
        record = {"judged": counts(data.val, data.vocabulary), "rows": table, "margins": ahead}
        record |= {"cross_validation": crossed, "processor_seconds": seconds}
        write(args.json, describe() | {"seeds": args.seeds} | record)
    except InputError as error:
        print(f"benchmarks.completion: {error}", file=sys.stderr)
        return 2
    for title, found, margin in (("validation", table, ahead), ("parts", crossed["rows"], crossed["margins"])):
        _print(title, found, margin)
    print(f"processor seconds: {seconds}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
