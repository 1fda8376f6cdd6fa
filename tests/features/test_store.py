import json
import os
import re
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tagrank.data.sealed import seal
from tagrank.errors import InputError
from tagrank.features.store import FeatureWriter, open_features

CRASH = Path(__file__).with_name("crash.py")
SPEC = {"backbone": "test", "weights": "v1", "preprocessing": "none"}
SHARD = "features-00000.safetensors"


def store(folder: Path, names: list[str], features: torch.Tensor, rows_per_shard: int = 3) -> Path:
    with FeatureWriter(folder, SPEC, features.shape[1], rows_per_shard) as writer:
        writer.add(names, features)
    return folder


def small_store(tmp_path: Path) -> Path:
    return store(tmp_path / "store", list("abcd"), torch.arange(8.0).view(4, 2))


@settings(max_examples=40)
@given(
    batches=st.lists(st.integers(0, 9), max_size=6),
    rows_per_shard=st.integers(1, 8),
    dimension=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int], rows_per_shard: int, dimension: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("features") / "new" / "store"
    generator = torch.Generator().manual_seed(seed)
    expected = {}
    with FeatureWriter(folder, SPEC, dimension, rows_per_shard) as writer:
        for batch, size in enumerate(batches):
            names = [f"{batch}/é {row}.jpg" for row in range(size)]
            features = torch.randn(size, dimension, generator=generator)
            writer.add(names, features)
            expected.update(zip(names, features.half().float(), strict=True))
        assert writer.done == expected.keys()
    features = open_features(folder)
    assert features.names == tuple(expected)
    assert (len(features), features.dimension, features.spec) == (len(expected), dimension, SPEC)
    asked = [*reversed(expected), *list(expected)[::2]]
    rows = features.rows(asked)
    assert rows.dtype == torch.float32
    assert rows.shape == (len(asked), dimension)
    assert torch.equal(rows, torch.stack([expected[name] for name in asked]) if asked else rows)
    shards = json.loads((folder / "index.json").read_text())["shards"]
    assert [shard["rows"] for shard in shards] == [
        min(rows_per_shard, len(expected) - start) for start in range(0, len(expected), rows_per_shard)
    ]


def test_unknown_name(tmp_path: Path) -> None:
    features = open_features(small_store(tmp_path))
    assert "a" in features
    assert "x" not in features
    with pytest.raises(InputError, match=r"store: no features of 'x', 'y', 'z' and 1 more$"):
        features.rows(["a", "x", "y", "z", "w"])


def mapped(folder: Path) -> int:
    """How many bytes of the files in a folder are mapped into the process and were read."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rows_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    rows, dimension = 2048, 16384
    names = [str(row) for row in range(rows)]
    store(tmp_path, names, torch.arange(rows).half().unsqueeze(1).expand(rows, dimension), rows_per_shard=512)
    size = 2 * rows * dimension
    features = open_features(tmp_path)
    # The system may map up to megabytes around each place that is read.
    assert mapped(tmp_path) < size / 4
    assert features.rows(["1100", "1025"]).mean(dim=1).tolist() == [1100.0, 1025.0]
    assert mapped(tmp_path) < size / 2
    assert features.rows(names).mean(dim=1).tolist() == list(range(rows))
    assert mapped(tmp_path) >= size


def test_the_index_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """The index is written again with each shard. If it had all names, a million images would take gigabytes."""
    names = [f"{row:0200d}.jpg" for row in range(600)]
    store(tmp_path, names, torch.zeros(600, 1), rows_per_shard=100)
    assert (tmp_path / "index.json").stat().st_size < 6 * 200
    assert open_features(tmp_path).names == tuple(names)


def test_rows_of_many_shards(tmp_path: Path) -> None:
    names = [str(row) for row in range(500)]
    store(tmp_path, names, torch.arange(500.0).unsqueeze(1), rows_per_shard=3)
    features = open_features(tmp_path)
    asked = torch.randint(500, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    assert features.rows([str(row) for row in asked]).squeeze(1).tolist() == asked
    assert features.rows([]).shape == (0, 1)


def test_other_features_are_refused(tmp_path: Path) -> None:
    folder = small_store(tmp_path)
    with pytest.raises(InputError) as caught:
        FeatureWriter(folder, {**SPEC, "weights": "v2"}, 2)
    assert str(caught.value) == (
        f"{folder}: holds features of backbone='test', weights='v1', preprocessing='none', dimension=2; "
        "cannot add features of backbone='test', weights='v2', preprocessing='none', dimension=2; use another folder"
    )
    with pytest.raises(InputError, match=r"dimension=2; cannot add features of .* dimension=3; use"):
        FeatureWriter(folder, SPEC, 3)
    # Neither attempt keeps the folder locked.
    FeatureWriter(folder, SPEC, 2).close()


def test_add_checks_what_it_gets(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path, SPEC, 2) as writer:
        writer.add(["a"], torch.zeros(1, 2, dtype=torch.float64))
        for features in (torch.zeros(1, 3), torch.zeros(2, 2), torch.zeros(2), torch.zeros(1, 2, dtype=torch.int64)):
            with pytest.raises(ValueError, match=r"features: expected floating point \[1, 2\], got torch\."):
                writer.add(["b"], features)
        with pytest.raises(ValueError, match=r"not in the store yet, each once; got 'a'$"):
            writer.add(["b", "a"], torch.zeros(2, 2))
        with pytest.raises(ValueError, match=r"not in the store yet, each once; got 'b', 'b'$"):
            writer.add(["b", "b"], torch.zeros(2, 2))
        with pytest.raises(InputError, match=r"expected names in UTF-8, got 'caf\\udce9'; rename the files"):
            writer.add(["b", "caf\udce9"], torch.zeros(2, 2))
        refused = r"finite features of at most 65,504 \(float16\), got NaN, infinity or more for 'c'"
        for value in (float("nan"), float("-inf"), 70_000.0):
            with pytest.raises(InputError, match=refused):
                writer.add(["b", "c"], torch.tensor([[0.0, 1.0], [value, 1.0]]))
    assert open_features(tmp_path).names == ("a",)
    with pytest.raises(ValueError, match="dimension: expected at least 1, got 0"):
        FeatureWriter(tmp_path, SPEC, 0)
    with pytest.raises(ValueError, match="rows_per_shard: expected at least 1, got 0"):
        FeatureWriter(tmp_path, SPEC, 2, rows_per_shard=0)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path, SPEC, 2), pytest.raises(InputError, match="another process is writing to it"):
        FeatureWriter(tmp_path, SPEC, 2)
    FeatureWriter(tmp_path, SPEC, 2).close()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match=r"expected a feature store or an empty folder, got 'photo\.jpg'"):
        FeatureWriter(tmp_path, SPEC, 2)
    assert os.listdir(tmp_path) == ["photo.jpg"]
    with pytest.raises(InputError, match=r"photo\.jpg: file exists"):
        FeatureWriter(tmp_path / "photo.jpg", SPEC, 2)


def test_shards_without_their_index_are_left_alone(tmp_path: Path) -> None:
    folder = small_store(tmp_path)
    (folder / "index.json").unlink()
    with pytest.raises(InputError, match="expected a feature store or an empty folder"):
        FeatureWriter(folder, SPEC, 2)
    assert (folder / SHARD).exists()


def test_an_error_while_writing_keeps_what_was_added(tmp_path: Path) -> None:
    def interrupted() -> None:
        with FeatureWriter(tmp_path, SPEC, 2, rows_per_shard=2) as writer:
            writer.add(["a", "b", "c"], torch.ones(3, 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert open_features(tmp_path).names == ("a", "b", "c")


@pytest.mark.parametrize("failing", range(2))
def test_a_full_disk_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    replace, calls = os.replace, iter(range(100))

    def full_once(source: Path, target: Path) -> None:
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        replace(source, target)

    writer = FeatureWriter(tmp_path, SPEC, 2, rows_per_shard=2)
    monkeypatch.setattr(os, "replace", full_once)
    with pytest.raises(InputError, match=r"cannot be written: no space left on device$"):
        writer.add(["a", "b", "c"], torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    writer.close()
    features = open_features(tmp_path)
    assert features.names == ("a", "b", "c")
    assert features.rows(["c", "a", "b"])[:, 0].tolist() == [3.0, 1.0, 2.0]
    assert not list(tmp_path.glob(".*"))


def test_killed_at_each_file_operation(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, CRASH, "each", tmp_path], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    # The first index, two shards and their indexes: each opened, flushed, renamed, and its folder opened and flushed.
    assert int(result.stdout) >= 2 * 5 * 5


@pytest.mark.exhaustive
def test_killed_from_outside(tmp_path: Path) -> None:
    for patience in (3, 6):
        process = subprocess.Popen([sys.executable, CRASH, "slow", tmp_path], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("features-*"))) < patience and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert process.returncode == -9, "killed, not finished"
        survived = open_features(tmp_path)
        # In order, without a gap: only rows after the last full shard were lost.
        assert survived.names == tuple(str(row) for row in range(len(survived)))
        assert len(survived) >= 7 * (patience - 1)
    rows = list(range(len(survived) + 20))
    with FeatureWriter(tmp_path, {"backbone": "test", "weights": "none", "preprocessing": "none"}, 3) as writer:
        assert writer.done == set(survived.names)
        new = [row for row in rows if str(row) not in writer.done]
        writer.add([str(row) for row in new], torch.tensor([[row, row + 0.5, -row] for row in new]))
    features = open_features(tmp_path)
    assert features.names == tuple(map(str, rows))
    assert features.rows(features.names).tolist() == [[row, row + 0.5, -row] for row in rows]


def damage(folder: Path, **fields: object) -> None:
    index = json.loads((folder / "index.json").read_text())
    index.update(fields)
    (folder / "index.json").write_bytes(seal(index))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"more": 1}, "expected the index of a feature store"),
        ({"dimension": 0}, "dimension: expected a whole number above 0, got 0"),
        ({"dimension": 2**64}, "dimension: expected a whole number above 0, got a number of 65 bits"),
        ({"dimension": True}, "dimension: expected a whole number above 0, got True"),
        ({"spec": ["a"]}, "spec: expected an object, got ['a']"),
        ({"spec": {"a": 1}}, "spec.a: expected text, got 1"),
        ({"shards": {}}, "shards: expected a list"),
        ({"shards": ["x"]}, "shards[0]: expected an object, got 'x'"),
        (
            {"shards": [{"file": "../x", "rows": 3}]},
            "shards[0].file: expected 'features-00000.safetensors', got '../x'",
        ),
        ({"shards": [{"file": SHARD, "images": ["a", "b", "c"]}]}, "shards[0].images: unknown; known: file, rows, sha"),
        ({"shards": [{"file": SHARD}]}, "shards[0].rows: missing"),
        ({"shards": [{"file": SHARD, "rows": 0}]}, "shards[0].rows: expected a whole number above 0, got 0"),
        ({"shards": [{"file": SHARD, "rows": "3"}]}, "shards[0].rows: expected a whole number above 0, got '3'"),
        ({"shards": [{"file": SHARD, "rows": 2}]}, "expected float16 [2, 2] according to the index, got"),
        ({"dimension": 3}, "expected float16 [3, 3] according to the index, got torch.float16 [3, 2]"),
    ],
)
def test_damaged_index(tmp_path: Path, fields: dict[str, object], reason: str) -> None:
    folder = small_store(tmp_path)
    damage(folder, **fields)
    with pytest.raises(InputError) as caught:
        open_features(folder)
    assert str(caught.value).startswith(str(folder))
    assert reason in str(caught.value)


def test_a_flipped_bit_in_the_index(tmp_path: Path) -> None:
    path = small_store(tmp_path) / "index.json"
    content = bytearray(path.read_bytes())
    content[content.index(b'"dimension": 2') + 13] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"index\.json: damaged, or edited by hand: its checksum is that of something"):
        open_features(path.parent)


def test_truncated_index(tmp_path: Path) -> None:
    folder = small_store(tmp_path)
    (folder / "index.json").write_text('{"spec": {')
    for opening in (lambda: open_features(folder), lambda: FeatureWriter(folder, SPEC, 2)):
        with pytest.raises(InputError, match=r"index\.json: not valid JSON"):
            opening()


def written_before(folder: Path) -> None:
    """Leave out the digests, which stores of earlier versions did not have."""
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        del shard["sha256"]
    del index["checksum"]
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("tensor", ["features", "crc32"])
def test_a_flipped_bit(tmp_path: Path, tensor: str) -> None:
    """Other rows of the store can be read. Names and checksums are compared when the store is opened."""
    folder = small_store(tmp_path)
    data = bytearray((folder / SHARD).read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    data[start + json.loads(data[8:start])[tensor]["data_offsets"][0]] ^= 1
    (folder / SHARD).write_bytes(data)
    if tensor == "crc32":
        with pytest.raises(InputError, match=rf"{SHARD}: damaged: its digest is not the one in index\.json$"):
            open_features(folder)
        return
    features = open_features(folder)
    first, *others = features.names
    features.rows(others)
    with pytest.raises(InputError, match=rf"{SHARD}: damaged: row 0 has another checksum than when it was written$"):
        features.rows([first])


def test_a_name_that_changed(tmp_path: Path) -> None:
    folder = small_store(tmp_path)
    data = (folder / SHARD).read_bytes()
    name = open_features(folder).names[0].encode()
    assert data.count(b'\\"' + name + b'\\"') == 1
    (folder / SHARD).write_bytes(data.replace(b'\\"' + name + b'\\"', b'\\"' + b"z" * len(name) + b'\\"'))
    with pytest.raises(InputError, match=rf"{SHARD}: damaged: its digest is not the one in index\.json$"):
        open_features(folder)


def test_damaged_shard(tmp_path: Path) -> None:
    folder = small_store(tmp_path)
    shard = folder / SHARD
    whole = shard.read_bytes()
    for content in (b"", whole[:-1], whole[:40], b"junk" * 30):
        shard.write_bytes(content)
        for opening in (lambda: open_features(folder), lambda: FeatureWriter(folder, SPEC, 2)):
            with pytest.raises(InputError, match=rf"{SHARD}: damaged shard"):
                opening()
    save_file({"features": torch.zeros(3, 2).half()}, shard)
    with pytest.raises(InputError, match="damaged shard"):
        open_features(folder)
    written_before(folder)
    save_file({"other": torch.zeros(3, 2).half()}, shard)
    with pytest.raises(InputError, match="damaged shard"):
        open_features(folder)
    save_file({"features": torch.zeros(3, 2)}, shard)
    wrong_dtype = r"expected float16 \[3, 2\] according to the index, got torch\.float32 \[3, 2\]"
    with pytest.raises(InputError, match=wrong_dtype):
        open_features(folder)
    for images, reason in (
        (None, "images: expected the names of 3 images, got None"),
        ('["a", "b"]', r"images: expected the names of 3 images, got \['a', 'b'\]"),
        ('["a", "b", 3]', "images: expected the names of 3 images"),
        ('["a", "b"', "damaged shard .not valid JSON"),
        ('["a", "b", "a"]', "image 'a' is there twice"),
    ):
        save_file({"features": torch.zeros(3, 2).half()}, shard, metadata=images and {"images": images})
        with pytest.raises(InputError, match=reason):
            open_features(folder)
    shard.unlink()
    with pytest.raises(InputError, match=rf"{SHARD}: missing or unreadable shard \(no such file"):
        open_features(folder)


def test_broken_rows_are_named(tmp_path: Path) -> None:
    folder = small_store(tmp_path)
    written_before(folder)
    rows = torch.tensor([[0.0, 1.0], [float("nan"), 2.0], [3.0, float("inf")]]).half()
    save_file({"features": rows}, folder / SHARD, metadata={"images": '["a", "b", "c"]'})
    features = open_features(folder)
    assert features.rows(["d", "a"]).tolist() == [[6.0, 7.0], [0.0, 1.0]]
    with pytest.raises(InputError, match=r"store: expected finite features, got NaN or infinity for 'c', 'b'$"):
        features.rows(["c", "a", "b"])


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a feature store, got a folder without index\.json"):
        open_features(tmp_path)
    with pytest.raises(InputError, match="no such file or directory"):
        open_features(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, dtype: str, save: object) -> None:
    values = np.arange(6.0).reshape(3, 2).astype(dtype)
    path = tmp_path / "features.npz"
    save(path, images=np.array(["a", "b", "longer"]), features=values)  # type: ignore[operator]
    features = open_features(str(path))
    assert features.names == ("a", "b", "longer")
    assert (features.dimension, features.spec) == (2, None)
    assert features.rows(["longer", "a", "longer"]).tolist() == [[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": ["a"]}, "expected arrays 'images' and 'features', got 'images'"),
        (
            {"images": ["a"], "features": [1.0]},
            "features: expected floating point [1, D] with D of at least 1, got float64 [1]",
        ),
        (
            {"images": ["a"], "features": [[1.0], [2.0]]},
            "features: expected floating point [1, D] with D of at least 1, got float64 [2, 1]",
        ),
        ({"images": ["a"], "features": np.zeros((1, 0))}, "with D of at least 1, got float64 [1, 0]"),
        (
            {"images": ["a"], "features": [[1]]},
            "features: expected floating point [1, D] with D of at least 1, got int64 [1, 1]",
        ),
        ({"images": [["a"]], "features": [[1.0]]}, "images: expected a vector of names"),
        ({"images": [1], "features": [[1.0]]}, "images: expected a vector of names, got int64 [1]"),
        ({"images": ["a", "a"], "features": [[1.0], [2.0]]}, "image 'a' is there twice"),
        ({"images": np.array(["a"], dtype=object), "features": [[1.0]]}, "not a readable .npz file (Object arrays"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, object], reason: str) -> None:
    path = tmp_path / "features.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as caught:
        open_features(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    np.savez_compressed(path, images=np.array(["a"]), features=np.random.default_rng(0).random((1, 1000)))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"not a feature store, and not a readable \.npz file"):
            open_features(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(InputError, match="got a single array"):
        open_features(path.with_suffix(".npy"))


@pytest.mark.photographs
def test_photographs(flickr8k: Path) -> None:
    features = open_features(flickr8k / "val_features.npz")
    assert (len(features), features.dimension) == (1052, 1280)
    assert features.rows(features.names).shape == (1052, 1280)


def test_a_closed_writer(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path, SPEC, 2)
    writer.add(["a"], torch.ones(1, 2))
    writer.close()
    with FeatureWriter(tmp_path, SPEC, 2) as other:  # perhaps with the descriptor that the first one had
        writer.close()
        with pytest.raises(InputError, match="another process is writing"):
            FeatureWriter(tmp_path, SPEC, 2)
        other.add(["b"], torch.ones(1, 2))
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.add(["c"], torch.ones(1, 2))
    assert open_features(tmp_path).names == ("a", "b")


def test_npz_that_numpy_opens_and_torch_does_not(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    for images, features, reason in (
        (["a"], np.ones((1, 2), np.longdouble), "features: expected floating point"),
        (["\ud800"], np.ones((1, 2)), "images: expected names in Unicode"),
        (np.frombuffer(b"\xff\xff\xff\x7f", "<U1"), np.ones((1, 2)), "images: expected names in Unicode"),
        (["a"], np.zeros((1, 20_000_000)), "expected arrays of at most .* MB in a file of this size, got 152 MB"),
    ):
        np.savez_compressed(path, images=images, features=features)
        with pytest.raises(InputError, match=rf"^{path}: .*{reason}"):
            open_features(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", b"no array")
        archive.writestr("features", b"no array")
    with pytest.raises(InputError, match="'images' or 'features' is no array"):
        open_features(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", [0x110000, 0xFFFFFFFF])
def test_names_beyond_unicode(tmp_path: Path, order: str, code: int) -> None:
    """Damaged bytes, of which NumPy makes a text that Python cannot read."""
    images = np.array(["a.jpg", "b.jpg"]).astype(f"{order}U5")
    images.view(f"{order}u4")[7] = code
    np.savez(tmp_path / "f.npz", images=images, features=np.ones((2, 3)))
    with pytest.raises(InputError, match=rf"f\.npz: images: expected names in Unicode, got the character {code:#x}$"):
        open_features(tmp_path / "f.npz")
    images.view(f"{order}u4")[7] = ord("x")
    np.savez(tmp_path / "f.npz", images=images, features=np.ones((2, 3)))
    assert open_features(tmp_path / "f.npz").names == ("a.jpg", "b.xpg")
