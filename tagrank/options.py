"""Options that belong together, declared once: the command line and Python callers use the same dataclasses.

A field made by :func:`option` carries the help text of the command line; :mod:`tagrank.cli.options` makes the
command-line options from it. This module is imported before any command runs, so it needs neither torch nor numpy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    type: Any = None,
    parse: Callable[[str, str], Any] | None = None,
    **limits: float,
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: the value if the option is not given.
        help: what the option does, for ``--help``.
        flag: its name on the command line; ``--`` and the field's name with dashes if left out.
        type: its type on the command line, if that is not the field's.
        parse: makes the field's value from the flag's name (for messages) and the text of the command line.
        **limits: ``min`` and ``max`` of a number.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "type": type, "parse": parse, "limits": limits})


def split_tags(flag: str, text: str) -> tuple[str, ...]:
    """Tags separated by commas, as in a row of CSV: a tag in quotes may contain commas.

    Args:
        flag: where the text was given, for the message.
        text: such as ``dog, "salt, pepper"``.

    Raises:
        InputError: a quote is not closed, or something follows a tag in quotes.
    """
    import csv

    from tagrank.errors import InputError

    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        expected = 'tags separated by commas, one with a comma in quotes ("a, b")'
        raise InputError(f"{flag}: expected {expected}, got {text!r:.60} ({error})") from error
    return tuple(tag.strip() for row in rows for tag in row if tag.strip())


#: The keys of :data:`tagrank.decode.DECODERS`, and :data:`tagrank.decode.FEEDBACK_DECODERS`.
Decoder = Literal["headline", "expected_gain", "greedy", "assignment", "beam"]


@dataclass(frozen=True)
class ListOptions:
    """How a model's lists are chosen, and which tags they show.

    Attributes:
        decoder: see :func:`tagrank.decode.decode` and :func:`tagrank.decode.decode_feedback`; ``None`` for the default
            of the model.
        beams: lists that the decoder ``"beam"`` keeps at each position.
        samples: lists drawn for each photograph from a model with feedback.
        threshold: shows only tags at least this likely to be on a person's list.
        thresholds: thresholds of single tags, or a JSON file with them; they replace ``threshold``.
        include: the only tags to show; all tags if empty.
        exclude: tags not to show.
        synonyms: names with the tags to show under them, or a JSON file with them.
    """

    decoder: Decoder | None = option(
        None, "How a list is chosen. Default: headline; expected_gain for models with --feedback, which also have beam."
    )
    beams: int = option(8, "Lists that the decoder beam keeps at each position.", min=1)
    samples: int = option(64, "Lists drawn for each photograph from a model with --feedback.", min=1)
    threshold: float | None = option(
        None, "Show only tags at least this likely to be on a person's list.", min=0, max=1
    )
    thresholds: Path | Mapping[str, float] | None = option(
        None, 'JSON file with thresholds for some tags: {"dog": 0.5}.', type=Path | None
    )
    include: Sequence[str] = option(
        (), 'The only tags to show, separated by commas; one with a comma in quotes: "a, b".', parse=split_tags
    )
    exclude: Sequence[str] = option((), "Tags not to show, written as for --include.", parse=split_tags)
    synonyms: Path | Mapping[str, Sequence[str]] | None = option(
        None, 'JSON file of tags to show under one name: {"person": ["man", "woman"]}.', type=Path | None
    )


@dataclass(frozen=True)
class JudgedOptions:
    """What a model is judged by.

    Attributes:
        features: features of the images, a store or ``.npz``; computed with the model's backbone if left out.
        images: the folder of the images, if it is not the manifest's.
        split: the split to judge by; ``test`` if left out, or all images if the manifest has no splits.
    """

    features: Path | None = option(None, "Features of the images: a store or .npz. If left out, they are computed.")
    images: Path | None = option(None, "Folder of the images, if it is not the manifest's.")
    split: str | None = option(
        None, "Judge by this split. Default: 'test', or all images if the manifest has no splits."
    )


@dataclass(frozen=True)
class BaselineOptions:
    """Whether the baselines join the table, and what they are fitted on.

    Attributes:
        baselines: whether to fit them.
        train: the manifest to fit them on; the judged manifest, without the images that judge, if left out.
        train_features: features of ``train``; the judged features if left out and if they contain the images.
    """

    baselines: bool = option(False, "Fit the baselines too, and put them in the table.", flag="--baselines")
    train: Path | None = option(
        None, "Manifest to fit the baselines on. Default: MANIFEST, without the images that judge."
    )
    train_features: Path | None = option(None, "Features of --train. Default: --features, if it has these images.")


@dataclass(frozen=True)
class RivalOptions:
    """Another model to compare with.

    Attributes:
        against: its folder.
        against_features: features for it, if it has another backbone.
    """

    against: Path | None = option(None, "Compare with this model: by how much the two differ, and whether by chance.")
    against_features: Path | None = option(None, "Features for --against, if it has another backbone.")
