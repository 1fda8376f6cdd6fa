from pathlib import Path

import pytest

from tagrank.data.sets.coco import default_words
from tagrank.data.sets.names import Mentions, Names, read_words, singular
from tagrank.errors import InputError

# https://cocodataset.org/#explore
COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog,
pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell
phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""


@pytest.mark.parametrize(
    ("plural", "expected"),
    [
        ("cars", "car"),
        ("buses", "bus"),
        ("bus", "bus"),
        ("grass", "grass"),
        ("glasses", "glasses"),
        ("wine glasses", "wine glass"),
        ("boxes", "box"),
        ("benches", "bench"),
        ("dishes", "dish"),
        ("dresses", "dress"),
        ("houses", "house"),
        ("horses", "horse"),
        ("cherries", "cherry"),
        ("cookies", "cookie"),
        ("ties", "tie"),
        ("tomatoes", "tomato"),
        ("shoes", "shoe"),
        ("bookshelves", "bookshelve"),
        ("shelves", "shelf"),
        ("gloves", "glove"),
        ("women", "woman"),
        ("policemen", "policeman"),
        ("people", "person"),
        ("people walking", "people walking"),
        ("street lights", "street light"),
        ("scissors", "scissors"),
        ("tennis", "tennis"),
        ("cactus", "cactus"),
        ("as", "as"),
        ("", ""),
    ],
)
def test_singular(plural: str, expected: str) -> None:
    assert singular(plural) == expected


def test_names_of_things() -> None:
    names = Names({"automobile": "car", "man": "person", "person": "person", "wheels": "tyres"})
    assert [names.tag(name) for name in ("  Cars\n", "AUTOMOBILES", "Men", "people", "wheels", "Wheel", " \t")] == [
        "car",
        "car",
        "person",
        "person",
        "tyres",
        "wheel",
        "",
    ]
    assert names.tag("a\u0301rbol  ALTO") == "\u00e1rbol alto"
    assert Names(plurals=False).tag("Cars") == "cars"


def test_default_words_are_the_80_categories() -> None:
    words = default_words()
    categories = [" ".join(name.split()) for name in COCO.split(",")]
    assert len(categories) == 80
    assert set(words.values()) == set(categories)
    mentions = Mentions(words)
    for name in categories:
        assert mentions.find(f"There is a {name} here.") == [name]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man riding a wave on top of a surfboard.", ["person", "surfboard"]),
        ("Two hot dogs and a dog", ["hot dog", "dog"]),
        ("A woman's dog, and the dog's ball; a woman again", ["person", "dog", "sports ball"]),
        ("TWO WINE GLASSES ON THE TABLE", ["wine glass", "dining table"]),
        ("A double-decker bus and fire trucks", ["bus", "truck"]),
        ("Three sheep, two mice and some knives", ["sheep", "mouse", "knife"]),
        ("A stuffed bear is no bear", ["teddy bear", "bear"]),
        ("Fire. Hydrant", ["fire hydrant"]),
        ("A plane\nflies", ["airplane"]),
        ("The sky is blue", []),
        ("", []),
    ],
)
def test_mentions(caption: str, expected: list[str]) -> None:
    assert Mentions(default_words()).find(caption) == expected


def test_words_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff# mine\r\nDog: Puppy,  hound \r\n\r\ntraffic light  # red\r\nárbol\r\n".encode())
    assert read_words(path) == {
        "dog": "dog",
        "puppy": "dog",
        "hound": "dog",
        "traffic light": "traffic light",
        "árbol": "árbol",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"dog: puppy\ncat: puppy\n", "line 2: 'puppy' is already a name for 'dog'"),
        (b"dog: puppy,\n", "line 1: expected 'tag' or 'tag: name, name', got 'dog: puppy,'"),
        (b": puppy\n", "line 1: expected 'tag'"),
        (b"# nothing\n", "expected a tag on each line, the file has none"),
        (b"dog\nch\xe4ir\n", "not UTF-8 at byte 7"),
    ],
)
def test_bad_words(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(text)
    with pytest.raises(InputError) as caught:
        read_words(path)
    assert message in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_words(tmp_path / "nothing")
