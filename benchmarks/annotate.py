"""Time the annotator against what people use instead, and its stages; and a training step of its ranker.

Files to results, in photographs per second, of the same files with the same backbone, in turn, round after round:

- a loop: open, transform, stack, compute, one after another;
- a DataLoader with a process for each core; on a GPU with pinned memory, channels-last and autocast;
- timm's network of the same name with timm's loader, if it is installed and has one;
- tagrank's features, and its tags (Annotator.annotate), which the ranker and the decoder make of them;
- on CPUs the same in a process that keeps the memory that it frees, as the command line does;
- with --compile, tagrank's features by a backbone that torch.compile has compiled before anything is timed;
- with --decode-on-device, a pipeline that decodes, resizes and crops where the backbone is: on a GPU by nvJPEG;
- with --against, the annotator of another checkout, in a process of its own too.

On a GPU the share of the time in which it computes the backbone is beside each; the rest is waiting for photographs.

Stage by stage, one thing after another, what a photograph costs: reading the file (which the system has in memory),
decoding it, the backbone's preprocessing, the backbone, the ranker, and the decoder that makes a ranked list. Then how
reading scales: in threads, as tagrank does it, and in the processes of a DataLoader. Photographs are a folder's
(--images), or drawn in the sizes that cameras make.

Training, on CPUs only, in milliseconds per step: forward (the ContextLSTM apart from the rest), loss, backward and
optimizer, on feature vectors in memory; with the eager loop and with backend="auto". The ranker's results and gradients
are compared with float64 before anything is timed.

Figures are medians over the rounds. Weights of the ranker, and with --random those of the backbone, are random, which
costs the same: accuracy is not measured.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from benchmarks.annotator_process import AnnotatorProcess
from benchmarks.feature_peers import DecodedOnDevice, Loader, Timm, plain_loop, timm_name
from benchmarks.machine import describe, write
from benchmarks.photographs import SIZES, photographs
from benchmarks.timing import Laps, Seconds, time_rounds
from benchmarks.training_step import PRESET, TAGS, check, make_batch, make_ranker, training_step
from tagrank.annotator import Annotator
from tagrank.cores import cores
from tagrank.data.files import first_line
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import decode
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone, load_backbone
from tagrank.features.computing import Computation
from tagrank.features.devices import find_device
from tagrank.features.extraction import extract_features, pixels_needed, single_core_threads
from tagrank.features.image_sources import use_source
from tagrank.features.images import use_image

COUNTS = {
    "cpu": {"small": 64, "2 MP": 32, "12 MP": 16, "48 MP": 4},
    "cuda": {"small": 1024, "2 MP": 512, "12 MP": 192, "48 MP": 32},
}
"""How many photographs of a size a call deals with; the loop, which reads them on one core, on a GPU an eighth."""

ROOT = Path(__file__).parents[1]

Row = dict[str, Any]


def by_stages(annotator: Annotator, paths: Sequence[Path]) -> Seconds:
    """What :meth:`Annotator.annotate` does, one thing after another."""
    backbone = annotator.backbone()
    computation, at_least = Computation(backbone), pixels_needed(backbone)
    laps = Laps()
    for start in range(0, len(paths), computation.batch_size):
        batch = paths[start : start + computation.batch_size]
        for path in batch:
            path.read_bytes()
        laps.mark("read")
        images = [use_image(path, lambda image: image, at_least) for path in batch]
        laps.mark("decode")
        pixels = [backbone.transform(image) for image in images]
        laps.mark("preprocessing")
        features = torch.stack(computation.start(pixels)())
        laps.mark("backbone")
        probabilities = annotator.probabilities(features)
        laps.mark("ranker")
        for ranking in decode(probabilities, "expected_gain"):
            annotator.tags(ranking)
        laps.mark("decoder")
    return laps.seconds


@contextmanager
def gpu_time(networks: Sequence[torch.nn.Module]) -> Iterator[Callable[[], Seconds]]:
    """A function that says for how long the GPU computed these networks since it was last called."""
    events: list[torch.cuda.Event] = []

    def mark(*_: Any) -> None:
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()

    def seconds() -> Seconds:
        torch.cuda.synchronize()
        busy = sum(begin.elapsed_time(end) for begin, end in list(pairwise(events))[::2]) / 1e3
        events.clear()
        return {"GPU busy": busy}

    if next(networks[0].parameters()).device.type != "cuda":
        yield dict
        return
    hooks = [add(mark) for n in networks for add in (n.register_forward_pre_hook, n.register_forward_hook)]
    yield seconds
    for hook in hooks:
        hook.remove()


def against_peers(annotator: Annotator, size: str, paths: Sequence[Path], args: argparse.Namespace) -> list[Row]:
    """Rows of photographs per second, of all contestants."""
    backbone = annotator.backbone()
    few = paths[:: 8 if annotator.device.type == "cuda" else 1]
    loader = Loader(backbone, paths)

    def consume(stream: Iterator[Any]) -> None:
        for _ in stream:
            pass

    networks: list[torch.nn.Module] = [backbone]
    contestants: dict[str, tuple[int, Callable[[], None]]] = {
        "loop": (len(few), lambda: plain_loop(backbone, few)),
        "DataLoader": (len(paths), loader.features),
    }
    if (name := timm_name(backbone.name)) is not None:
        timm = Timm(name, paths, annotator.device)
        networks.append(timm.network)
        contestants["timm"] = (len(paths), timm.features)
    if args.decode_on_device:
        try:
            decoding = DecodedOnDevice(backbone, paths)
        except RuntimeError as error:  # torchvision was built without nvJPEG
            raise InputError(f"--decode-on-device: {first_line(error)}") from error
        contestants["decoded on device"] = (len(paths), lambda: consume(iter(decoding.features())))
    if args.compile:
        compiled = deepcopy(backbone)
        compiled.compile_network()
        networks.append(compiled)
        contestants["tagrank features, compiled"] = (len(paths), lambda: consume(extract_features(compiled, paths)))
    contestants |= {
        "tagrank features": (len(paths), lambda: consume(extract_features(backbone, paths))),
        "tagrank annotate": (len(paths), lambda: consume(annotator.annotate(paths))),
    }
    with ExitStack() as stack:

        def in_process(checkout: Path, keep: bool) -> tuple[int, Callable[[], None]]:
            process = AnnotatorProcess(checkout, keep, args.model, args.weights_file, paths)
            return len(paths), stack.enter_context(process).annotate

        if annotator.device.type == "cpu":
            contestants["command line"] = in_process(ROOT, True)
        if args.against:
            contestants = {"tagrank before": in_process(args.against, False)} | contestants
        busy = stack.enter_context(gpu_time(networks))

        def timed(run: Callable[[], None]) -> Callable[[], Seconds]:
            def call() -> Seconds:
                run()
                return busy()

            return call

        runs = {name: timed(run) for name, (_, run) in contestants.items()}
        counts = {name: count for name, (count, _) in contestants.items()}
        return [{"size": size} | row for row in time_rounds("annotation", runs, args.seconds, counts)]


def stages(annotator: Annotator, size: str, paths: Sequence[Path], args: argparse.Namespace) -> list[Row]:
    """Rows of the stages of one photograph after another."""
    some = paths[:: max(1, len(paths) // 64)]
    runs = {"stage by stage": lambda: by_stages(annotator, some)}
    return [{"size": size} | row for row in time_rounds("stages", runs, args.seconds, len(some))]


def reading(annotator: Annotator, size: str, paths: Sequence[Path], args: argparse.Namespace) -> list[Row]:
    """Rows of photographs read and transformed per second, by threads and by processes, up to one for each core."""
    backbone = annotator.backbone()
    numbers = sorted({1, 2, *(n for n in (4, 8) if n < cores()), cores()})
    at_least = pixels_needed(backbone)
    with ExitStack() as stack:
        pools = {n: stack.enter_context(single_core_threads(n)) for n in numbers}

        def threads(pool: ThreadPoolExecutor) -> Seconds:
            for _ in pool.map(lambda path: use_source(path, backbone.transform, at_least), paths):
                pass
            return {}

        def processes(loader: Loader) -> Seconds:
            loader.read()
            return {}

        runs: dict[str, Callable[[], Seconds]] = {
            f"{n} threads": lambda pool=pool: threads(pool)  # type: ignore[misc]
            for n, pool in pools.items()
        }
        loader = Loader(backbone, paths)
        runs[f"DataLoader, {cores()}"] = lambda: processes(loader)
        return [{"size": size} | row for row in time_rounds("reading", runs, args.seconds / 2, len(paths))]


def cosines(backbone: Backbone, paths: Sequence[Path]) -> float:
    """The least cosine between the features of photographs on the backbone's device and in float32 on the CPU."""
    device = next(backbone.parameters()).device
    there = torch.stack([row for _, row in extract_features(backbone, paths) if isinstance(row, torch.Tensor)])
    here = torch.stack([row for _, row in extract_features(backbone.cpu(), paths) if isinstance(row, torch.Tensor)])
    backbone.to(device)
    return float(cosine_similarity(there, here).min())


def show(title: str, unit: str, rows: Sequence[Row]) -> None:
    """Print a table."""
    print(f"\n{title}\n{'':18} {'stage':19} {'ms':>9} {'quartiles':>19}  share  {unit} per second")
    for row in rows:
        low, high = row["ms_quartiles"]
        rate = f"{row['per_second']:12.1f}" if row["per_second"] else ""
        print(f"{row['name']:18} {row['stage']:19} {row['ms']:9.3f} {low:9.3f} {high:9.3f} {row['share']:6.1%}{rate}")
    sys.stdout.flush()


def random_weights(name: str, path: Path) -> None:
    """Write a state dict of a torchvision network that has random weights, and statistics that fit them."""
    from torchvision import models

    torch.manual_seed(0)
    try:
        network = models.get_model(name)
    except ValueError as error:
        raise InputError(f"--backbone: expected one of torchvision's for --random, got {name!r}") from error
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches, of which there is one
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 224, 224))
    torch.save(network.state_dict(), path)


def measure(args: argparse.Namespace, so_far: Callable[[dict[str, Any]], None]) -> None:
    """Measure and print all parts. ``so_far`` is given what is known whenever there is more."""
    if not args.seconds > 0:
        raise InputError(f"--seconds: expected a number above 0, got {args.seconds}")
    device = find_device(args.device)
    rows: list[Row] = []
    result: dict[str, Any] = {"device": str(device), "rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        args.weights_file = args.model = None
        if args.random:
            args.weights_file = scratch / f"{args.backbone}.pth"
            random_weights(args.backbone, args.weights_file)
        backbone = load_backbone(args.backbone, args.weights_file)
        features, lists = make_batch(backbone.feature_size)
        rankers = {backend: make_ranker(backbone.feature_size, backend) for backend in ("eager", "auto")}
        result["backbone"] = backbone.spec
        result["kernels"] = {name: check(ranker, features, lists) for name, ranker in rankers.items()}
        vocabulary = Vocabulary([f"tag {number}" for number in range(TAGS)])
        annotator = Annotator(make_ranker(backbone.feature_size, "auto"), vocabulary, backbone.spec)
        if args.against or device.type == "cpu":
            args.model = scratch / "model"
            annotator.save(args.model)
        annotator.to(device).backbone(args.weights_file)
        sizes = ["given"] if args.images else args.sizes
        for size in sizes:
            count = args.photographs or COUNTS[device.type].get(size, COUNTS[device.type]["small"])
            paths = photographs(args.images, scratch, size, count)
            pixels = statistics.mean(use_image(path, lambda image: image.width * image.height) for path in paths[:16])
            title = f"{len(paths)} photographs of {pixels / 1e6:.2f} megapixels, {backbone.name} on {device}"
            result["cosine"] = min(result.get("cosine", 1.0), cosines(annotator.backbone(), paths[:16]))
            for part, of in (("files to results", against_peers), ("stage by stage", stages), ("reading", reading)):
                rows += (some := of(annotator, size, paths, args))
                show(f"{part}: {title}", "photographs", some)
                so_far(result)
        print(f"\nleast cosine with float32 on the CPU: {result['cosine']:.6f}")
    if device.type == "cpu":
        steps = {name: training_step(ranker, features, lists) for name, ranker in rankers.items()}
        rows += (trained := time_rounds("training", steps, args.seconds))
        show(f"Training: {PRESET.batch_size} images, {len(lists.targets)} lists", "steps", trained)
        so_far(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs (default: drawn ones, as JPEG files)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "2 MP", "12 MP"], help="of drawn ones")
    parser.add_argument("--photographs", type=int, help="how many (default: by size and device)")
    backbone = "efficientnet_lite0" if find_spec("efficientnet_lite_pytorch") else "small_cnn"
    parser.add_argument("--backbone", default=backbone, help="as for tagrank (default here: %(default)s)")
    parser.add_argument("--random", action="store_true", help="with random weights, for one of torchvision's backbones")
    parser.add_argument("--device", default="auto", help="as for tagrank (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="time features with --compile, too")
    parser.add_argument("--decode-on-device", action="store_true", help="time decoding by the backbone's device, too")
    parser.add_argument("--against", type=Path, help="a checkout of another commit, to time its annotator too")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each table (default: %(default)g)")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    try:
        described = describe()
        measure(args, lambda result: write(args.json, described | result) if args.json else None)
    except (InputError, OSError) as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
