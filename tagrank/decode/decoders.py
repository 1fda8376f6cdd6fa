"""From a model, with or without feedback, and features to one ranked list of distinct tags for each image."""

import torch
from torch import Tensor

from tagrank.decode.feedback import FEEDBACK_DECODERS, decode_feedback
from tagrank.decode.output import OutputTags
from tagrank.decode.positions import DECODERS, decode
from tagrank.decode.ranking import Ranking
from tagrank.errors import InputError
from tagrank.metrics import Calibration
from tagrank.ranker.ensemble import Ranker
from tagrank.ranker.tag_ranker import TagRanker


def default_decoder(ranker: Ranker) -> str:
    """``expected_gain`` for a model with feedback, whose positions are not independent; else ``headline``."""
    return "expected_gain" if ranker.feedback else "headline"


def check_decoder(ranker: Ranker, decoder: str | None) -> str:
    """The decoder to use with a model, which is :func:`default_decoder` for ``None``.

    Raises:
        InputError: the decoder does not exist, or does not go with this model.
    """
    known = list(dict.fromkeys([*DECODERS, *FEEDBACK_DECODERS]))
    if decoder is None:
        return default_decoder(ranker)
    if decoder not in known:
        raise InputError(f"decoder: expected one of {', '.join(known)}; got {decoder!r}")
    takes = FEEDBACK_DECODERS if ranker.feedback else tuple(DECODERS)
    if decoder not in takes:
        kind = "reads its own tags" if ranker.feedback else "does not read its own tags"
        raise InputError(f"decoder: this model {kind}: expected one of {', '.join(takes)}; got {decoder!r}")
    return decoder


@torch.no_grad()
def decode_model(
    ranker: Ranker,
    features: Tensor,
    decoder: str | None = None,
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    output: OutputTags | None = None,
    beams: int = 8,
    samples: int = 64,
    calibration: Calibration = Calibration(),
) -> list[Ranking]:
    """Choose a ranked list for each image.

    Args:
        ranker: the model, in evaluation mode.
        features: ``[B, D]``, on its device.
        decoder: of :func:`tagrank.decode.decode`, or for a model with feedback of
            :func:`tagrank.decode.decode_feedback`; :func:`default_decoder` if left out.
        top_k: this many tags, instead of a length chosen by the model.
        threshold: keep tags at least this likely to be on a person's list.
        output: which tags may be on a list, and their thresholds; all tags if left out.
        beams: lists that the decoder ``"beam"`` keeps at each position.
        samples: lists drawn per image from a model with feedback.
        calibration: of the scores. Thresholds are compared with calibrated scores; the order does not change.

    Raises:
        ValueError: an argument is out of range, or the decoder is not one for this kind of model.
    """
    decoder = default_decoder(ranker) if decoder is None else decoder
    if isinstance(ranker, TagRanker) and ranker.feedback:
        return decode_feedback(
            ranker,
            features,
            decoder,
            output,
            top_k=top_k,
            threshold=threshold,
            beams=beams,
            samples=samples,
            calibration=calibration,
        )
    p = ranker.predict(features)
    return decode(p, decoder, top_k=top_k, threshold=threshold, output=output, calibration=calibration)
