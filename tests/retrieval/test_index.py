"""The index on disk: what is written is read back, interrupted writers resume, and wrong input is refused."""

import json
import multiprocessing
import os
import shutil
import signal
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.data.sealed import seal
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.retrieval import IndexWriter, open_index, photo_tables
from tagrank.retrieval.index_file import Contents, read_contents
from tagrank.retrieval.photo_shard import UNKNOWN, Shard, Stamp

VOCABULARY = Vocabulary(["ant", "bee", "cat", "dog", "elk"])


def make(seed: int = 0, vocabulary: Vocabulary = VOCABULARY, **options: bool) -> Annotator:
    torch.manual_seed(seed)
    sizes = {"max_length": 3, "embedding_size": 6, "hidden_size": 7}
    return Annotator(TagRanker(8, len(vocabulary), **sizes, **options), vocabulary)  # type: ignore[arg-type]


def tables(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


def fill(folder: Path, count: int, photos_per_shard: int = 4) -> None:
    with IndexWriter(folder, make(), photos_per_shard) as writer:
        names = [f"{i}.jpg" for i in range(count)]
        for i in range(count):
            if names[i] not in writer.done:
                writer.add(names[i : i + 1], tables(count)[i : i + 1])


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    fill(tmp_path / "index", 10)
    contents = read_contents(tmp_path / "index")
    assert contents.shards == (4, 4, 2)
    index = open_index(tmp_path / "index")
    assert len(index) == 10
    assert index.names() == [f"{i}.jpg" for i in range(10)]
    p = tables(10).double()
    row = 0
    for number, count in enumerate(contents.shards):
        shard = Shard(tmp_path / "index", number, count, contents)
        columns = [[shard.log_p(t, tag) for tag in range(len(contents.tags))] for t in range(contents.positions)]
        assert all(column.flags.c_contiguous for table in columns for column in table)
        # float16 has 11 significant bits.
        expected = p[row : row + count, :, :-1].log().permute(1, 2, 0)
        np.testing.assert_allclose(np.array(columns, np.float64), expected, rtol=2**-11)
        row += count


def test_gains_are_those_of_the_decoder_scaled_to_length_1() -> None:
    p = tables(5).double()
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for image in range(5):
        reach = 1.0
        for t in range(4):
            expected[image] += reach * p[image, t, :-1] / np.log2(t + 2)
            reach *= 1.0 - float(p[image, t, -1])
    _, gains = photo_tables(p)
    np.testing.assert_allclose(gains, torch.nn.functional.normalize(expected), atol=1e-3)


def test_probabilities_of_zero_are_stored_as_a_floor() -> None:
    p = torch.zeros(1, 2, 6)
    p[:, :, 0] = 1.0
    log_p, _ = photo_tables(p)
    assert log_p[0, 0].tolist() == [0.0, *[-100.0] * 4]


def test_a_writer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    fill(tmp_path / "index", 6)
    fill(tmp_path / "index", 11)
    assert open_index(tmp_path / "index").names() == [f"{i}.jpg" for i in range(11)]
    assert read_contents(tmp_path / "index").shards == (4, 2, 4, 1)


def _write_forever(folder: Path) -> None:
    with IndexWriter(folder, make(), 3) as writer:
        for i in range(len(writer.done), 10**6):
            writer.add([f"{i}.jpg"], tables(1, seed=i))


def test_a_killed_writer_loses_and_repeats_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    context = multiprocessing.get_context("fork")
    for round_ in range(1, 4):
        process = context.Process(target=_write_forever, args=(folder,))
        process.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (folder / "index.json").exists() and len(read_contents(folder).shards) >= 5 * round_:
                break
            time.sleep(0.001)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        names = open_index(folder).names()
        assert len(names) >= 15 * round_
        assert names == [f"{i}.jpg" for i in range(len(names))]
    (folder / ".index.json.0123abcd.tmp").write_bytes(b"{")
    (folder / "photos-99999.safetensors").write_bytes(b"")
    before = len(open_index(folder))
    with IndexWriter(folder, make()) as writer:
        writer.add(["last.jpg"], tables(1))
    index = open_index(folder)
    assert len(index) == before + 1
    assert len(list(folder.iterdir())) == 1 + len(read_contents(folder).shards)


def test_models_are_not_mixed(tmp_path: Path) -> None:
    fill(tmp_path / "index", 3)
    for other in (make(seed=1), make(vocabulary=Vocabulary(["ant", "bee", "cat", "dog", "emu"]))):
        with pytest.raises(InputError, match="is the index of another model"):
            IndexWriter(tmp_path / "index", other)
    with pytest.raises(InputError, match="the index was made with another model"):
        open_index(tmp_path / "index").gains_of(make(seed=1), torch.zeros(8))
    with pytest.raises(InputError, match="this model reads its own tags"):
        IndexWriter(tmp_path / "other", make(feedback=True))
    assert not (tmp_path / "other").exists()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        IndexWriter(tmp_path / "index", make()),
        pytest.raises(InputError, match="another process is writing to it"),
    ):
        IndexWriter(tmp_path / "index", make())


def test_wrong_additions(tmp_path: Path) -> None:
    with IndexWriter(tmp_path / "index", make()) as writer:
        with pytest.raises(ValueError, match=r"probabilities: expected shape \[1, 4, 6\], got \[2, 4, 6\]"):
            writer.add(["a"], tables(2))
        writer.add(["a"], tables(1))
        for names in (["a", "b"], ["c", "c"]):
            with pytest.raises(ValueError, match="names: expected photographs that are not there yet"):
                writer.add(names, tables(2))
    with pytest.raises(ValueError, match="photos_per_shard: expected at least 1, got 0"):
        IndexWriter(tmp_path / "index", make(), 0)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with pytest.raises(InputError, match=r"expected an index of photographs, but index\.json is not there"):
        open_index(folder)
    with IndexWriter(folder, make()):
        pass
    with pytest.raises(InputError, match="the index has no photographs yet"):
        open_index(folder)
    fill(folder, 3)
    shard, text = folder / "photos-00000.safetensors", (folder / "index.json").read_text()
    content = shard.read_bytes()
    shard.write_bytes(content[:-5])
    with pytest.raises(InputError, match=r"photos-00000\.safetensors: damaged"):
        open_index(folder)
    shard.unlink()
    with pytest.raises(InputError, match=r"photos-00000\.safetensors: missing"):
        open_index(folder)
    shard.write_bytes(content)
    for change in ({"format": 2}, {"tags": []}, {"positions": 0}, {"shards": [0]}, {"shards": 3}, {"model": 5}):
        (folder / "index.json").write_bytes(seal(json.loads(text) | change))
        with pytest.raises(InputError, match=r"index\.json: expected "):
            open_index(folder)
    (folder / "index.json").write_bytes(seal(json.loads(text) | {"shards": [4]}))
    with pytest.raises(InputError, match=r"log_p: expected .* according to the index"):
        open_index(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"expected an index or an empty folder, got 'notes\.txt'$"):
        IndexWriter(tmp_path / "full", make())


def test_names_of_any_bytes(tmp_path: Path) -> None:
    names = ["café.jpg", os.fsdecode(b"caf\xe9.jpg"), "写真.jpg"]
    with IndexWriter(tmp_path, make()) as writer:
        writer.add(names, tables(3))
    assert open_index(tmp_path).names() == names
    assert Shard(tmp_path, 0, 3, Contents("", VOCABULARY.tags, 4)).name(1) == names[1]


def flip(path: Path, tensor: str, byte: int = 0, bit: int = 0) -> None:
    """Change one bit of a tensor in a file."""
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    data[start + json.loads(data[8:start])[tensor]["data_offsets"][0] + byte] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("tensor", ["log_p", "gains", "names", "offsets", "sums", "name_sums"])
def test_a_flipped_bit_is_noticed_where_it_is_read(tmp_path: Path, tensor: str) -> None:
    fill(tmp_path / "index", 3)
    path = tmp_path / "index" / "photos-00000.safetensors"
    content = path.read_bytes()
    dog = VOCABULARY.tags[0]

    def use() -> None:
        index = open_index(tmp_path / "index")
        for tag in VOCABULARY.tags:
            index.search([tag])
            index.search([dog, tag] if tag != dog else [dog], ordered=False)
        index.similar(index.gains("1.jpg"))
        index.names()

    use()
    for byte, bit in ((0, 0), (1, 3), (4, 7)):
        flip(path, tensor, byte, bit)
        with pytest.raises(InputError, match=r"photos-00000\.safetensors: damaged: "):
            use()
        path.write_bytes(content)


def written_before(folder: Path) -> None:
    """Leave out what indexes of earlier versions did not have."""
    for path in folder.glob("photos-*"):
        save_file({k: t for k, t in load_file(path).items() if k not in ("sums", "name_sums")}, path)
    index = json.loads((folder / "index.json").read_text())
    old = {k: v for k, v in index.items() if k not in ("digests", "checksum")}
    (folder / "index.json").write_text(json.dumps(old))


@pytest.mark.parametrize(
    ("tensor", "value", "reason"),
    [
        ("log_p", float("nan"), "log_p: expected log probabilities, got NaN or a number above 0"),
        ("log_p", 8.0, "log_p: expected log probabilities, got NaN or a number above 0"),
        ("gains", float("nan"), "gains: expected numbers from 0 to 1"),
        ("gains", 1.5, "gains: expected numbers from 0 to 1"),
        ("gains", -0.5, "gains: expected numbers from 0 to 1"),
        ("offsets", 10**6, "offsets: expected places in the names, in ascending order"),
        ("offsets", -7, "offsets: expected places in the names, in ascending order"),
    ],
)
def test_impossible_numbers_without_checksums(tmp_path: Path, tensor: str, value: float, reason: str) -> None:
    folder = tmp_path / "index"
    fill(folder, 3)
    written_before(folder)
    assert len(open_index(folder).search([VOCABULARY.tags[0]])) == 3
    path = folder / "photos-00000.safetensors"
    tensors = load_file(path)
    tensors[tensor].flatten()[1] = value
    if tensor == "log_p":
        tensors[tensor][:] = value
    save_file(tensors, path)
    index = open_index(folder)

    def use_it() -> None:
        if tensor == "log_p":
            index.search([VOCABULARY.tags[0]])
        else:
            index.similar(index.gains("0.jpg"))

    with pytest.raises(InputError, match=rf"photos-00000\.safetensors: damaged: {reason}$"):
        use_it()
    if tensor == "offsets":
        for use in (index.names, lambda: index.search([VOCABULARY.tags[0]]), lambda: "1.jpg" in index):
            with pytest.raises(InputError, match=reason):
                use()


def test_a_flipped_bit_in_a_tag(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    path, tag = tmp_path / "index.json", VOCABULARY.tags[0]
    path.write_text(path.read_text().replace(f'"{tag}"', f'"{tag[:-1]}{chr(ord(tag[-1]) ^ 1)}"', 1))
    with pytest.raises(InputError, match=r"index\.json: damaged, or edited by hand: its checksum is that of something"):
        open_index(tmp_path)


def test_a_tag_that_is_there_twice(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    index = json.loads((tmp_path / "index.json").read_text())
    index["tags"][1] = index["tags"][0]
    (tmp_path / "index.json").write_bytes(seal(index))
    with pytest.raises(InputError, match=r"index\.json: tags: expected each tag once, got '.*' twice$"):
        open_index(tmp_path)
    index["tags"][1] = "\u2028"
    (tmp_path / "index.json").write_bytes(seal(index))
    with pytest.raises(InputError, match=r"index\.json: .*: tags\[1\]: expected text that is not blank"):
        open_index(tmp_path)


def test_a_shard_of_another_index(tmp_path: Path) -> None:
    fill(tmp_path / "a", 3)
    with IndexWriter(tmp_path / "b", make()) as writer:
        writer.add([f"{i}.jpg" for i in range(3)], tables(3, seed=5))
    shutil.copy(tmp_path / "b" / "photos-00000.safetensors", tmp_path / "a")
    with pytest.raises(InputError, match=r"damaged: its digest is not the one in index\.json$"):
        open_index(tmp_path / "a")


def test_an_index_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    written_before(tmp_path)
    with IndexWriter(tmp_path, make()) as writer:
        writer.add(["new.jpg"], tables(1))
    assert open_index(tmp_path).names() == ["0.jpg", "1.jpg", "2.jpg", "new.jpg"]
    digests = json.loads((tmp_path / "index.json").read_text())["digests"]
    assert [digest is None for digest in digests] == [True, False]


def test_photographs_leave(tmp_path: Path) -> None:
    """At once, and as if they had never been there; they may come back."""
    fill(tmp_path / "index", 10)
    fill(tmp_path / "without", 10)
    with IndexWriter(tmp_path / "index", make()) as writer:
        writer.remove(["1.jpg", "5.jpg", "none.jpg"])
        assert writer.done == {f"{i}.jpg" for i in range(10)} - {"1.jpg", "5.jpg"}
        shutil.copytree(tmp_path / "index", tmp_path / "killed")
        writer.add(["5.jpg"], tables(11)[10:])
        with pytest.raises(ValueError, match="photographs that are not there yet"):
            writer.add(["0.jpg"], tables(1))
    whole = open_index(tmp_path / "without")
    killed = open_index(tmp_path / "killed")
    index = open_index(tmp_path / "index")
    rest = [f"{i}.jpg" for i in (0, 2, 3, 4, 6, 7, 8, 9)]
    assert (len(killed), killed.names()) == (8, rest)
    assert (len(index), index.names()) == (9, [*rest, "5.jpg"])
    for query in (["dog"], ["cat", "ant"]):
        for ordered in (True, False):
            expected = [m[::2] for m in whole.search(query, ordered=ordered) if m.image in rest]
            assert [m[::2] for m in killed.search(query, ordered=ordered)] == expected
            assert [m[::2] for m in index.search(query, ordered=ordered) if m.image != "5.jpg"] == expected
            assert [m.rank for m in killed.search(query, ordered=ordered, top_k=3)] == [1, 2, 3]
        assert len(killed.scores(query)) == 8
    assert "1.jpg" not in index
    assert "5.jpg" in index
    assert "5.jpg" not in killed
    fill(tmp_path / "new", 11)
    np.testing.assert_array_equal(index.gains("5.jpg"), open_index(tmp_path / "new").gains("10.jpg"))
    assert {m.image for m in killed.similar(whole.gains("0.jpg"), 20)} == set(rest)
    with IndexWriter(tmp_path / "killed", make()) as writer:
        writer.remove(rest)
    with pytest.raises(InputError, match="the index has no photographs yet"):
        open_index(tmp_path / "killed")


def test_stamps(tmp_path: Path) -> None:
    """They are read back; unless they are damaged or were not given."""
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"12345")
    os.utime(photo, ns=(1, 1_700_000_000_123_456_789))
    assert Stamp.of(photo) == (5, 1_700_000_000_123_456_789, b"")
    assert Stamp.of(photo / "b.jpg") is Stamp.of(tmp_path / "b.jpg") is None
    folder = tmp_path / "index"
    with IndexWriter(folder, make()) as writer:
        writer.add(["a.jpg", "b.jpg"], tables(2), [Stamp(5, 10, b"0123456789abcdef"), Stamp(6, 11)])
        writer.add(["c.jpg"], tables(1))
    path = folder / "photos-00000.safetensors"
    with IndexWriter(folder, make()) as writer:
        assert [writer.stamp(f"{name}.jpg") for name in "abcd"] == [
            (5, 10, b"0123456789abcdef"),
            (6, 11, b""),
            UNKNOWN,
            UNKNOWN,
        ]
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    data[start + json.loads(data[8:start])["stamps"]["data_offsets"][0]] ^= 1
    path.write_bytes(data)
    with IndexWriter(folder, make()) as writer:
        assert [writer.stamp(f"{name}.jpg") for name in "ab"] == [UNKNOWN, (6, 11, b"")]


@pytest.mark.parametrize("removed", [[-1], [3], [1, 0], [1, 1], ["0"], {}, [True]])
def test_damaged_rows_of_what_left(tmp_path: Path, removed: object) -> None:
    fill(tmp_path, 3)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_bytes(seal(index | {"removed": removed}))
    with pytest.raises(InputError, match=r"index\.json: .*removed"):
        open_index(tmp_path)
