"""``python -m benchmarks.annotate`` on a few small pictures, for a moment."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tagrank.data.scenes import write_scenes
from tagrank.features.backbones import load_backbone
from tagrank.features.extraction import extract_features
from tagrank.recurrence.backends import unavailable

ROOT = Path(__file__).parents[2]
COMMAND = [
    *(sys.executable, "-m", "benchmarks.annotate", "--backbone", "mobilenet_v3_small", "--random"),
    *("--device", "cpu", "--photographs", "6", "--seconds", "0.1"),
]


def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *options], cwd=ROOT, env=one_thread, capture_output=True, text=True, timeout=200)


def of(record: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in record["rows"] if row["name"] == name}


@pytest.mark.exhaustive
def test_table_and_file(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 3)
    out = tmp_path / "new" / "result.json"
    done = run("--images", tmp_path / "scenes", "--json", out)
    assert (done.returncode, done.stderr) == (0, "")

    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["commit"]
    assert record["environment"]["backends"].keys() == unavailable().keys()
    assert record["backbone"]["backbone"] == "mobilenet_v3_small"
    assert record["device"] == "cpu"
    assert record["cosine"] == pytest.approx(1, abs=1e-5)
    native = unavailable()["native"] is None
    assert record["kernels"]["auto"] == (["native.backward", "native.forward"] if native else ["eager.forward"])
    assert record["kernels"]["eager"] == ["eager.forward"]

    contestants = ["loop", "DataLoader", "tagrank features", "tagrank annotate", "command line"]
    assert [row["name"] for row in record["rows"] if row["part"] == "annotation"] == contestants
    annotation = ["read", "decode", "preprocessing", "backbone", "ranker", "decoder"]
    training = ["forward, the rest", "forward, recurrence", "loss", "backward", "optimizer"]
    for name, stages in {"stage by stage": annotation, "auto": training, "eager": training}.items():
        rows = of(record, name)
        assert list(rows) == [*stages, "all"]
        for row in rows.values():
            assert row["share"] == pytest.approx(row["ms"] / rows["all"]["ms"], rel=0.01, abs=1e-3)
    for row in record["rows"]:
        low, high = row["ms_quartiles"]
        assert 0 < low <= row["ms"] <= high
        assert row["rounds"] >= 5
        assert f"{row['name']:18} {row['stage']:19} {row['ms']:9.3f}" in done.stdout
        # Times are per photograph or step, not per round.
        assert row["stage"] != "all" or row["ms"] * row["per_second"] == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize("options", [("--images", "{empty}"), ("--backbone", "vgg61")], ids=["no images", "backbone"])
def test_wrong_options(refuses: Callable[..., str], tmp_path: Path, options: tuple[str, str]) -> None:
    error = refuses("annotate", *COMMAND[3:], *(option.format(empty=tmp_path) for option in options))
    assert len(error.splitlines()) == 1
    assert options[1].format(empty=tmp_path) in error


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # torchvision 0.29
def test_what_is_decoded_on_the_device_has_the_same_features(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers, drawn = load("feature_peers"), load("photographs")
    monkeypatch.setitem(peers.BATCH, "cpu", 2)
    for name in ("small_cnn", "efficientnet_lite0"):
        backbone = load_backbone(name).eval()
        paths = drawn.photographs(None, tmp_path, "small", 3)
        got = peers.DecodedOnDevice(backbone, paths).features()
        expected = torch.stack([row for _, row in extract_features(backbone, paths) if isinstance(row, torch.Tensor)])
        assert torch.nn.functional.cosine_similarity(got, expected).min() > 0.995, name
