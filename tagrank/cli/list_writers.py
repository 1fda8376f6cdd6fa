"""How ``annotate`` writes lists of tags, and with ``--given`` the rest of lists that people began."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, Union

from tagrank.cli.app import Format
from tagrank.cli.terminal import shown

if TYPE_CHECKING:
    from tagrank.decode import Suggestion, TagList

DIGITS = 6
"""Of probabilities in files; further digits depend on the batch."""


def tag_writer(format: Format, out: TextIO) -> Callable[[Path, "TagList"], None]:
    """A function that writes one photograph's tags to a stream, and flushes."""
    if format is Format.text:
        return lambda path, tags: print(shown(_line(path, tags), out), file=out, flush=True)
    if format is Format.jsonl:
        return lambda path, tags: print(json.dumps(_record(path, tags)), file=out, flush=True)
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["image", "rank", "tag", "score", "unlike"])

    def write(path: Path, tags: "TagList") -> None:
        rows.writerows([path, t["rank"], t["tag"], t["score"], _unlike(tags)] for t in _rounded(tags))
        out.flush()

    return write


def suggestion_writer(format: Format, out: TextIO) -> Callable[[Path, "Suggestion"], None]:
    """A function that writes one photograph's suggestion to a stream, and flushes.

    In CSV there is a row for each tag of the rest, then for each other tag that may come next, which has neither rank
    nor score.
    """
    if format is Format.text:
        return lambda path, suggestion: print(shown(_suggested_line(path, suggestion), out), file=out, flush=True)
    if format is Format.jsonl:
        return lambda path, suggestion: print(json.dumps(_suggested_record(path, suggestion)), file=out, flush=True)
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["image", "rank", "tag", "score", "next", "end", "unlike"])

    def write(path: Path, suggestion: "Suggestion") -> None:
        record = _suggested_record(path, suggestion)
        following = {tag["tag"]: tag["probability"] for tag in record["next"]}
        for tag in record["tags"]:
            chance = following.pop(tag["tag"], None)
            rows.writerow([path, tag["rank"], tag["tag"], tag["score"], chance, record["end"], record["unlike"]])
        rows.writerows([path, None, tag, None, p, record["end"], record["unlike"]] for tag, p in following.items())
        out.flush()

    return write


def unlike_words(tags: Union["TagList", "Suggestion"]) -> str:
    """What is said of a photograph that is unlike those of the training."""
    return f"unlike the training photographs ({tags.unlike:.3f})"


def _line(path: Path, tags: "TagList") -> str:
    return f"{path}: {_in_words(tags)}{_mark(tags)}"


def _suggested_line(path: Path, suggestion: "Suggestion") -> str:
    following = ", ".join(f"{tag.tag} {tag.probability:.2f}" for tag in suggestion.next)
    given = f"{', '.join(suggestion.given)} | " if suggestion.given else ""
    rest = _in_words(suggestion) or "the list ends"
    return f"{path}: {given}{rest}; next: {following}; end {suggestion.end:.2f}{_mark(suggestion)}"


def _record(path: Path, tags: "TagList") -> dict[str, Any]:
    return {"image": str(path), "unlike": _unlike(tags), "tags": _rounded(tags)}


def _suggested_record(path: Path, suggestion: "Suggestion") -> dict[str, Any]:
    return {
        "image": str(path),
        "unlike": _unlike(suggestion),
        "given": suggestion.given,
        "tags": _rounded(suggestion),
        "next": [{"tag": tag.tag, "probability": round(tag.probability, DIGITS)} for tag in suggestion.next],
        "end": round(suggestion.end, DIGITS),
        "reads_given": suggestion.reads_given,
    }


def _in_words(tags: Union["TagList", "Suggestion"]) -> str:
    return ", ".join(f"{tag.tag} ({tag.score:.2f})" for tag in tags)


def _mark(tags: Union["TagList", "Suggestion"]) -> str:
    return f"; {unlike_words(tags)}" if tags.unknown else ""


def _rounded(tags: Union["TagList", "Suggestion"]) -> list[dict[str, Any]]:
    return [tag._asdict() | {"score": round(tag.score, DIGITS)} for tag in tags]


def _unlike(tags: Union["TagList", "Suggestion"]) -> float | None:
    """``None`` if the model does not know."""
    return None if math.isnan(tags.unlike) else round(tags.unlike, DIGITS)
