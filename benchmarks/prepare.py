"""Memory and time of ``tagrank prepare`` on synthetic boxes, with as many images as Open Images has. Linux only.

Each measurement runs in its own process. ``prepare`` keeps the images' names, so that no image is written twice. Apart
from these names, its memory should not depend on the number of images. ``bytes an image`` is the growth of peak memory
per image, including the names and the hash table that holds them.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, write

CLASSES = 600
BOXES = 8
HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"


def write_set(folder: Path, images: int) -> tuple[Path, Path]:
    """Write boxes and class descriptions in Open Images' format. Returns the paths of the two files."""
    boxes, classes = folder / "train-annotations-bbox.csv", folder / "class-descriptions-boxable.csv"
    classes.write_text("".join(f"/m/{number:05x},Class {number}\n" for number in range(CLASSES)))
    rng = random.Random(0)
    with boxes.open("w") as file:
        print(HEADER, file=file)
        for image in range(images):
            for _ in range(BOXES):
                x, y, label = rng.random(), rng.random(), int(CLASSES * rng.random() ** 3)
                box = f"{x / 2:.6f},{x / 2 + 0.4:.6f},{y / 2:.6f},{y / 2 + 0.3:.6f}"
                file.write(f"{image:016x},xclick,/m/{label:05x},1,{box},0,0,0,0,0\n")
    return boxes, classes


# The measured code runs in its own process, without the libraries of this process. It prints its peak memory in KB.
PEAK = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM:')).split()[1])"
PREPARE = f"""
import sys
from tagrank.cli import app
try:
    app()
except SystemExit as ended:
    assert not ended.code, ended.code
{PEAK}
"""
READ = f"""
import sys
from tagrank.data.manifest import read_manifest
print(len(read_manifest(sys.argv[1])), "images read")
{PEAK}
"""


def run(folder: Path, images: int) -> list[dict[str, Any]]:
    """Measure preparing a set of ``images`` images, and reading its manifest back."""
    boxes, classes = write_set(folder, images)
    out = folder / "manifest.jsonl"
    options = ["--classes", str(classes), "--images", str(folder), "--no-check-images", "--out", str(out)]
    rows = [
        measure("prepare openimages", images, PREPARE, "prepare", "openimages", str(boxes), *options),
        measure("read the manifest", images, READ, str(out)),
    ]
    for file in (boxes, classes, out):
        file.unlink()
    return rows


def measure(name: str, images: int, code: str, *arguments: str) -> dict[str, Any]:
    """Run code that prints how many images it read and then, last, its peak resident memory in KB."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode or f"{images} images read" not in done.stdout:
        raise RuntimeError(f"{name}, {images} images: exit code {done.returncode}, {done.stderr}")
    peak = int(done.stdout.split()[-1]) / 1024
    return {"name": name, "images": images, "seconds": round(seconds, 1), "peak_mb": round(peak, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 170_000, 1_700_000], help="numbers of images")
    parser.add_argument("--folder", type=Path, help="make the temporary folder for the set in this folder")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and results to this file")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prepare-", dir=args.folder))
    rows: list[dict[str, Any]] = []
    try:
        for images in args.images:
            for row in run(folder, images):
                first = next((other for other in rows if other["name"] == row["name"]), None)
                if first is not None:
                    grown = (row["peak_mb"] - first["peak_mb"]) * 2**20
                    row["bytes_an_image"] = round(grown / (row["images"] - first["images"]))
                rows.append(row)
                more = f", {row['bytes_an_image']} bytes an image" if "bytes_an_image" in row else ""
                print(
                    f"{row['name']:20} {images:9,} images {row['seconds']:6.1f} s, peak {row['peak_mb']:6.0f} MB{more}"
                )
    finally:
        shutil.rmtree(folder)
    if args.json:
        write(args.json, describe() | {"boxes_an_image": BOXES, "rows": rows})


if __name__ == "__main__":
    main()
