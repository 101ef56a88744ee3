"""What the fine-tuned model is asked in which way; how replies are judged is in tests/recipes/scoring."""

import pytest

from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.nano2.stage1_sft.evaluation import Config, modes_of


@pytest.fixture(scope="module")
def modes():
    config = Config(temperature=0.5, top_p=0.9, max_new_tokens=20, thinking_budget=7, grace_tokens=3)
    return {mode.name: mode for mode in modes_of(config, train_tokenizer(["some text"], 300))}


def test_only_the_base_model_does_not_know_the_format(modes):
    assert [name for name, mode in modes.items() if not mode.knows_format] == ["base"]


def test_replies_with_thinking_are_drawn_and_those_without_are_greedy(modes):
    drawn = {name: (mode.sampling.temperature, mode.sampling.top_p) for name, mode in modes.items()}
    assert drawn == {"base": (0.5, 0.9), "think": (0.5, 0.9), "no_think": (0.0, 1.0), "budget": (0.5, 0.9)}
    assert [name for name, mode in modes.items() if not mode.thinking] == ["no_think"]


def test_only_one_mode_has_a_budget_and_it_is_that_of_the_config(modes):
    budgets = {name: mode.sampling.budget for name, mode in modes.items() if mode.sampling.budget}
    assert list(budgets) == ["budget"]
    assert (budgets["budget"].tokens, budgets["budget"].grace_tokens) == (7, 3)


def test_every_reply_has_the_same_limit(modes):
    assert {mode.sampling.max_new_tokens for mode in modes.values()} == {20}


@pytest.mark.parametrize("name", ["thinking_budget", "max_new_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be greater than 0$"):
        Config(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5)])
def test_what_sampling_refuses_is_refused_before_any_work(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value} must"):
        Config(**{name: value})


def test_a_temperature_of_0_is_greedy():
    assert Config(temperature=0.0).temperature == 0
