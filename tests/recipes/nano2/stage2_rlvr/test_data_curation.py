"""The parts of curation, on prompts small enough to check by eye; whole runs: tests/pipelines/test_rlvr_runs.py."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from nemotron.recipes.curation.rules import apply_to_list
from nemotron.recipes.nano2.stage2_rlvr import data_curation
from nemotron.recipes.nano2.stage2_rlvr.data_curation import Config
from nemotron.recipes.scoring.rewards import Prompt, Reward
from nemotron.recipes.sources.exercises.exercise import user_exercise
from nemotron.recipes.sources.exercises.families import FAMILIES


def prompt(id, question="What is 3 + 4?", tokens=5):
    exercise = replace(user_exercise("math", question, "3 + 4 = 7", "7", question), id=id)
    return Prompt(exercise, True, tuple(range(tokens)))


def kept(prompts, config, held_out=()):
    """Ids of the prompts that the first rules keep, and what each rule dropped."""
    named = {one.exercise.id: one for one in prompts}
    reports = {}
    rules = data_curation.first_rules(config, named, held_out)
    left = apply_to_list([one.exercise for one in prompts], rules, reports)
    return [one.id for one in left], {name: [one.id for one in report.examples] for name, report in reports.items()}


# --- what is known before anybody tries ---


@pytest.mark.parametrize(("length", "ids"), [(5, ["a", "b"]), (4, ["b"])])
def test_a_prompt_may_be_as_long_as_the_limit(length, ids):
    prompts = [prompt("a", tokens=5), prompt("b", "What is 4 + 4?", tokens=4)]
    assert kept(prompts, Config(max_prompt_tokens=length))[0] == ids


def test_the_first_of_equal_prompts_stays():
    prompts = [prompt("a"), prompt("b", "What is 4 + 4?"), prompt("c")]
    assert kept(prompts, Config()) == (["a", "b"], {"length": [], "held out or repeated": ["c"]})


def test_a_prompt_that_is_too_long_takes_no_other_with_it():
    """The flag for thinking has more tokens in one of two equal prompts."""
    prompts = [prompt("a", tokens=6), prompt("b", tokens=5)]
    assert kept(prompts, Config(max_prompt_tokens=5)) == (["b"], {"length": ["a"], "held out or repeated": []})


def test_a_held_out_question_is_no_prompt():
    prompts = [prompt("a"), prompt("b", "What is 4 + 4?")]
    found = kept(prompts, Config(), [prompt("x").exercise])
    assert found == (["b"], {"length": [], "held out or repeated": ["a"]})


# --- what the tries say ---

HALF, RIGHT, WRONG = Reward(0.5), Reward(1.0, right=True), Reward(0.0)
TRIES = {
    "always right": ([RIGHT, RIGHT], "always solved", "2 of 2 tries are right"),
    "never right, all equal": ([HALF, HALF], "never solved", "each of 2 tries earns 0.50"),
    "never right, but they differ": ([HALF, WRONG], None, None),
    "sometimes right": ([RIGHT, WRONG], None, None),
}


@pytest.mark.parametrize(("tries", "rule", "fault"), TRIES.values(), ids=TRIES)
def test_a_prompt_is_worth_training_on_if_its_tries_differ(tries, rule, fault):
    exercise = prompt("a").exercise
    rules = data_curation.difficulty_rules({"a": tries})
    assert {one.name: one.fault(exercise) for one in rules if one.fault(exercise)} == ({rule: fault} if rule else {})


def test_a_filter_that_leaves_nothing_stops_the_run():
    rules = data_curation.difficulty_rules({"a": [RIGHT]})
    with pytest.raises(ValueError, match=r"'always solved' leaves none of 1 items, for example a .*raise --tries"):
        apply_to_list([prompt("a").exercise], rules, {})


# --- where prompts come from ---


def test_the_other_families_have_their_share_in_equal_numbers():
    prompts, unreadable = data_curation.raw_prompts(Config(raw_prompts=100_000, other_share=0.3))
    families = Counter(one.family for one in prompts)
    assert families.pop("instruction_following") == 700
    assert set(families.values()) == {43}  # 300 in seven parts, rounded
    assert set(families) == set(FAMILIES) - {"instruction_following"}
    assert unreadable == []


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_share_of_the_others_is_that_of_the_config(share):
    prompts, _ = data_curation.raw_prompts(Config(raw_prompts=140_000, other_share=share))
    others = sum(one.family != "instruction_following" for one in prompts)
    assert others == round(share * 1400)
    assert len(prompts) == 1400


def test_full_reads_the_published_number_of_prompts(tmp_path):
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    rows = [json.dumps({"prompt": f"Name {number} rivers.", **row}) for number in range(16_100)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows) + "\n")
    config = Config(scale="full", sources=(str(tmp_path / "own.jsonl"),), other_share=0.0)
    assert len(data_curation.raw_prompts(config)[0]) == 16_000


# --- the Config ---


def test_all_prompts_need_sources():
    with pytest.raises(ValueError, match=r"raw_prompts=all needs --sources, because exercises have no end"):
        data_curation.raw_prompts(Config(raw_prompts="all"))


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.1, float("nan")])
def test_the_others_are_never_all_of_the_prompts(share):
    with pytest.raises(ValueError, match=f"^other_share={share}: Input should be"):
        Config(other_share=share)


@pytest.mark.parametrize("name", ["tries", "max_new_tokens", "raw_prompts", "temperature", "held_out_instructions"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"^{name}.*={value}: Input should be "):
        Config(**{name: value})


def test_a_share_that_leaves_no_instruction_is_refused():
    """The filters would say that all of 0 prompts are too long."""
    sentence = r"^raw_prompts=100 at scale=tiny and other_share=0.99 leave no instruction; raise --raw-prompts, or"
    with pytest.raises(ValueError, match=sentence):
        data_curation.raw_prompts(Config(raw_prompts=100, other_share=0.99))


def test_a_single_try_which_differs_from_no_other_is_refused():
    """It solves a prompt, which is then always solved, or it does not, and the prompt is never solved."""
    with pytest.raises(ValueError, match=r"^tries=1: Input should be greater than or equal to 2$"):
        Config(tries=1)


@pytest.mark.parametrize("difficulty", [0, 5])
def test_a_difficulty_that_does_not_exist_is_refused(difficulty):
    with pytest.raises(ValueError, match=f"^max_difficulty={difficulty}: Input should be 1, 2, 3 or 4"):
        Config(max_difficulty=difficulty)


def test_a_row_with_the_id_of_an_exercise_gets_another(tmp_path):
    """Prompts are known by their ids: one of two with the same id would be judged as the other."""
    row = {"prompt": "Name two rivers.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    rows = [json.dumps({"id": f"sft/math/00000{number}/1", **row}) for number in range(3)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows) + "\n")
    config = Config(sources=(str(tmp_path / "own.jsonl"),), other_share=0.9)
    prompts, _ = data_curation.raw_prompts(config)
    ids = [one.id for one in prompts]
    assert len({*ids}) == len(ids) > 20
    assert {"sft/math/000000/1", "sft/math/000000/1#2"} < {*ids}
