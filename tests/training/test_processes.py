"""Training by two processes on CPUs, which gloo connects: it is that of one process, and ends as one."""

import copy
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from other_processes import is_alive, until
from safetensors.torch import load_file
from torch import nn

from tagrank.data.manifest import Example, write_manifest
from tagrank.data.scenes import write_scenes
from tagrank.errors import InputError
from tagrank.features.store import FeatureWriter
from tagrank.ranker.presets import PRESETS
from tagrank.training.run import train
from tagrank.training.starting import TORCHRUN
from tagrank.training.train_options import TrainOptions

SPEC = {"backbone": "efficientnet_lite0", "weights": "none at all", "preprocessing": "drawn at random"}

#: Trains in each of its processes, by stochastic gradient descent, whose steps are as exact as the gradients.
PROGRAM = """
import atexit
import sys
from dataclasses import replace
from pathlib import Path
from tagrank.cli import app
from tagrank.ranker.presets import PRESETS

sgd = {"optimizer": "sgd", "schedule": "constant", "learning_rate": 0.05, "weight_decay": 0.0}
for name in ("default", "scenes"):
    small = {"embedding_size": 16, "hidden_size": 16, "batch_size": 15, "dropout": 0.3}
    PRESETS[name] = replace(PRESETS[name], **small, **sgd)

@atexit.register
def ended():
    # Python aborts now and then if a thread of gloo still runs when it ends.
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if any("gloo" in name for name in names):
        print("left running:", names, file=sys.stderr)


app()
"""


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A manifest of 90 images and their features. The last batch of 68 in batches of 15 has 8."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(90, 8, generator=generator)
    examples = []
    for i, row in enumerate(rows.tolist()):
        lists = (("sea", "dog", "boat")[: 1 + i % 3], ("dog", "sea")) if row[0] > 0 else (("dog", "tree"),)
        examples.append(Example(f"{i}.png", lists[0], lists, "val" if i % 4 == 0 else None))
    write_manifest(tmp_path / "images.jsonl", examples)
    with FeatureWriter(tmp_path / "features", SPEC, 8) as writer:
        writer.add([e.image for e in examples], rows)
    return tmp_path


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    files = [str(folder / "images.jsonl"), "--features", str(folder / "features"), "--out", str(folder / out)]
    return ["train", *files, "--device", "cpu", "--epochs", "3", "--no-completion", *more]


def python(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **options)


def torchrun(program: Path, *command: str, nodes: str = "1") -> subprocess.CompletedProcess[str]:
    return python(
        *("-m", "torch.distributed.run", "--standalone", "--nnodes", nodes, "--nproc-per-node", "2"),
        *(str(program), *command),
    )


def same(one: Path, two: Path) -> None:
    """The weights and the history of two models, but for the order of sums."""
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    before, after = (json.loads((folder / "training" / "history.json").read_text()) for folder in (one, two))
    for a, b in zip(before, after, strict=True):
        assert b == pytest.approx(a, rel=1e-4)


@pytest.mark.exhaustive
def test_an_ensemble_trained_by_two_processes_is_that_of_one(features: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    alone = python(str(program), *arguments(features, "one"))
    assert alone.returncode == 0, alone.stderr
    both = torchrun(program, *arguments(features, "two", "--devices", "2", "--num-nodes", "1", "--strategy", "ddp"))
    assert both.returncode == 0, both.stderr
    assert both.stdout == alone.stdout.replace("one", "two"), "only one process writes"
    assert "left running" not in both.stderr
    same(features / "one", features / "two")


def run_here(options: TrainOptions, folder: Path, out: str) -> None:
    train(folder / "scenes" / "manifest.jsonl", folder / out, options=options)


@pytest.mark.exhaustive
def test_a_backbone_trained_by_processes_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, mirrored pictures and batch statistics are those of the whole batch, one of which has a single image."""
    write_scenes(tmp_path / "scenes", 100, seed=0)
    changes: dict[str, Any] = {"optimizer": "sgd", "schedule": "constant", "learning_rate": 0.02, "weight_decay": 0.0}
    changes |= {"embedding_size": 16, "hidden_size": 16, "batch_size": 16, "epochs": 2, "completer": False}
    monkeypatch.setitem(PRESETS, "scenes", replace(PRESETS["scenes"], **changes))
    options = TrainOptions(backbone="small_cnn", preset="scenes", device="cpu", progress=False)
    run_here(options, tmp_path, "one")
    for devices in (2, 3):
        run_here(replace(options, devices=devices), tmp_path, str(devices))
        one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", str(devices)))
        for name, value in one.items():
            difference = (two[name].float() - value.float()).norm() / value.float().norm().clamp(min=1e-3)
            assert difference < 2e-3, f"{name}: {difference}"
        same_history(tmp_path / "one", tmp_path / str(devices))


def same_history(one: Path, two: Path) -> None:
    before, after = (json.loads((folder / "training" / "history.json").read_text()) for folder in (one, two))
    for a, b in zip(before, after, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-4)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-3)


def helpers(process: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            if b"tagrank.training.helper" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("who", ["the helper", "process 0", "Ctrl-C"])
def test_a_process_that_ends_ends_the_run_which_can_be_resumed(features: Path, tmp_path: Path, who: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    long = ("--devices", "2", "--epochs", "400")
    command = [sys.executable, str(program), *arguments(features, "model", *long)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    last = features / "model" / "training" / "last.ckpt"
    until(lambda: last.exists() or process.poll() is not None, 120)
    (helper,) = helpers(process.pid)
    if who == "the helper":
        os.kill(helper, signal.SIGKILL)
    elif who == "process 0":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    until(lambda: not is_alive(helper), 120)
    lines = [line for line in errors.splitlines() if not line.startswith("training, epoch")]
    if who == "the helper":
        assert process.returncode == 2
        (line,) = lines
        assert line.startswith("tagrank: another process of the training has ended")
        assert line.endswith("the same command with --resume goes on")
    elif who == "Ctrl-C":
        assert process.returncode == 130
        assert lines == ["tagrank: interrupted; the same command with --resume goes on where this one stopped"]
    else:
        assert process.returncode == -signal.SIGKILL
        assert lines == []
    done = torch.load(last, weights_only=True)["history"]
    # As many epochs as there are, and a few more.
    more = str(len(done) + 3)
    settings = features / "model" / "training" / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"epochs": int(more)}))
    resumed = python(str(program), *arguments(features, "model", "--devices", "2", "--epochs", more, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    alone = python(str(program), *arguments(features, "alone", "--epochs", more))
    assert alone.returncode == 0, alone.stderr
    same(features / "alone", features / "model")


def test_a_helper_that_cannot_start(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # for the helper, which is yet to start
    with pytest.raises(InputError, match="devices: expected 2 processes, but one of them ended while it started"):
        train(features / "images.jsonl", features / "out", device="cpu", features=features / "features", devices=2)


@pytest.mark.exhaustive
def test_a_wrong_file_is_one_error_of_all_processes(features: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    (features / "images.jsonl").write_text("{}\n")
    failed = torchrun(program, *arguments(features, "model"))
    assert failed.returncode != 0
    assert failed.stdout == ""
    assert failed.stderr.count("tagrank: ") == 1
    assert f"tagrank: {features / 'images.jsonl'}" in failed.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fsdp"}, "strategy: expected auto or ddp, got 'fsdp'"),
        ({"devices": 0}, "devices: expected at least 1, got 0"),
        (
            {"num_nodes": 2, "devices": 4},
            "num_nodes: to train on 2 machines, .* `torchrun --nnodes 2 --nproc-per-node 4",
        ),
        (
            {"devices": 2, "feedback": True},
            "devices: a model that reads its own tags .* is trained by one process, got 2",
        ),
        ({"devices": 2, "conditioning": "initial"}, "devices: a model that reads its own tags"),
    ],
)
def test_options_that_do_not_go_together(features: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(features / "images.jsonl", features / "out", device="cpu", features=features / "features", **options)
    assert not (features / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 4}, "devices: torchrun started 2 processes on this machine, got 4"),
        ({"num_nodes": 1}, "num_nodes: torchrun started 3 machines, got 1"),
    ],
)
def test_options_that_contradict_torchrun(
    features: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    for name, value in zip(TORCHRUN, ("0", "6", "0", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        train(features / "images.jsonl", features / "out", device="cpu", features=features / "features", **options)


def test_batch_statistics_of_one_process_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processes compute together is what one computes, here with nobody to add."""
    from tagrank.training import shared_norm
    from tagrank.training.processes import Processes

    monkeypatch.setattr(shared_norm.distributed, "all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    for ours, x in (
        (nn.BatchNorm2d(3), torch.randn(5, 3, 4, 4, dtype=torch.float64)),
        (nn.BatchNorm1d(6, momentum=None), torch.randn(7, 6, dtype=torch.float64)),
        (nn.BatchNorm1d(6, affine=False, track_running_stats=False), torch.randn(7, 6, dtype=torch.float64)),
    ):
        ours.double()
        theirs, mine, yours = copy.deepcopy(ours), x.clone().requires_grad_(), x.clone().requires_grad_()
        with shared_norm.shared_norms(ours, Processes(0, 2)):
            for _ in range(2):
                y = ours(mine)
        for _ in range(2):
            expected = theirs(yours)
        torch.testing.assert_close(y, expected)
        weights = torch.randn_like(x)
        (y * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(mine.grad, yours.grad)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        assert "forward" not in vars(ours)
