"""benchmarks.backbones and benchmarks.backbone_quality: what they compute, and that their backbones exist."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tagrank.data.manifest import Example
from tagrank.features.backbones import Backbone, check_backbone
from tagrank.features.labelled import LabelledImages

Load = Callable[[str], ModuleType]


def test_the_backbones_exist(load: Load) -> None:
    for library in ("timm", "open_clip", "transformers"):
        pytest.importorskip(library)
    for candidate in load("backbones").CANDIDATES:
        check_backbone(candidate.name)


@pytest.mark.exhaustive
def test_speed(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    module = load("backbones")
    clock = {"wall": 0.0, "processor": 0.0}
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(module.time, "process_time", lambda: clock["processor"])

    def extract(backbone: Backbone, paths: list[Path]) -> None:
        assert len(paths) == 4
        slow = backbone.name == "efficientnet_lite2"
        faster = 0.5 if backbone._compiled else 1.0
        clock["wall"] += faster * (2.0 if slow else 1.0)
        clock["processor"] += faster * (4.0 if slow else 1.0)

    monkeypatch.setattr(module, "extract", extract)
    argv = ["--only", "efficientnet_lite2", "--count", "4", "--seconds", "0", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr(sys, "argv", ["backbones", *argv])
    module.main()
    first, second = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (first["name"], first["ratio"], first["per_second"], first["input_size"]) == (
        "efficientnet_lite0", 1.0, 4.0, [224, 224],
    )  # fmt: skip
    assert (second["name"], second["ratio"], second["per_second"], second["per_processor_second"]) == (
        "efficientnet_lite2", 0.25, 2.0, 1.0,
    )  # fmt: skip
    assert (second["input_size"], second["feature_size"], second["licence"]) == ([260, 260], 1280, "Apache-2.0")

    monkeypatch.setattr(sys, "argv", ["backbones", *argv, "--compiled"])
    module.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["name"], row["ratio"], row["licence"]) for row in rows] == [
        ("efficientnet_lite0", 1.0, "Apache-2.0"),
        ("efficientnet_lite0, compiled", 2.0, "Apache-2.0"),
        ("efficientnet_lite2", 0.25, "Apache-2.0"),
        ("efficientnet_lite2, compiled", 0.5, "Apache-2.0"),
    ]


def test_wrong_arguments(refuses: Callable[..., str]) -> None:
    assert "--only: expected names of efficientnet_lite0, " in refuses("backbones", "--only", "vgg61")


def test_quality(load: Load) -> None:
    """Features that tell the tag are ahead of those that do not, by what the photographs' own scores say."""
    module = load("backbone_quality")
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 3, (30,), generator=generator)
    told = torch.nn.functional.one_hot(kinds, 3).float() + 0.01 * torch.randn(30, 3, generator=generator)
    examples = [Example(f"{i}.jpg", ("abc"[kind],), (("abc"[kind],),)) for i, kind in enumerate(kinds.tolist())]
    sets = [LabelledImages(examples, x) for x in (torch.randn(30, 3, generator=generator), told)]
    runs = [
        [module.cross_validate(images, module.METHODS["nearest neighbours"], seed, folds=5) for seed in range(2)]
        for images in sets
    ]
    noise, right = (np.mean(of_set, axis=0) for of_set in runs)
    assert right.shape == (30, 5)
    assert right[:, 0].mean() > 0.95
    row = module.row("told", right, right - noise, runs[1])
    assert row["mean"]["ndcg@1"] == pytest.approx(right[:, 0].mean(), abs=1e-6)
    assert row["difference"]["ndcg@1"] == pytest.approx((right - noise)[:, 0].mean(), abs=1e-6)
    assert row["difference"]["ndcg@1"] > 3 * row["error"]["ndcg@1"] > 0
    assert row["error"]["ndcg@1"] == pytest.approx(np.std(right[:, 0] - noise[:, 0], ddof=1) / 30**0.5, abs=1e-6)


def test_only_photographs_that_are_there_are_judged(load: Load, tmp_path: Path) -> None:
    module = load("backbone_quality")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.jpg").touch()
    lines = [json.dumps({"image": name, "tags": ["dog"]}) for name in ("a.jpg", "b.jpg")]
    (tmp_path / "val.jsonl").write_text("\n".join(lines))
    assert [example.image for example in module.photographs(tmp_path).examples] == ["b.jpg"]
    assert module.main(["--data", str(tmp_path)]) == 2
