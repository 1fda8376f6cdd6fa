"""Updates of an index: the same as a new index, at once for who reads it, and never lost."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.data.sealed import seal
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.retrieval import IndexUpdate, IndexWriter, open_index, search
from tagrank.retrieval.index_file import read_contents
from tagrank.retrieval.photo_changes import Changes, keep_what_is_known
from tagrank.retrieval.photo_shard import UNKNOWN, Stamp

VOCABULARY = Vocabulary(["ant", "bee", "cat", "dog", "elk"])
SHARD = 4


def make(seed: int = 0) -> Annotator:
    torch.manual_seed(seed)
    return Annotator(TagRanker(8, len(VOCABULARY), max_length=3, embedding_size=6, hidden_size=7), VOCABULARY)


ANNOTATOR = make()


def table(state: str) -> Tensor:
    """The predictions for a file with this content."""
    generator = torch.Generator().manual_seed(int.from_bytes(state.encode(), "little") % 2**31)
    return torch.randn(1, 4, 6, generator=generator).mul(2).softmax(-1)


def stamp(state: str) -> Stamp:
    return Stamp(len(state), sum(map(ord, state)))


def update(folder: Path, photos: Mapping[str, str], commit: bool = True) -> int:
    """Bring an index up to date with photographs, each a name with its content. Returns how many were computed."""
    computed = 0
    with IndexUpdate(folder, ANNOTATOR, SHARD) as index:
        for name in sorted(photos, key=lambda name: name.split("/")):
            for there in (index.photos.get(name), index.computed.get(name)):
                if there is not None and there.stamp.is_of(stamp(photos[name])):
                    index.keep(there)
                    break
            else:
                index.add([name], table(photos[name]), [stamp(photos[name])])
                computed += 1
        if commit:
            assert index.commit() == len(photos)
    return computed


def shards(folder: Path) -> list[bytes]:
    contents = read_contents(folder)
    return [(folder / f"photos-{number:05d}.safetensors").read_bytes() for number in contents.numbers]


def found(folder: Path) -> list[Any]:
    index = open_index(folder)
    return [
        index.names(),
        index.search(["dog", "ant"], top_k=99),
        index.search(["dog", "ant"], ordered=False, top_k=99),
        index.similar(index.gains(index.names()[0]), 99),
    ]


def check_as_new(folder: Path, photos: Mapping[str, str], new: Path) -> None:
    """An index is, shard for shard, what a new index of the photographs is; and nothing else is in its folder."""
    update(new, photos)
    assert shards(folder) == shards(new)
    assert found(folder) == found(new)
    numbers = read_contents(folder).numbers
    expected = {"index.json", *(f"photos-{number:05d}.safetensors" for number in numbers)}
    assert {path.name for path in folder.iterdir()} == expected


def test_an_update_is_as_a_new_index(tmp_path: Path) -> None:
    """Whatever was added, removed or changed, and wherever it is in the order."""
    generator = np.random.default_rng(0)
    photos: dict[str, str] = {}
    for round_ in range(12):
        before = dict(photos)
        for name in list(photos):
            if generator.random() < 0.15:
                del photos[name]
            elif generator.random() < 0.15:
                photos[name] += "x"
        for i in generator.integers(0, 40, 5):
            photos.setdefault(f"{'ab'[i % 2]}/{i:02d}.jpg", f"state {i} {round_}")
        changed = sum(before.get(name) != state for name, state in photos.items())
        assert update(tmp_path / "index", photos) == changed
        check_as_new(tmp_path / "index", photos, tmp_path / f"new {round_}")


def test_shards_that_are_the_same_stay(tmp_path: Path) -> None:
    photos = {f"{i:02d}.jpg": str(i) for i in range(14)}
    folder = tmp_path / "index"
    update(folder, photos)
    inodes = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert update(folder, photos) == 0
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == inodes
    del photos["05.jpg"]
    photos["055.jpg"] = "new"
    update(folder, photos)
    assert read_contents(folder).numbers == (0, 4, 2, 3)
    del photos["055.jpg"]
    update(folder, photos)
    assert read_contents(folder).numbers == (0, 5, 6, 7)
    update(folder, {name: photos[name] for name in list(photos)[:4]})
    assert read_contents(folder).numbers == (0,)
    check_as_new(folder, {name: photos[name] for name in list(photos)[:4]}, tmp_path / "new")
    with IndexWriter(folder, ANNOTATOR, SHARD) as writer:
        writer.add(["z.jpg"], table("z"))
    assert read_contents(folder).numbers == (0, 1)
    assert open_index(folder).names()[-1] == "z.jpg"


def test_without_a_commit_the_index_stays_and_the_next_update_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    photos = {f"{i}.jpg": str(i) for i in range(6)}
    update(folder, photos)
    before = found(folder)
    more = {**photos, "2.jpg": "other", **{f"a{i}.jpg": f"a{i}" for i in range(6)}}
    assert update(folder, more, commit=False) == 7
    assert found(folder) == before
    with IndexUpdate(folder, ANNOTATOR, SHARD) as index:
        assert index.computed.keys() == {"2.jpg", *(f"a{i}.jpg" for i in range(6))}
        index.add(["b.jpg"], table("b"), [stamp("b")])
    more |= {"b.jpg": "b", "a1.jpg": "changed since", "c.jpg": "c"}
    del more["a3.jpg"]
    assert update(folder, more) == 2
    check_as_new(folder, more, tmp_path / "new")


def _die_at(operation: int) -> None:
    """Have the process kill itself: 0 before its first operation on files, 1 after it, 2 before the second, ..."""
    count = iter(range(10**9))

    def wrap(function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(count) == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if next(count) == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    os.fsync, os.replace, os.unlink, os.rmdir = map(wrap, (os.fsync, os.replace, os.unlink, os.rmdir))
    Path.mkdir, Path.unlink = wrap(Path.mkdir), wrap(Path.unlink)  # type: ignore[method-assign]


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 2))])
def test_an_update_that_is_killed_anywhere(tmp_path: Path, first: int) -> None:
    """Leaves the index before or after it, and the next one ends with the same index."""
    old = {f"{i}.jpg": str(i) for i in range(9)}
    new = {**{name: state for name, state in old.items() if name != "4.jpg"}, "7.jpg": "x", "a.jpg": "a", "b.jpg": "b"}
    update(tmp_path / "old", old)
    update(tmp_path / "new", new)
    either = [found(tmp_path / "old"), found(tmp_path / "new")]
    seen = set()
    context = multiprocessing.get_context("fork")
    for operation in range(first, 200, 3):
        folder = tmp_path / str(operation)
        shutil.copytree(tmp_path / "old", folder)

        def run(folder: Path = folder, operation: int = operation) -> None:
            _die_at(operation)
            update(folder, new)

        process = context.Process(target=run)
        process.start()
        process.join()
        now = found(folder)
        assert now in either
        seen.add(either.index(now))
        update(folder, new)
        assert shards(folder) == shards(tmp_path / "new")
        assert not (folder / "update").exists()
        assert len(list(folder.iterdir())) == 1 + len(read_contents(folder).numbers)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert operation > 40
    assert process.exitcode == 0
    assert seen == {0, 1}


READER = """
import json, sys
from pathlib import Path
from tagrank.retrieval import open_index
folder, stop = Path(sys.argv[1]), Path(sys.argv[2])
seen, count = set(), 0
while not stop.exists() or count < 20:
    index = open_index(folder)
    seen.add(json.dumps([index.names(), index.search(["dog", "ant"], top_k=99)]))
    count += 1
print(json.dumps([count, sorted(seen)]))
"""


def test_readers_meanwhile(tmp_path: Path) -> None:
    """See the index before or after each update, and no other; none fails."""
    states = [{f"{i:02d}.jpg": str(i) for i in range(30)}, {f"{i:02d}.jpg": str(i * 7 % 20) for i in range(5, 33)}]
    expected = []
    for number, photos in enumerate(states):
        update(tmp_path / str(number), photos)
        index = open_index(tmp_path / str(number))
        expected.append(json.dumps([index.names(), index.search(["dog", "ant"], top_k=99)]))
    folder, stop = tmp_path / "index", tmp_path / "stop"
    update(folder, states[0])
    opened = open_index(folder)
    command = [sys.executable, "-c", READER, folder, stop]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(1)]
    for round_ in range(20):
        update(folder, states[(round_ + 1) % 2])
    stop.touch()
    for reader in readers:
        output, _ = reader.communicate(timeout=120)
        assert reader.returncode == 0
        count, seen = json.loads(output)
        assert count >= 20
        assert set(seen) <= set(expected)
    # Who has the index open has it as it was, though its files are gone.
    assert json.dumps([opened.names(), opened.search(["dog", "ant"], top_k=99)]) == expected[0]


def test_shards_that_go_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    update(folder, {"a.jpg": "a"})
    old = read_contents(folder)
    update(folder, {"b.jpg": "b"})
    looks = iter([old])
    monkeypatch.setattr(search, "read_contents", lambda path: next(looks, None) or read_contents(path))
    assert open_index(folder).names() == ["b.jpg"]
    (folder / "photos-00001.safetensors").unlink()
    looks = iter([old])
    with pytest.raises(InputError, match=r"photos-00001\.safetensors: missing or unreadable"):
        open_index(folder)


def test_one_update_at_a_time(tmp_path: Path) -> None:
    with (
        IndexUpdate(tmp_path, ANNOTATOR),
        pytest.raises(InputError, match="another process is writing to it"),
    ):
        IndexUpdate(tmp_path, ANNOTATOR)
    update(tmp_path, {"a.jpg": "a"})
    with pytest.raises(InputError, match="is the index of another model"):
        IndexUpdate(tmp_path, make(seed=1))


@pytest.mark.parametrize("numbers", [[0, 0], [0], [-1, 0], [0, "1"], {}, [0, 1, 2]])
def test_damaged_numbers(tmp_path: Path, numbers: object) -> None:
    update(tmp_path, {f"{i}.jpg": str(i) for i in range(6)})
    index = json.loads((tmp_path / "index.json").read_text())
    assert "numbers" not in index
    (tmp_path / "index.json").write_bytes(seal(index | {"numbers": numbers}))
    with pytest.raises(InputError, match=r"index\.json: .*numbers"):
        open_index(tmp_path)


def test_damage_is_not_copied(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    photos = {f"{i}.jpg": str(i) for i in range(6)}
    update(folder, photos)
    path = folder / "photos-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="damaged"):
        update(folder, {name: photos[name] for name in ("1.jpg", "3.jpg", "5.jpg")})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def changes(
    folder: Path, paths: Iterable[Any], folders: Iterable[Any] = (), root: Any = None, **options: Any
) -> Changes:
    """What an update finds. Predictions are of the content of the files, which are texts."""
    with IndexUpdate(folder, ANNOTATOR, SHARD, None if root is None else str(root)) as index:
        found = keep_what_is_known(index, map(str, paths), map(str, folders), **options)
        for name, (path, now) in found.new.items():
            index.add([name], table(Path(path).read_text()), [now.with_content(path)])
        index.commit()
    return found


def files(folder: Path, **contents: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_text(content)
        os.utime(folder / f"{name}.jpg", ns=(10**9, 10**18))
    return sorted(folder.iterdir())


def test_what_became_of_files(tmp_path: Path) -> None:
    """Touched, moved and copied ones are not computed again; changed ones are, also if their size is the same."""
    photos = tmp_path / "photos"
    index = tmp_path / "index"
    first = changes(index, files(photos, a="alpha", b="beta", c="gamma", d="delta"), [photos], root=tmp_path)
    assert (list(first.new), first.there) == (["photos/a.jpg", "photos/b.jpg", "photos/c.jpg", "photos/d.jpg"], 0)
    assert read_contents(index).root == str(tmp_path)
    os.utime(photos / "a.jpg", ns=(5, 5))
    (photos / "b.jpg").write_text("BETA")
    (photos / "sub").mkdir()
    (photos / "c.jpg").rename(photos / "sub" / "z.jpg")
    shutil.copy(photos / "d.jpg", photos / "e.jpg")
    paths = list(photos.rglob("*.jpg"))
    second = changes(index, paths, [photos], root=tmp_path)
    assert list(second.new) == ["photos/b.jpg"]
    assert (second.there, second.known, second.left) == (2, 2, 2)
    fresh = tmp_path / "fresh"
    changes(fresh, paths, [photos], root=tmp_path)
    assert shards(index) == shards(fresh)
    third = changes(index, paths, [photos], root=tmp_path)
    assert (third.new, third.there, third.known, third.left) == ({}, 5, 0, 0)


def test_only_given_folders_lose_photographs(tmp_path: Path) -> None:
    one, two, index = tmp_path / "one", tmp_path / "two", tmp_path / "index"
    paths = files(one, a="alpha", b="beta") + files(two, c="gamma", d="delta")
    changes(index, paths, [one, two], root=tmp_path)
    (one / "a.jpg").unlink()
    (two / "c.jpg").unlink()
    found = changes(index, [one / "b.jpg"], [one], root=tmp_path)
    assert found.left == 1
    assert open_index(index).names() == ["one/b.jpg", "two/c.jpg", "two/d.jpg"]
    # A photograph that moved to a given folder leaves the other one.
    (two / "d.jpg").rename(one / "d.jpg")
    found = changes(index, [one / "b.jpg", one / "d.jpg"], [one], root=tmp_path)
    assert (found.new, found.known, found.left) == ({}, 1, 1)
    assert open_index(index).names() == ["one/b.jpg", "one/d.jpg", "two/c.jpg"]
    found = changes(index, [one / "b.jpg"], [one], root=tmp_path, refresh=False)
    assert (found.new, found.left) == ({}, 0)
    assert len(open_index(index)) == 3


def test_moved_photographs(tmp_path: Path) -> None:
    """With their new root nothing is computed, or read; absolute names below it become relative."""
    old, index = tmp_path / "old", tmp_path / "index"
    changes(index, files(old, a="alpha", b="beta"), [old], root=tmp_path / "elsewhere")
    assert open_index(index).names() == [str(old / "a.jpg"), str(old / "b.jpg")]
    assert changes(index, sorted(old.iterdir()), [old], root=old).there == 2
    assert open_index(index).names() == ["a.jpg", "b.jpg"]
    new = old.rename(tmp_path / "new")
    for path in new.iterdir():
        path.chmod(0)
    found = changes(index, sorted(new.iterdir()), [new], root=new)
    assert (found.new, found.there, found.known) == ({}, 2, 0)
    opened = open_index(index)
    assert (opened.names(), opened.root, opened.path("a.jpg")) == (["a.jpg", "b.jpg"], new, new / "a.jpg")
    assert open_index(index, "x/y").path("a.jpg") == Path("x/y/a.jpg")


def test_an_index_without_stamps(tmp_path: Path) -> None:
    """As earlier versions wrote it: nobody can tell what changed, so all is computed."""
    paths = files(tmp_path / "photos", a="alpha", b="beta")
    index = tmp_path / "index"
    with IndexWriter(index, ANNOTATOR) as writer:
        writer.add([str(path) for path in paths], torch.cat([table("x"), table("y")]))
    kept = changes(index, paths, [tmp_path / "photos"], refresh=False)
    assert (kept.new, kept.there) == ({}, 2)
    found = changes(index, paths, [tmp_path / "photos"])
    assert (list(found.new), found.left) == ([str(path) for path in paths], 2)
    changes(tmp_path / "fresh", paths)
    assert shards(index) == shards(tmp_path / "fresh")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    (path,) = files(tmp_path / "photos", a="alpha")
    now = Stamp.of(path)
    assert now is not None
    assert len(now.with_content(path).content) == 16
    path.write_text("other")
    assert now.with_content(path).content == b""
    assert now.with_content(tmp_path / "none").content == b""
    assert not UNKNOWN.is_of(UNKNOWN)
