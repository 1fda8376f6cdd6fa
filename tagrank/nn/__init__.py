"""The layer: an LSTM with a context that stays the same over time, in the manner of ``nn.LSTM`` and ``nn.LSTMCell``."""

from tagrank.nn.cell import ContextGates, ContextLSTMCell
from tagrank.nn.layer import ContextLSTM

__all__ = ["ContextGates", "ContextLSTM", "ContextLSTMCell"]
