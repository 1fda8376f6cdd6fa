"""From a model, with or without feedback, and features to one ranked list of distinct tags for each image."""

import torch
from torch import Tensor

from tagrank.decode.feedback import decode_feedback
from tagrank.decode.output import OutputTags
from tagrank.decode.positions import decode
from tagrank.decode.ranking import Ranking
from tagrank.ranker.ensemble import Ranker
from tagrank.ranker.tag_ranker import TagRanker


def default_decoder(ranker: Ranker) -> str:
    """``expected_gain`` for a model with feedback, whose positions are not independent; otherwise ``headline``."""
    return "expected_gain" if ranker.feedback else "headline"


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
) -> list[Ranking]:
    """Choose a ranked list for each image.

    Args:
        ranker: the model, in evaluation mode.
        features: ``[B, D]``, on the model's device.
        decoder: a decoder of :func:`tagrank.decode.decode` or, for a model with feedback, of
            :func:`tagrank.decode.decode_feedback`. Default: :func:`default_decoder`.
        top_k: rank this many tags, instead of as many as the model chooses.
        threshold: keep tags at least this likely to be on a person's list.
        output: which tags may be on a list, and the score that each needs. Default: all tags.
        beams: how many lists the decoder ``"beam"`` keeps.
        samples: lists drawn per image from a model with feedback.

    Raises:
        ValueError: an argument is out of range, or the decoder is not one for this kind of model.
    """
    decoder = default_decoder(ranker) if decoder is None else decoder
    if isinstance(ranker, TagRanker) and ranker.feedback:
        return decode_feedback(
            ranker, features, decoder, output, top_k=top_k, threshold=threshold, beams=beams, samples=samples
        )
    return decode(ranker.predict(features), decoder, top_k=top_k, threshold=threshold, output=output)
