"""The model card says what the folder knows, in Markdown and YAML that others read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tagrank import Annotator, TagRanker
from tagrank.data.files import sha256
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.evaluation.tables import write_rows
from tagrank.features.seen import write_seen
from tagrank.model_card import Judged, JudgedBy, plain, write_card

hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
TAGS = ("dog", "<b>ball</b>", "`rm`", "a\n---\nb")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    spec = {"backbone": "vgg16", "weights": "IMAGENET1K_V1", "preprocessing": "ImageClassification(crop_size=[224])"}
    ranker = TagRanker(6, len(TAGS), max_length=3, embedding_size=8, hidden_size=8)
    training = {"preset": "default", "seed": 3}
    Annotator(ranker, Vocabulary(TAGS), spec, training=training).save(tmp_path / "model")
    return tmp_path / "model"


def evaluate(folder: Path, weights: str | None = None, seen: int = 0) -> None:
    row = {"name": "tagrank, headline", "ndcg@5": 0.6764, "intervals": {"ndcg@5": (0.661, 0.69)}}
    other = {"name": "tag | frequency", "ndcg@5": 0.5, "intervals": {"ndcg@5": (0.48, 0.52)}}
    judged = JudgedBy(weights or sha256(folder / "model.safetensors"), "m", Judged(1000, "test.jsonl", "test"))
    write_rows(folder / "evaluation.json", [row, other], model=judged, seen=seen)


def card(folder: Path, **given: Any) -> tuple[dict[str, Any], str]:
    """The metadata as the hub reads it, and the text."""
    write_card(folder, **given)
    read = hub.ModelCard.load(folder / "README.md")
    return read.data.to_dict(), read.text


def test_it_says_what_the_folder_knows(folder: Path) -> None:
    write_seen(folder, np.arange(5, dtype=np.uint64), np.arange(5, 9, dtype=np.uint64))
    evaluate(folder)
    data, text = card(folder, name="us/photos", license="cc-by-4.0", data="Our photographs.")
    assert (data["license"], data["library_name"]) == ("cc-by-4.0", "tagrank")
    (metric,) = data["model-index"][0]["results"][0]["metrics"]
    assert (metric["type"], metric["value"], metric["name"]) == ("ndcg@5", 0.6764, "NDCG@5")
    for part in (
        "# us/photos",
        "tagrank annotate hf:us/photos photo.jpg",
        'Annotator.from_pretrained("us/photos")',
        "Our photographs.",
        "Trained and validated on 9 images",
        "Vocabulary: 4 tags, preset default, seed 3",
        "lists of 1000 images of the split test of test.jsonl",
        "| tagrank, headline | 0.676 [0.661, 0.690] |",
        "- backbone: vgg16",
        "torchvision's is BSD-3-Clause",
        "cannot mark photographs that are unlike them",
    ):
        assert part in text, part


def test_images_that_the_model_has_seen_are_told(folder: Path) -> None:
    evaluate(folder)
    assert "was trained or validated on" not in card(folder)[1]
    evaluate(folder, seen=12)
    assert "**The model was trained or validated on 12 of them.**" in card(folder)[1]


def test_what_is_not_known_is_said(folder: Path) -> None:
    data, text = card(folder)
    assert "license" not in data
    assert "model-index" not in data
    for part in ("was not stated", "on is not recorded", "Not stated: the folder has no `evaluation.json`"):
        assert part in text


def test_tags_and_names_are_no_markup(folder: Path) -> None:
    evaluate(folder)
    _, text = card(folder, data="<script>alert(1)</script>\n---\n# [x](y)")
    assert "dog, \\<b\\>ball\\</b\\>, \\`rm\\`, a --- b" in text
    assert "| tag \\| frequency | 0.500" in text
    assert "\\<script\\>alert(1)\\</script\\> --- \\# \\[x\\](y)" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("- a", "\\- a"), ("1. a", "1\\. a"), ("=== a", "\\=== a"), ("2) a", "2\\) a"), ("3,000.5 - b", "3,000.5 - b")],
)
def test_a_text_is_no_list_and_no_heading(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_an_evaluation_of_other_weights_is_not_shown(folder: Path) -> None:
    evaluate(folder, weights="0" * 64)
    data, text = card(folder)
    assert "model-index" not in data
    assert "0.676" not in text


@pytest.mark.parametrize("content", [{}, {"rows": []}, {"rows": 3, "model": {}}, [], {"rows": [{"name": 1}]}])
def test_an_evaluation_that_is_none(folder: Path, content: Any) -> None:
    (folder / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"evaluation.json: expected what `tagrank evaluate --json` writes"):
        write_card(folder)


def test_only_its_own_card_is_written_again(folder: Path) -> None:
    write_card(folder)
    write_card(folder, license="mit")
    assert "license: mit" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# Mine\n")
    write_card(folder)
    assert (folder / "README.md").read_text() == "# Mine\n"


def test_an_evaluation_goes_with_its_model(folder: Path, tmp_path: Path) -> None:
    evaluate(folder)
    Annotator.load(folder).save_pretrained(tmp_path / "copy")
    assert "0.676 [0.661, 0.690]" in (tmp_path / "copy" / "README.md").read_text()
    assert Annotator.load(tmp_path / "copy").vocabulary.tags == TAGS
