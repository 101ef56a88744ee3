"""The exam of several models: who is asked what, and the metrics, on replies small enough to check by eye."""

import math
from types import SimpleNamespace

import pytest
import torch

from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize
from nemotron.recipes.scoring import exam
from nemotron.recipes.scoring.chance import chance_levels, chance_metrics
from nemotron.recipes.scoring.exam import MODES, exam_metrics, reply_digest, take_exam
from nemotron.recipes.sources.exercises.families import FAMILIES


def answered(right, families=tuple(FAMILIES), number=2):
    """Replies to some exercises of each family: right(family, index) says which are."""
    return [
        SimpleNamespace(
            exercise=SimpleNamespace(family=family), right=right(family, index), obeyed=family == "math",
            continuation=SimpleNamespace(tokens=[index]), fault="",
        )
        for family in families
        for index in range(number)
    ]  # fmt: skip


def replies_of(families_right):
    """By model and mode: replies that are right in these families."""
    return {key: answered(lambda family, _, right=right: family in right) for key, right in families_right.items()}


TWO = {
    ("tuned", "think"): (),
    ("tuned", "no_think"): ("math",),
    ("policy", "think"): ("long_context",),
    ("policy", "no_think"): ("math", "safety"),
}


# --- metrics ---


def test_replies_that_could_not_be_judged_are_counted_by_model_if_there_are_some():
    replies = replies_of(TWO)
    assert not [name for name in exam_metrics(replies) if "faults" in name]
    replies["policy", "think"][0].fault = "KeyError: 1"
    found = exam_metrics(replies)
    assert found["verifier_faults/exam/tuned"] == 0
    assert found["verifier_faults/exam/policy"] == 1 / (2 * len(replies["policy", "think"]))


def test_the_exam_is_the_mean_over_both_ways_of_asking_and_leaves_long_context_out_of_all():
    found = exam_metrics(replies_of(TWO))
    short = len(FAMILIES) - 1
    assert found["exact_match/math/tuned"] == 0.5
    assert found["exact_match/math/policy/think"] == 0
    assert found["exact_match/math/policy/no_think"] == 1
    assert found["difference/math"] == 0
    assert found["difference/safety"] == 0.5
    assert found["difference_error/safety"] == 0
    assert found["exact_match/long_context/policy"] == 0.5
    assert found["exact_match/all/policy"] == pytest.approx(1 / short)
    assert found["exact_match/all/tuned"] == pytest.approx(0.5 / short)
    assert found["difference/all"] == pytest.approx(0.5 / short)
    assert found["standard_error/all/policy"] > 0
    assert found["obeyed/tuned/think"] == found["obeyed/policy/no_think"] == 1 / len(FAMILIES)


@pytest.mark.parametrize("before", ["tuned", "reinforced", "a model, by any name"])
def test_the_models_may_have_any_name(before):
    renamed = {(before if model == "tuned" else "preferred", mode): right for (model, mode), right in TWO.items()}
    found = exam_metrics(replies_of(renamed))
    assert found[f"exact_match/math/{before}"] == 0.5
    assert found["exact_match/safety/preferred"] == 0.5
    assert found["difference/safety"] == 0.5


def test_standard_errors_are_over_exercises_and_differences_are_paired():
    """Four exercises: before right in 2, after in the same 2 and 1 more. One exercise changed, by 1."""
    families = ("math",)
    before = answered(lambda family, index: index < 2, families, 4)
    after = answered(lambda family, index: index < 3, families, 4)
    found = exam_metrics({(name, mode): replies for name, replies in (("before", before), ("after", after))
                          for mode in MODES})  # fmt: skip
    assert found["standard_error/math/before"] == pytest.approx(math.sqrt(4 * 0.25 / 3 / 4))
    assert found["difference/math"] == 0.25
    assert found["difference_error/math"] == pytest.approx(math.sqrt((3 * 0.0625 + 0.5625) / 3 / 4))


def test_each_model_is_compared_with_the_one_before_it_and_the_last_one_without_its_name():
    three = {
        ("first", "think"): (), ("first", "no_think"): (),
        ("second", "think"): ("math", "safety"), ("second", "no_think"): ("safety",),
        ("third", "think"): ("math",), ("third", "no_think"): ("math",),
    }  # fmt: skip
    found = exam_metrics(replies_of(three))
    assert {name: found[name] for name in found if name.startswith(("difference/math", "difference/safety"))} == {
        "difference/math/second": 0.5, "difference/math": 0.5, "difference/safety/second": 1, "difference/safety": -1,
    }  # fmt: skip
    assert {name for name in found if name.startswith("difference_error/math")} == {
        "difference_error/math", "difference_error/math/second",
    }  # fmt: skip


def test_one_model_has_no_difference():
    found = exam_metrics({key: replies for key, replies in replies_of(TWO).items() if key[0] == "policy"})
    assert found["exact_match/math/policy"] == 0.5
    assert not [name for name in found if name.startswith("difference")]


def test_a_family_without_an_exercise_has_no_metric():
    found = exam_metrics({("one", mode): answered(lambda *_: True, ("math", "long_context")) for mode in MODES})
    assert {name.split("/")[1] for name in found if name.startswith("exact_match")} == {"math", "long_context", "all"}
    found = exam_metrics({("one", mode): answered(lambda *_: True, ("long_context",)) for mode in MODES})
    assert {name.split("/")[1] for name in found if name.startswith("exact_match")} == {"long_context"}


def test_the_digest_depends_on_every_token_and_on_where_a_reply_ends():
    def digest(*replies):
        return reply_digest([SimpleNamespace(continuation=SimpleNamespace(tokens=tokens)) for tokens in replies])

    digests = [digest([1, 2], [3]), digest([1], [2, 3]), digest([1, 2, 3]), digest([1, 2], [4]), digest([3], [1, 2])]
    assert len(set(digests)) == len(digests)
    assert digest([1, 2], [3]) == digests[0]


# --- asking ---


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Some words to learn tokens from. " * 30], 300)


@pytest.fixture(scope="module")
def models():
    config = ModelConfig(
        vocab_size=320, hidden_size=16, hybrid_override_pattern="M-*-", num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, intermediate_size=32, mamba_num_heads=2, mamba_head_dim=8, n_groups=1, ssm_state_size=8,
    )  # fmt: skip
    found = {}
    for seed, name in enumerate(("before", "after")):
        found[name] = NemotronH(config)
        initialize(found[name], seed=seed)
    return found


EXERCISES = [one for family in FAMILIES.values() for one in family.generate_exercises(1, 0, split="evaluation")]


def test_every_model_is_asked_every_exercise_in_both_modes(models, tokenizer, monkeypatch):
    asked = []

    def ask(model, tokenizer, chat, exercises, mode, *, seed, batch_replies):
        asked.append((model, mode, seed, batch_replies))
        return answered(lambda *_: model is models["after"], number=1)

    monkeypatch.setattr(exam, "ask", ask)
    drawn = Sampling(7, temperature=0.6, top_p=0.95)
    found = take_exam(models, tokenizer, CHAT, EXERCISES, drawn, num_answers=40, seed=5, batch_replies=4)
    assert list(found.answered) == [(name, mode) for name in models for mode in MODES]
    assert [(mode.name, mode.thinking) for _, mode, _, _ in asked] == [("think", True), ("no_think", False)] * 2
    assert {(seed, batch) for _, _, seed, batch in asked} == {(5, 4)}
    assert [mode.sampling for _, mode, _, _ in asked] == [drawn, Sampling(7)] * 2  # without thinking: greedy
    assert found.metrics["difference/all"] == 1
    chance = chance_levels(EXERCISES, num_answers=40, seed=5)
    assert chance != chance_levels(EXERCISES, num_answers=1, seed=5)
    assert found.chance == chance
    assert found.metrics == exam_metrics(found.answered) | chance_metrics(chance, EXERCISES)


def test_the_exam_gives_the_same_replies_again_and_a_digest_of_each_models(models, tokenizer):
    exercises = EXERCISES[:3]
    options = {"num_answers": 3, "seed": 5, "batch_replies": 2}
    drawn = Sampling(3, temperature=1.0)
    with torch.no_grad():
        first, again = (take_exam(models, tokenizer, CHAT, exercises, drawn, **options) for _ in range(2))
    assert list(first.digests()) == ["before/think", "before/no_think", "after/think", "after/no_think"]
    assert len(set(first.digests().values())) == 4
    assert first.digests()["after/think"] == reply_digest(first.answered["after", "think"])
    assert first.digests() == again.digests()
    assert first.metrics == again.metrics
