"""From a model to one ranked list of distinct tags for each image.

``decoders.py`` decodes models of either kind: with ``positions.py`` if the positions of a list are independent of each
other, with ``feedback.py`` if the model reads its own tags. ``completion.py`` goes on with lists that people began.
``output.py`` says which tags a list may show, and under which names.
"""

from tagrank.decode.completion import NextTag, Suggestion
from tagrank.decode.decoders import check_decoder, decode_model, default_decoder
from tagrank.decode.feedback import FEEDBACK_DECODERS, decode_feedback
from tagrank.decode.output import OutputTags, read_synonyms, read_thresholds
from tagrank.decode.positions import DECODERS, decode
from tagrank.decode.ranking import RankedTag, Ranking, TagList

__all__ = [
    "DECODERS",
    "FEEDBACK_DECODERS",
    "NextTag",
    "OutputTags",
    "RankedTag",
    "Ranking",
    "Suggestion",
    "TagList",
    "check_decoder",
    "decode",
    "decode_feedback",
    "decode_model",
    "default_decoder",
    "read_synonyms",
    "read_thresholds",
]
