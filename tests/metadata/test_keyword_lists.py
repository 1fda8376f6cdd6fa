"""Which keywords a photograph has after tags are written to it or taken out."""

import pytest

from tagrank.metadata.keyword_lists import List, Ranked, Record, same_lists, with_tags, without_tags

SUBJECT, IPTC, PATHS, DIGIKAM = List.subject, List.iptc, List.hierarchical, List.tags_list


def lists(
    subject: str = "", iptc: str | None = None, paths: str = "", digikam: str = ""
) -> dict[List, tuple[str, ...]]:
    found = {SUBJECT: tuple(subject.split()), PATHS: tuple(paths.split()), DIGIKAM: tuple(digikam.split())}
    return found if iptc is None else {**found, IPTC: tuple(iptc.split())}


def ranked(tags: str, **members: str) -> Ranked:
    return Ranked(tuple(tags.split()), members={name: tuple(tags.split()) for name, tags in members.items()})


def test_tags_are_in_their_order_behind_what_a_person_wrote() -> None:
    new, record = with_tags(lists("Oma party"), None, ranked("zebra ball ant"))
    assert new == lists("Oma party zebra ball ant")
    assert record.added[SUBJECT] == ("zebra", "ball", "ant")


@pytest.mark.parametrize("word", ["dog", "Dog", "caf\u00e9"])
def test_no_keyword_is_doubled(word: str) -> None:
    """Whatever its case, and in whichever normal form of Unicode it was written."""
    new, record = with_tags(lists(word), None, ranked("ball dog cafe\u0301"))
    assert new[SUBJECT][0] == word
    assert len(new[SUBJECT]) == 3
    assert word not in record.added[SUBJECT]


def test_what_a_person_had_stays_when_tags_are_taken_out() -> None:
    """Also if tagrank would have written the same word."""
    before = lists("party dog", iptc="dog old", paths="Events|party", digikam="Events/party")
    new, record = with_tags(before, None, ranked("dog ball"))
    assert new == lists(
        "party dog old ball", iptc="dog old party ball", paths="Events|party dog old ball",
        digikam="Events/party dog old ball",
    )  # fmt: skip
    assert same_lists(without_tags(new, record), before)


def test_another_list_takes_the_place_of_the_one_before() -> None:
    first, record = with_tags(lists("party"), None, ranked("dog ball"))
    second, record = with_tags(first, record, ranked("ball cat"))
    assert second == lists("party ball cat")
    third, record = with_tags(second, record, ranked("party"))
    assert third == lists("party")
    assert without_tags(third, record) == lists("party")


def test_what_a_person_took_out_is_not_put_back() -> None:
    first, record = with_tags(lists(iptc=""), None, ranked("dog ball"))
    assert first == lists("dog ball", iptc="dog ball")
    without = lists("ball", iptc="ball")
    for _ in range(3):
        again, record = with_tags(without, record, ranked("dog ball cat"))
        assert again == lists("ball cat", iptc="ball cat")
        without = dict(again)
    assert without_tags(without, record) == lists(iptc="")


def test_paths_come_from_members() -> None:
    """A list of paths has all keywords, because who reads it does not read the flat one."""
    new, record = with_tags(lists("party"), None, ranked("dog person", person="man woman", plant="tree"))
    assert new == lists("party dog person", paths="party dog person|man person|woman")
    assert without_tags(new, record) == lists("party")
    assert with_tags(lists("party"), None, ranked("dog person"))[0] == lists("party dog person")


def test_paths_that_end_alike_are_there_already() -> None:
    before = lists("man dog", paths="People|person|man Animals|dog", digikam="People/person/man")
    new, _ = with_tags(before, None, ranked("dog person", person="man"))
    assert new == lists("man dog person", paths="People|person|man Animals|dog", digikam="People/person/man dog")


def test_separators_in_a_tag() -> None:
    new, record = with_tags({**lists(), PATHS: ("a|b",), DIGIKAM: ("a/b",)}, None, Ranked(("and/or", "x|y")))
    assert new[SUBJECT] == ("and/or", "x|y")
    assert new[PATHS] == ("a|b", "and/or", "x y")
    assert new[DIGIKAM] == ("a/b", "and or", "x|y")
    assert without_tags(new, record) == {**lists(), PATHS: ("a|b",), DIGIKAM: ("a/b",)}


def test_iptc_keywords_have_at_most_64_bytes() -> None:
    long = "\u00e9" * 40
    new, record = with_tags(lists(iptc=""), None, Ranked((long, "a" * 65)))
    assert new[SUBJECT] == (long, "a" * 65)
    assert new[IPTC] == ("\u00e9" * 32, "a" * 64)
    again, _ = with_tags(new, record, Ranked((long, "a" * 65)))
    assert again == new


def test_keywords_that_are_elsewhere_come_along() -> None:
    """A sidecar hides the keywords in the photograph's own file."""
    new, record = with_tags(lists(), None, ranked("dog ball"), carried=("party", "Dog"))
    assert new == lists("party Dog ball")
    assert without_tags(new, record) == lists()


def test_what_says_the_same() -> None:
    one = Ranked(("dog",), (0.5,), "m", 0.25)
    assert one.says(Ranked(("dog",), (0.5004,), "m", 0.2505))
    for other in (
        Ranked(("cat",), (0.5,), "m", 0.25),
        Ranked(("dog",), (0.51,), "m", 0.25),
        Ranked(("dog",), (0.5,), "n", 0.25),
        Ranked(("dog",), (0.5,), "m", 0.3),
        Ranked(("dog",), (0.5,), "m"),
        Ranked(("dog",), (), "m", 0.5),
        Ranked(("dog",), (), "m", 0.25),
    ):
        assert not one.says(other)
        assert not other.says(one)
    assert Record(one, {}).ranked.says(one)
