"""Time the annotator stage by stage, from photographs on disk to ranked tags, and a training step of its ranker.

Annotation, in milliseconds per photograph: reading and decoding the file, the backbone's preprocessing, the backbone,
the ranker (projection, recurrence, classifier, softmax), and the decoder that makes a ranked list; one after another,
files (cached by the system) on one thread. ``Annotator.annotate``, the last row, reads them while the network runs.

Training, in milliseconds per step: forward (the ``ContextLSTM`` apart from the rest), loss, backward and optimizer, on
feature vectors in memory, with the sizes of a member of the default preset; with the eager loop and with
``backend="auto"``.

Everything runs on the CPU, what is compared in turn, round after round; figures are medians over the rounds. Weights
and training data are random, which costs the same: accuracy is not measured. The ranker's results and gradients are
compared with float64 before anything is timed.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import TOLERANCE, error
from benchmarks.machine import describe, write
from benchmarks.timing import Times, turns
from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.data.scenes import draw_scene
from tagrank.data.targets import ListTargets, encode_lists
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import decode
from tagrank.errors import InputError
from tagrank.features.backbones import load_backbone
from tagrank.features.folders import find_images
from tagrank.features.images import read_image
from tagrank.ranker.presets import PRESETS
from tagrank.recurrence import trace

# As in Flickr8k: tags, tags of the longest list, lists per image, and how long these are.
TAGS, MAX_LENGTH, LISTS, LIST_LENGTHS = 124, 8, 5, (1, 1, 2, 2, 2, 2, 3, 3, 3, 4)
SCENES, SCENE_PIXELS = 64, 400
# A call of annotate gets four batches: in one alone there would be nothing to overlap.
BATCHES = 4
PRESET = PRESETS["default"]

Seconds = dict[str, float]
Row = dict[str, Any]


class Laps:
    """Seconds of each stage: those since the last mark are added to the stage that ends."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def by_stages(annotator: Annotator, paths: Sequence[Path], batch: int) -> Seconds:
    """What :meth:`Annotator.annotate` does, one thing after another."""
    backbone = annotator.backbone()
    laps = Laps()
    for start in range(0, len(paths), batch):
        images = [read_image(path) for path in paths[start : start + batch]]
        laps.mark("read and decode")
        pixels = torch.stack([backbone.transform(image) for image in images])
        laps.mark("preprocessing")
        with torch.inference_mode():
            features = backbone(pixels).float()
        laps.mark("backbone")
        probabilities = annotator.probabilities(features)
        laps.mark("ranker")
        for ranking in decode(probabilities, "expected_gain"):
            annotator.tags(ranking)
        laps.mark("decoder")
    return laps.seconds


def end_to_end(annotator: Annotator, paths: Sequence[Path], batch: int) -> Seconds:
    """What a user waits for; it has no stages that could be told apart."""
    for _ in annotator.annotate(paths, batch_size=batch, decoder="expected_gain"):
        pass
    return {}


def training_step(ranker: TagRanker, features: Tensor, lists: ListTargets) -> Callable[[], Seconds]:
    """A function that makes a step like those of ``tagrank train``."""
    from tagrank.training.module import RankerModule

    # A schedule costs next to nothing.
    optimizer, _ = RankerModule(ranker.train(), replace(PRESET, schedule="constant"), references=[]).optimizer(1)
    laps = Laps()
    ranker.lstm.register_forward_pre_hook(lambda *_: laps.mark("forward, the rest"))
    ranker.lstm.register_forward_hook(lambda *_: laps.mark("forward, recurrence"))
    ranker.classifier.register_forward_hook(lambda *_: laps.mark("forward, the rest"))

    def run() -> Seconds:
        nonlocal laps
        laps = Laps()
        loss = ranker.loss(features, lists)
        laps.mark("loss")
        loss.backward()
        laps.mark("backward")
        optimizer.step()
        optimizer.zero_grad()
        laps.mark("optimizer")
        return laps.seconds

    return run


def make_ranker(feature_size: int, backend: str) -> TagRanker:
    """A member of the default preset's ensemble, without its auxiliary loss; the same weights each time."""
    torch.manual_seed(0)
    options = PRESET.ranker_options() | {"auxiliary": 0.0}
    return TagRanker(feature_size, TAGS, max_length=MAX_LENGTH, backend=backend, **options).eval()


def make_batch(feature_size: int) -> tuple[Tensor, ListTargets]:
    """Features ``[B, D]`` and lists for a step of the default preset."""
    torch.manual_seed(0)
    lengths = torch.tensor(LIST_LENGTHS)[torch.randint(len(LIST_LENGTHS), (PRESET.batch_size, LISTS))].tolist()
    lists = [[torch.randperm(TAGS)[:length].tolist() for length in image] for image in lengths]
    return torch.rand(PRESET.batch_size, feature_size), encode_lists(lists, TAGS, MAX_LENGTH + 1)


def check(ranker: TagRanker, features: Tensor, lists: ListTargets) -> list[str]:
    """Compare probabilities and gradients with the eager loop in float64; return the kernels that ran."""

    def results(ranker: TagRanker, features: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(ranker.loss(features, lists), list(ranker.parameters()))
        return [ranker.predict(features), *gradients]

    want = results(make_ranker(features.shape[1], "eager").double(), features.double())
    with trace() as kernels:
        deviation = error(results(ranker, features), want)
    if not deviation <= TOLERANCE[features.dtype]:
        raise SystemExit(f"WRONG: {ranker.lstm.backend}: relative error {deviation:.1e}")
    return sorted(set(kernels))


def time_rounds(part: str, runs: Mapping[str, Callable[[], Seconds]], seconds: float, count: int = 1) -> list[Row]:
    """Call these in turn, after a round to warm up; a row for each stage, one for all. A call deals with ``count``."""
    taken: dict[str, list[Seconds]] = {name: [] for name in runs}
    for name, run in turns(runs, seconds):
        start = time.perf_counter()
        taken[name].append(run() | {"all": time.perf_counter() - start})
    rows: list[Row] = []
    for name, rounds in taken.items():
        whole = statistics.median(stages["all"] for stages in rounds)
        for stage in rounds[0]:
            times = Times.of([stages[stage] * 1e3 / count for stages in rounds])
            row = {"part": part, "name": name, "stage": stage, **times.columns()}
            row |= {"share": round(times.median * count / 1e3 / whole, 4)}
            rows.append(row | {"per_second": round(count / whole, 2) if stage == "all" else None})
    return rows


def show(title: str, unit: str, rows: Sequence[Row]) -> None:
    """Print a table, and how the last of the contestants compares with the first."""
    print(f"{title}\n{'':18} {'stage':19} {'ms':>9} {'quartiles':>17}  share  per second")
    for row in rows:
        low, high = row["ms_quartiles"]
        rate = f"{row['per_second']:12.1f}" if row["per_second"] else ""
        print(f"{row['name']:18} {row['stage']:19} {row['ms']:9.3f} {low:8.3f} {high:8.3f} {row['share']:6.1%}{rate}")
    first, last = (row for row in rows if row["stage"] == "all")
    ratio = f"{first['ms'] / last['ms']:.2f}x {first['name']}"
    print(f"{last['name']}: {last['per_second']:.1f} {unit} per second, {ratio}\n", flush=True)


def photographs(folder: Path | None, scratch: Path, count: int) -> list[Path]:
    """``count`` photographs, evenly spaced over a folder's, or drawn; again and again where there are fewer."""
    if folder is None:
        for i in range(min(count, SCENES)):
            draw_scene(i, size=SCENE_PIXELS).image.save(scratch / f"{i:03d}.jpg", quality=90)
    found = find_images([folder or scratch])
    return [found[i * len(found) // count] for i in range(count)]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print both parts. Returns their rows, and what they were measured on."""
    if not (args.batch > 0 and args.seconds > 0):
        raise InputError(f"--batch, --seconds: expected numbers above 0, got {args.batch} and {args.seconds}")
    backbone = load_backbone(args.backbone)
    features, lists = make_batch(backbone.feature_size)
    rankers = {backend: make_ranker(backbone.feature_size, backend) for backend in ("eager", "auto")}
    vocabulary = Vocabulary([f"tag {number}" for number in range(TAGS)])
    annotator = Annotator(rankers["auto"], vocabulary, backbone.spec, backbone=backbone)
    with tempfile.TemporaryDirectory() as scratch:
        paths = photographs(args.images, Path(scratch), BATCHES * args.batch)
        pixels = statistics.mean(width * height for width, height in (read_image(path).size for path in paths))
        kernels = {name: check(ranker, features, lists) for name, ranker in rankers.items()}
        given = (annotator, paths, args.batch)
        runs = {"stage by stage": lambda: by_stages(*given), "Annotator.annotate": lambda: end_to_end(*given)}
        rows = time_rounds("annotation", runs, args.seconds, len(paths))
    pictures = f"{len(paths)} of {pixels / 1e6:.2f} megapixels"
    title = f"Annotation, ms per photograph: {pictures}, {args.batch} at a time, {backbone.name}"
    show(title, "photographs", rows)
    steps = {name: training_step(ranker, features, lists) for name, ranker in rankers.items()}
    rows += (trained := time_rounds("training", steps, args.seconds))
    title = f"Training, ms per step: {len(features)} images, {len(lists.targets)} lists, D = {backbone.feature_size}"
    show(title, "steps", trained)
    return {"backbone": backbone.spec, "batch": args.batch, "pictures": pictures, "kernels": kernels, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs (default: drawn scenes, as JPEG files)")
    backbone = "efficientnet_lite0" if find_spec("efficientnet_lite_pytorch") else "small_cnn"
    parser.add_argument("--backbone", default=backbone, help="as for tagrank (default here: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="photographs at a time (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each part (default: %(default)g)")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    try:
        result = describe() | measure(args)
        if args.json:
            write(args.json, result)
    except (InputError, OSError) as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
