"""Ranked lists to numbers: measures of each image, their significance, and which tags are put in the wrong order."""

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
