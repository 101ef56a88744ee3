"""The parts of curation, on a few conversations; whole runs: tests/pipelines/test_rlhf_runs.py."""

from collections import Counter

import pytest

from nemotron.recipes.nano2.stage4_rlhf import data_curation
from nemotron.recipes.nano2.stage4_rlhf.data_curation import Config
from nemotron.recipes.scoring import judge
from nemotron.recipes.sources.rubric import rubric_parts, rubric_total


def test_every_difficulty_has_an_equal_number_and_no_id_is_repeated():
    found = data_curation.conversations(11, Config(max_difficulty=3), "train")
    assert Counter(one.difficulty for one in found) == {1: 4, 2: 4, 3: 3}
    assert len({one.id for one in found}) == 11


def test_a_task_of_two_difficulties_is_used_once():
    config = Config(max_difficulty=2)
    first = data_curation.conversations(40, config, "evaluation")
    others = data_curation.conversations(40, config, "evaluation")
    assert data_curation.without_tasks_of(others, first[:10]) == others[10:]
    assert data_curation.without_tasks_of(first[:3], []) == first[:3]


@pytest.mark.parametrize("difficulties", [1, 2])
def test_what_is_held_out_for_different_uses_does_not_overlap(difficulties):
    config = Config(max_difficulty=difficulties)
    parts = [data_curation.conversations(7, config, "evaluation", first) for first in (0, 7, 14)]
    assert [len(part) for part in parts] == [7, 7, 7]
    assert parts[0] == data_curation.conversations(7, config, "evaluation")
    assert len({one.id for part in parts for one in part}) == 21


def test_nothing_that_the_choice_of_a_merge_asks_has_a_task_of_the_evaluation():
    """At this size some tasks are drawn for a conversation and for an exercise."""
    config = Config(held_out_prompts=200, validation_prompts=60, validation_exercises=30, exercises_per_family=50)
    held_out, validation, exercises = data_curation.held_out_exercises(config)
    talks = [one for one in validation if one.family == "conversation"]
    tests = [one for one in validation if one.family != "conversation"]
    assert 50 < len(talks) < 60
    assert 60 < len(tests) < 90
    assert not {one.canonical for one in validation} & {one.canonical for one in [*held_out, *exercises]}


def pairs(config, number=300, answers=None):
    exercises = data_curation.conversations(number, config, "train")
    return data_curation.generated_pairs(exercises, answers or {}, config)


def test_the_label_says_which_reply_the_rubric_prefers_unless_it_is_noise():
    found = pairs(Config(noise_share=0.1))
    assert sum(pair.noisy for pair in found) / len(found) == pytest.approx(0.1, abs=0.05)
    for pair in found:
        first, second = (rubric_total(rubric_parts(pair.exercise, text)) for text in pair.responses)
        assert (pair.label > 0) - (pair.label < 0) == ((second > first) - (second < first)) * (-1 if pair.noisy else 1)
        assert not (pair.noisy and pair.label == 0)


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (1.0, None)])
def test_the_noise_has_its_share(share, number):
    found = pairs(Config(noise_share=share), 60)
    differ = sum(pair.label != 0 for pair in found)
    assert sum(pair.noisy for pair in found) == (differ if number is None else number)


def test_noise_turns_a_label_around_and_changes_no_reply():
    clean, noisy = (pairs(Config(noise_share=share), 60) for share in (0.0, 1.0))
    assert [one.responses for one in clean] == [one.responses for one in noisy]
    assert [one.label for one in clean] == [-one.label for one in noisy]


def test_labels_have_all_strengths():
    strengths = Counter(abs(pair.label) for pair in pairs(Config()))
    assert set(strengths) == {0, 1, 2, 3}
    assert min(strengths.values()) > 15


def test_the_policys_answers_are_put_in_their_places():
    config = Config()
    exercises = data_curation.conversations(3, config, "train")
    answers = {(exercises[0].id, 1): "the policy's", (exercises[2].id, 0): "another"}
    found = data_curation.generated_pairs(exercises, answers, config)
    drawn = data_curation.generated_pairs(exercises, {}, config)
    assert found[0].responses == (drawn[0].responses[0], "the policy's")
    assert found[1] == drawn[1]
    assert found[2].responses == ("another", drawn[2].responses[1])


def test_a_pair_that_the_rubric_cannot_judge_has_no_label_and_says_why(monkeypatch):
    chosen = pairs(Config(), 9)[4].id

    def fails(exercise, text):
        return 1 / 0 if exercise.id == chosen else rubric_parts(exercise, text)

    monkeypatch.setattr(judge, "rubric_parts", fails)
    found = pairs(Config(noise_share=1.0), 9)
    assert [(one.id, one.label) for one in found if one.fault] == [(chosen, 0)]
    assert found[4].fault == "ZeroDivisionError: division by zero"


def test_all_pairs_need_sources():
    with pytest.raises(ValueError, match=r"raw_pairs=all needs --sources, because conversations have no end"):
        data_curation.check_sources(Config(raw_pairs="all"))


@pytest.mark.parametrize("name", ["sampled_share", "noise_share", "thinking_share"])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(name, share):
    with pytest.raises(ValueError, match=f"^{name}={share}: Input should be"):
        Config(**{name: share})


@pytest.mark.parametrize("name", ["raw_pairs", "raw_prompts", "held_out_pairs", "max_new_tokens", "temperature"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"^{name}.*={value}: Input should be "):
        Config(**{name: value})


@pytest.mark.parametrize(
    "changed",
    [{"sampled_share": 0.3}, {"noise_share": 0.2}, {"temperature": 0.7}, {"max_new_tokens": 9}, {"held_out_pairs": 9}],
)
def test_a_number_of_generated_pairs_beside_sources_is_refused(changed):
    ((name, value),) = changed.items()
    Config(**changed)
    Config(sources=("pairs.jsonl",))
    with pytest.raises(
        ValueError, match=rf"^{name}={value} has no effect with --sources: their pairs are as they are;"
    ):
        Config(sources=("pairs.jsonl",), **changed)
