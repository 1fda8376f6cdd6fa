"""A dataclass of options is an option for each field on the command line, and an object in Python."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner, Result

from tagrank.annotator import Annotator
from tagrank.cli.expansion import expand
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import DECODERS, FEEDBACK_DECODERS
from tagrank.errors import InputError
from tagrank.options import BaselineOptions, Decoder, JudgedOptions, ListOptions, RivalOptions, option, split_tags
from tagrank.ranker.tag_ranker import TagRanker
from tagrank.training.train_options import TrainOptions


@dataclass(frozen=True)
class Fruit:
    name: str | None = option(None, "What it is called.")
    weight: int = option(5, "In grams.", min=1, max=9)
    colours: tuple[str, ...] = option(("red",), "Colours it has.", flag="--colour", parse=split_tags)
    picture: Path | bytes | None = option(None, "A file.", type=Path | None)
    peeled: bool = True


seen: list[tuple[Any, ...]] = []


def run(*arguments: str) -> Result:
    def eat(person: str, fruit: Fruit, twice: bool = False) -> None:
        """Eat."""
        seen.append((person, fruit, twice))

    app = typer.Typer()
    app.command()(expand(eat))
    seen.clear()
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})


def test_defaults_are_those_of_the_dataclass() -> None:
    assert run("Ann").exit_code == 0
    assert seen == [("Ann", Fruit(), False)]


def test_each_field_is_an_option() -> None:
    result = run(
        "Ann", "--name", "apple", "--weight", "7", "--colour", 'green, "yellow, pale"', "--picture", "a.jpg", "--twice"
    )
    assert result.exit_code == 0, result.output
    assert seen == [("Ann", Fruit("apple", 7, ("green", "yellow, pale"), Path("a.jpg")), True)]


def test_help_has_the_texts_and_the_limits() -> None:
    lines = [" ".join(line.split()) for line in run("--help").stdout.splitlines()]
    for option_, text in {"--name": "What it is called.", "--colour": "Colours it has."}.items():
        assert any(option_ in line and text in line for line in lines), lines
    assert not any("peeled" in line for line in lines), "a field without a help text is for Python only"
    assert any("--weight" in line and "1<=x<=9" in line and "[default: 5]" in line for line in lines), lines


def test_limits_hold() -> None:
    result = run("Ann", "--weight", "10")
    assert result.exit_code == 2
    assert "Invalid value for '--weight'" in result.output
    assert seen == []


def test_a_text_that_cannot_be_parsed_names_the_option() -> None:
    error = run("Ann", "--colour", '"green').exception
    assert isinstance(error, InputError)
    assert str(error).startswith("--colour: expected tags separated by commas, and quotes around a tag with a comma")


@pytest.mark.parametrize("group", [ListOptions, JudgedOptions, BaselineOptions, RivalOptions, TrainOptions])
def test_every_field_has_a_help_text_and_is_described(group: type) -> None:
    for field in fields(group):  # type: ignore[arg-type]
        if field.name != "progress":
            assert field.metadata["help"].endswith("."), field.name
        assert f"        {field.name}: " in (group.__doc__ or ""), field.name


def test_the_decoders_that_can_be_chosen_are_those_that_there_are() -> None:
    assert set(get_args(Decoder)) == {*DECODERS, *FEEDBACK_DECODERS}


def test_python_users_give_tags_and_mappings(tmp_path: Path) -> None:
    """Python callers may pass mappings instead of the files that the command line reads."""
    annotator = Annotator(TagRanker(3, 3, max_length=2, embedding_size=4, hidden_size=4), Vocabulary(["a", "b", "c"]))
    (tmp_path / "synonyms.json").write_text('{"b": ["c"]}')
    file = ListOptions(decoder="greedy", exclude=("a",), synonyms=tmp_path / "synonyms.json")
    given = ListOptions(decoder="greedy", exclude=["a"], synonyms={"b": ["c"]})
    for options in (file, given):
        keywords = annotator.rank_options(options)
        assert (keywords["decoder"], keywords["beams"], keywords["samples"]) == ("greedy", 8, 64)
        assert keywords["output"].tags.tolist() == [1]
        assert keywords["output"].group.tolist() == [-1, 0, 0]
    with pytest.raises(InputError, match="exclude: 'd' is not one of the model's 3 tags"):
        annotator.rank_options(ListOptions(exclude=["d"]))
    with pytest.raises(InputError, match="decoder: this model does not read its own tags"):
        annotator.rank_options(ListOptions(decoder="beam"))
