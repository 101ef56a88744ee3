"""A call is correct if the resulting database is, and an invalid call raises a ValueError and nothing else."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.tool_calling import (
    TOOLS,
    check_answer,
    check_call,
    generate_exercises,
    is_correct,
    parse_tool_calls,
    run_call,
)

DATABASE = {"stock": {"pens": 3, "cups": 8}, "phone": {"Ada": "007"}}


def written(*calls: dict) -> str:
    return f"<TOOLCALL>{json.dumps(calls)}</TOOLCALL>"


def call(tool: str, /, **arguments) -> dict:
    return {"name": tool, "arguments": arguments}


def exercise(answer: str) -> Exercise:
    """An exercise with this answer, all tools and the database above."""
    return Exercise(
        "", "tool_calling", ({"role": "user", "content": "Set the stock of pens to 7."},), tuple(TOOLS.values()), "",
        answer, "", json.dumps({"database": DATABASE}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "rows", "result"),
    [
        (call("get_stock", item="pens"), {"pens": 3, "cups": 8}, {"item": "pens", "amount": 3}),
        (call("set_stock", item="pens", amount=7), {"pens": 7, "cups": 8}, {"item": "pens", "amount": 7}),
        (call("set_stock", item="nuts", amount=7), {"pens": 3, "cups": 8, "nuts": 7}, {"item": "nuts", "amount": 7}),
        (call("raise_stock", item="pens", amount=7), {"pens": 10, "cups": 8}, {"item": "pens", "amount": 10}),
        (call("delete_stock", item="pens"), {"cups": 8}, {"item": "pens", "amount": None}),
    ],
)
def test_run_call_on_written_cases(made: dict, rows: dict, result: dict) -> None:
    before = json.dumps(DATABASE)
    assert run_call(DATABASE, made) == ({**DATABASE, "stock": rows}, result)
    assert json.dumps(DATABASE) == before


SEVEN = written(call("set_stock", item="pens", amount=7))


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        (SEVEN, True),
        (f"\n {SEVEN} ", True),
        ('<TOOLCALL>[ {"arguments":{"amount":7,"item":"pens"},"name":"set_stock"} ]</TOOLCALL>', True),
        (written(call("raise_stock", item="pens", amount=4)), True),  # another way to the same state
        (written(call("set_stock", item="pens", amount=8)), False),
        (written(call("set_stock", item="cups", amount=7)), False),
        (written(call("set_stock", item="pens", amount="7")), False),
        (written(call("set_stock", item="pens", amount=7.0)), False),
        (written(call("set_stock", item="pens", amount=True)), False),
        (written(call("set_stock", item="pens")), False),
        (written(call("set_stock", item="pens", amount=7, note="x")), False),
        (written(call("get_stock", item="pens")), False),
        (written(call("get_stock", item="nuts")), False),
        (written(call("set_price", item="pens", cents=7)), False),
        (written(call("drop_stock", item="pens")), False),
        (SEVEN + ".", False),
        ("Sure. " + SEVEN, False),
        (SEVEN + SEVEN, False),
    ],
)
def test_a_reply_is_judged_by_its_effect(reply: str, right: bool) -> None:
    assert check_answer(exercise(SEVEN), reply) is right


GET_PENS, GET_CUPS = call("get_stock", item="pens"), call("get_stock", item="cups")
SET_PENS, SET_CUPS = call("set_stock", item="pens", amount=7), call("set_stock", item="cups", amount=1)
DELETE_ADA = call("delete_phone", name="Ada")


def judged(wanted: list[dict], made: list[dict]) -> bool:
    return check_answer(exercise(written(*wanted)), written(*made))


def test_a_request_to_read_is_judged_by_the_rows_that_were_read() -> None:
    assert judged([GET_PENS], [GET_PENS])
    assert not judged([GET_PENS], [GET_CUPS])


def test_calls_may_be_in_any_order() -> None:
    for wanted in ([SET_PENS, SET_CUPS], [SET_PENS, DELETE_ADA], [GET_PENS, GET_CUPS], [GET_CUPS, SET_PENS]):
        assert judged(wanted, wanted)
        assert judged(wanted, wanted[::-1])


@pytest.mark.parametrize("wanted", [[SET_PENS], [GET_PENS]])
def test_additional_reads_are_allowed(wanted: list[dict]) -> None:
    assert judged(wanted, [GET_CUPS, *wanted])
    assert judged(wanted, [*wanted, GET_CUPS])


def test_a_row_may_be_read_before_and_after_it_is_set() -> None:
    assert judged([SET_PENS], [GET_PENS, SET_PENS, GET_PENS])


@pytest.mark.parametrize("wanted", [[SET_PENS, SET_CUPS], [GET_PENS, GET_CUPS], [GET_PENS, SET_CUPS]])
def test_one_of_two_requests_is_not_enough(wanted: list[dict]) -> None:
    assert not judged(wanted, wanted[:1])
    assert not judged(wanted, wanted[1:])
    assert not judged(wanted, [wanted[0], wanted[0]])


@pytest.mark.parametrize("wanted", [[SET_PENS], [GET_PENS]])
@pytest.mark.parametrize("other", [SET_CUPS, DELETE_ADA])
def test_an_additional_change_is_wrong(wanted: list[dict], other: dict) -> None:
    assert not judged(wanted, [*wanted, other])
    assert not judged(wanted, [other, *wanted])


def test_reading_a_value_after_changing_it_is_wrong() -> None:
    there_and_back = [SET_PENS, GET_PENS, call("set_stock", item="pens", amount=DATABASE["stock"]["pens"])]
    assert not judged([GET_PENS], there_and_back)


def test_setting_a_row_to_its_own_value_does_not_count_as_reading() -> None:
    assert not judged([GET_PENS], [call("set_stock", item="pens", amount=DATABASE["stock"]["pens"])])


def test_the_same_row_of_another_table_is_wrong() -> None:
    priced = replace(exercise(written(GET_PENS)), details=json.dumps({"database": {**DATABASE, "price": {"pens": 3}}}))
    assert check_answer(priced, written(GET_PENS))
    assert not check_answer(priced, written(call("get_price", item="pens")))


def test_true_is_not_accepted_as_one() -> None:
    one = exercise(written(call("set_stock", item="pens", amount=1)))
    assert check_answer(one, one.answer)
    assert not check_answer(one, written(call("set_stock", item="pens", amount=True)))


def test_reading_never_satisfies_a_request_to_change() -> None:
    for made in generate_exercises(800, 0, split="train"):
        (asked,) = parse_tool_calls(made.answer)
        effect, _, table = asked["name"].partition("_")
        arguments = {name: asked["arguments"][name] for name in ("item", "name") if name in asked["arguments"]}
        with_all_tools = replace(made, tools=tuple(TOOLS.values()))
        reading = written({"name": f"get_{table}", "arguments": arguments})
        assert check_answer(with_all_tools, reading) is (effect == "get")


def test_only_the_tools_of_the_exercise_can_be_called() -> None:
    with_one_tool = replace(exercise(SEVEN), tools=(TOOLS["set_stock"],))
    assert check_answer(with_one_tool, SEVEN)
    assert not check_answer(with_one_tool, written(call("raise_stock", item="pens", amount=4)))


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("", "is not valid JSON"), ("[", "is not valid JSON"), ("[" * 100_000, "is not valid JSON"),
        ("[NaN]", "holds NaN, which is not a number in JSON"), ("{}", "at least one call"),
        ("[]", "at least one call"), ("[1]", "exactly"), ('[{"name": "a"}]', "exactly"),
        ('[{"name": "a", "arguments": {}, "id": 1}]', "exactly"), ('[{"name": 1, "arguments": {}}]', "must be text"),
        ('[{"name": "a", "arguments": []}]', "an object"), ('[{"name": "a", "name": "b", "arguments": {}}]', "twice"),
    ],
)  # fmt: skip
def test_a_malformed_call_raises_a_value_error(inside: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tool_calls(f"<TOOLCALL>{inside}</TOOLCALL>")


def test_text_around_a_call_raises_a_value_error() -> None:
    for reply in ("", "7", f"a{SEVEN}", f"{SEVEN}a", SEVEN.removesuffix("</TOOLCALL>"), "</TOOLCALL><TOOLCALL>"):
        with pytest.raises(ValueError, match="nothing before or after"):
            parse_tool_calls(reply)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda item: st.lists(item, max_size=3) | st.dictionaries(st.sampled_from(["name", "arguments", "item"]), item),
)


@given(
    value=st.lists(
        st.fixed_dictionaries({"name": st.sampled_from(sorted(TOOLS)), "arguments": json_values}) | json_values
    )
)
def test_any_json_is_judged_without_an_exception(value) -> None:
    assert check_answer(exercise(SEVEN), f"<TOOLCALL>{json.dumps(value)}</TOOLCALL>") in (True, False)


@given(seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_calls_in_a_conversation_are_valid_and_have_the_stated_results(seed: int, difficulty: int) -> None:
    for made in generate_exercises(6, seed, split="train", difficulty=difficulty):
        results = iter([json.loads(m["content"]) for m in made.messages if m["role"] == "tool"])
        for message in made.messages:
            for entry in message.get("tool_calls", ()):
                check_call(made.tools, entry["function"])
                assert set(entry["function"]["arguments"].items()) & set(next(results).items())
        assert next(results, None) is None
        if made.answer.startswith("<TOOLCALL>"):
            for answered in parse_tool_calls(made.answer):
                check_call(made.tools, answered)
            assert written(*parse_tool_calls(made.answer)) == made.answer


def test_every_kind_of_conversation_occurs() -> None:
    shapes = {
        (difficulty, tuple(message["role"] for message in made.messages), len(made.tools))
        for difficulty in (1, 2, 3, 4)
        for made in generate_exercises(60, 0, split="train", difficulty=difficulty)
    }
    turn = ("user", "assistant", "tool")
    assert shapes == {
        (1, ("user",), 1), (2, ("user",), 4), (2, turn, 4), (3, ("user",), 6), (3, (*turn, "assistant", "user"), 6),
        (4, turn, 8), (4, (*turn, "tool"), 8),
    }  # fmt: skip


def said(text: str, answer: str, *results: dict) -> Exercise:
    """An exercise with the user's text, results of calls, and a sentence as the answer."""
    messages = ({"role": "user", "content": text}, *({"role": "tool", "content": json.dumps(r)} for r in results))
    return replace(exercise(answer), messages=messages)


@pytest.mark.parametrize(
    ("made", "right"),
    [
        (exercise(SEVEN), True),
        (exercise(written(call("set_stock", item="pens", amount=8))), False),
        (exercise(written(call("get_stock", item="pens"))), False),
        (said("Set the stock of pens to the stock of cups.", SEVEN), False),
        (said("Set the stock of nuts to the stock of pens.", written(call("set_stock", item="nuts", amount=3))), True),
        (said("Set the phone of Ada to 010.", written(call("set_phone", name="Ada", number="010"))), True),
        (said("Delete the phone of Ada.", written(call("delete_phone", name="Ada"))), True),
        (said("Delete the phone of Ada.", "The phone of Ada is deleted.", {"name": "Ada", "number": None}), True),
        (said("What is the stock of pens?", "The stock of pens is 3.", {"item": "pens", "amount": 3}), True),
        (said("What is the stock of pens?", "The stock of pens is 4.", {"item": "pens", "amount": 3}), False),
        (said("Raise the stock of pens by 1.", "The stock of pens is now 4.", {"item": "pens", "amount": 4}), True),
        (said("Which ...?", "cups", {"item": "pens", "amount": 3}, {"item": "cups", "amount": 8}), True),
        (said("Which ...?", "pens", {"item": "pens", "amount": 3}, {"item": "cups", "amount": 8}), False),
    ],
)  # fmt: skip
def test_is_correct_on_written_cases(made: Exercise, right: bool) -> None:
    assert is_correct(made) is right


PENS = {"item": "pens", "amount": 3}


@pytest.mark.parametrize(
    ("made", "reply", "right"),
    [
        (said("What is the stock of pens?", "The stock of pens is 3.", PENS), "3", True),
        (said("What is the stock of pens?", "The stock of pens is 3.", PENS), "the stock of pens is 3", True),
        (said("What is the stock of pens?", "The stock of pens is 3.", PENS), "4", False),
        (said("What is the stock of pens?", "The stock of pens is 3.", PENS), "The stock of cups is 3.", False),
        (said("Raise the stock of pens by 1.", "The stock of pens is now 3.", PENS), "3", False),
        (said("Delete the phone of Ada.", "The phone of Ada is deleted.", {}), "deleted", False),
        (said("Which has the larger stock, pens or cups?", "cups"), "Cups.", True),
        (said("Which has the larger stock, pens or cups?", "cups"), "Pens.", False),
    ],
)  # fmt: skip
def test_the_value_alone_answers_a_question_for_it(made: Exercise, reply: str, right: bool) -> None:
    assert check_answer(made, reply) is right
