"""Conversations: their tasks are those of other families, and their graded replies are what the rubric ranks."""

import json
from collections import Counter

import pytest

from nemotron.recipes.sources.exercises import conversation
from nemotron.recipes.sources.exercises.families import FAMILIES, VERIFIERS
from nemotron.recipes.sources.problems.problem import seeded_random, split_of
from nemotron.recipes.sources.rubric import rubric_parts, rubric_total


@pytest.fixture(scope="module")
def exercises():
    return [
        one
        for difficulty in (1, 2, 4)
        for split in ("train", "evaluation")
        for one in conversation.generate_exercises(60, 3, split=split, difficulty=difficulty)
    ]


def test_the_answer_earns_everything(exercises):
    assert all(conversation.check_answer(one, one.answer) for one in exercises)
    assert {rubric_total(rubric_parts(one, one.answer)) for one in exercises} == {1}


def test_the_verifier_of_the_family_that_the_task_is_from_agrees(exercises):
    """Given the question without its frame."""
    assert all(conversation.is_correct(one) for one in exercises)
    tasks = Counter(json.loads(one.details)["task"] for one in exercises)
    assert set(tasks) == {"math", "science", "multilingual"}
    assert min(tasks.values()) > len(exercises) / 6


def test_the_task_decides_the_split(exercises):
    for split in ("train", "evaluation"):
        for one in conversation.generate_exercises(60, 4, split=split):
            assert split_of(one.canonical) == split


def test_a_task_is_held_out_whatever_the_frame(exercises):
    held_out = {one.canonical for one in conversation.generate_exercises(200, 5, split="evaluation")}
    trained = {one.canonical for one in conversation.generate_exercises(500, 5, split="train")}
    assert not held_out & trained
    assert len(held_out) == 200


def test_fewer_are_a_prefix_of_more():
    more = conversation.generate_exercises(20, 0, split="train")
    assert conversation.generate_exercises(8, 0, split="train") == more[:8]
    assert conversation.generate_exercises(8, 1, split="train") != more[:8]


def test_every_frame_is_used_and_one_is_bare(exercises):
    starts = Counter(one.messages[-1]["content"].split()[0] for one in exercises)
    assert {"Hi!", "Hello.", "Good", "My", "Dear"} <= set(starts)


def test_the_questions_are_in_english(exercises):
    assert not [one for one in exercises if not one.messages[-1]["content"].isascii()]
    assert all(one.answer.startswith("It is ") for one in exercises)


def test_no_exam_and_no_other_stage_asks_them():
    """They are graded by a rubric, and their golden must not change with them."""
    assert conversation.FAMILY not in FAMILIES.keys() | VERIFIERS.keys()


def test_replies_have_all_qualities(exercises):
    totals = Counter(
        rubric_total(rubric_parts(one, conversation.draw_reply(seeded_random("x", one.id, index), one)))
        for index, one in enumerate(exercises)
    )
    assert min(totals) == 0
    assert max(totals) == 1
    assert len(totals) >= 12
    assert max(totals.values()) < len(exercises) / 3


def test_a_wrong_value_is_never_the_right_one(exercises):
    for index, one in enumerate(exercises):
        value = conversation.wrong_value(seeded_random("y", index), one)
        details = json.loads(one.details)
        assert value != details["value"]
        assert rubric_parts(one, f"It is {value}.")["correct"] == 0
        assert rubric_parts(one, f"It is {value}.")["helpful"] == 1
        assert value in one.messages[-1]["content"].split() or value.isdigit() or details["candidates"]


def test_replies_are_drawn_in_the_stated_shares():
    (one,) = conversation.generate_exercises(1, 0, split="train")
    generator = seeded_random("shares")
    drawn = Counter(conversation.draw_reply(generator, one) for _ in range(4000))
    weights = {name: weight for name, (weight, _) in conversation.REPLIES.items()}
    assert drawn["I cannot help with that."] / 4000 == pytest.approx(
        weights["refusal"] / sum(weights.values()), abs=0.015
    )
    right = sum(count for reply, count in drawn.items() if reply == one.answer)
    expected = weights["sentence"] / sum(weights.values()) * (1 - conversation.WRONG_SHARE)
    assert right / 4000 == pytest.approx(expected, abs=0.02)
