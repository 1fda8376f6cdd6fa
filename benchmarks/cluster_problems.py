"""What the kernels of benchmarks/cluster_variants.h compute, and how their results are checked, in bfloat16."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cluster_calls import BackwardCall, ForwardCall
from tagrank.recurrence.backends.eager import activate, lstm_loop

Call = ForwardCall | BackwardCall
Results = dict[str, Tensor]


class Problem:
    """The arrays of B rows, H hidden units and at most T steps. What a kernel writes is NaN before."""

    #: In which it is measured.
    modes: tuple[str, ...]

    def __init__(self, batch: int, hidden: int, steps: int, device: str) -> None:
        self.generator = torch.Generator(device).manual_seed(batch * hidden + steps)
        self.batch, self.hidden, self.steps, self.device = batch, hidden, steps, device
        self.addend = self.normal(batch, 4 * hidden)
        self.weight_hh = self.normal(4 * hidden, hidden, scale=1.5 / hidden**0.5)
        self.h0, self.c0 = self.normal(batch, hidden, scale=0.5), self.normal(batch, hidden)
        self.results: Results = {}

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        empty = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        return empty.normal_(std=scale, generator=self.generator)

    def nan(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=self.device)

    def call(self, steps: int, mode: str) -> Call:
        """What a kernel is given."""
        raise NotImplementedError

    def reference(self) -> Results:
        """The results in float64."""
        raise NotImplementedError

    def check(self, run: Callable[[Any], None], expected: Results, mode: str) -> float:
        """The largest error of a row of a result of ``run``: see :func:`largest`."""
        raise NotImplementedError

    def found(self, run: Callable[[Any], None], mode: str) -> Results:
        """What ``run`` writes."""
        self._run(run, mode)
        return {name: tensor.double() for name, tensor in self.results.items()}

    def repeats(self, run: Callable[[Any], None], mode: str) -> bool:
        """Whether ``run`` writes the same bits twice: what a race changes may be less than the tolerance."""
        self._run(run, mode)
        first = [tensor.clone() for tensor in self.results.values()]
        self._run(run, mode)
        return all(
            torch.equal(a.view(torch.int16), b.view(torch.int16))
            for a, b in zip(first, self.results.values(), strict=True)
        )

    def _run(self, run: Callable[[Any], None], mode: str) -> None:
        for tensor in self.results.values():
            tensor.fill_(torch.nan)
        run(self.call(self.steps, mode))


class ForwardProblem(Problem):
    """A forward pass, in inference (nothing is saved) and training (what backward needs is saved)."""

    modes = ("inference", "training")

    def __init__(self, batch: int, hidden: int, steps: int, device: str) -> None:
        super().__init__(batch, hidden, steps, device)
        self.gates_x = self.normal(steps, batch, 4 * hidden)
        self.results = {
            "output": self.nan(steps, batch, hidden),
            "h_n": self.nan(batch, hidden),
            "c_n": self.nan(batch, hidden),
            "gates": self.nan(steps, batch, 4 * hidden),
            "cells": self.nan(steps, batch, hidden, dtype=torch.float32),
        }

    def call(self, steps: int, mode: str) -> ForwardCall:
        inputs = (self.gates_x, self.weight_hh, self.h0, self.c0, self.addend)
        results = [tensor.data_ptr() for tensor in self.results.values()]
        saved = results[3:] if mode == "training" else [None, None]
        pointers = (*(tensor.data_ptr() for tensor in inputs), 4 * self.hidden, *results[:3], *saved)
        return ForwardCall(self.batch, steps, self.hidden, False, *pointers)

    def reference(self) -> Results:
        """The results in float64, but for what is saved."""
        inputs = (self.gates_x + self.addend.double(), self.weight_hh, self.h0, self.c0)
        output, c_n = lstm_loop(*(tensor.double() for tensor in inputs), self.steps)
        return {"output": output, "h_n": output[-1], "c_n": c_n}

    def check(self, run: Callable[[Any], None], expected: Results, mode: str) -> float:
        """As :meth:`Problem.check`. What is saved gives the output: it is checked, too."""
        found = self.found(run, mode)
        if mode == "training":
            found["saved"] = found["gates"][..., 3 * self.hidden :] * found["cells"].tanh()
            expected = expected | {"saved": expected["output"]}
        return largest(found, expected)


class BackwardProblem(Problem):
    """A backward pass: with gates that were saved and an input for each step ("training"), or with gates that are
    computed again from recurrent products and a constant input ("recompute"). The second one is only checked.
    """

    modes = ("training",)

    def __init__(self, batch: int, hidden: int, steps: int, device: str) -> None:
        super().__init__(batch, hidden, steps, device)
        self.grad_output = self.normal(steps, batch, hidden)
        self.grad_h_n, self.grad_c_n = self.normal(batch, hidden), self.normal(batch, hidden)
        # Some gates and cells. reference() puts those of an LSTM there.
        self.gates = self.nan(steps, batch, 4 * hidden).uniform_(generator=self.generator)
        self.cells = self.normal(steps, batch, hidden).float()
        self.products: Tensor | None = None
        self.results = {
            "d_gates": self.nan(steps, batch, 4 * hidden),
            "d_gates_x": self.nan(batch, 4 * hidden),
            "d_c0": self.nan(batch, hidden),
        }

    def call(self, steps: int, mode: str) -> BackwardCall:
        gates, again = self.gates, None
        if mode == "recompute":
            assert self.products is not None, "reference() was called before"
            gates, again = self.products, self.addend.data_ptr()
        inputs = [tensor.data_ptr() for tensor in (self.grad_h_n, self.grad_c_n, self.weight_hh, self.c0, gates)]
        d_gates, d_gates_x, d_c0 = (tensor.data_ptr() for tensor in self.results.values())
        strides = (ctypes.c_int * 3)(*self.grad_output.stride())
        pointers = (*inputs, again, self.cells.data_ptr(), d_gates, d_gates_x if again else None, d_c0)
        call = (self.batch, steps, self.hidden, bool(again), self.grad_output.data_ptr(), strides)
        return BackwardCall(*call, *pointers)

    def reference(self) -> Results:
        """The gradients of an LSTM with a constant input in float64. Sets what its forward pass saves."""
        gates_x = self.addend.double().expand(self.steps, -1, -1).clone().requires_grad_()
        c0 = self.c0.double().requires_grad_()
        weight_hh, h0 = self.weight_hh.double(), self.h0.double()
        output, c_n = lstm_loop(gates_x, weight_hh, h0, c0, self.steps)
        loss = (output * self.grad_output).sum() + (output[-1] * self.grad_h_n).sum() + (c_n * self.grad_c_n).sum()
        d_gates, d_c0 = torch.autograd.grad(loss, [gates_x, c0])
        with torch.no_grad():
            products = torch.cat([h0[None], output[:-1]]) @ weight_hh.t()
            gates = activate(gates_x + products)
            c = c0
            for t, (i, f, g, _) in enumerate(step.chunk(4, dim=-1) for step in gates):
                c = f * c + i * g
                self.cells[t] = c
            self.products = products.to(self.gates.dtype)
            self.gates.copy_(gates)
        return {"d_gates": d_gates, "d_gates_x": d_gates.sum(0), "d_c0": d_c0}

    def check(self, run: Callable[[Any], None], expected: Results, mode: str) -> float:
        """As :meth:`Problem.check`, in both ways."""
        each = {name: expected[name] for name in ("d_gates", "d_c0")}
        return max(largest(self.found(run, "training"), each), largest(self.found(run, "recompute"), expected))


#: By the pass.
PROBLEMS: dict[str, type[Problem]] = {"forward": ForwardProblem, "backward": BackwardProblem}


def largest(found: Results, expected: Results) -> float:
    """The largest error of a row of a result, in its norm relative to that of the row; infinite if a number is NaN.

    The last dimension is a row: of one batch row at one step. In the norm of all of them, one message that comes too
    late would hardly be seen. Rows that are smaller than the mean are measured by the mean.
    """
    errors = []
    for name, right in expected.items():
        norms = right.norm(dim=-1)
        errors.append(((found[name] - right).norm(dim=-1) / norms.clamp(min=norms.mean())).max().item())
    return max(errors) if all(error == error for error in errors) else float("inf")
