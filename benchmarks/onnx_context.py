"""How the context enters ONNX's LSTM: repeated over time, or as its share of the gates through an identity.

``tagrank.onnx_translations`` takes the first for a context of up to 4H features, the second for a wider one. Here each
is made for every size, compared with float64, and timed in onnxruntime, in turn. An asterisk marks what the rule takes.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import onnxruntime
import torch

from benchmarks.machine import describe, write
from benchmarks.timing import interleave
from tagrank import ContextLSTM, onnx_translations
from tagrank.recurrence import translation

#: T, B, C, H
SIZES = (
    (10, 1, 512, 512),
    (10, 32, 128, 256),
    (10, 32, 512, 512),
    (10, 1, 2048, 512),
    (10, 32, 2048, 512),
    (10, 32, 2048, 256),
    (20, 8, 4096, 256),
)


def session(lstm: ContextLSTM, context: torch.Tensor, steps: int, narrow: bool, threads: int) -> Any:
    """The layer in onnxruntime, its context repeated if ``narrow``."""
    with TemporaryDirectory() as folder, patch.object(translation._Terms, "_narrow", lambda *_: narrow):
        path = Path(folder, "layer.onnx")
        table = onnx_translations()
        torch.onnx.export(
            lstm,
            (context, steps),
            path,
            dynamo=True,
            custom_translation_table=table,
            external_data=False,
            verbose=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(path, options)


def measure(steps: int, batch: int, features: int, hidden: int, threads: int, seconds: float) -> dict[str, Any]:
    """One line of the result: the median milliseconds of both."""
    lstm, context = ContextLSTM(features, hidden).eval(), torch.randn(batch, features)
    with torch.no_grad():
        expected = ContextLSTM(features, hidden, dtype=torch.float64)
        expected.load_state_dict(lstm.state_dict())
        want = expected(context.double(), steps)[0]
    runs: dict[str, Callable[[], Any]] = {}
    for name, narrow in (("repeated", True), ("identity", False)):
        made = session(lstm, context, steps, narrow, threads)
        runs[name] = partial(made.run, None, {made.get_inputs()[0].name: context.numpy()})
        error = (torch.from_numpy(runs[name]()[0]).double() - want).abs().max()
        assert error < 1e-5, f"{name}: {error}"
    times = interleave(runs, "cpu", seconds)
    return {"T": steps, "B": batch, "C": features, "H": hidden} | {k: t.columns() for k, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each size")
    parser.add_argument("--json", type=Path, help="write the result into this file too")
    arguments = parser.parse_args()
    rows = []
    print(f"{'T':>4}{'B':>4}{'C':>6}{'H':>5}{'repeated ms':>14}{'identity ms':>14}{'ratio':>7}")
    for size in SIZES:
        rows.append(row := measure(*size, arguments.threads, arguments.seconds))
        repeated, identity = row["repeated"]["ms"], row["identity"]["ms"]
        marks = ("*", " ") if row["C"] <= 4 * row["H"] else (" ", "*")
        numbers = f"{row['T']:4}{row['B']:4}{row['C']:6}{row['H']:5}"
        print(f"{numbers}{repeated:13.2f}{marks[0]}{identity:13.2f}{marks[1]}{identity / repeated:7.2f}", flush=True)
    if arguments.json is not None:
        write(arguments.json, {"environment": describe(), "threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
