"""Models with the layer in ONNX, run by onnxruntime."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tagrank
from tagrank import ContextLSTM, ContextLSTMCell, lstm_recurrence
from tagrank.errors import InputError

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'tagrank[onnx]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'tagrank[onnx]'")

H = 5
LAYERS: dict[str, dict[str, Any]] = {
    "context": {"context_size": 3},
    "no bias": {"context_size": 3, "bias": False},
    "input": {"context_size": 3, "input_size": 4},
    "no context": {"context_size": 0, "input_size": 4},
    "three layers": {"context_size": 3, "input_size": 4, "num_layers": 3, "bias": False},
    "dropout": {"context_size": 3, "num_layers": 2, "dropout": 0.5},
    "batch first": {"context_size": 3, "input_size": 4, "batch_first": True},
    "wide context": {"context_size": 4 * H + 1},
    "wide context and input": {"context_size": 4 * H + 1, "input_size": 4},
}


class Layers(nn.Module):
    """Several layers on the same arguments, each without states and with them, and the recurrence by itself."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ContextLSTM(hidden_size=H, **LAYERS[name]) for name in names)
        self.weight_hh = nn.Parameter(torch.randn(4 * H, H))
        self.linear = nn.Linear(4, 4 * H)

    def forward(self, context: Tensor, input: Tensor, state: Tensor) -> list[Tensor]:
        results = []
        for layer in self.layers:
            own = context[:, : layer.context_size] if layer.context_size else None
            words = input.transpose(0, 1) if layer.batch_first else input
            for hx in (None, (state[: layer.num_layers], -state[: layer.num_layers])):
                steps = None if layer.input_size else input.shape[0]
                output, states = layer(own, steps, words if layer.input_size else None, hx)
                results += [output, *states]
        # Gates that the translation takes apart and gates that it must not: [1, 4H] and [T, 1, 4H] are broadcast.
        gates = self.linear(input)
        for gates_x in (gates, gates + gates[:, :1], gates + gates[0, :1], gates.sigmoid() + gates[0], gates[0] * 2):
            results += lstm_recurrence(gates_x, self.weight_hh, state[0], steps=input.shape[0])
        return results


def arguments(batch: int, steps: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    shapes = (batch, 4 * H + 1), (steps, batch, 4), (3, batch, H)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def export(module: nn.Module, given: tuple[Tensor, ...], shapes: Any, path: Path) -> Any:
    return torch.onnx.export(
        module, given, path, dynamo=True, dynamic_shapes=shapes, custom_translation_table=tagrank.onnx_translations()
    )


def agree(module: nn.Module, path: Path, *several: tuple[Tensor, ...]) -> None:
    session = onnxruntime.InferenceSession(path)
    names = [value.name for value in session.get_inputs()]
    for given in several:
        got = session.run(None, dict(zip(names, [tensor.numpy() for tensor in given], strict=True)))
        for ours, theirs in zip(got, module(*given), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs.detach(), rtol=1e-5, atol=1e-5)


def operators(program: Any) -> list[str]:
    return [node.op_type for node in program.model.graph]


def test_onnxruntime_agrees_whatever_the_batch_and_the_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path = Layers(list(LAYERS)).eval(), tmp_path / "layers.onnx"
    sizes = ({0: "batch"}, {0: "time", 1: "batch"}, {1: "batch"})
    program = export(module, arguments(2, 6), sizes, path)
    count = sum(layer.num_layers for layer in module.layers)
    assert operators(program).count("LSTM") == 2 * count + 5
    agree(module, path, arguments(2, 6), arguments(3, 9), arguments(1, 2), arguments(4, 1))


@pytest.mark.parametrize(("name", "identities"), [("input", 0), ("wide context", 1)])
def test_a_context_up_to_the_width_of_the_gates_is_repeated(name: str, identities: int, tmp_path: Path) -> None:
    class One(Layers):
        def forward(self, *given: Tensor) -> list[Tensor]:
            return super().forward(*given)[:6]

    program = export(One([name]).eval(), arguments(2, 6), None, tmp_path / "layer.onnx")
    found = operators(program)
    assert found.count("EyeLike") == identities
    assert found.count("Gemm") == identities
    assert "MatMul" not in found


def test_a_product_with_another_weight_at_each_step_stays_a_product(tmp_path: Path) -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.randn(6, 4, 4 * H))
            self.weight_hh = nn.Parameter(torch.randn(4 * H, H))

        def forward(self, input: Tensor) -> list[Tensor]:
            return list(lstm_recurrence(input @ self.weights, self.weight_hh))

    module, path = Gates().eval(), tmp_path / "gates.onnx"
    program = export(module, arguments(2, 6)[1:2], None, path)
    assert operators(program).count("MatMul") == 1
    agree(module, path, arguments(2, 6)[1:2])


def test_the_cell_is_exported(tmp_path: Path) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = ContextLSTMCell(3, H, input_size=4)

        def forward(self, context: Tensor, input: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            gates = self.cell.context_gates(context)
            return self.cell(gates, input[1], self.cell(gates, input[0], (h, c)))

    def given(batch: int) -> tuple[Tensor, ...]:
        shapes = (batch, 3), (2, batch, 4), (batch, H), (batch, H)
        return tuple(torch.randn(shape) for shape in shapes)

    module, path = Steps(), tmp_path / "cell.onnx"
    program = export(module, given(2), ({0: "batch"}, {1: "batch"}, {0: "batch"}, {0: "batch"}), path)
    assert operators(program).count("LSTM") == 2
    agree(module, path, given(2), given(5))


def test_a_program_that_is_exported_already(tmp_path: Path) -> None:
    module, path = Layers(["input"]).eval(), tmp_path / "layer.onnx"
    with torch.no_grad():
        program = torch.export.export(module, arguments(2, 6))
    export(program, (), None, path)  # type: ignore[arg-type]
    agree(module, path, arguments(2, 6))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"pip install 'tagrank\[onnx\]'"):
        tagrank.onnx_translations()
