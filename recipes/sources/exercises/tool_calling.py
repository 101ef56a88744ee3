"""Tool calling: a list of tools, a small database behind them, and a user who wants to read or change a value.

In: a number of exercises, a seed, a split, a difficulty. Out: conversations answered by calls, or by a sentence about
the result of a call. Calls are correct if they leave the database in the right state and read the values that the user
asked for: in any order, by other tools, and with additional reads.

    python -c "import nemotron.recipes.sources.exercises.tool_calling as e; \
        print(e.generate_exercises(1, 0, split='train'))"

Verified by rules, as is the published data (arXiv 2508.14444, section 3). Left out: requests that no tool can serve,
questions back to the user.
"""

import copy
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron.recipes.sources.exercises.exercise import NAMES, Exercise, draw_exercises, last_word, same_words
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item, draw_several
from nemotron.strict import parse_json

FAMILY = "tool_calling"
NUM_TOOLS = {1: 1, 2: 4, 3: 6, 4: 8}  # a second description does not fit into the 256 tokens of difficulty 1
ITEMS = ("apples", "bags", "beans", "books", "boxes", "bricks", "caps", "cups", "forks", "hats", "jars",
         "keys", "lamps", "maps", "nails", "nuts", "pans", "pens", "pots", "ropes", "rugs", "saws",
         "seeds", "toys")  # fmt: skip


@dataclass(frozen=True)
class Column:
    """The names, type and row keys of one table of the database."""

    key: str
    value: str
    type: str
    rows: tuple[str, ...]


TABLES = {
    "stock": Column("item", "amount", "integer", ITEMS),
    "price": Column("item", "cents", "integer", ITEMS),
    "score": Column("name", "points", "integer", NAMES),
    "phone": Column("name", "number", "string", NAMES),
}
EFFECTS = {  # effect -> how a user asks for it
    "get": "What is the {table} of {row}?",
    "set": "Set the {table} of {row} to {value}.",
    "raise": "Raise the {table} of {row} by {value}.",
    "delete": "Delete the {table} of {row}.",
}
PYTHON_TYPES = {"integer": int, "string": str}

Database = dict[str, dict[str, Any]]
"""Table -> row -> value."""


# The tools ------------------------------------------------------------------------------------------------------------


def tool(effect: str, table: str) -> dict[str, Any]:
    """The description of one tool: get_stock, set_stock, raise_stock, delete_stock, ..."""
    column = TABLES[table]
    properties = {column.key: {"type": "string"}}
    if effect in ("set", "raise"):
        properties[column.value] = {"type": column.type}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"name": f"{effect}_{table}", "description": f"{effect.capitalize()} the {table}", "parameters": parameters}


TOOLS = {
    made["name"]: made
    for made in (tool(effect, table) for table in TABLES for effect in EFFECTS)
    if made["name"] != "raise_phone"
}


def parse_tool_calls(reply: str) -> list[dict[str, Any]]:
    """The calls of a reply, at least one: {"name": text, "arguments": object}.

    Raises:
        ValueError: if the reply is not <TOOLCALL>[...]</TOOLCALL> with a JSON list of such calls.
    """
    text = reply.strip()
    if not (text.startswith("<TOOLCALL>") and text.endswith("</TOOLCALL>")):
        raise ValueError("a call must be between <TOOLCALL> and </TOOLCALL>, with nothing before or after it")
    inside = text.removeprefix("<TOOLCALL>").removesuffix("</TOOLCALL>")
    calls = parse_json(inside, "the content of <TOOLCALL>", advice="write a JSON list of calls")
    if not isinstance(calls, list) or not calls:
        raise ValueError("the content of <TOOLCALL> must be a list of at least one call")
    for call in calls:
        if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
            raise ValueError('a call must be an object with exactly "name" and "arguments"')
        if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
            raise ValueError('"name" must be text and "arguments" an object')
    return calls


def check_call(tools: Sequence[dict[str, Any]], call: dict[str, Any]) -> None:
    """ValueError unless the call names one of the tools and has exactly its arguments, each of the right type."""
    parameters = {tool["name"]: tool["parameters"] for tool in tools}.get(call["name"])
    if parameters is None:
        raise ValueError(f"there is no tool {call['name']!r}; use one of {', '.join(tool['name'] for tool in tools)}")
    if set(call["arguments"]) != set(parameters["required"]):
        raise ValueError(
            f"{call['name']} takes {', '.join(parameters['required'])}, not {', '.join(call['arguments'])}"
        )
    for name, value in call["arguments"].items():
        expected = parameters["properties"][name]["type"]
        if type(value) is not PYTHON_TYPES[expected]:
            raise ValueError(f"{name}={value!r} of {call['name']} must be of type {expected}")


def run_call(database: Database, call: dict[str, Any]) -> tuple[Database, dict[str, Any]]:
    """The database after a call, and the result of the call: the row that it read or changed.

    Raises:
        ValueError: if there is no such tool, table or row, or an argument has the wrong type.
    """
    check_call(list(TOOLS.values()), call)
    effect, _, table = call["name"].partition("_")
    column, arguments = TABLES[table], call["arguments"]
    row = arguments[column.key]
    if table not in database or (row not in database[table] and effect != "set"):
        raise ValueError(f"the database has no {table} of {row!r}")
    after = copy.deepcopy(database)
    if effect == "set":
        after[table][row] = arguments[column.value]
    elif effect == "raise":
        after[table][row] += arguments[column.value]
    elif effect == "delete":
        del after[table][row]
    return after, {column.key: row, column.value: after[table].get(row)}


# Requests and conversations -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One thing that a user wants."""

    effect: str
    table: str
    row: str
    value: int | str | None = None

    @property
    def text(self) -> str:
        """The request as a user says it."""
        return EFFECTS[self.effect].format(table=self.table, row=self.row, value=self.value)

    @property
    def call(self) -> dict[str, Any]:
        """The request as a tool call."""
        column = TABLES[self.table]
        arguments: dict[str, Any] = {column.key: self.row}
        if self.value is not None:
            arguments[column.value] = self.value
        return {"name": f"{self.effect}_{self.table}", "arguments": arguments}

    @property
    def step(self) -> str:
        """The request as one line of reasoning."""
        arguments = ", ".join(f"{name} {value}" for name, value in self.call["arguments"].items())
        return f"{self.call['name']}: {arguments}"


def draw_value(generator: random.Random, table: str, largest: int) -> int | str:
    """A value that fits the table."""
    return (
        draw_integer(generator, 1, largest)
        if TABLES[table].type == "integer"
        else f"{draw_integer(generator, 0, 999):03d}"
    )


def draw_requests(generator: random.Random, num_requests: int, largest: int) -> list[Request]:
    """Requests about different rows. Most have a value: too few others exist to keep some for evaluation."""
    requests: dict[tuple[str, str], Request] = {}
    while len(requests) < num_requests:
        table, effect = (
            draw_item(generator, list(TABLES)),
            draw_item(generator, ("set", "raise") * 3 + ("get", "delete")),
        )
        effect = effect if f"{effect}_{table}" in TOOLS else "set"
        row = draw_item(generator, TABLES[table].rows)
        value = draw_value(generator, table, largest) if effect in ("set", "raise") else None
        requests.setdefault((table, row), Request(effect, table, row, value))
    return list(requests.values())


def draw_database(generator: random.Random, requests: Sequence[Request], largest: int) -> Database:
    """A database with the row of each request and a random other row; a row to set starts with another value."""
    database: Database = {}
    for request in requests:
        rows = database.setdefault(request.table, {})
        for row in (draw_item(generator, TABLES[request.table].rows), request.row):
            rows[row] = draw_value(generator, request.table, largest)
    for request in requests:
        while database[request.table][request.row] == request.value:
            database[request.table][request.row] = draw_value(generator, request.table, largest)
    return database


def draw_tools(generator: random.Random, requests: Sequence[Request], num_tools: int) -> tuple[dict[str, Any], ...]:
    """The tools that the requests need and others, in random order."""
    names = {request.call["name"] for request in requests}
    while len(names) < num_tools:
        names.add(draw_item(generator, list(TOOLS)))
    return tuple(TOOLS[name] for name in draw_several(generator, sorted(names), len(names)))


def format_calls(requests: Sequence[Request]) -> str:
    """The reply that makes the calls."""
    return f"<TOOLCALL>{json.dumps([request.call for request in requests], ensure_ascii=False)}</TOOLCALL>"


def user_message(text: str) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": text}


def run_requests(database: Database, requests: Sequence[Request]) -> tuple[Database, list[dict[str, Any]]]:
    """The database after the calls, the message that makes them and the messages with their results."""
    functions = [{"type": "function", "function": request.call} for request in requests]
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": "", "tool_calls": functions}]
    for request in requests:
        database, result = run_call(database, request.call)
        messages.append({"role": "tool", "content": json.dumps(result, ensure_ascii=False)})
    return database, messages


def report_sentence(database: Database, request: Request) -> str:
    """Tells the user that the request is done."""
    if request.effect == "delete":
        return f"The {request.table} of {request.row} is deleted."
    now = "" if request.effect == "get" else "now "
    return f"The {request.table} of {request.row} is {now}{database[request.table][request.row]}."


def draw_conversation(generator: random.Random, difficulty: int) -> tuple[Database, list, list, list, str, list[str]]:
    """Database before the reply, messages, requests that need tools, steps, answer, tasks."""
    first_kind, largest = generator.random() < 0.5, 10 ** min(difficulty + 1, 4) - 1
    if difficulty == 4:  # two values must be read first
        table = draw_item(generator, [name for name in TABLES if TABLES[name].type == "integer"])
        rows: dict[str, Any] = {}
        while len(rows) < 2 or len(set(rows.values())) < 2:
            rows = {draw_item(generator, TABLES[table].rows): draw_value(generator, table, largest) for _ in range(2)}
        (read, other), database = [Request("get", table, row) for row in rows], {table: rows}
        if first_kind:  # one value has been read, and the reply is the call that copies it
            write = Request("set", table, other.row, rows[read.row])
            text = f"Set the {table} of {write.row} to the {table} of {read.row}."
            steps = [f"the {table} of {read.row} is {write.value}", write.step]
            messages = [user_message(text), *run_requests(database, [read])[1]]
            return database, messages, [read, write], steps, format_calls([write]), [f"{text} {sorted(rows.items())}"]
        larger = max(rows, key=rows.__getitem__)
        text = f"Which has the larger {table}, {read.row} or {other.row}?"
        steps = [*(f"{row}: {value}" for row, value in rows.items()), f"the larger is {rows[larger]}, of {larger}"]
        messages = [user_message(text), *run_requests(database, [read, other])[1]]
        return database, messages, [read, other], steps, larger, [f"larger {table} {sorted(rows.items())}"]
    requests = draw_requests(generator, 2 if difficulty == 3 else 1, largest)
    texts, steps = [request.text for request in requests], [request.step for request in requests]
    database = draw_database(generator, requests, largest)
    if difficulty == 1 or first_kind:  # all requests are in one message, and the reply has one call for each
        messages = [user_message(" ".join(texts))]
        return database, messages, requests, steps, format_calls(requests), texts
    after, messages = run_requests(database, requests[:1])
    report = report_sentence(after, requests[0])
    messages = [user_message(texts[0]), *messages]
    if difficulty == 2:  # the call has been made, and the reply is a sentence about its result
        return after, messages, requests, [f"the tool gave {messages[-1]['content']}"], report, texts
    messages += [{"role": "assistant", "content": report}, user_message(texts[1])]  # a second request follows
    return after, messages, requests, steps[1:], format_calls(requests[1:]), texts


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """One conversation of the difficulty; `details` holds the database before the reply."""
    database, messages, requests, steps, answer, tasks = draw_conversation(generator, difficulty)
    tools = draw_tools(generator, requests, NUM_TOOLS[difficulty])
    details = json.dumps({"database": database}, ensure_ascii=False)
    canonical = "\n".join(sorted(tasks))  # what is asked in every turn, because training learns every turn
    return Exercise("", FAMILY, tuple(messages), tools, "\n".join(steps), answer, canonical, details)


# The verifiers --------------------------------------------------------------------------------------------------------


def outcome(exercise: Exercise, reply: str) -> tuple[Database, list[tuple[str, dict[str, Any]]]]:
    """The database after the calls of a reply, and the name and result of each; ValueError for an invalid call."""
    database, results = json.loads(exercise.details)["database"], []
    for call in parse_tool_calls(reply):
        check_call(exercise.tools, call)
        database, result = run_call(database, call)
        results.append((call["name"], result))
    return database, results


REQUEST = re.compile(r"(What is|Set|Raise|Delete) the (\w+) of (\w+)(?: (?:to|by) (?:the (\w+) of )?(\w+))?[.?]")


def is_correct(exercise: Exercise) -> bool:
    """Whether the answer does or says what the user's text asks for, which is parsed here independently."""
    text = next(message["content"] for message in exercise.messages[::-1] if message["role"] == "user")
    if exercise.answer.startswith("<TOOLCALL>"):
        tables, rows_touched = json.loads(exercise.details)["database"], []
        for verb, table, row, other_table, value in REQUEST.findall(text):
            new = tables[other_table][value] if other_table else (value if table == "phone" else int(value or 0))
            if verb in ("Set", "Raise"):
                tables[table][row] = new if verb == "Set" else tables[table][row] + new
            elif verb == "Delete":
                del tables[table][row]
            rows_touched.append([row, tables[table].get(row)])
        database, made = outcome(exercise, exercise.answer)
        return tables == database and rows_touched == [list(result.values()) for _name, result in made]
    given = [json.loads(message["content"]) for message in exercise.messages if message["role"] == "tool"]
    if len(given) == 2:
        return exercise.answer == max(given, key=lambda result: list(result.values())[1])[next(iter(given[0]))]
    ((verb, table, row, _table, _value),) = REQUEST.findall(text)
    said = {"What is": f"is {given[0][TABLES[table].value]}", "Delete": "is deleted"}.get(
        verb, f"is now {given[0][TABLES[table].value]}"
    )
    return exercise.answer == f"The {table} of {row} {said}."


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Exercises of one split; fewer exercises are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none.
        seed: selects the exercises.
        split: "train" or "evaluation"; they share no task, for any seeds and difficulties.
        difficulty: 1: one call of one tool; 2: four tools to choose from, or a sentence about a result; 3: six tools,
            two calls or a second request; 4: eight tools, and results to act on or to compare.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply's calls change and read what they should, or its sentence is correct."""
    if not exercise.answer.startswith("<TOOLCALL>"):
        asked_for_value = exercise.messages[0]["content"].startswith("What is")
        return same_words(reply, exercise.answer) or (asked_for_value and same_words(reply, last_word(exercise.answer)))
    try:
        found, found_results = outcome(exercise, reply)
    except ValueError:
        return False
    wanted, wanted_results = outcome(exercise, exercise.answer)
    wanted_reads = [result for result in wanted_results if result[0].startswith("get_")]
    return found == wanted and all(result in found_results for result in wanted_reads)
