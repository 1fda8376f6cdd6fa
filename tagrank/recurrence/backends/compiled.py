"""What the backends of the C++ library share: a pass is one call of an operator of ``csrc/operators``."""

import torch
from torch import Tensor

from tagrank.recurrence.backends.base import Backend, BackwardCall, BackwardInputs, ForwardCall, Gradients, Outputs
from tagrank.recurrence.backends.gpu import elsewhere

#: The gradients that ``tagrank::layer_backward`` can be asked for, in the order in which it returns them.
CONTEXT, INPUT, WEIGHT_IH, WEIGHT_HH, BIAS, H0, C0 = (1 << i for i in range(7))
#: And one that only ``tagrank::packed_backward`` can be asked for, which returns it after the others.
WEIGHT_HR = 1 << 7


class Compiled(Backend):
    """A backend whose passes the C++ library runs. Derived classes say how, with ``launch``."""

    def by_library(self) -> bool:
        return True

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
        if elsewhere(gates_x.device):
            with torch.cuda.device(gates_x.device):
                return self.forward(gates_x, weight_hh, h0, c0, steps, save_gates, save_cells)
        constant, size = gates_x.dim() == 2, (gates_x.shape[-2], weight_hh.shape[1])
        states = (h0 is not None, c0 is not None)
        call = ForwardCall(
            gates_x.device, gates_x.dtype, *size, steps, constant, "none", *states, save_gates, save_cells
        )
        given = (gates_x, None) if constant else (None, gates_x)
        launch = self.launch(call)
        output, _, c_n, *saved = torch.ops.tagrank.layer_forward.default(
            *given, h0, c0, None, weight_hh, None, None, steps, 2, save_gates, save_gates or save_cells, launch
        )
        gates = saved[0] if save_gates else gates_x.new_empty(0)
        cells = saved[1] if save_cells else gates_x.new_empty(0)
        return output, c_n, gates, cells

    def backward(self, inputs: BackwardInputs) -> Gradients:
        output, h0, c0 = inputs.output, inputs.h0, inputs.c0
        if elsewhere(output.device):
            with torch.cuda.device(output.device):
                return self.backward(inputs)
        steps, batch, hidden = output.shape
        call = BackwardCall(
            output.device,
            output.dtype,
            batch,
            hidden,
            steps,
            inputs.constant,
            inputs.constant,
            inputs.recompute,
            c0 is not None,
            grad_stride(inputs.grad_output),
            False,
            True,
            c0 is not None,
        )
        wanted = (CONTEXT if inputs.constant else INPUT) | (WEIGHT_HH if inputs.weight_wanted else 0)
        wanted |= (0 if h0 is None else H0) | (0 if c0 is None else C0)
        gradients = iter(
            torch.ops.tagrank.layer_backward.default(
                inputs.grad_output,
                None,
                inputs.grad_c_n,
                None,
                None,
                h0,
                c0,
                None,
                inputs.weight_hh,
                output,
                inputs.gates_x if inputs.recompute else inputs.gates,
                inputs.cells,
                inputs.constant,
                inputs.constant,
                inputs.recompute,
                wanted,
                self.launch(call),
            )
        )
        d_gates_x = next(gradients)
        d_weight_hh = next(gradients) if inputs.weight_wanted else output.new_empty(0)
        d_h0 = output.new_empty(0) if h0 is None else next(gradients)
        d_c0 = output.new_empty(0) if c0 is None else next(gradients)
        return d_gates_x, d_weight_hh, d_h0, d_c0


def grad_stride(grad_output: Tensor | None) -> int | None:
    """The field of :class:`BackwardCall`."""
    return None if grad_output is None else min(grad_output.stride(2), 1)
