"""Workplace: requests that take several calls, played turn by turn against a small database.

In: a number of tasks, a seed, a split, a difficulty. Out: tasks of three kinds, with a database before and the database
that a right conversation leaves behind.

    look_up     "What is the stock of cups? Set the stock of pens to that."      a value must be read to be written
    correct     "Raise the stock of pens by 7. If there is none, set it to 7."   the first call may fail, and says why
    nothing     a question that no tool can answer                               right is to call nothing and to answer

A conversation is played with `run_calls`: it runs the calls of a reply and gives each the tool's answer, a result or an
error. A conversation is right if the database at its end is right, whatever the calls; for the kind "nothing", if no
call was made.

    python -c "import nemotron.recipes.sources.exercises.workplace as e; \
        print(e.generate_exercises(1, 0, split='train'))"

A stand-in for the published tool tasks of several steps, whose outcome is also the state of a database (WorkBench;
arXiv 2508.14444, section 3). The tools are those of tool_calling.py, without a description, which repeats the name: at
tiny, two calls of a conversation just fit into the context. It is no family of the exam, which asks for one reply.
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
    draw_tools,
    draw_value,
    run_call,
    user_message,
)
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item
from nemotron.strict import one_sentence

FAMILY = "workplace"
LOOK_UP, CORRECT, NOTHING = "look_up", "correct", "nothing"
KINDS = (LOOK_UP, CORRECT, NOTHING)
NUM_TOOLS = {1: 2, 2: 3, 3: 5, 4: 8}  # our choice: those that are needed, then others beside them
NUMBER_TABLES = tuple(table for table, column in TABLES.items() if column.type == "integer")
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
    """One of KINDS."""
    return json.loads(exercise.details)["kind"]


def database_of(exercise: Exercise) -> Database:
    """The database before the first call."""
    return json.loads(exercise.details)["database"]


def solution_of(exercise: Exercise) -> list[list[Call]]:
    """The calls of each reply in a right conversation; empty if it has none."""
    return json.loads(exercise.details)["solution"]


def is_right(exercise: Exercise, database: Database, num_calls: int) -> bool:
    """Whether a conversation that made so many calls and leaves this database did what was asked."""
    return database == json.loads(exercise.details)["wanted"] and (num_calls == 0 or kind_of(exercise) != NOTHING)


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
    value = database[table][source]
    read, write = Request("get", table, source), Request(effect, table, target, value)
    preposition = {"set": "to", "raise": "by"}[effect]
    text = f"{read.text} {effect.capitalize()} the {table} of {target} {preposition} that."
    tools = offered_tools(generator, [read, write], NUM_TOOLS[difficulty])
    # As in tool_calling.py, where the value has been read before: with other values, it is another task.
    said = f"{effect.capitalize()} the {table} of {target} {preposition} the {table} of {source}."
    canonical = f"{said} {sorted((row, database[table][row]) for row in (source, target))}"
    return task(LOOK_UP, text, tools, database, [[read.call], [write.call]], canonical)


def draw_correct(generator: random.Random, difficulty: int) -> Exercise:
    """Raise a row, which in half of the tasks does not exist and is set instead; only the first call can tell."""
    table = draw_item(generator, NUMBER_TABLES)
    database: Database = {table: draw_rows(generator, table, difficulty)}
    row = next(iter(database[table]))
    value = draw_integer(generator, 1, 10 ** min(difficulty + 1, 4) - 1)
    raised, written = Request("raise", table, row, value), Request("set", table, row, value)
    text = f"{raised.text} If there is none, set it to {value}."
    tools = offered_tools(generator, [raised, written], NUM_TOOLS[difficulty])
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
    tools = offered_tools(generator, offered, 1 if difficulty == 1 else NUM_TOOLS[difficulty])
    database: Database = {table: {row: draw_value(generator, table, 99)}}
    if difficulty > 1 and generator.random() < 0.5:
        tools = tuple(tool for tool in tools if not tool["name"].startswith("set_"))
        wanted = Request("set", table, row, draw_value(generator, table, 99))
        return task(NOTHING, wanted.text, tools, database, [], wanted.text)
    asked = safety.draw_exercise(generator, 1)
    return task(NOTHING, asked.messages[0]["content"], tools, database, [], asked.canonical)


DRAWS: dict[str, Callable[[random.Random, int], Exercise]] = {
    LOOK_UP: draw_look_up,
    CORRECT: draw_correct,
    NOTHING: draw_nothing,
}


def offered_tools(generator: random.Random, needed: Sequence[Request], num_tools: int) -> tuple[dict[str, Any], ...]:
    """The tools that the requests need and others, in random order, without their descriptions."""
    drawn = draw_tools(generator, needed, num_tools)
    return tuple({key: tool[key] for key in ("name", "parameters")} for tool in drawn)


def task(
    kind: str,
    text: str,
    tools: tuple[dict[str, Any], ...],
    database: Database,
    solution: list[list[Call]],
    canonical: str,
) -> Exercise:
    """The task with what is needed to play and to judge it; its answer is the first reply of the solution."""
    wanted = database
    for calls in solution:
        wanted, _ = run_calls(tools, wanted, calls)
    details = {"kind": kind, "database": database, "wanted": wanted, "solution": solution}
    answer = f"<TOOLCALL>{json.dumps(solution[0])}</TOOLCALL>" if solution else "I cannot help with that."
    steps = "\n".join(call["name"] for calls in solution for call in calls)
    return Exercise("", FAMILY, (user_message(text),), tools, steps, answer, canonical, json.dumps(details))


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """One task of any kind."""
    return DRAWS[draw_item(generator, KINDS)](generator, difficulty)


LOOKED_UP = re.compile(r"What is the (\w+) of (\w+)\? (Set|Raise) the \w+ of (\w+) (?:to|by) that\.")
RAISED = re.compile(r"Raise the (\w+) of (\w+) by (\d+)\. If there is none, set it to (\d+)\.")


def is_correct(exercise: Exercise) -> bool:
    """Whether the wanted database is what the user's text asks for, which is parsed here independently."""
    text, database = exercise.messages[0]["content"], database_of(exercise)
    if found := LOOKED_UP.fullmatch(text):
        table, source, effect, target = found.groups()
        before = database[table][target] if effect == "Raise" else 0
        database[table][target] = before + database[table][source]
    elif found := RAISED.fullmatch(text):
        table, row, value, _ = found.groups()
        database[table][row] = database[table].get(row, 0) + int(value)
    wanted = json.loads(exercise.details)["wanted"]
    played, num_calls = database_of(exercise), 0
    for calls in solution_of(exercise):
        played, made = run_calls(exercise.tools, played, calls)
        num_calls += len(made)
    return wanted == database and is_right(exercise, played, num_calls)


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Tasks of one split; fewer tasks are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none.
        seed: selects the tasks.
        split: "train" or "evaluation"; they share no task, for any seeds and difficulties, and none with the exam.
        difficulty: 1: only the tools that are needed, values up to 99; 2: three tools, values up to 999, requests that
            no tool serves; 3: five tools, values up to 9,999, raising by a value that was read; 4: eight tools.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)
