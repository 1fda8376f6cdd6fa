"""Annotates photographs with an exported ONNX file, by onnxruntime."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tagrank.annotator import Annotator
from tagrank.data.files import first_line
from tagrank.errors import InputError
from tagrank.exporting.card import read_card
from tagrank.features.backbones import Backbone
from tagrank.features.familiarity import Familiarity, FloatArray
from tagrank.model_files import is_exported
from tagrank.ranker.ensemble import Ranker


class _Session(nn.Module):
    """An ONNX file as a module. Its results are one row for each row that it is given: both outputs, side by side."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                f"{path}: ONNX needs packages that are not installed ({error}): pip install 'tagrank[onnx]'"
            ) from error
        try:
            self._run: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no class of their own
            raise InputError(f"{path}: damaged, or not an ONNX file: {first_line(error)}") from error
        self.metadata: dict[str, str] = self._run.get_modelmeta().custom_metadata_map
        self.inputs = {value.name: value.shape for value in self._run.get_inputs()}
        self.outputs = {value.name: value.shape for value in self._run.get_outputs()}
        # Says to those who ask where the module computes.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def __reduce__(self) -> tuple[type["_Session"], tuple[Path]]:
        # A session cannot be pickled: another process reads the file again.
        return _Session, (self.path.absolute(),)

    def forward(self, given: Tensor) -> Tensor:
        """``[B, S (V + 1) + 1]``: the distributions, and how unlike the training photographs a row is, or NaN."""
        ((name, _),) = self.inputs.items()
        results = self._run.run(list(self.outputs), {name: given.float().cpu().numpy()})
        found = dict(zip(self.outputs, map(torch.from_numpy, results), strict=True))
        p = found["probabilities"].flatten(1)
        unlike = found.get("unlike", torch.full((len(p),), torch.nan))
        return torch.cat([p, unlike.unsqueeze(1)], dim=1)


class _Distributions(nn.Module):
    """What :class:`Annotator` needs of a ranker: :meth:`predict`.

    Args:
        session: what computes the distributions.
        feature_size: of what :meth:`predict` takes. ``None`` if its features are the session's results themselves.
        steps, num_tags: ``S`` and ``V``.
    """

    feedback = False

    def __init__(self, session: _Session, feature_size: int | None, steps: int, num_tags: int, model: str) -> None:
        super().__init__()
        self.model = model
        self.session = session
        self.ready = feature_size is None
        self.steps, self.num_tags = steps, num_tags
        self.feature_size = steps * (num_tags + 1) + 1 if feature_size is None else feature_size

    def predict(self, features: Tensor) -> Tensor:
        """Equation (9), ``[B, S, V + 1]``."""
        p: Tensor = self._rows(features)[:, :-1].reshape(-1, self.steps, self.num_tags + 1)
        return p

    def unlike(self, features: Tensor) -> FloatArray:
        """As :meth:`tagrank.features.familiarity.Familiarity.unlike`."""
        found: FloatArray = self._rows(features)[:, -1].double().numpy()
        return found

    def config(self) -> dict[str, Any]:
        """An exported model cannot be built again from its options.

        Raises:
            InputError: always.
        """
        raise InputError("an exported model cannot be saved as a folder: it has no weights of its own")

    def _rows(self, features: Tensor) -> Tensor:
        rows: Tensor = features.cpu() if self.ready else self.session(features)
        return rows


class _Familiarity(Familiarity):
    """How unlike the training photographs a photograph is, as the file says."""

    def __init__(self, ranker: _Distributions) -> None:
        super().__init__(torch.empty(0), np.empty(0))
        object.__setattr__(self, "_ranker", ranker)

    def unlike(self, features: Tensor) -> FloatArray:
        ranker: _Distributions = vars(self)["_ranker"]
        return ranker.unlike(features)


def load_annotator(path: str | Path, device: str = "cpu") -> Annotator:
    """The annotator of a model's folder, or of an exported ONNX file.

    Args:
        path: the folder or the file.
        device: as for :meth:`tagrank.Annotator.load`; a file takes ``"cpu"``, and ``"auto"`` as the same.

    Raises:
        InputError: as :meth:`tagrank.Annotator.load`, or as :func:`load_exported`.
    """
    if not is_exported(Path(path)):
        return Annotator.load(path, device)
    if device not in ("auto", "cpu"):
        raise InputError(f"device: {path} runs on the CPU, by onnxruntime; expected auto or cpu, got {device!r:.60}")
    return load_exported(path)


def load_exported(path: str | Path) -> Annotator:
    """An annotator that computes with an ONNX file of :func:`tagrank.exporting.export_model`, on the CPU.

    If the file takes photographs, the features of the annotator are the file's results: its backbone computes them, and
    its ranker finds its distributions there. If the file takes features, the backbone is loaded when it is needed.

    Raises:
        InputError: onnxruntime is not installed, or the file is missing, damaged, or was not written by tagrank.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    session = _Session(path).eval()
    card, vocabulary = read_card(path, session.metadata)
    shape = session.outputs.get("probabilities", [])
    if len(session.inputs) != 1 or len(shape) != 3 or shape[2] != len(vocabulary) + 1 or not isinstance(shape[1], int):
        raise InputError(
            f"{path}: does not fit its metadata: expected an output probabilities [batch, S, {len(vocabulary) + 1}], "
            f"got {session.outputs}"
        )
    photographs = card.preprocessing is not None
    ranker = _Distributions(session, None if photographs else card.feature_size, shape[1], len(vocabulary), card.model)
    backbone = None
    if card.preprocessing is not None:
        spec = card.backbone or {"backbone": "exported"}
        backbone = Backbone(session, card.preprocessing, ranker.feature_size, spec)
    return Annotator(
        cast(Ranker, ranker),
        vocabulary,
        card.backbone,
        backbone=backbone,
        training=card.training,
        calibration=card.calibration,
        familiarity=_Familiarity(ranker) if "unlike" in session.outputs else None,
    )
