"""Time searches of a synthetic index: a million photographs, with the vocabulary and the positions of Flickr8k.

The index is written by the writer that ``tagrank index`` uses, from random distributions, and takes some 2.5 GB below
``--folder``. Then queries of one to five tags are searched for, in order and in any order, and photographs like one of
the index; figures are medians over different queries, none asked twice, of an index that the system has in its cache.
Opening the index and a search are timed together with the cache emptied of it.
Before anything is timed, scores are compared with float64 probabilities that never were in the index.
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
# Half the spacing of float16 between 8 and 16, by which log p may be off; it is hardly below -16 here.
TOLERANCE = 2**-8


def main() -> None:
    """Write the index, check it, time it, print, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=15, help="of each kind")
    parser.add_argument("--folder", type=Path, help="for the index; a temporary one where left out")
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
    """The rows, the size of the index and the times to write and to open it."""
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
        # Of the mapped file, what was read counts too.
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "rows": rows,
    }


def fill(folder: Path, annotator: Annotator, photographs: int) -> tuple[float, Tensor]:
    """Write the index; seconds in the writer alone, and the distributions of the last photographs."""
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
    """Take the files out of the system's cache, as far as it follows the advice."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(folder: Path, search: Callable[[PhotoIndex], Any], times: int = 5) -> float:
    """Milliseconds to open the index and search it, with nothing of it in the system's cache; the median."""
    taken = []
    for _ in range(times):
        evict(folder)
        start = time.perf_counter()
        search(open_index(folder))
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def timed(name: str, searches: list[Callable[[], Any]]) -> dict[str, Any]:
    """The median, in milliseconds, and the first."""
    times = []
    for search in searches:
        start = time.perf_counter()
        search()
        times.append(1e3 * (time.perf_counter() - start))
    return {"search": name, "ms": statistics.median(times), "first_ms": times[0]}


if __name__ == "__main__":
    main()
