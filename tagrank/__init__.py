"""A fast context-conditioned LSTM for PyTorch, and a ranked image annotator built on it."""

from tagrank.model import TagRanker
from tagrank.nn import ContextLSTM, ContextLSTMCell
from tagrank.recurrence import lstm_recurrence
from tagrank.recurrence.environment import env

__version__ = "0.1.0"
__all__ = ["ContextLSTM", "ContextLSTMCell", "TagRanker", "env", "lstm_recurrence"]
