"""Time searches of a synthetic index: a million photographs, with as many tags and positions as for Flickr8k.

The index is written from random distributions by the writer that ``tagrank index`` uses. It takes about 2.5 GB below
``--folder``. The searches are queries of one to five tags, in order and in any order, and searches for photographs like
another one. Figures are medians over different queries while the system has the index in its cache. Opening the index
and a first search are also timed together, after the index was removed from the cache.
Before anything is timed, scores are compared with the float64 probabilities that the index was written from.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe, write
from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.data.vocabulary import Vocabulary
from tagrank.retrieval import IndexWriter, PhotoIndex, open_index

TAGS, MAX_LENGTH = 124, 8
BATCH = 4096
# The rounding error of log p: half the spacing of float16 between 8 and 16. Here log p is hardly ever below -16.
TOLERANCE = 2**-8


def main() -> None:
    """Write the index, check it, time it, print, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=15, help="of each kind")
    parser.add_argument("--folder", type=Path, help="where to write the index; by default a temporary folder")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = measure(Path(folder) / "index", args.photographs, args.queries)
    for row in result["rows"]:
        print(f"{row['search']:28s} {row['ms']:8.1f} ms    first {row['first_ms']:8.1f} ms")
    print({key: value for key, value in result.items() if key not in ("rows", "environment")})
    if args.json is not None:
        write(args.json, result)


def measure(folder: Path, photographs: int, queries: int) -> dict[str, Any]:
    """Measure. Returns a row for each kind of search, the size of the index, and the times to write and to open it."""
    annotator = Annotator(
        TagRanker(1, TAGS, max_length=MAX_LENGTH, embedding_size=1, hidden_size=1),
        Vocabulary([f"tag {i}" for i in range(TAGS)]),
    )
    seconds, kept = fill(folder, annotator, photographs)
    start = time.perf_counter()
    index = open_index(folder)
    opened = time.perf_counter() - start
    check(index, kept)
    tags = index.tags[:3]
    del index
    from_disk = {
        "3 tags, in order": cold(folder, lambda index: index.search(tags)),
        "3 tags, in any order": cold(folder, lambda index: index.search(tags, ordered=False)),
        "like a photograph": cold(folder, lambda index: index.similar(index.gains("0000007.jpg"))),
    }
    index = open_index(folder)
    rng = np.random.default_rng(0)

    def query(length: int) -> list[str]:
        return [index.tags[i] for i in rng.choice(TAGS, length, replace=False)]

    rows = []
    for length in (1, 2, 3, 5):
        asked = [query(length) for _ in range(queries)]
        rows.append(timed(f"{length} tags, in order", [lambda q=q: index.search(q) for q in asked]))
        if length > 1:
            searches = [lambda q=q: index.search(q, ordered=False) for q in asked]
            rows.append(timed(f"{length} tags, in any order", searches))
    gains = [index.gains(f"{i:07d}.jpg") for i in rng.integers(photographs, size=queries)]
    rows.append(timed("like a photograph", [lambda g=g: index.similar(g) for g in gains]))
    return {
        **describe(),
        "threads": torch.get_num_threads(),
        "photographs": photographs,
        "tags": TAGS,
        "positions": MAX_LENGTH + 1,
        "gigabytes": sum(file.stat().st_size for file in folder.iterdir()) / 1e9,
        "write_seconds": seconds,
        "open_seconds": opened,
        "from_disk_ms": from_disk,
        # This includes the pages of the mapped files that were read.
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "rows": rows,
    }


def fill(folder: Path, annotator: Annotator, photographs: int) -> tuple[float, Tensor]:
    """Write the index. Returns the seconds that only the writer took, and the last batch's distributions."""
    generator = torch.Generator().manual_seed(0)
    seconds = 0.0
    p = torch.empty(0)
    with IndexWriter(folder, annotator) as writer:
        for start in range(0, photographs, BATCH):
            count = min(BATCH, photographs - start)
            p = torch.randn(count, MAX_LENGTH + 1, TAGS + 1, generator=generator).mul_(2.0).softmax(-1)
            begun = time.perf_counter()
            writer.add([f"{i:07d}.jpg" for i in range(start, start + count)], p)
            seconds += time.perf_counter() - begun
    return seconds, p


def check(index: PhotoIndex, kept: Tensor) -> None:
    """Compare the scores of the last photographs with their probabilities in float64."""
    p = kept.double().numpy()
    for tags in ([3], [5, 77], [9, 0, 123]):
        expected = np.prod([p[:, t, tag] for t, tag in enumerate(tags)], axis=0)
        got = index.scores([index.tags[tag] for tag in tags])[-len(p) :]
        np.testing.assert_allclose(got, expected, rtol=np.expm1(len(tags) * TOLERANCE))


def evict(folder: Path) -> None:
    """Advise the system to remove the files from its cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(folder: Path, search: Callable[[PhotoIndex], Any], times: int = 5) -> float:
    """The median milliseconds to open the index and search it, after it was removed from the system's cache."""
    taken = []
    for _ in range(times):
        evict(folder)
        start = time.perf_counter()
        search(open_index(folder))
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def timed(name: str, searches: list[Callable[[], Any]]) -> dict[str, Any]:
    """The row of one kind of search: the median and the first time, in milliseconds."""
    times = []
    for search in searches:
        start = time.perf_counter()
        search()
        times.append(1e3 * (time.perf_counter() - start))
    return {"search": name, "ms": statistics.median(times), "first_ms": times[0]}


if __name__ == "__main__":
    main()
