"""How ``annotate --given`` writes the rest of lists that people began."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tagrank.cli.app import Format
from tagrank.cli.terminal import shown

if TYPE_CHECKING:
    from tagrank.decode import Suggestion

DIGITS = 6
"""Of probabilities in files; further digits depend on the batch."""


def suggestion_writer(format: Format, out: TextIO) -> Callable[[Path, "Suggestion"], None]:
    """A function that writes one photograph's suggestion to a stream, and flushes.

    In CSV there is a row for each tag of the rest, then for each other tag that may come next, which has neither rank
    nor score.
    """
    if format is Format.text:
        return lambda path, suggestion: print(shown(_line(path, suggestion), out), file=out, flush=True)
    if format is Format.jsonl:
        return lambda path, suggestion: print(json.dumps(_record(path, suggestion)), file=out, flush=True)
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["image", "rank", "tag", "score", "next", "end", "unlike"])

    def write(path: Path, suggestion: "Suggestion") -> None:
        record = _record(path, suggestion)
        following = {tag["tag"]: tag["probability"] for tag in record["next"]}
        for tag in record["tags"]:
            chance = following.pop(tag["tag"], None)
            rows.writerow([path, tag["rank"], tag["tag"], tag["score"], chance, record["end"], record["unlike"]])
        rows.writerows([path, None, tag, None, p, record["end"], record["unlike"]] for tag, p in following.items())
        out.flush()

    return write


def _line(path: Path, suggestion: "Suggestion") -> str:
    rest = ", ".join(f"{tag.tag} ({tag.score:.2f})" for tag in suggestion) or "the list ends"
    following = ", ".join(f"{tag.tag} {tag.probability:.2f}" for tag in suggestion.next)
    mark = f"; unlike the training photographs ({suggestion.unlike:.3f})" if suggestion.unknown else ""
    given = f"{', '.join(suggestion.given)} | " if suggestion.given else ""
    return f"{path}: {given}{rest}; next: {following}; end {suggestion.end:.2f}{mark}"


def _record(path: Path, suggestion: "Suggestion") -> dict[str, Any]:
    return {
        "image": str(path),
        "unlike": None if math.isnan(suggestion.unlike) else round(suggestion.unlike, DIGITS),
        "given": suggestion.given,
        "tags": [tag._asdict() | {"score": round(tag.score, DIGITS)} for tag in suggestion],
        "next": [{"tag": tag.tag, "probability": round(tag.probability, DIGITS)} for tag in suggestion.next],
        "end": round(suggestion.end, DIGITS),
        "reads_given": suggestion.reads_given,
    }
