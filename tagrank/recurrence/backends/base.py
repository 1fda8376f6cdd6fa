"""What a backend is: the class to derive from, and what its backward pass reads.

Shapes, for ``T`` steps, batch ``B`` and hidden size ``H``; gates in nn.LSTM's order i, f, g, o:

    gates_x     [B, 4H] (constant over time) or [T, B, 4H]
    weight_hh   [4H, H]
    h0, c0      [B, H]; None if zero, which saves the first step's product
    output      [T, B, H]
    gates       [T, B, 4H]  activated gates, in the dtype of gates_x
    cells       [T, B, H]   c_1..c_T, in float32 (float64 for float64)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu

#: ``(output, c_n, gates, cells)``
Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
#: ``(d_gates_x, d_weight_hh, d_h0, d_c0)``
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


class GatesLike(Protocol):
    """What a backend needs to know of ``gates_x`` before it is computed. A tensor is one, too."""

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def shape(self) -> Sequence[int]: ...


class BackwardInputs(NamedTuple):
    """What the backward pass reads. All tensors are contiguous, except ``grad_output``, which has any strides.

    Attributes:
        grad_output: ``[T, B, H]``.
        grad_c_n: ``[B, H]``.
        gates_x: as forward read it; no elements if forward saved the gates.
        weight_hh, h0, c0: as forward read them.
        output, gates, cells: as forward returned them.
        constant: whether ``gates_x`` was ``[B, 4H]``.
        weight_wanted: whether ``d_weight_hh`` is needed.
    """

    grad_output: Tensor
    grad_c_n: Tensor
    gates_x: Tensor
    weight_hh: Tensor
    h0: Tensor | None
    c0: Tensor | None
    output: Tensor
    gates: Tensor
    cells: Tensor
    constant: bool
    weight_wanted: bool

    @property
    def recompute(self) -> bool:
        """Whether forward saved no gates, so that backward must compute them again from ``gates_x``."""
        # Not by the number of elements: the batch may be empty.
        return self.gates.shape[0] == 0


class ForwardCall(NamedTuple):
    """What decides how a forward pass of the C++ library is launched.

    Attributes:
        device, dtype: of all tensors.
        batch, hidden, steps: ``B``, ``H``, ``T``.
        constant: whether ``gates_x`` is the same at each step.
        addend: what is added to ``gates_x`` at each step: ``"none"``, ``"row"`` (``[4H]``) or ``"rows"`` (``[B, 4H]``).
        h0, c0: whether they are given.
        save_gates, save_cells: as in :meth:`Backend.forward`.
    """

    device: torch.device
    dtype: torch.dtype
    batch: int
    hidden: int
    steps: int
    constant: bool
    addend: str
    h0: bool
    c0: bool
    save_gates: bool
    save_cells: bool


class BackwardCall(NamedTuple):
    """What decides how a backward pass of the C++ library is launched.

    Attributes:
        device, dtype, batch, hidden, steps, constant, c0: as in :class:`ForwardCall`.
        summed: whether the sum over time of the gates' gradients is wanted.
        recompute: whether the gates were not saved.
        grad_stride: the stride of ``grad_output`` over hidden units if it is 0, or 1 for any other; ``None`` without
            ``grad_output``.
        grad_h_n, grad_c_n: whether they are given.
        c0_wanted: whether the gradient of ``c0`` is wanted.
    """

    device: torch.device
    dtype: torch.dtype
    batch: int
    hidden: int
    steps: int
    constant: bool
    summed: bool
    recompute: bool
    c0: bool
    grad_stride: int | None
    grad_h_n: bool
    grad_c_n: bool
    c0_wanted: bool


class Choices(dict[tuple[object, ...], Any]):
    """What serves a call, by what decides it: to choose takes as long as to launch a kernel.

    A backend that changes, and whoever adds one, empties it.
    """

    #: So many kinds of calls are remembered; a program whose batches have all sizes must not fill the memory.
    MOST = 4096

    def remember(self, key: tuple[object, ...], choice: object) -> None:
        if len(self) >= self.MOST:
            self.clear()
        self[key] = choice


CHOSEN = Choices()


class Backend(ABC):
    """An implementation of the recurrence that has its own backward pass.

    Derive a class and :func:`register <tagrank.recurrence.backends.register>` an instance of it.
    """

    #: As in ``backend="..."``. The names given to ``tracing.record`` begin with it.
    name: ClassVar[str]
    #: The type of device on which ``auto`` uses it.
    device: ClassVar[str]
    #: The dtypes that it takes.
    dtypes: ClassVar[tuple[torch.dtype, ...]]
    #: How slow the eager loop is instead: ``auto`` warns with these words if the backend is unavailable.
    slow_without: ClassVar[str | None] = None

    #: What :meth:`launch` returns for every call, if it is always the same.
    fixed_launch: ClassVar[list[int] | None] = None

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        CHOSEN.clear()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        CHOSEN.clear()

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or ``None``."""

    def misset(self) -> str | None:
        """What the user set wrongly for it, or ``None``.

        A call on ``device`` that reaches this backend is then an error. ``auto`` does not pass it over in silence.
        """
        return None

    @abstractmethod
    def unsupported(self, gates_x: GatesLike, gpu: "Gpu | None" = None) -> str | None:
        """Why it cannot take these gates, or ``None``.

        Args:
            gates_x: its device, dtype and shape decide.
            gpu: a GPU to answer for that is not in this machine; ``None`` for the GPU that ``gates_x`` is on.
        """

    def unproven(self, gates_x: GatesLike, gpu: "Gpu | None" = None) -> str | None:
        """Why ``auto`` does not take gates that it supports, or ``None``; arguments as for :meth:`unsupported`."""
        return None

    @abstractmethod
    def forward(
        self,
        gates_x: Tensor,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        steps: int,
        save_gates: bool,
        save_cells: bool,
    ) -> Outputs:
        """Run all steps. All tensors are contiguous.

        Returns:
            ``(output, c_n, gates, cells)``. ``gates`` has no elements unless ``save_gates``, ``cells`` none unless
            ``save_cells``.
        """

    @abstractmethod
    def backward(self, inputs: BackwardInputs) -> Gradients:
        """The gradients ``(d_gates_x, d_weight_hh, d_h0, d_c0)``.

        ``d_weight_hh`` has no elements unless ``weight_wanted``: its product is half of the arithmetic. ``d_h0`` and
        ``d_c0`` have none if their state is ``None``. The inputs must not be written to.
        """

    def explain(self, gates_x: GatesLike, steps: int, gpu: "Gpu | None" = None) -> Iterable[str]:
        """Lines for ``tagrank.recurrence.explain`` that say what it would launch for ``steps`` steps of these gates.

        ``gates_x`` is ``[B, 4H]``; ``gpu`` as for :meth:`unsupported`.
        """
        return ()

    def by_library(self) -> bool:
        """Whether the C++ library runs its passes, as :meth:`launch` says, and the products around them."""
        return False

    def launch(self, call: ForwardCall | BackwardCall) -> list[int]:
        """How the C++ library is to run a pass, in the numbers of ``csrc/operators``. Only if :meth:`by_library`."""
        raise NotImplementedError

    def packs(self) -> bool:
        """Whether the C++ library runs it over packed batches too. Only with a ``fixed_launch``."""
        return False

    def interpreted(self) -> bool:
        """Whether it runs on CPU tensors now, slowly, instead of on ``device``: for tests without that device."""
        return False

    def variants(self) -> Mapping[str, Callable[[], AbstractContextManager[object]]]:
        """Its kernels by name, for tests and measurements of each.

        A value makes a context inside which the backend runs this kernel only, and ``unsupported`` answers for it.
        """
        return {self.name: nullcontext}
