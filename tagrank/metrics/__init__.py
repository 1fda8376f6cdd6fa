"""From ranked lists to numbers: measures for each image, their significance, and tags ranked in the wrong order."""

from tagrank.metrics.rankings import (
    GAINS,
    FloatArray,
    evaluate_order,
    evaluate_rankings,
    negative_log_likelihood,
    summarise,
)

__all__ = [
    "GAINS",
    "FloatArray",
    "evaluate_order",
    "evaluate_rankings",
    "negative_log_likelihood",
    "summarise",
]
