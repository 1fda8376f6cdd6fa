"""Training that is killed, or finds the disk full, at each operation on files: the next command goes on from there."""

import builtins
import errno
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tagrank.annotator import Annotator
from tagrank.data.manifest import Example, write_manifest
from tagrank.errors import InputError
from tagrank.features.store import FeatureWriter
from tagrank.ranker.presets import PRESETS
from tagrank.training import run_folder
from tagrank.training.checkpoints import read_checkpoint, save_checkpoint
from tagrank.training.module import RankerModule
from tagrank.training.run import train

SPEC = {"backbone": "efficientnet_lite0", "weights": "none at all", "preprocessing": "drawn at random"}
FILES = {
    "completer.safetensors", "config.json", "familiar.safetensors", "model.safetensors", "seen.safetensors", "training",
    "vocabulary.json",
}  # fmt: skip
RUN = {"best.ckpt", "history.json", "last.ckpt", "settings.json"}


class KilledError(BaseException):
    """Stands for SIGKILL: no handler catches it."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = replace(
        PRESETS["default"], members=1, embedding_size=4, hidden_size=4, batch_size=16, epochs=2, patience=100,
        learning_rate=0.02,
    )  # fmt: skip
    monkeypatch.setitem(PRESETS, "default", preset)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    features = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    lists = [("dog", "ball") if row[0] > 0 else ("ball", "dog") for row in features.tolist()]
    write_manifest(
        tmp_path / "m.jsonl",
        [Example(f"{i}.png", tags, (tags,), "val" if i < 4 else None) for i, tags in enumerate(lists)],
    )
    with FeatureWriter(tmp_path / "features", SPEC, 4) as writer:
        writer.add([f"{i}.png" for i in range(16)], features)
    return tmp_path


def run(data: Path, out: Path, **options: Any) -> Annotator:
    return train(data / "m.jsonl", out, features=data / "features", progress=False, **options)


def model(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextmanager
def interrupted(at: int, error: Callable[[], BaseException]) -> Iterator[Iterator[int]]:
    """Raise an error after the operation on files with this number: 0, 1, ... A killed process does nothing further.

    Yields:
        The counter of the operations. Its next number is above ``at`` if the operation took place.
    """
    counter = count()
    dead: list[BaseException] = []

    def wrap(function: Callable[..., Any], writes: Callable[..., bool] = lambda *_, **__: True) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if not writes(*arguments, **options):
                return function(*arguments, **options)
            if dead and isinstance(dead[0], KilledError):
                raise dead[0]
            result = function(*arguments, **options)
            if next(counter) == at:
                dead.append(error())
                raise dead[0]
            return result

        return wrapped

    def for_writing(path: Any, mode: str = "r", *_: Any, **__: Any) -> bool:
        return not {"w", "x", "a", "+"}.isdisjoint(mode)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "link", "symlink", "truncate"):
            patch.setattr(os, name, wrap(getattr(os, name)))
        patch.setattr(io, "open", wrap(io.open, for_writing))
        patch.setattr(builtins, "open", wrap(builtins.open, for_writing))
        yield counter


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def before(data: Path) -> dict[str, Path]:
    """What the folder is before the interrupted command."""
    run(data, data / "model", seed=1)
    shutil.copytree(data / "model", data / "both")
    with interrupted(25, KilledError), pytest.raises(KilledError):
        run(data, data / "both", seed=2, overwrite=True)
    assert (data / "both" / "training.new" / "last.ckpt").exists()
    shutil.copytree(data / "both" / "training.new", data / "unfinished" / "training")
    return {"nothing": data / "nothing", **{name: data / name for name in ("model", "both", "unfinished")}}


def check(
    data: Path, out: Path, expected: dict[str, torch.Tensor], command: str, old: dict[str, torch.Tensor] | None
) -> None:
    """Run the next command in a folder that an interrupted one left."""
    if (out / "config.json").exists():
        Annotator.load(out)
        assert same(model(out), expected) or (old is not None and same(model(out), old))
    settings = [json.loads(path.read_text()) for path in out.glob("training*/settings.json")]
    options: dict[str, Any] = {} if command == "plain" else {command: True}
    refused = ""
    try:
        run(data, out, **options)
    except InputError as error:
        refused = str(error)
        run(data, out, overwrite=True)
    if refused and command == "plain":
        assert "there is a model or an unfinished run already" in refused
        assert settings
    elif refused:
        # Only a run that never began cannot be resumed.
        assert command == "resume"
        assert "nothing to resume" in refused or "cannot resume with other settings" in refused
        assert all(s["seed"] != 0 for s in settings)
    assert same(model(out), expected)
    assert set(os.listdir(out)) == FILES
    assert set(os.listdir(out / "training")) == RUN
    Annotator.load(out)


@pytest.mark.parametrize("error", [KilledError, full_disk])
@pytest.mark.parametrize("start", ["nothing", "model", "both", "unfinished"])
@pytest.mark.parametrize(
    "stride", [pytest.param(1, marks=pytest.mark.exhaustive), 5], ids=["each operation", "some operations"]
)
def test_each_operation(
    data: Path, before: dict[str, Path], error: Callable[[], BaseException], start: str, stride: int
) -> None:
    run(data, data / "whole")
    expected, old = model(data / "whole"), model(data / "model")
    commands = ("resume", "plain", "overwrite")
    for operation in count(0, stride):
        out = data / f"at-{operation}"
        if before[start].exists():
            shutil.copytree(before[start], out)
        with interrupted(operation, error) as counter:
            with suppress(KilledError, InputError):
                run(data, out, overwrite=True)
            if next(counter) <= operation:
                break
        for command in commands if stride == 1 else commands[operation // stride % 3 :][:1]:
            again = data / f"again-{operation}-{command}"
            if out.exists():
                shutil.copytree(out, again)
            # The next command is interrupted too, while it puts the folder in order.
            with interrupted(operation // 3, error), suppress(KilledError, InputError):
                run(data, again, **({} if command == "plain" else {command: True}))
            check(data, again, expected, command, old)
            shutil.rmtree(again)
    assert operation > 30


def test_a_full_disk_is_one_line(data: Path) -> None:
    for operation in range(1, 30, 3):  # 0 makes the folder, which is there even so
        out = data / f"out-{operation}"
        with interrupted(operation, full_disk), pytest.raises(InputError, match=rf"{out}.*: no space left on device$"):
            run(data, out)


def test_one_training_at_a_time(data: Path) -> None:
    run(data, data / "out")
    settings = json.loads((data / "out" / "training" / "settings.json").read_text())
    for options in ({"overwrite": True}, {"resume": True}, {}):
        with (
            run_folder.open_run(data / "out", settings, resume=True),
            pytest.raises(InputError, match=r"out: another process is writing to it$"),
        ):
            run(data, data / "out", **options)
    run(data, data / "out", resume=True)


def test_checkpoints_are_written_beside_their_place(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for temporary files may be on another file system, where a rename is a copy."""
    original, renamed = os.replace, []

    def note(source: Any, target: Any) -> None:
        renamed.append((Path(source), Path(target)))
        original(source, target)

    monkeypatch.setattr(os, "replace", note)
    run(data, data / "out")
    checkpoints = [(source, target) for source, target in renamed if target.suffix == ".ckpt"]
    assert {target.name for _, target in checkpoints} == {"best.ckpt", "last.ckpt"}
    assert all(source.parent == target.parent == data / "out" / "training" for source, target in checkpoints)


def test_a_run_that_stopped_early_is_not_trained_further(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed after its last checkpoint and before its history."""
    monkeypatch.setitem(PRESETS, "default", replace(PRESETS["default"], patience=1, epochs=30))
    run(data, data / "out")
    history = (data / "out" / "training" / "history.json").read_text()
    assert 1 < len(json.loads(history)) < 30
    expected = model(data / "out")
    (data / "out" / "training" / "history.json").unlink()
    (data / "out" / "config.json").unlink()

    def fail(*_: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(RankerModule, "training_step", fail)
    run(data, data / "out", resume=True)
    assert (data / "out" / "training" / "history.json").read_text() == history
    assert same(model(data / "out"), expected)


def unfinished(data: Path) -> Path:
    """A run of which only the history is missing."""
    run(data, data / "out")
    (data / "out" / "training" / "history.json").unlink()
    (data / "out" / "config.json").unlink()
    return data / "out" / "training"


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_flipped_bit_in_a_checkpoint(data: Path, name: str) -> None:
    checkpoint = unfinished(data) / name
    content = checkpoint.read_bytes()
    with zipfile.ZipFile(checkpoint) as archive:
        headers = [member.header_offset for member in archive.infolist() if "/data/" in member.filename]
    # A member's data follow its header of 30 bytes, its name and an extra field, whose lengths end the header.
    places = [at + 30 + sum(struct.unpack_from("<HH", content, at + 26)) for at in headers]
    for place in places[::4]:
        damaged = bytearray(content)
        damaged[place] ^= 1
        checkpoint.write_bytes(damaged)
        with pytest.raises(
            InputError, match=rf"{name}: not a checkpoint, or a damaged one; start anew with --overwrite"
        ):
            run(data, data / "out", resume=True)
    checkpoint.write_bytes(content)
    run(data, data / "out", resume=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: [1, 2], "not a checkpoint of a training run: expected a dict, got list"),
        (lambda _: {}, "not a checkpoint of a training run: state_dict: expected dict, got NoneType"),
        (lambda s: s | {"history": 3}, "not a checkpoint of a training run: history: expected list, got int"),
        (
            lambda s: s | {"state_dict": {1: 2}},
            "not a checkpoint of a training run: state_dict: expected tensors by name",
        ),
        (lambda s: s | {"state_dict": {}}, "not a checkpoint of this run"),
        (lambda s: s | {"optimizer_states": [3]}, "not a checkpoint of this run"),
        (lambda s: s | {"global_step": 3}, "not a checkpoint of this run; .*: 3 steps in 2 epochs"),
        (lambda s: s | {"lr_schedulers": [None, None]}, "not a checkpoint of this run"),
        (lambda s: s | {"history": [5]}, "history: expected the metrics of each epoch"),
        (lambda s: s | {"history": []}, "history: expected the metrics of each epoch"),
    ],
)
def test_a_checkpoint_of_something_else(data: Path, change: Callable[[Any], Any], reason: str) -> None:
    path = unfinished(data) / "last.ckpt"
    save_checkpoint(change(read_checkpoint(path)), path)
    with pytest.raises(InputError, match=rf"last\.ckpt: .*{reason}"):
        run(data, data / "out", resume=True)
