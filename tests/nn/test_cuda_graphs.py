"""The layer inside CUDA graphs that PyTorch makes: torch.cuda.make_graphed_callables and torch.compile."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tagrank import ContextLSTM
from tagrank.recurrence.backends import FUSED, Backend

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

#: Of the norm. cuBLAS may take another kernel in a graph, whose sums have another order.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
#: The kernels of each backend for GPUs by name, and what makes a context in which the backend runs no others.
KERNELS = {
    name: (backend, only)
    for backend in FUSED.values()
    if backend.device == "cuda"
    for name, only in backend.variants().items()
}


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    """What two ways of computing differ in may round to another TF32 number, and that is no fault."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class Tagger(nn.Module):
    """An image to the logits of a sequence: a linear layer, the recurrence, and another one."""

    def __init__(self, backend: str = "auto", steps: int = 5) -> None:
        super().__init__()
        self.reduce = nn.Linear(24, 16)
        self.lstm = ContextLSTM(16, 64, backend=backend)
        self.classify = nn.Linear(64, 11)
        self.steps = steps

    def forward(self, image: Tensor) -> Tensor:
        output, (h_n, c_n) = self.lstm(self.reduce(image), self.steps)
        logits: Tensor = self.classify(output) + h_n.mean() + c_n.mean()
        return logits


def images(count: int, dtype: torch.dtype, device: str = "cuda") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(9, 24, generator=generator).to(device, dtype).requires_grad_() for _ in range(count)]


def assert_near(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype
    assert (got - expected).float().norm() <= TOLERANCE[expected.dtype] * expected.float().norm()


def train(model: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], image: Tensor) -> list[Tensor]:
    """One step of gradient descent: the logits, and the gradients of the image and the parameters."""
    logits = model(image)
    gradients = torch.autograd.grad(logits.square().mean(), [image, *parameters])
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients[1:], strict=True):
            parameter.sub_(0.1 * gradient)
    # Copies, because the next replay overwrites what a graph returned.
    return [logits.detach().clone(), *(gradient.clone() for gradient in gradients)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["auto", *KERNELS])
def test_trains_as_a_graphed_callable(name: str, dtype: torch.dtype) -> None:
    """Several steps on other images, with parameters that change between the replays."""
    backend: Backend | None
    only: Callable[[], AbstractContextManager[object]]
    backend, only = KERNELS.get(name, (None, torch.enable_grad))
    with only():
        if backend is not None:
            gates_x = torch.empty(9, 4 * 64, dtype=dtype, device="cuda")
            reason = backend.unavailable() or backend.unsupported(gates_x)
            if reason is not None:
                pytest.skip(reason)
        torch.manual_seed(0)
        eager = Tagger("auto" if backend is None else backend.name).to("cuda", dtype)
        sample, *others = images(4, dtype)
        graphed: Any = torch.cuda.make_graphed_callables(copy.deepcopy(eager), (sample,))
        for image in others:
            got = train(graphed, [*graphed.parameters()], image)
            expected = train(eager, [*eager.parameters()], image.detach().requires_grad_())
            for a, b in zip(got, expected, strict=True):
                assert_near(a, b)
        for a, b in zip(graphed.parameters(), eager.parameters(), strict=True):
            assert_near(a.detach(), b.detach())
        graphed.eval()  # a graphed module runs eagerly in the mode in which it was not captured
        with torch.no_grad():
            assert_near(graphed(others[0]), eager(others[0]))


@pytest.mark.parametrize("proj_size", [0, 32])
@pytest.mark.parametrize("ragged", [False, True])
def test_both_directions_train_as_a_graphed_callable(ragged: bool, proj_size: int) -> None:
    """With lengths too, which may be others at each replay: nothing in the graph depends on them."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = ContextLSTM(24, 64, num_layers=2, bidirectional=True, proj_size=proj_size)

        def forward(self, image: Tensor, lengths: Tensor) -> Tensor:
            output, (h_n, c_n) = self.lstm(image, 5, lengths=lengths if ragged else None)
            return output.sum(0) + h_n.mean() + c_n.mean()

    torch.manual_seed(0)
    eager = Reader().cuda()
    sample, *others = images(3, torch.float32)
    lengths = [torch.randint(1, 6, (9,), generator=torch.Generator().manual_seed(i)).cuda() for i in range(3)]
    graphed: Any = torch.cuda.make_graphed_callables(copy.deepcopy(eager), (sample, lengths[0]))
    for image, given in zip(others, lengths[1:], strict=True):
        got = train(lambda x, g=given: graphed(x, g), [*graphed.parameters()], image)
        again = image.detach().requires_grad_()
        expected = train(lambda x, g=given: eager(x, g), [*eager.parameters()], again)
        for a, b in zip(got, expected, strict=True):
            assert_near(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_with_reduced_overhead(dtype: torch.dtype) -> None:
    """torch.compile records CUDA graphs, skips none, and replays them on other images."""
    # Without the pool of processes for compiling, which takes longer to start than this takes to compile.
    with torch._inductor.config.patch(compile_threads=1):
        compiled_as_eager("cuda", dtype)
    assert counters["inductor"]["cudagraph_skips"] == 0


def compiled_as_eager(device: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    eager = Tagger().to(device, dtype)
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for image in images(4, dtype, device):
        torch.compiler.cudagraph_mark_step_begin()
        got = train(compiled, [*model.parameters()], image)
        expected = train(eager, [*eager.parameters()], image.detach().requires_grad_())
        for a, b in zip(got, expected, strict=True):
            assert_near(a, b)
    for image in images(4, dtype, device):
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            assert_near(compiled(image).clone(), eager(image))
