"""Groups of options, declared once: the command line and Python callers use the same dataclasses.

A field made by :func:`option` carries the help text of the command line; :mod:`tagrank.cli.expansion` makes the
command-line options from it. Every command imports this module when it starts, so it must import neither torch nor
numpy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# The same option of several commands, in a dataclass or by itself.
FEATURES = "Features of the images: a store or .npz. If left out, they are computed."
IMAGES = "Folder of the images, if it is not the manifest's folder."
BACKBONE = (
    "vgg16 or any classifier of torchvision, efficientnet_lite0 to 2, timm:NAME, open_clip:NAME/PRETRAINED, "
    "hf:ORG/NAME (transformers)"
)
WEIGHTS = "Weights of the backbone: a .pth or .safetensors file, a folder for hf:, or a name of torchvision's."
DEVICE = "Where networks run: auto (a GPU if there is one), cpu, cuda, cuda:N or mps."
SEED = "Seed of everything that is drawn at random."
MAX_SEED = 2**32 - 1


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
        flag: its name on the command line. Default: ``--`` and the field's name, with dashes for underscores.
        type: its type on the command line, if it differs from the field's type.
        parse: makes the field's value from the flag's name (for messages) and the text on the command line.
        **limits: ``min`` and ``max`` of a number.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "type": type, "parse": parse, "limits": limits})


def split_tags(flag: str, text: str) -> tuple[str, ...]:
    """Split tags that are separated by commas, as in a row of CSV: a tag in quotes may contain commas.

    Args:
        flag: where the text was given, for the error message.
        text: such as ``dog, "salt, pepper"``.

    Raises:
        InputError: a quote is not closed, or something follows a tag in quotes.
    """
    import csv

    from tagrank.errors import InputError

    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        expected = 'tags separated by commas, and quotes around a tag with a comma ("a, b")'
        raise InputError(f"{flag}: expected {expected}, got {text!r:.60} ({error})") from error
    return tuple(tag.strip() for row in rows for tag in row if tag.strip())


#: The keys of :data:`tagrank.decode.DECODERS` and the names in :data:`tagrank.decode.FEEDBACK_DECODERS`.
Decoder = Literal["headline", "expected_gain", "greedy", "assignment", "beam"]


@dataclass(frozen=True)
class ListOptions:
    """How a model's lists are chosen, and which tags they show.

    Attributes:
        decoder: see :func:`tagrank.decode.decode` and :func:`tagrank.decode.decode_feedback`; ``None`` for the default
            of the model.
        beams: lists that the decoder ``"beam"`` keeps at each position.
        samples: lists drawn for each photograph from a model with feedback.
        threshold: show only tags at least this likely to be on a person's list.
        thresholds: thresholds for single tags, which replace ``threshold`` for them, or a JSON file of thresholds.
        include: show only these tags; all tags if empty.
        exclude: do not show these tags.
        synonyms: names, each with the tags to show under it, or a JSON file of synonyms.
    """

    decoder: Decoder | None = option(
        None,
        "How a list is chosen. Default: headline; with --feedback, expected_gain. beam needs --feedback.",
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
        (), 'Show only these tags, separated by commas; put a tag with a comma in quotes: "a, b".', parse=split_tags
    )
    exclude: Sequence[str] = option((), "Do not show these tags, written as for --include.", parse=split_tags)
    synonyms: Path | Mapping[str, Sequence[str]] | None = option(
        None, 'JSON file of tags to show under one name: {"person": ["man", "woman"]}.', type=Path | None
    )


@dataclass(frozen=True)
class JudgedOptions:
    """The images that judge a model, and their features.

    Attributes:
        features: features of the images, a store or ``.npz``; computed with the model's backbone if left out.
        images: the folder of the images, if it is not the manifest's.
        split: the split to judge by; ``test`` if left out, or all images if the manifest has no splits.
    """

    features: Path | None = option(None, FEATURES)
    images: Path | None = option(None, IMAGES)
    split: str | None = option(
        None, "Judge by this split. Default: 'test', or all images if the manifest has no splits."
    )


@dataclass(frozen=True)
class BaselineOptions:
    """Whether the table has the baselines, and the images to fit them on.

    Attributes:
        baselines: whether to fit the baselines.
        train: the manifest to fit them on. Default: the manifest that judges, without the images that judge.
        train_features: features of ``train``. Default: the features of the images that judge, if these contain the
            images of ``train``.
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
        against: the folder of the other model.
        against_features: features for the other model, if it has another backbone.
    """

    against: Path | None = option(None, "Compare with this model: by how much the two differ, and whether by chance.")
    against_features: Path | None = option(None, "Features for --against, if it has another backbone.")
