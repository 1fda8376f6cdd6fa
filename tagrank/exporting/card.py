"""What an exported file says of itself, in its metadata under :data:`KEY`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tagrank.data.files import parse_json
from tagrank.data.schema import Positive, decode
from tagrank.data.sealed import seal, unseal
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.exporting.preprocessing import Preprocessing
from tagrank.metrics import Calibration

KEY = "tagrank"
FORMAT = 1
Input = Literal["photographs", "features"]


@dataclass(frozen=True)
class Card:
    """What a decoder needs beside the distributions.

    Attributes:
        format: :data:`FORMAT`.
        input: what the file's program takes: ``"photographs"`` after ``preprocessing``, float32 ``[B, 3, h, w]``, or
            ``"features"`` of the backbone, float32 ``[B, feature_size]``.
        feature_size: ``D``.
        vocabulary: the tags, in the order of their classes; the class after the last is END.
        calibration: of the scores.
        backbone: its ``spec``; ``None`` if it is not known.
        preprocessing: from a photograph to what the program takes; ``None`` if it takes features.
        training: how the model was trained, for the record.
        model: a digest of the model that was exported (:func:`tagrank.model_files.model_digest`).
    """

    format: int
    input: Literal["photographs"] | Literal["features"]
    feature_size: Positive
    vocabulary: tuple[str, ...]
    calibration: Calibration
    backbone: dict[str, str] | None
    preprocessing: Preprocessing | None
    training: dict[str, Any]
    model: str

    def encoded(self) -> str:
        """The metadata: JSON, with a checksum."""
        return seal(asdict(self)).decode()


def read_card(path: Path, metadata: Mapping[str, str]) -> tuple[Card, Vocabulary]:
    """The card in the metadata of a file, and its vocabulary.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    if KEY not in metadata:
        raise InputError(f"{path}: expected a file that tagrank export wrote, this one has no metadata {KEY!r}")
    try:
        value = unseal(path, parse_json(metadata[KEY]))
        if isinstance(value, dict) and value.get("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {value.get('format')!r:.60}")
        card: Card = decode(Card, value)
        if (card.input == "photographs") == (card.preprocessing is None):
            raise ValueError(
                f"preprocessing: expected it if photographs are the input, and only then; got {card.input}"
            )
        return card, Vocabulary(card.vocabulary)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: its metadata {KEY!r} is damaged: {error}") from error
