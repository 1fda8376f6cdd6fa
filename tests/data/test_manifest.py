import itertools
import json
import os
import random
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagrank.data.manifest import Example, Manifest, RepeatedImageError, merge_lists, read_manifest, write_manifest
from tagrank.errors import InputError

GOOD = b'{"image": "good.jpg", "tags": ["dog", "ball"]}\n'

text = (
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=8)
    .map(lambda text: unicodedata.normalize("NFC", text))
    .filter(lambda text: text == text.strip() != "")
)
tag_lists = st.lists(text, min_size=1, max_size=5, unique=True).map(tuple)


@st.composite
def example(draw: st.DrawFn) -> Example:
    lists = tuple(draw(st.lists(tag_lists, min_size=1, max_size=3)))
    listed = sorted({tag for tags in lists for tag in tags})
    return Example(
        image=draw(st.from_regex(r"[a-z]{1,3}/[a-z0-9 é]{1,6}\.jpg", fullmatch=True)),
        tags=tuple(draw(st.lists(st.sampled_from(listed), min_size=1, unique=True))),
        lists=lists,
        split=draw(st.none() | text),
    )


examples = st.lists(
    example(),
    min_size=1,
    max_size=5,
    unique_by=lambda example: example.image,
)


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(content)
    return path


def exact_scores(lists: tuple[tuple[str, ...], ...]) -> dict[str, Fraction]:
    scores: defaultdict[str, Fraction] = defaultdict(Fraction)
    for tags in lists:
        for position, tag in enumerate(tags, 1):
            scores[tag] += Fraction(1, position * len(lists))
    return scores


def test_fields(tmp_path: Path) -> None:
    manifest = read_manifest(
        write(
            tmp_path,
            b'{"image": "a.jpg", "tags": ["dog", "ball"]}\n'
            b'{"image": "b/c.jpg", "lists": [["cat"], ["dog", "cat"]], "split": "val"}\n'
            b'{"image": "d.jpg", "tags": ["x"], "lists": [["y", "x"]], "split": "val"}\n',
        )
    )
    assert manifest.examples == (
        Example("a.jpg", ("dog", "ball"), (("dog", "ball"),), None),
        Example("b/c.jpg", ("cat", "dog"), (("cat",), ("dog", "cat")), "val"),
        Example("d.jpg", ("x",), (("y", "x"),), "val"),
    )
    assert len(manifest) == 3
    assert manifest.root == tmp_path
    assert manifest.image_path(manifest.examples[1]) == tmp_path / "b" / "c.jpg"
    assert manifest.select("val") == Manifest(manifest.path, manifest.examples[1:])
    with pytest.raises(InputError, match=r"no example of split 'test'; splits in this file: val$"):
        manifest.select("test")


def test_spellings_of_a_tag(tmp_path: Path) -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    path = write(tmp_path, json.dumps({"image": "a.jpg", "lists": [[one, "x"], [two]]}, ensure_ascii=False).encode())
    assert read_manifest(path).examples[0].lists == ((one, "x"), (one,))
    path = write(tmp_path, json.dumps({"image": "a.jpg", "tags": [one, two]}).encode())
    with pytest.raises(InputError, match=f"expected each tag once, got '{one}' twice"):
        read_manifest(path)


def test_an_absolute_path_below_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"image": f"{tmp_path}/b/a.jpg", "tags": ["dog"]}).encode() + b"\n"
    path = write(tmp_path, line)
    monkeypatch.chdir(tmp_path)
    for spelling in (path, Path(path.name)):
        (example,) = read_manifest(spelling).examples
        assert example.image == "b/a.jpg"
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    (example,) = read_manifest(tmp_path.parent / f"{tmp_path.name}-link" / path.name).examples
    assert example.image == "b/a.jpg"
    with pytest.raises(InputError, match=r"line 2: image '\./b/a\.jpg' is already on line 1"):
        read_manifest(write(tmp_path, line + b'{"image": "./b/a.jpg", "tags": ["dog"]}'))


def test_the_file_of_an_image_in_another_spelling(tmp_path: Path) -> None:
    (tmp_path / "cafe\u0301.jpg").touch()
    manifest = read_manifest(write(tmp_path, '{"image": "caf\u00e9.jpg", "tags": ["dog"]}'.encode()))
    assert manifest.image_path(manifest.examples[0]).exists()


@given(examples=examples)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.jsonl"
    write_manifest(path, examples)
    assert read_manifest(path).examples == tuple(examples)
    assert os.listdir(path.parent) == ["manifest.jsonl"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD,
        GOOD.rstrip(b"\n"),
        GOOD.replace(b"\n", b"\r\n"),
        GOOD + b"\n",
        GOOD + b" \t\r\n\n",
    ],
    ids=["byte order mark", "no line end", "windows", "blank line", "blank lines"],
)
def test_forgiven(tmp_path: Path, content: bytes) -> None:
    assert read_manifest(write(tmp_path, content)).examples == (
        Example("good.jpg", ("dog", "ball"), (("dog", "ball"),)),
    )


def record(**fields: object) -> bytes:
    return json.dumps({"image": "a.jpg", **fields}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"image": "a.jpg", "tags": ["x"]', "not valid JSON: Expecting ',' delimiter at column 33"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"image": "a.jpg", "tags": [NaN]}', "not valid JSON: NaN is not a JSON number"),
        (b'{"image": "a.jpg", "tags": ["x"]} {}', "not valid JSON: Extra data at column 35"),
        (b'{"image": "a.jpg", "tags": ["\xff"]}', "not UTF-8: byte 0xff at 30"),
        (b'{"image": "a.jpg", "tags": ["x"], "tags": ["y"]}', "the key 'tags' appears twice in one object"),
        (b'["a.jpg"]', "expected a JSON object, got ['a.jpg']"),
        (b"", "expected a JSON object, got a blank line"),
        (record(), "expected 'tags' or 'lists', got neither"),
        (b'{"tags": ["x"]}', "the field 'image' is missing"),
        (record(tags=["x"], tag="x"), "unknown field 'tag'; known: image, tags, lists, split"),
        (record(tags=[]), "tags: expected a non-empty list of tags, got []"),
        (record(tags="dog"), "tags: expected a non-empty list of tags, got 'dog'"),
        (record(tags=None), "tags: expected a non-empty list of tags, got None"),
        (record(tags=["x", 3]), "tags[1]: expected a string, got 3"),
        (record(tags=["x", "y", "x"]), "tags: expected each tag once, got 'x' twice"),
        (record(tags=["x", " "]), "tags[1]: expected text without white space around it"),
        (record(tags=[""]), "tags[0]: expected text without white space around it"),
        (record(tags=[" x"]), "tags[0]: expected text without white space around it"),
        (record(tags=["x\u00a0"]), "tags[0]: expected text without white space around it"),
        (record(tags=["x\ny"]), "control characters in it, got 'x\\ny'"),
        (record(tags=["x\x7fy"]), "control characters in it"),
        (record(tags=["\ud800"]), "control characters in it"),
        (record(lists=[]), "lists: expected a non-empty list of lists of tags, got []"),
        (record(lists=[["x"], []]), "lists[1]: expected a non-empty list of tags, got []"),
        (record(lists=["x"]), "lists[0]: expected a non-empty list of tags, got 'x'"),
        (record(lists=[["x"], ["y", "y"]]), "lists[1]: expected each tag once, got 'y' twice"),
        (record(lists=[["x", ["y"]]]), "lists[0][1]: expected a string, got ['y']"),
        (
            record(tags=["x", "y"], lists=[["x"], ["z"]]),
            "tags: expected each tag on at least one of the lists, 'y' is on none",
        ),
        (record(tags=["x"], split=""), "split: expected text"),
        (record(tags=["x"], split=None), "split: expected a string, got None"),
        (record(tags=["x"], image=""), "image: expected a path, got ''"),
        (record(tags=["x"], image=7), "image: expected a path, got 7"),
        (record(tags=["x"], image="/etc/passwd"), "inside the manifest's folder, got '/etc/passwd'"),
        (record(tags=["x"], image="../a.jpg"), "inside the manifest's folder, got '../a.jpg'"),
        (record(tags=["x"], image="b/../../a.jpg"), "inside the manifest's folder"),
        (record(tags=["x"], image="."), "inside the manifest's folder, got '.'"),
        (record(tags=["x"], image="a\0.jpg"), "image: expected a path without control characters"),
        (record(tags=["x"], image="good.jpg"), "image 'good.jpg' is already on line 1"),
        (record(tags=["x"], image="./good.jpg"), "image './good.jpg' is already on line 1"),
    ],
)
def test_bad_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path, GOOD + line + b"\n" + record(tags=["x"], image="last.jpg"))
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    assert str(caught.value) == f"{path}: expected one JSON object a line, the file is empty"


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file or directory$"):
        read_manifest(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match=r"is a directory$"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (Example("../a.jpg", ("x",), (("x",),)), "inside the manifest's folder"),
        (Example("a.jpg", (), ((),)), "tags: expected a non-empty list of tags"),
        (Example("a.jpg", ("x",), ()), "lists: expected a non-empty list of lists"),
        (Example("a.jpg", ("\ud800",), (("\ud800",),)), "not UTF-8"),
        (Example("a.jpg", ["x"], (("x",),)), "expected tuples of strings"),  # type: ignore[arg-type]
        (Example("good.jpg", ("x",), (("x",),)), "image 'good.jpg' is already in the manifest"),
    ],
)
def test_write_refuses_what_read_would_refuse(tmp_path: Path, example: Example, reason: str) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(InputError) as caught:
        write_manifest(path, [*read_manifest(path).examples, example])
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert reason in str(caught.value)
    assert path.read_bytes() == GOOD
    assert os.listdir(tmp_path) == ["manifest.jsonl"]


def test_write_interrupted(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)

    def endless() -> Iterator[Example]:
        yield Example("a.jpg", ("x",), (("x",),))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, endless())
    with pytest.raises(InputError, match="at least one example to write"):
        write_manifest(path, [])
    assert path.read_bytes() == GOOD
    assert os.listdir(tmp_path) == ["manifest.jsonl"]


def test_write_keeps_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_manifest(tmp_path / "manifest.jsonl", [Example("a.jpg", ("x",), (("x",),))])
    finally:
        os.umask(before)
    assert (tmp_path / "manifest.jsonl").stat().st_mode & 0o777 == 0o640


def test_merge_lists() -> None:
    # Scores: dog 1 + 1/2, ball 1/2 + 1, cat 1/3. The tie of dog and ball is broken alphabetically.
    assert merge_lists([["dog", "ball", "cat"], ["ball", "dog"]]) == ("ball", "dog", "cat")
    # One first place (1) outweighs two third places (2/3).
    assert merge_lists([["a"], ["b", "c", "d"], ["c", "b", "d"]]) == ("b", "c", "a", "d")
    assert merge_lists([]) == ()


@given(
    lists=st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, unique=True).map(tuple), max_size=5).map(tuple)
)
def test_merge_lists_is_exact(lists: tuple[tuple[str, ...], ...]) -> None:
    scores = exact_scores(lists)
    assert merge_lists(lists) == tuple(sorted(scores, key=lambda tag: (-scores[tag], tag)))
    assert len({merge_lists(order) for order in itertools.permutations(lists)}) == 1


@pytest.mark.photographs
@pytest.mark.parametrize(("name", "images"), [("train.jsonl", 6009), ("val.jsonl", 1052)])
def test_merge_lists_gives_the_order_of_real_lists(flickr8k: Path, name: str, images: int) -> None:
    manifest = read_manifest(flickr8k / name)
    assert len(manifest) == images
    tied = 0
    for example in manifest.examples:
        merged = merge_lists(example.lists)
        scores = exact_scores(example.lists)
        # The scores are the same from first to last, so the two orders differ at most among tags with equal scores.
        assert [scores[tag] for tag in merged] == [scores[tag] for tag in example.tags]
        assert set(merged) == set(example.tags)
        tied += merged != example.tags
        # The data set's lists were merged with floating point sums, which break some of the ties by rounding.
        rounded: defaultdict[str, float] = defaultdict(float)
        for tags in example.lists:
            for position, tag in enumerate(tags, 1):
                rounded[tag] += 1 / position / len(example.lists)
        assert example.tags == tuple(sorted(rounded, key=lambda tag: (-rounded[tag], tag)))
    assert tied < 0.02 * images


def test_refused_examples_can_be_left_out(tmp_path: Path) -> None:
    good, other = Example("a.jpg", ("x",), (("x",),)), Example("b.jpg", ("y",), (("y",),))
    twice, blank = Example("./a.jpg", ("y",), (("y",),)), Example("c.jpg", ("",), (("",),))
    refused: list[tuple[Example, InputError]] = []
    write_manifest(
        tmp_path / "m.jsonl",
        [good, twice, blank, other],
        on_error=lambda example, error: refused.append((example, error)),
    )
    assert read_manifest(tmp_path / "m.jsonl").examples == (good, other)
    assert [example for example, _ in refused] == [twice, blank]
    assert [isinstance(error, RepeatedImageError) for _, error in refused] == [True, False]
    assert str(refused[0][1]).endswith("line 2: image './a.jpg' is already in the manifest")
    with pytest.raises(InputError, match="expected at least one example to write, got none"):
        write_manifest(tmp_path / "m.jsonl", [blank], on_error=lambda *_: None)
    assert len(read_manifest(tmp_path / "m.jsonl")) == 2


@pytest.mark.parametrize("case", ["merge", "double", "key", "both"])
def test_a_long_line_takes_linear_time(tmp_path: Path, case: str) -> None:
    tags = [f"t{i}" for i in range(40_000)]
    text = {
        "merge": json.dumps({"image": "a.jpg", "lists": [tags, tags[::-1], tags[1:]]}),
        "double": json.dumps({"image": "a.jpg", "tags": [*tags, tags[-1]]}),
        "key": "{" + ",".join(f'"{tag}":1' for tag in [*tags, tags[-1]]) + "}",
        "both": json.dumps({"image": "a.jpg", "tags": tags, "lists": [tags]}),
    }[case]
    (tmp_path / "m.jsonl").write_text(text)
    start = time.process_time()
    if case in ("double", "key"):
        with pytest.raises(InputError, match=r"'t39999'.* twice"):
            read_manifest(tmp_path / "m.jsonl")
    else:
        (example,) = read_manifest(tmp_path / "m.jsonl").examples
        assert set(example.tags) == set(tags)
    assert time.process_time() - start < 5  # quadratic time would be 40 s and more


def test_lists_are_merged_by_exact_scores() -> None:
    """Compared with rational numbers, on lists in which many scores are equal or nearly so."""
    rng = random.Random(0)
    for _ in range(200):
        names = [f"t{i}" for i in range(rng.randint(1, 12))]
        lists = [rng.sample(names, rng.randint(1, len(names))) for _ in range(rng.randint(1, 9))]
        scores: defaultdict[str, Fraction] = defaultdict(Fraction)
        for tags in lists:
            for position, tag in enumerate(tags, 1):
                scores[tag] += Fraction(1, position)
        assert merge_lists(lists) == tuple(sorted(scores, key=lambda tag: (-scores[tag], tag)))
