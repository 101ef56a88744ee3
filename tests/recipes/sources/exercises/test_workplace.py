"""Tasks of several calls: what is right is decided by the database, and an independent reading of the text agrees."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises import safety, tool_calling, workplace
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_from_row, exercise_to_row
from nemotron.recipes.sources.exercises.workplace import (
    CORRECT,
    KINDS,
    LOOK_UP,
    NOTHING,
    SINGLE,
    database_of,
    generate_exercises,
    generate_singles,
    is_correct,
    is_right,
    kind_of,
    run_calls,
    solution_of,
)
from nemotron.recipes.sources.problems.problem import split_of


def call(tool: str, /, **arguments) -> dict:
    return {"name": tool, "arguments": arguments}


def tools(*names: str) -> tuple[dict, ...]:
    return tuple(tool_calling.TOOLS[name] for name in names)


DATABASE = {"stock": {"pens": 3, "cups": 8}}


# --- calls ---


def test_a_call_changes_the_database_and_answers_with_the_row() -> None:
    after, (ran,) = run_calls(tools("set_stock"), DATABASE, [call("set_stock", item="pens", amount=8)])
    assert after == {"stock": {"pens": 8, "cups": 8}}
    assert (json.loads(ran.answer), ran.failed) == ({"item": "pens", "amount": 8}, False)
    assert DATABASE["stock"]["pens"] == 3


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (call("get_stock", item="pans"), "the database has no stock of 'pans'"),
        (call("get_price", item="pens"), "there is no tool 'get_price'; use one of get_stock, delete_stock"),
        (call("get_stock", item="pens", amount=3), "get_stock takes item, not item, amount"),
        (call("get_stock", item=3), "item=3 of get_stock must be of type string"),
        (call("get_stock", item="x" * 1000), "the database has no stock of 'x"),
    ],
)
def test_a_call_that_fails_changes_nothing_says_why_and_those_after_it_are_run(made: dict, why: str) -> None:
    offered = tools("get_stock", "delete_stock")
    after, (failed, ran) = run_calls(offered, DATABASE, [made, call("delete_stock", item="cups")])
    assert after == {"stock": {"pens": 3}}
    assert (failed.failed, ran.failed) == (True, False)
    said = json.loads(failed.answer)["error"]
    assert said.startswith(why)
    assert len(said) <= workplace.MAX_ERROR_CHARACTERS


# --- what is right ---


def task(kind: str, wanted: dict, reads: list[str]) -> Exercise:
    details = {"kind": kind, "database": DATABASE, "wanted": wanted, "reads": reads, "solution": []}
    return Exercise("", "workplace", (), tools("get_stock", "set_stock"), "", "", "", json.dumps(details))


def test_the_database_decides_whatever_the_calls() -> None:
    wanted = {"stock": {"pens": 8, "cups": 8}}
    for calls in ([call("set_stock", item="pens", amount=8)],
                  [call("get_stock", item="cups"), call("set_stock", item="pens", amount=9),
                   call("set_stock", item="pens", amount=8)]):  # fmt: skip
        after, ran = run_calls(tools("get_stock", "set_stock"), DATABASE, calls)
        assert is_right(task(LOOK_UP, wanted, []), after, ran)
        assert not is_right(task(LOOK_UP, DATABASE, []), after, ran)


def test_a_row_that_is_asked_for_must_be_read() -> None:
    asked = task(CORRECT, DATABASE, [json.dumps({"item": "pens", "amount": 3})])
    for item, right in (("pens", True), ("cups", False), ("pans", False)):
        after, ran = run_calls(asked.tools, DATABASE, [call("get_stock", item=item)])
        assert is_right(asked, after, ran) is right
    assert not is_right(asked, DATABASE, [])


def test_where_nothing_fits_any_call_is_wrong_even_one_that_changes_nothing() -> None:
    asked = task(NOTHING, DATABASE, [])
    assert is_right(asked, DATABASE, [])
    for item in ("pens", "pans"):
        after, ran = run_calls(asked.tools, DATABASE, [call("get_stock", item=item)])
        assert after == DATABASE
        assert not is_right(asked, after, ran)


# --- tasks ---

DIFFICULTIES = pytest.mark.parametrize("difficulty", [1, 2, 3, 4])


@DIFFICULTIES
def test_every_solution_is_right_and_nothing_less(difficulty: int) -> None:
    for one in generate_exercises(80, 0, split="train", difficulty=difficulty):
        database, ran = database_of(one), []
        for calls in solution_of(one):
            assert not is_right(one, database, ran)
            database, made = run_calls(one.tools, database, calls)
            ran += made
        assert is_right(one, database, ran)
        assert (kind_of(one) == NOTHING) == (not solution_of(one))


@DIFFICULTIES
def test_a_single_call_does_what_is_asked_at_the_first_attempt(difficulty: int) -> None:
    for one in generate_singles(80, 0, split="train", difficulty=difficulty):
        assert (kind_of(one), [message["role"] for message in one.messages]) == (SINGLE, ["user"])
        ((call,),) = solution_of(one)
        database, ran = run_calls(one.tools, database_of(one), [call])
        assert is_right(one, database, ran)
        _, failed = run_calls(one.tools, database_of(one), [{"name": "find", "arguments": {}}])
        assert not is_right(one, database, [*failed, *ran])


def test_every_effect_occurs_among_single_calls_and_none_is_in_the_other_split() -> None:
    train, held_out = (generate_singles(200, 0, split=split) for split in ("train", "evaluation"))
    called = {calls[0]["name"].split("_")[0] for one in train for calls in solution_of(one)}
    assert called == {"get", "set", "raise", "delete"}
    assert not {task for one in train for task in one.tasks} & {task for one in held_out for task in one.tasks}


def test_a_row_to_set_has_another_value_before() -> None:
    """Else a policy that says "Done." and calls nothing would be right."""
    for split in ("train", "evaluation"):
        for one in generate_exercises(300, 1234, split=split):
            if kind_of(one) != NOTHING:
                assert not is_right(one, database_of(one), []), one.id


@DIFFICULTIES
def test_every_kind_occurs(difficulty: int) -> None:
    kinds = Counter(kind_of(one) for one in generate_exercises(120, 0, split="train", difficulty=difficulty))
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 15


def test_at_difficulty_1_a_conversation_has_begun_and_from_2_on_it_has_not() -> None:
    for difficulty in (1, 2):
        for one in generate_exercises(60, 0, split="train", difficulty=difficulty):
            roles = [message["role"] for message in one.messages]
            begun = difficulty == 1 and kind_of(one) != NOTHING
            assert roles == (["user", "assistant", "tool"] if begun else ["user"])
            if begun:
                failed = "error" in json.loads(one.messages[-1]["content"])
                assert failed == (kind_of(one) == CORRECT)


def test_a_value_that_is_copied_is_in_no_request() -> None:
    """Who does not read it cannot write it."""
    for difficulty in (2, 3, 4):
        for one in generate_exercises(60, 0, split="train", difficulty=difficulty):
            if kind_of(one) == LOOK_UP:
                read, write = (calls[0] for calls in solution_of(one))
                value = list(write["arguments"].values())[1]
                assert read["name"].startswith("get_")
                assert str(value) not in one.messages[0]["content"]


def test_half_of_the_rows_to_raise_do_not_exist_and_only_a_call_can_tell() -> None:
    found = [one for one in generate_exercises(400, 0, split="train", difficulty=2) if kind_of(one) == CORRECT]
    missing = sum(len(solution_of(one)) == 2 for one in found)
    assert 0.35 < missing / len(found) < 0.65
    for one in found:
        raised = solution_of(one)[0]
        _, (made,) = run_calls(one.tools, database_of(one), raised)
        assert made.failed == (len(solution_of(one)) == 2)


def test_where_nothing_fits_no_offered_tool_does_what_is_asked() -> None:
    for difficulty in (1, 2, 4):
        for one in generate_exercises(100, 0, split="train", difficulty=difficulty):
            text = one.messages[0]["content"]
            if kind_of(one) == NOTHING and text.startswith("Set the"):
                assert not [tool for tool in one.tools if tool["name"].startswith("set_")]
            elif kind_of(one) == NOTHING:
                assert text.startswith("How do I open")


@DIFFICULTIES
def test_no_more_tools_than_the_difficulty_has(difficulty: int) -> None:
    for one in generate_exercises(60, 0, split="train", difficulty=difficulty):
        assert 1 <= len(one.tools) <= workplace.NUM_TOOLS[difficulty]


def test_a_task_has_the_split_of_the_same_task_in_other_families() -> None:
    """Otherwise the exam would ask what this stage has trained on."""
    asked = {one.messages[0]["content"]: one.canonical for one in generate_exercises(400, 0, split="train")}
    for family in (tool_calling, safety):
        for one in family.generate_exercises(400, 0, split="evaluation"):
            text = one.messages[0]["content"]
            if text in asked:
                assert split_of(asked[text]) == "evaluation", text
            assert split_of(one.canonical) == "evaluation"


def canonical_copy(one: Exercise) -> str:
    """What is asked, and the values of the two rows."""
    text = one.messages[0]["content"]
    (rows,) = (rows for table, rows in database_of(one).items() if f"the {table} of" in text)
    named = {row: value for row, value in rows.items() if f" of {row} " in text or text.endswith(f" of {row}.")}
    return f"{text} {sorted(named.items())}"


def test_copying_a_value_is_the_same_task_here_and_in_the_family_of_single_replies() -> None:
    theirs = tool_calling.generate_exercises(100, 0, split="train", difficulty=4)
    ours = [*generate_exercises(60, 0, split="train"), *generate_exercises(60, 0, split="train", difficulty=4)]
    for tasks in (theirs, ours):
        copies = [one for one in tasks if " to the " in one.messages[0]["content"]]
        assert len(copies) > 5
        assert [one.canonical for one in copies] == [canonical_copy(one) for one in copies]


def test_the_splits_share_no_task() -> None:
    train, evaluation = ({one.canonical for one in generate_exercises(300, 0, split=split)}
                         for split in ("train", "evaluation"))  # fmt: skip
    assert not train & evaluation


@given(seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_any_task_survives_a_file_and_fewer_are_a_prefix(seed: int, difficulty: int) -> None:
    tasks = generate_exercises(4, seed, split="train", difficulty=difficulty)
    assert [exercise_from_row(exercise_to_row(one)) for one in tasks] == tasks
    assert generate_exercises(2, seed, split="train", difficulty=difficulty) == tasks[:2]
    assert len({one.id for one in tasks}) == 4


@DIFFICULTIES
def test_another_wanted_database_is_noticed(difficulty: int) -> None:
    """By the reading of the text, which shares nothing with how the task was made."""
    for one in generate_exercises(40, 0, split="train", difficulty=difficulty):
        details = json.loads(one.details)
        table = next(iter(details["wanted"]))
        details["wanted"][table]["another"] = 1
        changed = Exercise(**{**vars(one), "details": json.dumps(details)})
        assert is_correct(one)
        assert not is_correct(changed)
