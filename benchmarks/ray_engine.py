"""Photographs per second with the engine ray, on a cluster of this machine's cores, and in one process.

Both compute the features of the same photographs with the same backbone, in turn, round after round. What is timed are
the photographs after the first ones, when all workers are at work; how long the first one takes stands beside it, and
how long it takes to start the cluster. Photographs are drawn, or those of a folder (--images).

In each round the features of both are compared before a time counts.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe, write
from benchmarks.photographs import photographs
from benchmarks.timing import Times
from tagrank.allocator import keep_memory
from tagrank.cores import cores
from tagrank.engines.jobs import FeatureJob
from tagrank.engines.ray_cluster import connected, find_workers
from tagrank.engines.ray_stream import PART, run_on_cluster
from tagrank.errors import InputError
from tagrank.features.backbones import load_backbone

Stream = Iterator[tuple[Path, Tensor | InputError]]


def consume(start: Callable[[], Stream], skip: int) -> tuple[list[Tensor], float, float]:
    """The features of a stream, the seconds to its first, and the seconds of one after the first ``skip``."""
    features = []
    times = [time.perf_counter()]
    for _, feature in start():
        if isinstance(feature, InputError):
            raise feature
        features.append(feature)
        times.append(time.perf_counter())
    return features, times[1] - times[0], (times[-1] - times[skip]) / (len(features) - skip)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Time both engines."""
    job = FeatureJob(load_backbone(args.backbone))
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, connected("local") as ray:
        connect = time.perf_counter() - begun
        workers = find_workers(ray, "cpu")
        skip = 2 * workers.count * PART["cpu"]
        if args.photographs < 2 * skip:
            raise InputError(f"--photographs: expected at least {2 * skip}, got {args.photographs}")
        paths = photographs(args.images, Path(scratch), "small", args.photographs)
        engines: dict[str, Callable[[], Stream]] = {
            "local": lambda: job.run(paths),
            "ray": lambda: run_on_cluster(ray, job, paths, workers),
        }
        first: dict[str, list[float]] = {name: [] for name in engines}
        each: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(args.rounds):
            found = {}
            for name, start in engines.items():
                found[name], to_first, seconds = consume(start, skip)
                first[name].append(to_first)
                each[name].append(seconds)
                print(f"round {turn + 1}: {name}: {1 / seconds:.1f} per second", flush=True)
            for ours, theirs in zip(found["ray"], found["local"], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    rows = [
        {
            "name": name,
            **Times.of([1e3 * seconds for seconds in each[name]]).columns(),
            "per_second": round(1 / statistics.median(each[name]), 2),
            "first_seconds": round(statistics.median(first[name]), 2),
        }
        for name in engines
    ]
    return {
        "workers": workers.count,
        "photographs": args.photographs,
        "connect_seconds": round(connect, 2),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs (default: drawn ones, as JPEG files)")
    parser.add_argument("--photographs", type=int, default=1024, help="how many (default: %(default)s)")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="as for tagrank (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="at least 2 (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    keep_memory()
    try:
        described = describe()
        result = {"backbone": args.backbone, "cores": cores(), **measure(args)}
    except (InputError, OSError) as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    for row in result["rows"]:
        print(f"{row['name']:6} {row['per_second']:7.1f} per second; the first after {row['first_seconds']:.1f} s")
    print(f"{result['connect_seconds']:.1f} s to start the cluster")
    if args.json:
        write(args.json, described | result)


if __name__ == "__main__":
    main()
