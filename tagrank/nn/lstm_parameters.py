"""What the layer has of nn.LSTM beside its computation: options, parameters under the same names, and conversion."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tagrank.nn.checks import as_int, check_context_size, check_dropout, check_flag, check_projection, check_sizes
from tagrank.nn.parameters import copy_parameters, initialise, lstm_parameters
from tagrank.nn.stack import Direction
from tagrank.recurrence.backends import check_name

if TYPE_CHECKING:
    from typing_extensions import Self


class ParametersOfLSTM(nn.Module):
    """The parameters of ``nn.LSTM(input_size + context_size, hidden_size)``, which :class:`ContextLSTM` runs."""

    def __init__(
        self,
        context_size: int,
        hidden_size: int,
        *,
        input_size: int = 0,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        backend: str = "auto",
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bidirectional: bool = False,
        proj_size: int = 0,
    ) -> None:
        super().__init__()
        context_size, hidden_size, input_size = check_sizes(context_size, hidden_size, input_size)
        num_layers = as_int("num_layers", num_layers)
        if num_layers <= 0:
            raise ValueError("num_layers must be greater than zero")
        self.context_size = context_size
        self.hidden_size = hidden_size
        self.input_size = input_size
        self.num_layers = num_layers
        self.bias = check_flag("bias", bias)
        self.batch_first = check_flag("batch_first", batch_first)
        self.dropout = check_dropout(dropout, num_layers)
        self.backend = check_name(backend)
        self.recompute = recompute
        self.bidirectional = check_flag("bidirectional", bidirectional)
        self.proj_size = check_projection(proj_size, hidden_size)
        features = input_size + context_size
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                made = lstm_parameters(features, hidden_size, bias, device, dtype, self.proj_size)
                for name, parameter in made.items():
                    self.register_parameter(name + suffix, parameter)
            features = (self.proj_size or hidden_size) * (2 if bidirectional else 1)
        self._parameter_names = self._name_parameters()
        self.reset_parameters()

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM, context_size: int, *, backend: str = "auto", recompute: bool = False) -> "Self":
        """A layer with copies of an ``nn.LSTM``'s parameters, on their device and in their dtype.

        Args:
            lstm: the module whose input is ``cat([x_t, context])``, or the context alone.
            context_size: how many features of its input are the context, the last ones.
            backend: as for the class.
            recompute: as for the class.

        Raises:
            TypeError: ``lstm`` is no ``nn.LSTM``, or ``context_size`` no integer.
            ValueError: it has fewer features than ``context_size``.
        """
        if not isinstance(lstm, nn.LSTM):
            raise TypeError(f"lstm: expected an nn.LSTM, got {type(lstm).__name__}")
        context_size = check_context_size(context_size, "lstm", lstm.input_size)
        layer = cls(
            context_size,
            lstm.hidden_size,
            input_size=lstm.input_size - context_size,
            num_layers=lstm.num_layers,
            bias=lstm.bias,
            batch_first=lstm.batch_first,
            dropout=lstm.dropout if lstm.num_layers > 1 else 0.0,
            backend=backend,
            recompute=recompute,
            device="meta",
            bidirectional=lstm.bidirectional,
            proj_size=lstm.proj_size,
        )
        copy_parameters(lstm, layer)
        return layer.train(lstm.training)

    def to_lstm(self) -> nn.LSTM:
        """An ``nn.LSTM`` with copies of this layer's parameters: its input is ``cat([x_t, context])``."""
        features = self.input_size + self.context_size
        sizes = features, self.hidden_size, self.num_layers
        both = self.bidirectional, self.proj_size
        lstm = nn.LSTM(*sizes, self.bias, self.batch_first, self.dropout, *both, device="meta")
        copy_parameters(self, lstm)
        lstm.flatten_parameters()
        return lstm.train(self.training)

    def reset_parameters(self) -> None:
        """Draw all parameters uniformly from ``(-1/sqrt(H), 1/sqrt(H))``, as nn.LSTM does."""
        initialise(self, self.hidden_size)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each direction of each layer, in the order of nn.LSTM."""
        return [[parameter for parameter in own if parameter is not None] for own in self._directions()]

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Modules that were pickled by earlier versions have neither.
        super().__setstate__({"bidirectional": False, "proj_size": 0} | state)  # type: ignore[no-untyped-call]
        self._parameter_names = self._name_parameters()

    def _suffixes(self, layer: int) -> Sequence[str]:
        """What the names of a layer's parameters end with, in each direction."""
        return (f"_l{layer}", f"_l{layer}_reverse") if self.bidirectional else (f"_l{layer}",)

    def _name_parameters(self) -> list[str | None]:
        names: tuple[str | None, ...] = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        names = names if self.bias else (*names[:2], None, None)
        names = (*names, "weight_hr") if self.proj_size else names
        suffixes = [suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer)]
        return [name and name + suffix for suffix in suffixes for name in names]

    def _all_parameters(self) -> list[Tensor | None]:
        """Those of each direction of each layer: ``weight_ih``, ``weight_hh``, ``bias_ih`` and ``bias_hh`` (``None`` if
        there are none), and ``weight_hr`` if there is a projection."""
        own, found = self._parameters, []
        for name in self._parameter_names:
            # The dictionary is many times as fast as an attribute. In data-parallel replicas and if they are
            # parametrised, the parameters are attributes only.
            parameter = None if name is None else own.get(name)
            found.append(getattr(self, name) if parameter is None and name is not None else parameter)
        return found

    def _directions(self) -> list[Direction]:
        each = 5 if self.proj_size else 4
        found: list[Any] = self._all_parameters()
        return [Direction(*(*found[at : at + each], None)[:5]) for at in range(0, len(found), each)]

    def flatten_parameters(self) -> None:
        """Does nothing. Code written for nn.LSTM may call it, to pack the weights for cuDNN."""

    def extra_repr(self) -> str:
        text = f"{self.context_size}, {self.hidden_size}"
        defaults: dict[str, Any] = {
            "input_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "proj_size": 0,
            "backend": "auto",
            "recompute": False,
        }
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)!r}"
        return text

    def _parameter(self, name: str) -> Tensor:
        # Not by get_parameter, because under functional_call and in data-parallel replicas it is a plain tensor.
        # For the dictionary see _all_parameters.
        found = self._parameters.get(name)
        parameter: Tensor = getattr(self, name) if found is None else found
        return parameter
