"""Checks the tagrank that is installed, on CPUs: the C++ library is there, and the layer has the results of nn.LSTM.

test_wheel.py and the builds of ``cibuildwheel`` run this file by itself. It prints :func:`tagrank.env` as JSON.
"""

import json
import sys

import torch
from torch import nn

import tagrank
from tagrank.recurrence import trace


def main() -> None:
    described = tagrank.env()
    if (reason := described["backends"]["native"]) is not None:
        sys.exit(f"the native backend cannot run: {reason}")
    torch.manual_seed(0)
    reference = nn.LSTM(3 + 5, 7)
    layer = tagrank.ContextLSTM.from_lstm(reference, context_size=5)
    context, inputs = torch.randn(4, 5, requires_grad=True), torch.randn(6, 4, 3)
    expected, _ = reference(torch.cat([inputs, context.expand(6, 4, 5)], -1))
    with trace() as kernels:
        output, _ = layer(context, input=inputs)
        output.square().sum().backward()
    assert {"native.forward", "native.backward"} <= {*kernels}, kernels
    torch.testing.assert_close(output, expected)
    gradient = context.grad
    (wanted,) = torch.autograd.grad(expected.square().sum(), context)
    torch.testing.assert_close(gradient, wanted)
    print(json.dumps({"package": tagrank.__path__[0], "cuda": torch.ops.tagrank.has_clusters(), **described}))


if __name__ == "__main__":
    main()
