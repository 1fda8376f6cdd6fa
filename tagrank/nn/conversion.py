"""The search of a model for LSTMs whose input repeats over time, and their replacement by layers and cells of ours."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from tagrank.nn.repeated import RepeatedInputLSTM, first_rows
from tagrank.nn.repeated_cell import RepeatedInputLSTMCell

#: Of the norm of a model's outputs: how much they may change.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
#: If less than one in so many features repeats, nothing is gained, and it may be by chance.
FEW = 8
#: For ``B`` rows and ``C`` features that repeat, a cell is replaced if ``(B + 4) * C * 4H`` is at least this. A call
#: then saves ``B * C * 4H`` multiplications, and does not read ``C * 4H`` weights, which takes as long as four rows. To
#: see that the context repeats takes about 40 us, as long as that.
SMALL_CELL = 2**21
#: A cell is replaced if one in so many of the features that it multiplies repeats, those of its state included. With a
#: sixth or a fifth, the cells of a decoder of speech gained no more than the noise of a measurement (docs/models.md).
CELL_SHARE = 4
#: What to do where a cell cannot tell that its context repeats.
_BY_HAND = (
    "ContextLSTMCell takes the context once: gates = cell.context_gates(context), then cell(gates, input, (h, c))"
)


@dataclass(frozen=True)
class Finding:
    """An ``nn.LSTM`` or ``nn.LSTMCell`` of a model.

    Attributes:
        name: where it is in the model.
        converted: whether it was replaced.
        reason: what was found, in words.
    """

    name: str
    converted: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {'converted' if self.converted else 'left as it is'}, {self.reason}"


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did. As a text it has a line for each module.

    Attributes:
        findings: each LSTM of the model, in the model's order.
        error: the largest relative change of an output of the example, in the norm.
    """

    findings: list[Finding]
    error: float

    def __str__(self) -> str:
        if not self.findings:
            return "the model has no nn.LSTM and no nn.LSTMCell"
        return "\n".join(map(str, self.findings))


@dataclass
class _Seen:
    """What an LSTM read in the example: how often, in how many steps, and which features were the same at each step.

    A cell's sequence goes on as long as each call gets the hidden state that the call before returned.
    """

    calls: int = 0
    steps: int = 0
    same: Tensor | None = None
    #: Of a cell: the most rows of a call.
    rows: int = 0
    #: Of a cell: what a sequence read at its first step, and its length, by the hidden state that was returned last.
    sequences: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    running: tuple[Tensor, int] | None = None

    def add(self, steps: int, same: Tensor | None) -> None:
        self.steps = max(self.steps, steps)
        if same is not None:
            self.same = same if self.same is None else self.same & same


def convert(
    model: nn.Module,
    args: Sequence[Any] | Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    backend: str = "auto",
    tolerance: float | None = None,
) -> Conversion:
    """Replace each LSTM of a model whose input repeats over time by a faster one with the same results.

    The model runs on an example, whose inputs should be like real ones. An ``nn.LSTM`` is replaced if enough of its
    first or last features were the same at all steps of each call, as in ``cat([x_t, image], -1)`` or
    ``image.expand(T, -1, -1)``. An ``nn.LSTMCell`` is replaced if they were the same in all calls of a sequence, which
    goes on as long as each call gets the states that the one before returned.

    What takes their place (:class:`~tagrank.nn.repeated.RepeatedInputLSTM`,
    :class:`~tagrank.nn.repeated_cell.RepeatedInputLSTMCell`) has copies of their parameters under the same names and is
    called in the same way. A layer makes sure in each call that these features repeat; a cell, and a layer that is
    called for one step, compute anew if they do not. An optimizer must be made after the conversion.

    Args:
        model: is changed in place. It runs in evaluation mode, without gradients.
        args: the model's positional arguments; a tensor is the only one.
        kwargs: its keyword arguments.
        backend: of the new layers, as for :class:`~tagrank.nn.ContextLSTM`.
        tolerance: the largest relative change of an output, in the norm; by default 1e-4 in float32, 1e-10 in float64,
            0.02 in float16 and 0.05 in bfloat16.

    Returns:
        What was found, and why each LSTM that is left was left.

    Raises:
        ValueError: ``model`` is an LSTM itself: only a part of a model can be replaced.
        RuntimeError: an output changed by more than the tolerance. The model is then as it was before.

    Example:
        >>> print(tagrank.convert(captioner, (images, captions)))
        decoder.lstm: converted, its last 512 of 768 features repeat over 20 steps
    """
    if isinstance(model, nn.LSTM | nn.LSTMCell):
        raise ValueError("model: is an LSTM itself; ContextLSTM.from_lstm(lstm, context_size) makes a layer of it")
    arguments = (args,) if isinstance(args, Tensor) else tuple(args)
    lstms = {name: module for name, module in model.named_modules() if isinstance(module, nn.LSTM | nn.LSTMCell)}
    seen: dict[nn.Module, _Seen] = {module: _Seen() for module in lstms.values()}
    with _watched(seen):
        before = _outputs(model, arguments, kwargs or {})
    replacements: dict[nn.Module, nn.Module] = {}
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    findings = []
    for name, module in lstms.items():
        if bound := _bound(module, owners):
            findings.append(Finding(name, False, bound))
        else:
            findings.append(_judge(name, module, seen[module], backend, replacements))
    _replace(model, replacements)
    worst = 0.0
    try:
        after = _outputs(model, arguments, kwargs or {})
        for old, new in zip(before, after, strict=True):
            error = _change(old, new)
            allowed = TOLERANCE.get(old.dtype, 0.0) if tolerance is None else tolerance
            if not error <= allowed:
                raise RuntimeError(
                    f"convert: an output of the example changed by {error:.1e} of its norm, expected at most "
                    f"{allowed:.1e}; the model is as it was. Does it give the same outputs twice?"
                )
            worst = max(worst, error)
    except BaseException:
        _replace(model, {new: old for old, new in replacements.items()})
        raise
    return Conversion(findings, worst)


def _judge(
    name: str, module: nn.LSTM | nn.LSTMCell, seen: _Seen, backend: str, replacements: dict[nn.Module, nn.Module]
) -> Finding:
    """What to do with a module. If it is to be replaced, ``replacements`` gets the new one."""
    cell = isinstance(module, nn.LSTMCell)
    if seen.calls == 0:
        return Finding(name, False, "the example does not run it")
    if seen.same is None:
        why = f"the example runs it for {'one call' if cell else 'one step'} only"
        if seen.calls > 1 and cell:
            why = f"no call gets the states that the one before returned; {_BY_HAND}"
        return Finding(name, False, why)
    same = seen.same.tolist()
    first, last = _run_length(same), _run_length(same[::-1])
    count, where = (last, "last") if last >= first else (first, "first")
    if count == 0:
        steps = "call" if cell else "step"
        return Finding(name, False, f"neither its first nor its last features repeat from {steps} to {steps}")
    if count * FEW < len(same):
        return Finding(name, False, f"only its {where} {count} of {len(same)} features repeat")
    what = "all of its" if count == len(same) else f"its {where} {count} of"
    repeat = f"{what} {len(same)} features repeat over {seen.steps} {'calls' if cell else 'steps'}"
    new: RepeatedInputLSTM | RepeatedInputLSTMCell
    if isinstance(module, nn.LSTM):
        new = RepeatedInputLSTM.from_lstm(module, count, backend=backend)
    elif count * CELL_SHARE < len(same) + module.hidden_size:
        why = f"but that is little beside the rest and its state's {module.hidden_size}"
        return Finding(name, False, f"{repeat}, {why}; {_BY_HAND}")
    elif (seen.rows + 4) * count * 4 * module.hidden_size < SMALL_CELL:
        why = f"but to look for that takes as long as to read them anew, in {seen.rows} rows"
        return Finding(name, False, f"{repeat}, {why}; {_BY_HAND}")
    elif module.weight_ih.device.type != "cpu":
        return Finding(name, False, f"{repeat}; to look at each step, the GPU would have to be waited for; {_BY_HAND}")
    else:
        new = RepeatedInputLSTMCell.from_lstm_cell(module, count, backend=backend)
    if where == "first":
        new.move_context_first()
    replacements[module] = new
    return Finding(name, True, repeat)


def _bound(module: nn.Module, owners: Counter[int]) -> str | None:
    """What hangs on a module, which another module in its place would lose, or ``None``."""
    if type(module) not in (nn.LSTM, nn.LSTMCell):
        return f"it is a {type(module).__name__}, which may do more than nn.LSTM"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks, or is normalised by one; register them after the conversion"
    if any(owners[id(parameter)] > 1 for parameter in module.parameters()):
        return "it shares a parameter with another module"
    return None


def _run_length(flags: Sequence[bool]) -> int:
    return next((i for i, flag in enumerate(flags) if not flag), len(flags))


@contextmanager
def _watched(seen: Mapping[nn.Module, _Seen]) -> Iterator[None]:
    """Inside the block, note what each module reads."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own, input = seen[module], args[0] if args else kwargs.get("input")
        own.calls += 1
        if isinstance(input, PackedSequence) and isinstance(module, nn.LSTM):
            own.add(len(input.batch_sizes), _same_packed(input) if len(input.batch_sizes) > 1 else None)
        elif isinstance(input, Tensor) and type(module) is nn.LSTMCell:
            hx = args[1] if len(args) > 1 else kwargs.get("hx")
            before = own.sequences.get(hx[0]) if isinstance(hx, tuple | list) else None
            first, length = before or (input.detach().clone(), 0)
            own.running = first, length + 1
            own.rows = max(own.rows, input.shape[:-1].numel())
            if length:
                own.add(length + 1, _same(torch.stack([first, input])))
        elif isinstance(input, Tensor) and isinstance(module, nn.LSTM):
            by_time = input.transpose(0, 1) if module.batch_first and input.dim() == 3 else input
            own.add(len(by_time), _same(by_time) if len(by_time) > 1 else None)

    def note_result(module: nn.Module, args: tuple[Any, ...], result: tuple[Tensor, Any]) -> None:
        seen[module].sequences[result[0]] = seen[module].running

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in seen]
    hooks += [module.register_forward_hook(note_result) for module in seen if type(module) is nn.LSTMCell]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _same_packed(input: PackedSequence) -> Tensor:
    """Which features are the same at all steps of each sequence, ``[F]``."""
    return (input.data == input.data.index_select(0, first_rows(input))).all(0).cpu()


def _same(by_time: Tensor) -> Tensor:
    """Which features of ``[T, ..., F]`` are the same at all times, ``[F]``."""
    return (by_time == by_time[:1]).flatten(0, -2).all(0).cpu()


@torch.no_grad()
def _outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that the model returns, in evaluation mode.

    Random numbers are the same each time. TF32 is off: two right results may differ by more than the tolerance in it.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.random.fork_rng(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            torch.manual_seed(0)
            result = model(*args, **kwargs)
    finally:
        for module, training in modes.items():
            module.training = training
    return [leaf.detach().clone() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _change(old: Tensor, new: Tensor) -> float:
    """The relative change in the norm; infinite if the shape or the places of NaN changed."""
    if old.shape != new.shape or old.dtype != new.dtype or not torch.equal(old.isnan(), new.isnan()):
        return float("inf")
    a, b = old.double().nan_to_num(), new.double().nan_to_num()
    norm, change = float(a.norm()), float((a - b).norm())
    return change / norm if norm else change


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the place of others, wherever the model has them."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child].train(child.training)
