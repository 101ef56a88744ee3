"""Which weight a sweep chooses."""

import pytest

from nemotron.recipes.nano2.stage4_rlhf.merging import Config, chosen_weight


def row(a, chat, reasoning, nats=1.0):
    return {"a": a, "chat": chat, "reasoning": reasoning, "nats": nats}


FIRST, SECOND = row(0.0, 0.4, 0.8), row(1.0, 0.9, 0.6)


def test_the_weight_that_loses_least_of_either_ability_wins():
    """0.5 is below the better parent by 0.1 in chat and 0.05 in reasoning, 0.7 by 0.02 and 0.2."""
    sweep = [FIRST, row(0.3, 0.5, 0.8), row(0.5, 0.8, 0.75), row(0.7, 0.88, 0.6), SECOND]
    assert chosen_weight(sweep) == (0.5, pytest.approx(0.1))


def test_a_parent_is_never_chosen():
    sweep = [FIRST, row(0.3, 0.1, 0.1), row(1.0, 0.9, 0.8)]
    assert chosen_weight(sweep)[0] == 0.3


def test_a_merge_better_than_both_parents_loses_less_than_nothing():
    a, loss = chosen_weight([FIRST, row(0.5, 0.95, 0.9), SECOND])
    assert (a, loss) == (0.5, pytest.approx(-0.05))


def test_of_equal_losses_the_likelier_right_replies_win_then_the_weight_near_a_half():
    sweep = [FIRST, row(0.2, 0.8, 0.75, 1.0), row(0.8, 0.8, 0.75, 0.9), SECOND]
    assert chosen_weight(sweep)[0] == 0.8
    sweep = [FIRST, row(0.2, 0.8, 0.75), row(0.4, 0.8, 0.75), row(0.9, 0.8, 0.75), SECOND]
    assert chosen_weight(sweep)[0] == 0.4


def test_the_published_weights_are_tried_at_every_scale():
    for scale in ("tiny", "small", "medium", "full"):
        assert Config(scale=scale).weights == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@pytest.mark.parametrize("weights", [(), (0.5, 0.5), (0.5, 0.25)])
def test_weights_are_different_and_in_order(weights):
    with pytest.raises(
        ValueError, match=r"^weights=.* must be different, from the lowest up, and one of them between 0 and 1$"
    ):
        Config(weights=weights)


@pytest.mark.parametrize("weights", [(0.0,), (1.0,), (0.0, 1.0)])
def test_weights_between_the_parents_are_needed(weights):
    with pytest.raises(ValueError, match=r"^weights=.* must"):
        Config(weights=weights)
