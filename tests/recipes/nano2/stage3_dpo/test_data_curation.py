"""The parts of curation, on tasks small enough to check by eye; whole runs: tests/pipelines/test_dpo_runs.py."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nemotron.recipes.curation.rules import apply_to_list
from nemotron.recipes.nano2.stage3_dpo import data_curation
from nemotron.recipes.nano2.stage3_dpo.data_curation import Config
from nemotron.recipes.scoring.rewards import Prompt
from nemotron.recipes.sources.exercises import workplace
from nemotron.recipes.sources.exercises.exercise import user_exercise


def prompt(id, question="Set the stock of pens to 7.", tokens=5, database=None):
    details = json.dumps({"database": database or {}})
    exercise = replace(user_exercise("workplace", question, "", "", question), id=id, details=details)
    return Prompt(exercise, True, tuple(range(tokens)))


def kept(prompts, config, held_out=()):
    """Ids of the tasks that the first rules keep, and what each rule dropped."""
    reports = {}
    rules = data_curation.first_rules(config, {one.exercise.id: one for one in prompts}, held_out)
    left = apply_to_list([one.exercise for one in prompts], rules, reports)
    return [one.id for one in left], {name: [one.id for one in report.examples] for name, report in reports.items()}


# --- what is known before anybody tries ---


@pytest.mark.parametrize(("length", "ids"), [(5, ["a", "b"]), (4, ["b"])])
def test_a_task_may_be_as_long_as_the_limit(length, ids):
    prompts = [prompt("a", tokens=5), prompt("b", "Delete the stock of pens.", tokens=4)]
    assert kept(prompts, Config(max_prompt_tokens=length))[0] == ids


def test_the_first_of_equal_tasks_stays_and_another_database_is_another_task():
    prompts = [prompt("a"), prompt("b", database={"stock": {}}), prompt("c")]
    assert kept(prompts, Config()) == (["a", "b"], {"length": [], "held out or repeated": ["c"]})


def test_a_held_out_request_is_no_task_whatever_the_database():
    prompts = [prompt("a", database={"stock": {}}), prompt("b", "Delete the stock of pens.")]
    found = kept(prompts, Config(), [prompt("x").exercise])
    assert found == (["b"], {"length": [], "held out or repeated": ["a"]})


# --- what the tries say ---


def tried(number, level):
    words = ((number,),)
    return SimpleNamespace(number=number, level=level, right=level == 3, fault="", tokens=words, prompt=prompt("a"))


def faults(levels, **changes):
    config = Config(**({"solved_min": 0.3, "solved_max": 0.7, "graded": False} | changes))
    rules = data_curation.pair_rules(config, {"a": [tried(*one) for one in enumerate(levels)]})
    return {one.name: one.fault(prompt("a").exercise) for one in rules if one.fault(prompt("a").exercise)}


TRIES = {
    "half of them right": ([3, 0, 3, 1], {}),
    "always right": ([3, 3, 3], {"solved too often": "100% of 3 tries are right",
                                 "no better and worse try": "its tries are equally good"}),
    "nearly always right": ([3, 3, 3, 0], {"solved too often": "75% of 4 tries are right"}),
    "nearly never right": ([3, 0, 1, 2], {"solved too rarely": "25% of 4 tries are right"}),
    "never right": ([0, 2, 1], {"solved too rarely": "0% of 3 tries are right",
                                "no better and worse try": "its tries are equally good"}),
}  # fmt: skip


@pytest.mark.parametrize(("levels", "expected"), TRIES.values(), ids=TRIES)
def test_a_task_is_kept_if_the_policy_solves_it_in_some_of_its_tries(levels, expected):
    assert faults(levels) == expected


def test_the_bounds_are_included():
    assert faults([3, 0, 0, 0, 0, 0, 0, 3, 3, 0]) == faults([3, 3, 3, 3, 3, 3, 3, 0, 0, 0]) == {}


def test_graded_tries_need_not_be_right():
    assert faults([0, 1, 0], graded=True, solved_min=0.0) == {}
    assert faults([1, 1, 1], graded=True, solved_min=0.0) == {"no better and worse try": "its tries are equally good"}


def test_a_filter_that_leaves_nothing_stops_the_run_in_one_sentence():
    rules = data_curation.pair_rules(Config(graded=False), {"a": [tried(0, 1), tried(1, 0)]})
    sentence = r"'no better and worse try' leaves none of 1 items, for example a .*raise --tries or --raw-tasks, widen"
    with pytest.raises(ValueError, match=sentence):
        apply_to_list([prompt("a").exercise], rules, {})


# --- where tasks come from ---


def test_every_difficulty_has_an_equal_number():
    tasks = data_curation.tasks_of_every_difficulty(11, Config(max_difficulty=3), "train")
    assert Counter(one.difficulty for one in tasks) == {1: 4, 2: 4, 3: 3}
    assert len({one.id for one in tasks}) == 11


def test_requests_for_a_single_call_follow_as_a_share_of_the_others():
    tasks = data_curation.tasks_of_every_difficulty(20, Config(max_difficulty=2), "train", 0.3)
    kinds = [workplace.kind_of(one) for one in tasks]
    assert kinds[20:] == ["single"] * 6
    assert "single" not in kinds[:20]
    assert Counter(one.difficulty for one in tasks[20:]) == {1: 3, 2: 3}
    assert len({one.id for one in tasks}) == 26


def test_tasks_of_training_and_evaluation_share_nothing():
    config = Config(max_difficulty=2)
    train, held_out = (data_curation.tasks_of_every_difficulty(200, config, split) for split in ("train", "evaluation"))
    assert not {task for one in train for task in one.tasks} & {task for one in held_out for task in one.tasks}
    assert {workplace.kind_of(one) for one in held_out} == set(workplace.KINDS)


# --- the Config ---


@pytest.mark.parametrize("scale", ["small", "medium", "full"])
def test_at_every_scale_but_tiny_a_chosen_try_is_right_and_tasks_are_of_middle_difficulty(scale):
    config = Config(scale=scale)
    assert (config.graded, config.solved_min, config.solved_max) == (False, 0.3, 0.7)


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"^solved_min=0.8 is above solved_max=0.7; give the smaller share first$"):
        Config(solved_min=0.8, solved_max=0.7)


@pytest.mark.parametrize("name", ["solved_min", "solved_max", "thinking_share", "single_share"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be"):
        Config(**{name: value})


@pytest.mark.parametrize("name", ["tries", "max_new_tokens", "max_turns", "raw_tasks", "temperature", "held_out_tasks"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"^{name}.*={value}: Input should be "):
        Config(**{name: value})


@pytest.mark.parametrize("difficulty", [0, 5])
def test_a_difficulty_that_does_not_exist_is_refused(difficulty):
    with pytest.raises(ValueError, match=f"^max_difficulty={difficulty}: Input should be 1, 2, 3 or 4"):
        Config(max_difficulty=difficulty)
