"""A call is right when the database is; a reply that is no valid call is a sentence, never another error."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises import Exercise
from nemotron.recipes.sources.exercises.tool_calling import (
    TOOLS,
    check_answer,
    checked_call,
    generate_exercises,
    holds,
    parse_tool_calls,
    run_call,
)

DATABASE = {"stock": {"pens": 3, "cups": 8}, "phone": {"Ada": "007"}}


def written(*calls: dict) -> str:
    return f"<TOOLCALL>{json.dumps(calls)}</TOOLCALL>"


def call(tool: str, /, **arguments) -> dict:
    return {"name": tool, "arguments": arguments}


def exercise(answer: str) -> Exercise:
    """Any exercise with this answer, all tools and the database above."""
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
def test_a_call_by_hand(made: dict, rows: dict, result: dict) -> None:
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
        (written(call("set_stock", item="pens", amount=7), call("get_stock", item="pens")), False),
        (SEVEN + ".", False),
        ("Sure. " + SEVEN, False),
        (SEVEN + SEVEN, False),
    ],
)
def test_a_reply_is_judged_by_what_it_does(reply: str, right: bool) -> None:
    assert check_answer(exercise(SEVEN), reply) is right


def test_what_was_read_counts_where_nothing_changes() -> None:
    reading = exercise(written(call("get_stock", item="pens")))
    assert check_answer(reading, reading.answer)
    assert not check_answer(reading, written(call("get_stock", item="cups")))


def test_true_is_not_one() -> None:
    one = exercise(written(call("set_stock", item="pens", amount=1)))
    assert check_answer(one, one.answer)
    assert not check_answer(one, written(call("set_stock", item="pens", amount=True)))


def test_a_request_to_change_is_never_met_by_reading() -> None:
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
        ("", "is no JSON"), ("[", "is no JSON"), ("[NaN]", "NaN is no JSON"), ("{}", "at least one call"),
        ("[]", "at least one call"), ("[1]", "exactly"), ('[{"name": "a"}]', "exactly"), ("[" * 100_000, "is no JSON"),
        ('[{"name": "a", "arguments": {}, "id": 1}]', "exactly"), ('[{"name": 1, "arguments": {}}]', "must be text"),
        ('[{"name": "a", "arguments": []}]', "an object"), ('[{"name": "a", "name": "b", "arguments": {}}]', "twice"),
    ],
)  # fmt: skip
def test_what_is_no_call_is_refused_with_a_sentence(inside: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tool_calls(f"<TOOLCALL>{inside}</TOOLCALL>")


def test_text_around_a_call_is_refused() -> None:
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
def test_any_json_is_judged_without_an_error(value) -> None:
    assert check_answer(exercise(SEVEN), f"<TOOLCALL>{json.dumps(value)}</TOOLCALL>") in (True, False)


@given(seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_calls_that_stand_in_a_conversation_are_valid_and_give_what_it_says(seed: int, difficulty: int) -> None:
    for made in generate_exercises(6, seed, split="train", difficulty=difficulty):
        results = iter([json.loads(m["content"]) for m in made.messages if m["role"] == "tool"])
        for message in made.messages:
            for entry in message.get("tool_calls", ()):
                checked_call(made.tools, entry["function"])
                assert set(entry["function"]["arguments"].items()) & set(next(results).items())
        assert next(results, None) is None
        if made.answer.startswith("<TOOLCALL>"):
            for answered in parse_tool_calls(made.answer):
                checked_call(made.tools, answered)
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
    """The user's text, results of calls, and what is then said."""
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
def test_the_reader_tells_right_from_wrong(made: Exercise, right: bool) -> None:
    assert holds(made) is right
