"""Train and run three models with nn.LSTM or nn.LSTMCell, and the same models with ContextLSTM or ContextLSTMCell.

The models are those of docs/models/: a captioning decoder, a conditional sequence VAE, and a decoder of speech for many
speakers. A training step is a batch forward, its loss, backward, and a step of Adam. Generation is step by step.

First each way of writing a model trains for some steps in float64, from the same parameters on the same batches, and
the losses and what is generated are compared. Then all are timed in turn in float32, and the speed-up is the ratio of
their median times. "convert" is the model as it was, given to tagrank.convert.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.machine import describe, write
from benchmarks.timing import Times, interleave, options, processor_times
from docs.models import captioning, sequence_vae, speaker_decoder
from tagrank import convert

#: The largest relative difference of a right loss or output.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
STEPS = 5
BEFORE, CONVERTED, AFTER = "before", "convert", "after"

Batch = Sequence[Tensor]


class Model(NamedTuple):
    """A model in its two versions.

    Attributes:
        name: in the result file.
        before: the class with nn.LSTM or nn.LSTMCell.
        after: the class with ContextLSTM or ContextLSTMCell.
        sizes: what both take.
        draw: a batch, from the sizes and a generator of random numbers.
        beginning: what ``generate`` takes, from a model, its sizes and a batch.
    """

    name: str
    before: Callable[[Any], nn.Module]
    after: Callable[[Any], nn.Module]
    sizes: Any
    draw: Callable[[Any, torch.Generator], Batch]
    beginning: Callable[[Any, Any, Batch], tuple[Any, ...]]


def _of_captioner(model: captioning.Captioner, sizes: captioning.Sizes, batch: Batch) -> tuple[Any, ...]:
    return batch[0], sizes.steps


def _of_vae(model: sequence_vae.SequenceVAE, sizes: sequence_vae.Sizes, batch: Batch) -> tuple[Any, ...]:
    _, _, classes, noise = batch
    return torch.cat([noise, model.condition(classes)], dim=-1).detach(), sizes.steps


def _of_speaker(model: speaker_decoder.SpeakerDecoder, sizes: speaker_decoder.Sizes, batch: Batch) -> tuple[Any, ...]:
    return batch[0], batch[1], sizes.steps


MODELS = (
    Model(
        "captioning decoder",
        captioning.Captioner,
        captioning.ContextCaptioner,
        captioning.Sizes(),
        captioning.draw,
        _of_captioner,
    ),
    Model(
        "conditional sequence VAE",
        sequence_vae.SequenceVAE,
        sequence_vae.ContextSequenceVAE,
        sequence_vae.Sizes(),
        sequence_vae.draw,
        _of_vae,
    ),
    Model(
        "speaker-conditioned decoder",
        speaker_decoder.SpeakerDecoder,
        speaker_decoder.ContextSpeakerDecoder,
        speaker_decoder.Sizes(),
        speaker_decoder.draw,
        _of_speaker,
    ),
)


def batches(model: Model, count: int, dtype: torch.dtype) -> list[Batch]:
    """Batches of the model's data, the same ones each time."""
    generator = torch.Generator().manual_seed(1)
    drawn = [model.draw(model.sizes, generator) for _ in range(count)]
    return [[x.to(dtype) if x.is_floating_point() else x for x in batch] for batch in drawn]


def ways(model: Model, dtype: torch.dtype) -> dict[str, Any]:
    """The model in each way of writing it, all with the same parameters. Without "convert" if it converts nothing."""
    torch.manual_seed(0)
    before = model.before(model.sizes).to(dtype)
    after = model.after(model.sizes).to(dtype)
    after.load_state_dict(before.state_dict())
    converted = deepcopy(before)
    found = convert(converted, batches(model, 1, dtype)[0])
    between = {CONVERTED: converted} if any(finding.converted for finding in found.findings) else {}
    return {BEFORE: before, **between, AFTER: after}


def training(module: Any, given: Sequence[Batch]) -> Callable[[], list[float]]:
    """A function that trains for a step on each of the batches, and returns the losses.

    Dropout draws the same masks each time.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def run() -> list[float]:
        torch.manual_seed(0)
        losses = []
        for batch in given:
            optimizer.zero_grad()
            loss = module.loss(*batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return run


def compare(model: Model, dtype: torch.dtype, steps: int = STEPS) -> dict[str, dict[str, Any]]:
    """What each way of writing the model gives.

    Returns:
        For each way: the losses of the training steps; the largest relative difference from those of "before"; and the
        relative difference of what it generates afterwards from what "before" generates, in the norm.
    """
    given = batches(model, steps, dtype)
    found: dict[str, dict[str, Any]] = {}
    generated: dict[str, Tensor] = {}
    for name, module in ways(model, dtype).items():
        losses = training(module, given)()
        module.eval()
        generated[name] = module.generate(*model.beginning(module, model.sizes, given[0])).double()
        first = found.get(BEFORE, {"losses": losses})["losses"]
        found[name] = {
            "losses": losses,
            "loss_difference": max(abs(a - b) / abs(b) for a, b in zip(losses, first, strict=True)),
            "output_difference": float((generated[name] - generated[BEFORE]).norm() / generated[BEFORE].norm()),
        }
    return found


def is_right(found: dict[str, dict[str, Any]], dtype: torch.dtype) -> bool:
    """Whether all ways give the same."""
    return all(max(f["loss_difference"], f["output_difference"]) <= TOLERANCE[dtype] for f in found.values())


def measure(model: Model, seconds: float, processor: bool = False) -> list[dict[str, Any]]:
    """Two rows, of training and of generation. ``speedup`` is ``None`` if results differ."""

    def timed(mode: str, runs: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        times = processor_times(runs, seconds) if processor else interleave(runs, "cpu", seconds)
        return _row(model, mode, times, found, right)

    found = compare(model, torch.float64)
    right = is_right(found, torch.float64)
    given = batches(model, 1, torch.float32)
    modules = ways(model, torch.float32)
    steps = {name: training(module, given) for name, module in modules.items()}
    rows = [timed("training", steps)]
    runs: dict[str, Callable[[], Any]] = {}
    for name, module in modules.items():
        module.eval()
        runs[name] = partial(module.generate, *model.beginning(module, model.sizes, given[0]))
    return [*rows, timed("generation", runs)]


def _row(
    model: Model, mode: str, times: dict[str, Times], found: dict[str, dict[str, Any]], right: bool
) -> dict[str, Any]:
    return {
        "model": model.name,
        "mode": mode,
        "sizes": model.sizes._asdict(),
        "right": right,
        "differences": {
            name: {key: value for key, value in of.items() if key != "losses"} for name, of in found.items()
        },
        "times": {name: time.columns() for name, time in times.items()},
        "speedup": {
            name: round(times[BEFORE].median / time.median, 3) if right else None
            for name, time in times.items()
            if name != BEFORE
        },
    }


def line(row: dict[str, Any]) -> str:
    """A row, as it is printed."""
    times = ", ".join(f"{name} {columns['ms']:.1f} ms" for name, columns in row["times"].items())
    speedups = ", ".join(f"{name} {speedup}x" if speedup else "wrong" for name, speedup in row["speedup"].items())
    return f"{row['model']:28} {row['mode']:10} {times}: {speedups}"


def main() -> None:
    args = options("benchmarks.models", __doc__, 20.0)
    described = describe() | {"clock": args.clock}
    rows = []
    for model in MODELS:
        for row in measure(model, args.seconds, args.processor_time):
            rows.append(row)
            print(line(row), flush=True)
    if args.json:
        write(args.json, described | {"rows": rows})


if __name__ == "__main__":
    main()
