"""Time `tagrank features --engine ray`, on a cluster of this machine's cores, against the plain command.

Both are commands of their own, in turn, round after round: they start, compute the features of a few photographs, and
of many, and end. The difference of both is the time of the photographs between, without that of starting: hence the
photographs per second, and the seconds that starting takes. Photographs are drawn, or those of a folder (--images).

Before a time counts, the store that the command wrote is compared with that of the first: the same names, and features
that are equal in all but the last bits.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, write
from benchmarks.photographs import photographs
from benchmarks.timing import Times
from tagrank.errors import InputError
from tagrank.features.devices import cores
from tagrank.features.store import open_features

ENGINES = {"local": [], "ray": ["--engine", "ray", "--address", "local"]}


def link(paths: list[Path], folder: Path) -> Path:
    """A folder with links to these photographs."""
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / f"{number:06d}{path.suffix}").symlink_to(path.absolute())
    return folder


def run(engine: str, backbone: str, folder: Path, store: Path) -> float:
    """The seconds of a command that writes a new store."""
    shutil.rmtree(store, ignore_errors=True)
    command = ["features", str(folder), "--backbone", backbone, "--device", "cpu", "--out", str(store)]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tagrank", *command, *ENGINES[engine]], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise InputError(f"{engine}: expected exit code 0, got {done.returncode}: {done.stderr[-500:]}")
    return seconds


def difference(one: Path, other: Path) -> float:
    """The largest difference of two stores' features. Raises an InputError if their images differ."""
    first, second = open_features(one), open_features(other)
    if first.names != second.names:
        raise InputError(f"{other}: expected the images of {one}, in their order")
    return float((first.rows(first.names) - second.rows(first.names)).abs().max())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all commands."""
    seconds: dict[tuple[str, int], list[float]] = {}
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        found = photographs(args.images, Path(scratch), "small", args.many)
        folders = {count: link(found[:count], Path(scratch, str(count))) for count in (args.few, args.many)}
        for turn in range(args.rounds):
            for engine in ENGINES:
                for count, folder in folders.items():
                    store = Path(scratch, f"{engine}-{count}")
                    seconds.setdefault((engine, count), []).append(run(engine, args.backbone, folder, store))
                    worst = max(worst, difference(Path(scratch, f"local-{count}"), store))
                    if not worst < 1e-2:
                        raise InputError(f"{engine}: expected the features of the engine local, got others by {worst}")
                    print(f"round {turn + 1}: {engine}, {count} photographs: {seconds[engine, count][-1]:.1f} s")
    return {"rows": rows(seconds, args.few, args.many), "largest_difference": worst}


def rows(seconds: dict[tuple[str, int], list[float]], few: int, many: int) -> list[dict[str, Any]]:
    """A row for each engine: photographs per second, and the seconds of a command that has none."""
    table = []
    for engine in ENGINES:
        short, long = (statistics.median(seconds[engine, count]) for count in (few, many))
        rate = (many - few) / (long - short)
        table.append(
            {
                "name": engine,
                "per_second": round(rate, 2),
                "start_seconds": round(short - few / rate, 2),
                **{str(n): Times.of([1e3 * s for s in seconds[engine, n]]).columns() for n in (few, many)},
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs (default: drawn ones, as JPEG files)")
    parser.add_argument("--few", type=int, default=64, help="photographs (default: %(default)s)")
    parser.add_argument("--many", type=int, default=1024, help="photographs (default: %(default)s)")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="as for tagrank (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="at least 2 (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        described = describe()
        result = {"backbone": args.backbone, "cores": cores(), **measure(args)}
    except (InputError, OSError) as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    for row in result["rows"]:
        print(f"{row['name']:6} {row['per_second']:7.1f} photographs per second, {row['start_seconds']:.1f} s to start")
    if args.json:
        write(args.json, described | result)


if __name__ == "__main__":
    main()
