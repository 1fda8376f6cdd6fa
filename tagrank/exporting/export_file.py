"""Writes a trained model as one file."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagrank import onnx_translations
from tagrank.annotator import Annotator
from tagrank.data.files import first_line, reason, write_atomically
from tagrank.errors import InputError
from tagrank.exporting.card import FORMAT, KEY, Card, Input
from tagrank.exporting.preprocessing import preprocessing_of
from tagrank.features.backbones.backbone import LARGEST_ASPECT, Backbone
from tagrank.features.familiarity import Familiarity, K
from tagrank.model_files import model_digest
from tagrank.ranker.ensemble import Ranker

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2")
LARGEST = 2**31 - 2**20
"""So many bytes of weights fit into one ONNX file."""
CLOSE = 1e-4
"""How much a probability of the file may differ from the model's."""


class Program(nn.Module):
    """What is exported: photographs or features in, distributions out.

    Args:
        ranker: the model.
        backbone: of photographs; ``None`` if features are the input.
        familiarity: what the training photographs were like, if it is known.
    """

    def __init__(self, ranker: Ranker, backbone: Backbone | None, familiarity: Familiarity | None) -> None:
        super().__init__()
        self.ranker = ranker
        self.backbone = backbone
        self.memory: Tensor
        self.distances: Tensor
        if familiarity is not None:
            self.register_buffer("memory", familiarity.memory)
            self.register_buffer("distances", torch.from_numpy(familiarity.distances))
        self.outputs = ("probabilities",) if familiarity is None else ("probabilities", "unlike")

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        """Equation (9) ``[B, S, V + 1]``, and if it is known, how unlike the training photographs each is ``[B]``."""
        features = given if self.backbone is None else self.backbone(given)
        probabilities = self.ranker.predict(features)
        return (probabilities,) if len(self.outputs) == 1 else (probabilities, self._unlike(features))

    def _unlike(self, features: Tensor) -> Tensor:
        """:meth:`tagrank.features.familiarity.Familiarity.unlike`."""
        likeness = F.normalize(features) @ self.memory.float().t()
        distance = 1.0 - likeness.topk(min(K, len(self.memory))).values[:, -1].double()
        nearer = (self.distances < distance.unsqueeze(1)).sum(1)
        return nearer.float() / (len(self.distances) + 1)


def export_model(
    annotator: Annotator,
    path: str | Path,
    *,
    format: Format,
    input: Input | None = None,
    weights: str | Path | None = None,
) -> str:
    """Write a model as one file, with all that is needed to annotate photographs in its metadata (:class:`Card`).

    The file is compared with the model before it is written. It takes batches of any size. Its outputs are
    ``probabilities`` ``[B, S, V + 1]``, and ``unlike`` ``[B]`` if the model knows its training photographs.

    Args:
        annotator: the model.
        path: of the file.
        format: ``"onnx"``, or ``"pt2"`` for ``torch.export.save``.
        input: what the program takes. Default: photographs, or features if the backbone is not known.
        weights: of the backbone, as for :meth:`tagrank.Annotator.backbone`.

    Returns:
        What was written, in a line.

    Raises:
        InputError: the model reads its own tags, its backbone cannot be loaded or exported, a package is missing, or
            the file cannot be written.
    """
    path = Path(path)
    if annotator.ranker.feedback:
        raise InputError(
            "export: this model reads its own tags (--feedback): each position depends on the tags that were chosen "
            "before it, so that no program has its distributions for a photograph alone; train without --feedback to "
            "export. Its layers can be exported by torch.onnx.export with tagrank.onnx_translations()"
        )
    if annotator.device.type != "cpu":
        raise InputError(f'export: expected a model on the CPU, got one on {annotator.device}: annotator.to("cpu")')
    if format not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}; got {format!r:.60}")
    if input is None:
        input = "features" if annotator.backbone_spec is None else "photographs"
    backbone = annotator.backbone(weights) if input == "photographs" else None
    preprocessing = None if backbone is None else preprocessing_of(backbone, LARGEST_ASPECT)
    size = annotator.ranker.feature_size
    card = Card(
        FORMAT,
        input,
        size,
        annotator.vocabulary.tags,
        annotator.calibration,
        annotator.backbone_spec,
        preprocessing,
        annotator.training,
        model_digest(annotator.ranker, annotator.vocabulary.tags),
    )
    program = Program(annotator.ranker, backbone, annotator.familiarity).eval()
    with torch.no_grad(), _quiet():
        example = torch.rand(2, size) if backbone is None else _photographs(backbone)
        exported = torch.export.export(program, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        _forget_where(exported)
        more = torch.cat([example, example[:1]])
        expected = [tensor.cpu().numpy() for tensor in program(more)]
        name = "images" if backbone is not None else "features"
        if format == "onnx":
            content, results = _onnx(exported, card, name, program.outputs, more)
        else:
            content, results = _pt2(exported, card, more)
    for output, got, want in zip(program.outputs, results, expected, strict=True):
        if output == "probabilities" and not np.abs(got - want).max() <= CLOSE:
            raise InputError(f"export: the {format} program disagrees with the model by {np.abs(got - want).max():.2g}")
    try:
        write_atomically(path, [content])
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
    steps, classes = expected[0].shape[1:]
    shape = ", ".join(map(str, example.shape[1:]))
    outputs = f"probabilities [batch, {steps}, {classes}]" + (" and unlike [batch]" if len(expected) == 2 else "")
    return f"{path}: {name} [batch, {shape}] to {outputs}; {len(content) / 1e6:.1f} MB"


def _forget_where(exported: "torch.export.ExportedProgram") -> None:
    """Take out where the code of each operator is on this machine: the file may go anywhere."""
    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _photographs(backbone: Backbone) -> Tensor:
    """Two images of noise, as the backbone reads them."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (2, 240, 320, 3), dtype=np.uint8)
    return torch.stack([backbone.transform(Image.fromarray(pixels)) for pixels in noise])


def _onnx(
    exported: "torch.export.ExportedProgram", card: Card, name: str, outputs: tuple[str, ...], given: Tensor
) -> tuple[bytes, list[Any]]:
    """The content of an ONNX file, and what onnxruntime computes by it."""
    table = onnx_translations() | {torch.ops.aten.cumprod.default: _cumprod}
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"ONNX needs packages that are not installed ({error}): pip install 'tagrank[onnx]'"
        ) from error
    weights = sum(t.numel() * t.element_size() for t in exported.state_dict.values())
    if weights > LARGEST:
        raise InputError(
            f"export: {weights / 1e9:.1f} GB of weights do not fit into an ONNX file; --format pt2 has no limit"
        )
    try:
        program: Any = torch.onnx.export(
            exported,
            dynamo=True,
            input_names=[name],
            output_names=list(outputs),
            custom_translation_table=table,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise InputError(f"export: a part of the model has no translation to ONNX: {first_line(error)}") from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # names of modules, and where the code of each node is
    program.model.metadata_props[KEY] = card.encoded()
    content: bytes = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, session.run(list(outputs), {name: given.cpu().numpy()})


def _cumprod(x: Any, dim: int, dtype: int = -1) -> Any:
    """``cumprod`` over the last dimension, of ``n`` elements: products of rows of a lower triangle ``[n, n]``."""
    import onnx_ir
    from onnxscript import opset18

    op: Any = opset18
    count = x.shape[-1]
    if dim not in (-1, len(x.shape) - 1) or not isinstance(count, int):
        raise NotImplementedError("cumprod: expected the last dimension, of a size that is fixed")
    triangle = op.Constant(value=onnx_ir.tensor(np.tri(count, dtype=bool)))
    rows = op.Unsqueeze(x, op.Constant(value_ints=[-2]))
    factors = op.Where(triangle, rows, op.CastLike(op.Constant(value_float=1.0), x))
    return op.ReduceProd(factors, op.Constant(value_ints=[-1]), keepdims=0)


def _pt2(exported: "torch.export.ExportedProgram", card: Card, given: Tensor) -> tuple[bytes, list[Any]]:
    """The content of a file of torch.export, and what the program in it computes."""
    file = io.BytesIO()
    torch.export.save(exported, file, extra_files={f"{KEY}.json": card.encoded()})
    content = file.getvalue()
    results = torch.export.load(io.BytesIO(content)).module()(given)
    return content, [tensor.cpu().numpy() for tensor in results]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters log and warn of: that they do not fold a constant, or that a name will be another."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
