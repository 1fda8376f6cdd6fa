"""The layer: an LSTM with a context that stays the same over time, as ``nn.LSTM`` and ``nn.LSTMCell`` are written."""

from tagrank.nn.cell import ContextGates, ContextLSTMCell
from tagrank.nn.layer import ContextLSTM

__all__ = ["ContextGates", "ContextLSTM", "ContextLSTMCell"]
