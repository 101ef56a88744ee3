"""Workplace: requests that take several calls, played turn by turn against a small database.

In: a number of tasks, a seed, a split, a difficulty. Out: tasks of three kinds, with a database before and the database
that a right conversation leaves behind.

    look_up   "Set the stock of pens to the stock of cups."                     a value must be read to be written
    correct   "Raise the stock of pens by 7. If there is none, set it to 7."    a call fails, and the tool says why
    nothing   a question that no tool can answer                                right is to call nothing and to answer

Beside them `generate_singles` gives requests that one call serves, for a policy that must not unlearn them.

At difficulty 1 the first two have begun: the value has been read, or a wrong call has been made, and the policy goes
on from the tool's answer. From difficulty 2 on it begins itself.

A conversation is played with `run_calls`: it runs the calls of a reply and gives each the tool's answer, a result or an
error. A conversation is right if the database at its end is right and the rows that the user asks for have been read,
whatever the calls; for the kind "nothing", if no call was made, and for a single call, if none failed.

    python -c "import nemotron.recipes.sources.exercises.workplace as e; \
        print(e.generate_exercises(1, 0, split='train'))"

A stand-in for the published tool tasks of several steps, whose outcome is also the state of a database (WorkBench;
arXiv 2508.14444, section 3). The tools are those of tool_calling.py. It is not a family of the exam, which asks for one
reply.
Left out: questions back to the user, and sentences that report what a call has found.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron.recipes.sources.exercises import safety
from nemotron.recipes.sources.exercises.exercise import Exercise, draw_exercises
from nemotron.recipes.sources.exercises.tool_calling import (
    TABLES,
    Database,
    Request,
    check_call,
    draw_database,
    draw_requests,
    draw_tools,
    draw_value,
    run_call,
    user_message,
)
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item
from nemotron.strict import one_sentence

FAMILY = "workplace"
LOOK_UP, CORRECT, NOTHING, SINGLE = "look_up", "correct", "nothing", "single"
KINDS = (LOOK_UP, CORRECT, NOTHING)
NUM_TOOLS = {1: 2, 2: 3, 3: 5, 4: 8}  # our choice: those that are needed, then others beside them
NUMBER_TABLES = tuple(table for table, column in TABLES.items() if column.type == "integer")
PREPOSITIONS = {"set": "to", "raise": "by"}
MAX_ERROR_CHARACTERS = 160  # our choice: an error may quote the call, which has any length

Call = dict[str, Any]
"""{"name": text, "arguments": object}."""


# A conversation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """One call that was run."""

    call: Call
    answer: str
    """What the tool says, JSON: the row that was read or changed, or {"error": why}."""
    failed: bool


def run_calls(tools: Sequence[dict[str, Any]], database: Database, calls: Sequence[Call]) -> tuple[Database, list[Ran]]:
    """The database after the calls of one reply, in their order, and what each tool answers.

    A call that fails changes nothing. The calls after it are run.

    Args:
        tools: those of the exercise.
    """
    made = []
    for call in calls:
        try:
            check_call(tools, call)
            database, result = run_call(database, call)
        except ValueError as error:
            reason = one_sentence(error)[:MAX_ERROR_CHARACTERS]
            made.append(Ran(call, json.dumps({"error": reason}, ensure_ascii=False), failed=True))
        else:
            made.append(Ran(call, json.dumps(result, ensure_ascii=False), failed=False))
    return database, made


def kind_of(exercise: Exercise) -> str:
    """One of KINDS, or SINGLE."""
    return json.loads(exercise.details)["kind"]


def database_of(exercise: Exercise) -> Database:
    """The database before the first call."""
    return json.loads(exercise.details)["database"]


def solution_of(exercise: Exercise) -> list[list[Call]]:
    """The calls of each reply in a right conversation; empty if it has none."""
    return json.loads(exercise.details)["solution"]


def is_right(exercise: Exercise, database: Database, ran: Sequence[Ran]) -> bool:
    """Whether a conversation with these calls, which leaves this database, did what was asked."""
    details = json.loads(exercise.details)
    if details["kind"] == NOTHING and ran:
        return False
    if details["kind"] == SINGLE and any(made.failed for made in ran):
        return False
    answers = [made.answer for made in ran if not made.failed]
    return database == details["wanted"] and all(answer in answers for answer in details["reads"])


# Tasks ----------------------------------------------------------------------------------------------------------------


def draw_rows(generator: random.Random, table: str, difficulty: int) -> dict[str, int]:
    """Three rows of a table of numbers, with values that differ."""
    rows: dict[str, int] = {}
    largest = 10 ** min(difficulty + 1, 4) - 1
    while len(rows) < 3 or len(set(rows.values())) < 3:
        rows = {draw_item(generator, TABLES[table].rows): draw_integer(generator, 1, largest) for _ in range(3)}
    return rows


def draw_look_up(generator: random.Random, difficulty: int) -> Exercise:
    """Copy a value from one row to another, or from difficulty 3 on raise a row by it."""
    table = draw_item(generator, NUMBER_TABLES)
    database: Database = {table: draw_rows(generator, table, difficulty)}
    source, target = list(database[table])[:2]
    effect = draw_item(generator, ("set", "raise")) if difficulty > 2 else "set"
    read, write = Request("get", table, source), Request(effect, table, target, database[table][source])
    text = f"{effect.capitalize()} the {table} of {target} {PREPOSITIONS[effect]} the {table} of {source}."
    tools = draw_tools(generator, [read, write], NUM_TOOLS[difficulty])
    # As in tool_calling.py, where the value has been read: with other values, it is another task.
    canonical = f"{text} {sorted((row, database[table][row]) for row in (source, target))}"
    if difficulty == 1:
        return task(LOOK_UP, text, tools, database, [[write.call]], canonical, begun=read.call)
    return task(LOOK_UP, text, tools, database, [[read.call], [write.call]], canonical)


def draw_correct(generator: random.Random, difficulty: int) -> Exercise:
    """A request whose first call has failed; or to raise a row, which in half of the tasks must be set instead."""
    table = draw_item(generator, NUMBER_TABLES)
    database: Database = {table: draw_rows(generator, table, difficulty)}
    row = next(iter(database[table]))
    value = draw_integer(generator, 1, 10 ** min(difficulty + 1, 4) - 1)
    if difficulty == 1:
        effect = draw_item(generator, ("get", "set", "set", "delete"))
        asked = Request(effect, table, row, value if effect == "set" else None)
        if database[table][row] == asked.value:  # the row would be right before any call
            database[table][row] = value - 1 if value > 1 else 2
        wrong = Request(effect, draw_item(generator, [one for one in NUMBER_TABLES if one != table]), row, asked.value)
        if effect != "set":  # there is such a row nowhere, so that reading and deleting it fails
            names = [name for name in TABLES[table].rows if name not in database[table]]
            wrong = Request(effect, table, draw_item(generator, names))
        tools = draw_tools(generator, [asked], 1)
        return task(CORRECT, asked.text, tools, database, [[asked.call]], asked.text, begun=wrong.call)
    raised, written = Request("raise", table, row, value), Request("set", table, row, value)
    text = f"{raised.text} If there is none, set it to {value}."
    tools = draw_tools(generator, [raised, written], NUM_TOOLS[difficulty])
    solution = [[raised.call]]
    if generator.random() < 0.5:
        del database[table][row]
        solution.append([written.call])
    return task(CORRECT, text, tools, database, solution, raised.text)


def draw_nothing(generator: random.Random, difficulty: int) -> Exercise:
    """A question about somebody's things, with tools for other things; from difficulty 2 on also other requests."""
    table = draw_item(generator, list(TABLES))
    row = draw_item(generator, TABLES[table].rows)
    effects = ("get", "delete") if table == "phone" else ("get", "raise", "delete")
    offered = [Request(draw_item(generator, effects), table, row)]
    tools = draw_tools(generator, offered, 1 if difficulty == 1 else NUM_TOOLS[difficulty])
    database: Database = {table: {row: draw_value(generator, table, 99)}}
    if difficulty > 1 and generator.random() < 0.5:
        tools = tuple(tool for tool in tools if not tool["name"].startswith("set_"))
        wanted = Request("set", table, row, draw_value(generator, table, 99))
        return task(NOTHING, wanted.text, tools, database, [], wanted.text)
    asked = safety.draw_exercise(generator, 1)
    return task(NOTHING, asked.messages[0]["content"], tools, database, [], asked.canonical)


def draw_single(generator: random.Random, difficulty: int) -> Exercise:
    """A request that one call serves."""
    largest = 10 ** min(difficulty + 1, 4) - 1
    (request,) = draw_requests(generator, 1, largest)
    tools = draw_tools(generator, [request], NUM_TOOLS[difficulty])
    database = draw_database(generator, [request], largest)
    return task(SINGLE, request.text, tools, database, [[request.call]], request.text)


DRAWS: dict[str, Callable[[random.Random, int], Exercise]] = {
    LOOK_UP: draw_look_up,
    CORRECT: draw_correct,
    NOTHING: draw_nothing,
}


def task(
    kind: str,
    text: str,
    tools: tuple[dict[str, Any], ...],
    database: Database,
    solution: list[list[Call]],
    canonical: str,
    begun: Call | None = None,
) -> Exercise:
    """The task with what is needed to play and to judge it; its answer is the first reply of the solution.

    Args:
        begun: a call that has been made already, with its answer in the messages.
    """
    messages = [user_message(text)]
    if begun:
        database, (made,) = run_calls(tools, database, [begun])
        messages.append({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": begun}]})
        messages.append({"role": "tool", "content": made.answer})
    wanted, reads = database, []
    for calls in solution:
        wanted, ran = run_calls(tools, wanted, calls)
        reads += [made.answer for made in ran if made.call["name"].startswith("get_")]
    details = {"kind": kind, "database": database, "wanted": wanted, "reads": reads, "solution": solution}
    answer = f"<TOOLCALL>{json.dumps(solution[0])}</TOOLCALL>" if solution else "I cannot help with that."
    steps = "\n".join(call["name"] for calls in solution for call in calls)
    return Exercise("", FAMILY, tuple(messages), tools, steps, answer, canonical, json.dumps(details))


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """One task of any kind."""
    return DRAWS[draw_item(generator, KINDS)](generator, difficulty)


COPIED = re.compile(r"(Set|Raise) the (\w+) of (\w+) (?:to|by) the \w+ of (\w+)\.")
RAISED = re.compile(r"Raise the (\w+) of (\w+) by (\d+)\. If there is none, set it to (\d+)\.")
SIMPLE = re.compile(r"(What is|Set|Raise|Delete) the (\w+) of (\w+)(?: (?:to|by) (\w+))?[.?]")


def is_correct(exercise: Exercise) -> bool:
    """Whether the wanted database is what the user's text asks for, which is parsed here independently."""
    text, database = exercise.messages[0]["content"], database_of(exercise)
    if found := COPIED.fullmatch(text):
        effect, table, target, source = found.groups()
        before = database[table][target] if effect == "Raise" else 0
        database[table][target] = before + database[table][source]
    elif found := RAISED.fullmatch(text):
        table, row, value, _ = found.groups()
        database[table][row] = database[table].get(row, 0) + int(value)
    elif kind_of(exercise) in (CORRECT, SINGLE) and (found := SIMPLE.fullmatch(text)):
        effect, table, row, value = found.groups()
        if effect in ("Set", "Raise"):
            before = database[table][row] if effect == "Raise" else 0
            database[table][row] = before + int(value) if TABLES[table].type == "integer" else value
        elif effect == "Delete":
            del database[table][row]
    played, made = database_of(exercise), []
    for calls in solution_of(exercise):
        played, ran = run_calls(exercise.tools, played, calls)
        made += ran
    return json.loads(exercise.details)["wanted"] == database and is_right(exercise, played, made)


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Tasks of one split; fewer tasks are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none.
        seed: selects the tasks.
        split: "train" or "evaluation"; they share no task, for any seeds and difficulties, and none with the exam.
        difficulty: 1: conversations that have begun, only the tools that are needed, values up to 99; 2: three tools,
            values up to 999, requests that no tool serves; 3: five tools, values up to 9,999, raising by a value that
            was read; 4: eight tools.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)


def generate_singles(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Requests that one call serves, of one split; arguments and errors are those of `generate_exercises`."""
    return draw_exercises(f"{FAMILY}_{SINGLE}", draw_single, is_correct, num_exercises, seed, split, difficulty)
