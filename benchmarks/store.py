"""A large feature store: the writer is killed half-way, another resumes, and all vectors are read back and compared.

Each writer and reader is a process of its own. ``peak MB`` is the largest resident memory of the process, including its
libraries and the pages of the mapped store; ``own MB`` is its memory at the end without pages of files. Runs on Linux.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, memory, write
from tagrank.features.store import FeatureWriter, open_features

BATCH = 512
SPEC = {"backbone": "synthetic", "weights": "none", "preprocessing": "none"}


def name(row: int) -> str:
    """The name of the image in a row."""
    return f"train/{row:016x}.jpg"


def vectors(rows: torch.Tensor, dimension: int) -> torch.Tensor:
    """The vectors of rows: float32 ``[N, D]``, integers that are exact in float16. No two rows have the same vector."""
    columns = torch.arange(dimension)
    # The first two columns distinguish up to 2048 ** 2 rows.
    factors = 1 + 2 * columns * (columns + 1)
    table = rows[:, None] * factors + columns * 97
    table[:, 0] = rows
    table[:, 1] = rows // 2048
    return (table % 2048).float()


def fill(folder: Path, rows: int, dimension: int, rows_per_shard: int) -> dict[str, Any]:
    """Write the rows that the store does not have yet, a batch at a time."""
    start = time.perf_counter()
    with FeatureWriter(folder, SPEC, dimension, rows_per_shard) as writer:
        had = len(writer.done)
        opened = time.perf_counter() - start
        for first in range(0, rows, BATCH):
            new = [row for row in range(first, min(rows, first + BATCH)) if name(row) not in writer.done]
            if new:
                writer.add([name(row) for row in new], vectors(torch.tensor(new), dimension))
    return {
        "open_seconds": round(opened, 2),
        "seconds": round(time.perf_counter() - start, 2),
        "rows": rows - had,
        "written_mb": round(_written(), 1),
    }


def check(folder: Path, rows: int, dimension: int, sample: int) -> dict[str, Any]:
    """Read a random sample, or all rows in order if ``sample`` is 0, and compare. The store may lack the last rows."""
    start = time.perf_counter()
    features = open_features(folder)
    opened = time.perf_counter() - start
    there = len(features)
    # Each row must be there once, in order, without a gap.
    right = there <= rows and features.names == tuple(map(name, range(there)))
    start = time.perf_counter()
    if sample:
        picked = torch.randint(there, (sample,), generator=torch.Generator().manual_seed(0))
        batches = [picked]
    else:
        batches = list(torch.arange(there).split(8192))
    for batch in batches:
        found = features.rows([name(row) for row in batch.tolist()])
        right = right and torch.equal(found, vectors(batch, dimension))
    return {
        "open_seconds": round(opened, 2),
        "seconds": round(time.perf_counter() - start, 2),
        "rows": sum(map(len, batches)),
        "there": there,
        "right": right,
    }


def run(folder: Path, rows: int, dimension: int, rows_per_shard: int) -> list[dict[str, Any]]:
    """Run all processes. Returns a row for each process except the killed writer.

    Raises:
        RuntimeError: a process failed, or a vector is wrong, missing or there twice.
    """
    sizes = ["--rows", str(rows), "-D", str(dimension), "--rows-per-shard", str(rows_per_shard)]

    def start(kind: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "benchmarks.store", "--as", kind, "--folder", str(folder), *sizes, *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def finish(what: str, kind: str, *more: str) -> dict[str, Any]:
        process = start(kind, *more)
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{what}: exit code {process.returncode}")
        return {"name": what} | json.loads(output)

    shards = -(-rows // rows_per_shard)
    writer = start("fill")
    while len(list(folder.glob("features-*"))) < shards // 2 and writer.poll() is None:
        time.sleep(0.01)
    writer.kill()
    writer.communicate()
    if writer.returncode != -9:
        raise RuntimeError(f"the first writer: expected exit code -9 (killed), got {writer.returncode}")
    results = [
        finish("read what a killed writer left", "check"),
        finish("resume", "fill"),
        finish("read a random sample", "check", "--sample", str(min(rows, 10_000))),
        finish("read all", "check"),
    ]
    survived, resumed, *_, last = results
    if not all(result["right"] for result in results if "right" in result):
        raise RuntimeError("an image has another image's vector, is missing, or is there twice")
    if last["there"] != rows or survived["there"] + resumed["rows"] != rows:
        raise RuntimeError(
            f"{survived['there']} rows survived, {resumed['rows']} were added, {last['there']} are there"
        )
    if survived["there"] < (shards // 2 - 1) * rows_per_shard:
        raise RuntimeError(f"only {survived['there']} rows survived of {shards // 2} shards")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="how many images")
    parser.add_argument("-D", type=int, default=256, help="length of a vector")
    parser.add_argument("--rows-per-shard", type=int, default=1024, help="the default of FeatureWriter")
    parser.add_argument("--folder", type=Path, help="where to make a folder for the store, which is removed")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    parser.add_argument("--sample", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--as", dest="kind", choices=("fill", "check"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        if args.kind == "fill":
            result = fill(args.folder, args.rows, args.D, args.rows_per_shard)
        else:
            result = check(args.folder, args.rows, args.D, args.sample)
        print(json.dumps(result | {"peak_mb": round(memory("VmHWM"), 1), "own_mb": round(memory("RssAnon"), 1)}))
        return
    folder = Path(tempfile.mkdtemp(prefix="store-", dir=args.folder))
    try:
        results = run(folder, args.rows, args.D, args.rows_per_shard)
        size = sum(file.stat().st_size for file in folder.iterdir())
    finally:
        shutil.rmtree(folder)
    print(f"{args.rows:,} rows of {args.D}, {size / 2**20:.0f} MB in shards of {args.rows_per_shard}")
    for result in results:
        print(
            f"{result['name']:32} {result['rows']:9,} rows  opened in {result['open_seconds']:5.2f} s, all in "
            f"{result['seconds']:6.2f} s  peak {result['peak_mb']:5.0f} MB, own {result['own_mb']:5.0f} MB"
        )
    if args.json:
        sizes = {"rows": args.rows, "D": args.D, "rows_per_shard": args.rows_per_shard, "mb": round(size / 2**20, 1)}
        write(args.json, describe() | {"sizes": sizes, "rows": results})


def _written() -> float:
    """Megabytes that this process has written to the file system."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:")) / 2**20


if __name__ == "__main__":
    main()
