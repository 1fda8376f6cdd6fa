"""Pairs in the wrong order, counted by hand."""

from tagrank.metrics import OrderConfusion, order_confusions

DOG, BALL, MAN, SKY = range(4)


def test_pairs_counted_by_hand() -> None:
    references = [[DOG, BALL, MAN], [DOG, BALL], [DOG, BALL], [BALL, DOG], [MAN, SKY]]
    rankings = [[BALL, DOG, MAN], [BALL, SKY, DOG], [DOG, BALL], [DOG, BALL], [SKY]]
    assert order_confusions(rankings, references) == [
        OrderConfusion(DOG, BALL, wrong=2, total=3),
        OrderConfusion(BALL, DOG, wrong=1, total=1),
    ]
    assert order_confusions(rankings, references, top=1) == [OrderConfusion(DOG, BALL, 2, 3)]


def test_a_model_that_is_right_has_none() -> None:
    assert order_confusions([[DOG, SKY, BALL], []], [[DOG, BALL], [MAN]]) == []
