"""The layer and its cell in what large trainings are made of, against the same training without it."""

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tagrank import ContextLSTM
from tagrank.recurrence import trace

SCRIPT = Path(__file__).with_name("distributed_training.py")


@cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distributed_training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def both() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = script().Both()
    return model


CONTEXT, INPUT = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)), torch.randn(6, 4, 2)


def gradients(result: Tensor, tensors: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(result.square().mean(), tuple(tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_are_scaled_under_autocast(dtype: torch.dtype) -> None:
    ours, theirs = both(), both()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    trained = []
    for model, scaled in ((ours, True), (theirs, False)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            with torch.autocast("cpu", dtype=dtype, enabled=scaled):
                loss = model(CONTEXT, INPUT).float().square().mean()
            optimizer.zero_grad()
            if scaled:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
        trained.append(list(model.parameters()))
    start = list(both().parameters())
    for got, want, before in zip(*trained, start, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.05 * (want - before).norm()


def test_a_step_that_overflows_is_skipped() -> None:
    model = both()
    before = [p.clone() for p in model.parameters()]
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.5), torch.amp.GradScaler("cpu", init_scale=1e38)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = model(CONTEXT, INPUT).square().sum() * 100
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 1e38
    for got, want in zip(model.parameters(), before, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_activation_checkpoints_give_the_same_gradients(reentrant: bool, autocast: bool) -> None:
    torch.manual_seed(0)
    layer = ContextLSTM(3, 5, input_size=2, num_layers=2, dropout=0.5)
    model = both()
    context = CONTEXT.clone().requires_grad_()

    def run(context: Tensor, input: Tensor) -> Tensor:
        return layer(context, input=input)[0].sum(0) + model(context, input)

    def once(call: Callable[[Tensor, Tensor], Tensor], create_graph: bool = False) -> list[Tensor]:
        for tensor in (context, *layer.parameters(), *model.parameters()):
            tensor.grad = None
        torch.manual_seed(3)  # of the dropout
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            result = call(context, INPUT)
        result.float().square().mean().backward(create_graph=create_graph)
        found = [tensor.grad for tensor in (context, *layer.parameters(), *model.parameters())]
        return [grad for grad in found if grad is not None]

    want = once(run)
    with trace() as kernels:
        got = once(lambda *given: checkpoint(run, *given, use_reentrant=reentrant))
    assert len(got) == len(want) == 1 + 8 + 8 + 4
    # Forward runs again for backward.
    assert kernels.count("native.forward") == 2 * kernels.count("native.backward")
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)
    if not reentrant:  # which refuses it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a cycle between a parameter and its gradient
            again = once(lambda *given: checkpoint(run, *given, use_reentrant=False), create_graph=True)
        for ours, theirs in zip(again, want, strict=True):
            torch.testing.assert_close(ours.detach(), theirs)


@pytest.mark.parametrize("kind", ["weight norm", "spectral norm", "low rank"])
def test_weights_may_be_parametrised(kind: str) -> None:
    class LowRank(nn.Module):
        """LoRA: the weight, which is frozen, and a product."""

        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(weight.shape[0], 2))
            self.down = nn.Parameter(torch.randn(2, weight.shape[1]))

        def forward(self, weight: Tensor) -> Tensor:
            return weight.detach() + self.up @ self.down

    plain, model = both(), both()
    for module, suffix in ((model.layer, "_l0"), (model.cell, "")):
        for name in (f"weight_ih{suffix}", f"weight_hh{suffix}"):
            if kind == "weight norm":
                nn.utils.parametrizations.weight_norm(module, name)
            elif kind == "spectral norm":
                nn.utils.parametrizations.spectral_norm(module, name)
            else:
                nn.utils.parametrize.register_parametrization(module, name, LowRank(getattr(module, name)))
    model.eval()  # spectral_norm changes its buffers in training
    # The same weights as tensors of their own, with which an independent model computes.
    weights = {
        name: getattr(model.get_submodule(name.split(".")[0]), name.split(".")[1])
        for name, _ in plain.named_parameters()
    }
    want = torch.func.functional_call(plain, weights, (CONTEXT, INPUT))
    got = model(CONTEXT, INPUT)
    torch.testing.assert_close(got, want)
    learnt = [p for n, p in model.named_parameters() if not (kind == "low rank" and n.endswith("original"))]
    for ours, theirs in zip(gradients(got, learnt), gradients(want, learnt), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.count_nonzero() > 0


def test_functional_calls_give_gradients() -> None:
    model, other = both(), both()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    tensors = {name: (0.5 * p.detach()).requires_grad_() for name, p in model.named_parameters()}
    got = torch.func.functional_call(model, tensors, (CONTEXT, INPUT))
    want = other(CONTEXT, INPUT)
    torch.testing.assert_close(got, want)
    for ours, theirs in zip(gradients(got, tensors.values()), gradients(want, other.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_ensemble_runs_under_vmap() -> None:
    models = [both(), both()]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.neg_()
    parameters, buffers = torch.func.stack_module_state(models)
    stateless = both()

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(stateless, (parameters, buffers), (CONTEXT, INPUT)).square().mean()

    got = torch.vmap(torch.func.grad(loss))(parameters, buffers)
    for row, model in enumerate(models):
        want = gradients(model(CONTEXT, INPUT), model.parameters())
        for (name, _), theirs in zip(model.named_parameters(), want, strict=True):
            torch.testing.assert_close(got[name][row], theirs)


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_with_twice_the_batch(strategy: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(SCRIPT), strategy, str(path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    got, model = torch.load(path), both()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    script().train(model, 0, 1)
    assert got.keys() == before.keys()
    for name, want in model.state_dict().items():
        assert not torch.allclose(before[name], want, atol=1e-4)
        torch.testing.assert_close(got[name], want, rtol=1e-5, atol=1e-6)
