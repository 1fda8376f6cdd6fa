"""From a model to one ranked list of distinct tags for each image.

``decoders`` decodes any model. It calls ``positions`` for a model whose positions are independent of each other, and
``feedback`` for a model that reads its own tags. ``output`` says which tags a list may show, and under which names.
"""

from tagrank.decode.decoders import decode_model, default_decoder
from tagrank.decode.feedback import FEEDBACK_DECODERS, decode_feedback
from tagrank.decode.output import OutputTags, read_synonyms, read_thresholds
from tagrank.decode.positions import DECODERS, decode
from tagrank.decode.ranking import RankedTag, Ranking

__all__ = [
    "DECODERS",
    "FEEDBACK_DECODERS",
    "OutputTags",
    "RankedTag",
    "Ranking",
    "decode",
    "decode_feedback",
    "decode_model",
    "default_decoder",
    "read_synonyms",
    "read_thresholds",
]
