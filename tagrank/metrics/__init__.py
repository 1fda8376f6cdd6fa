"""From ranked lists to numbers: measures for each image, their significance, and tags ranked in the wrong order."""

from tagrank.metrics.calibration import Calibration, Reliability, reliability
from tagrank.metrics.mistakes import OrderConfusion, order_confusions
from tagrank.metrics.next_tags import evaluate_next_tags
from tagrank.metrics.rankings import (
    GAINS,
    FloatArray,
    evaluate_lengths,
    evaluate_order,
    evaluate_rankings,
    negative_log_likelihood,
    summarise,
)
from tagrank.metrics.significance import Comparison, bootstrap_intervals, compare

__all__ = [
    "GAINS",
    "Calibration",
    "Comparison",
    "FloatArray",
    "OrderConfusion",
    "Reliability",
    "bootstrap_intervals",
    "compare",
    "evaluate_lengths",
    "evaluate_next_tags",
    "evaluate_order",
    "evaluate_rankings",
    "negative_log_likelihood",
    "order_confusions",
    "reliability",
    "summarise",
]
