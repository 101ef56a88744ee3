"""Tool calling: a list of tools, a small database behind them, and a user who wants something read or changed.

What goes in: a number of exercises, a seed, a split, a difficulty. What comes out: conversations answered by calls, or
by a sentence about what a call gave. Calls are right when the database then holds what it should and what was asked for
has been read, however they get there: in any order, by other tools, with reads that nobody asked for.

    python -c "import nemotron.recipes.sources.exercises.tool_calling as e; \
        print(e.generate_exercises(1, 0, split='train'))"

As in the published data, which rules verify too (arXiv 2508.14444, section 3). Left out: requests that no tool can
serve, questions back to the user.
"""

import copy
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron.recipes.sources.exercises import NAMES, Exercise, drawn_exercises, last_word, same_words
from nemotron.recipes.sources.problems import Split, drawn_integer, drawn_item

FAMILY = "tool_calling"
NUM_TOOLS = {1: 1, 2: 4, 3: 6, 4: 8}  # a second description does not fit the 256 tokens of difficulty 1
ITEMS = ("apples", "bags", "beans", "books", "boxes", "bricks", "caps", "cups", "forks", "hats", "jars",
         "keys", "lamps", "maps", "nails", "nuts", "pans", "pens", "pots", "ropes", "rugs", "saws",
         "seeds", "toys")  # fmt: skip


@dataclass(frozen=True)
class Column:
    """What one table of the database says about its rows."""

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
EFFECTS = {  # in words, with what a user says for it
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


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError if a name comes twice in it."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name comes twice in an object")
    return dict(pairs)


def refused_constant(name: str) -> None:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is no JSON")


def parse_tool_calls(reply: str) -> list[dict[str, Any]]:
    """The calls of a reply: at least one {"name": text, "arguments": object}.

    Raises:
        ValueError: if the reply is anything but <TOOLCALL>[...]</TOOLCALL> with a JSON list of such calls.
    """
    text = reply.strip()
    if not (text.startswith("<TOOLCALL>") and text.endswith("</TOOLCALL>")):
        raise ValueError("a call stands between <TOOLCALL> and </TOOLCALL>, with nothing before or after it")
    inside = text.removeprefix("<TOOLCALL>").removesuffix("</TOOLCALL>")
    try:
        calls = json.loads(inside, object_pairs_hook=without_repeats, parse_constant=refused_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"what stands in <TOOLCALL> is no JSON: {error}") from error
    if not isinstance(calls, list) or not calls:
        raise ValueError("what stands in <TOOLCALL> must be a list of at least one call")
    for call in calls:
        if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
            raise ValueError('a call must be an object of exactly "name" and "arguments"')
        if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
            raise ValueError('"name" must be text and "arguments" an object')
    return calls


def checked_call(tools: Sequence[dict[str, Any]], call: dict[str, Any]) -> None:
    """ValueError unless the call names one of the tools and gives it all its arguments, each of its type."""
    parameters = {tool["name"]: tool["parameters"] for tool in tools}.get(call["name"])
    if parameters is None:
        raise ValueError(f"there is no tool {call['name']!r}; there are {', '.join(tool['name'] for tool in tools)}")
    if set(call["arguments"]) != set(parameters["required"]):
        raise ValueError(
            f"{call['name']} takes {', '.join(parameters['required'])}, not {', '.join(call['arguments'])}"
        )
    for name, value in call["arguments"].items():
        expected = parameters["properties"][name]["type"]
        if type(value) is not PYTHON_TYPES[expected]:
            raise ValueError(f"{name}={value!r} of {call['name']} must be of type {expected}")


def run_call(database: Database, call: dict[str, Any]) -> tuple[Database, dict[str, Any]]:
    """The database after a call, and what the call gives back: the row that it read or changed.

    Raises:
        ValueError: if there is no such tool, table or row, or an argument is not of its type.
    """
    checked_call(list(TOOLS.values()), call)
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
        """In words."""
        return EFFECTS[self.effect].format(table=self.table, row=self.row, value=self.value)

    @property
    def call(self) -> dict[str, Any]:
        """As a call."""
        column = TABLES[self.table]
        arguments: dict[str, Any] = {column.key: self.row}
        if self.value is not None:
            arguments[column.value] = self.value
        return {"name": f"{self.effect}_{self.table}", "arguments": arguments}

    @property
    def step(self) -> str:
        """As one line of thinking."""
        arguments = ", ".join(f"{name} {value}" for name, value in self.call["arguments"].items())
        return f"{self.call['name']}: {arguments}"


def drawn_value(generator: random.Random, table: str, largest: int) -> int | str:
    """A value that fits the table."""
    return (
        drawn_integer(generator, 1, largest)
        if TABLES[table].type == "integer"
        else f"{drawn_integer(generator, 0, 999):03d}"
    )


def drawn_requests(generator: random.Random, num_requests: int, largest: int) -> list[Request]:
    """Requests about different rows; most of them have a value, for there are too few others to keep some unseen."""
    requests: dict[tuple[str, str], Request] = {}
    while len(requests) < num_requests:
        table, effect = (
            drawn_item(generator, list(TABLES)),
            drawn_item(generator, ("set", "raise") * 3 + ("get", "delete")),
        )
        effect = effect if f"{effect}_{table}" in TOOLS else "set"
        row = drawn_item(generator, TABLES[table].rows)
        value = drawn_value(generator, table, largest) if effect in ("set", "raise") else None
        requests.setdefault((table, row), Request(effect, table, row, value))
    return list(requests.values())


def drawn_database(generator: random.Random, requests: Sequence[Request], largest: int) -> Database:
    """A database with the rows of the requests and two others; what is to be set has another value before."""
    database: Database = {}
    for request in requests:
        rows = database.setdefault(request.table, {})
        for row in (drawn_item(generator, TABLES[request.table].rows), request.row):
            rows[row] = drawn_value(generator, request.table, largest)
    for request in requests:
        while database[request.table][request.row] == request.value:
            database[request.table][request.row] = drawn_value(generator, request.table, largest)
    return database


def drawn_tools(generator: random.Random, requests: Sequence[Request], num_tools: int) -> tuple[dict[str, Any], ...]:
    """The tools that the requests need, and others, in any order."""
    names = {request.call["name"] for request in requests}
    while len(names) < num_tools:
        names.add(drawn_item(generator, list(TOOLS)))
    return tuple(TOOLS[name] for name in sorted(sorted(names), key=lambda _name: generator.random()))


def written_calls(requests: Sequence[Request]) -> str:
    """The reply that makes the calls."""
    return f"<TOOLCALL>{json.dumps([request.call for request in requests], ensure_ascii=False)}</TOOLCALL>"


def user(text: str) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": text}


def called(database: Database, requests: Sequence[Request]) -> tuple[Database, list[dict[str, Any]]]:
    """The database after the calls, and the messages that make them and bring their results."""
    functions = [{"type": "function", "function": request.call} for request in requests]
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": "", "tool_calls": functions}]
    for request in requests:
        database, result = run_call(database, request.call)
        messages.append({"role": "tool", "content": json.dumps(result, ensure_ascii=False)})
    return database, messages


def sentence(database: Database, request: Request) -> str:
    """What to tell the user when the request is done."""
    if request.effect == "delete":
        return f"The {request.table} of {request.row} is deleted."
    now = "" if request.effect == "get" else "now "
    return f"The {request.table} of {request.row} is {now}{database[request.table][request.row]}."


def drawn_conversation(generator: random.Random, difficulty: int) -> tuple[Database, list, list, list, str, str]:
    """Database before the reply, messages, requests that need tools, steps, answer, canonical form."""
    first_kind, largest = generator.random() < 0.5, 10 ** min(difficulty + 1, 4) - 1
    if difficulty == 4:  # two values are to be read first
        table = drawn_item(generator, [name for name in TABLES if TABLES[name].type == "integer"])
        rows: dict[str, Any] = {}
        while len(rows) < 2 or len(set(rows.values())) < 2:
            rows = {drawn_item(generator, TABLES[table].rows): drawn_value(generator, table, largest) for _ in range(2)}
        (read, other), database = [Request("get", table, row) for row in rows], {table: rows}
        if first_kind:  # one is read and the call that copies it is the reply
            write = Request("set", table, other.row, rows[read.row])
            text = f"Set the {table} of {write.row} to the {table} of {read.row}."
            steps = [f"the {table} of {read.row} is {write.value}", write.step]
            messages = [user(text), *called(database, [read])[1]]
            return database, messages, [read, write], steps, written_calls([write]), f"{text} {sorted(rows.items())}"
        larger = max(rows, key=rows.__getitem__)
        text = f"Which has the larger {table}, {read.row} or {other.row}?"
        steps = [*(f"{row}: {value}" for row, value in rows.items()), f"the larger is {rows[larger]}, of {larger}"]
        messages = [user(text), *called(database, [read, other])[1]]
        return database, messages, [read, other], steps, larger, f"larger {table} {sorted(rows.items())}"
    requests = drawn_requests(generator, 2 if difficulty == 3 else 1, largest)
    texts, steps = [request.text for request in requests], [request.step for request in requests]
    database = drawn_database(generator, requests, largest)
    if difficulty == 1 or first_kind:  # all requests in one message, to be answered by as many calls
        return database, [user(" ".join(texts))], requests, steps, written_calls(requests), " ".join(sorted(texts))
    after, messages = called(database, requests[:1])
    report = sentence(after, requests[0])
    messages = [user(texts[0]), *messages]
    if difficulty == 2:  # the call has been made, the reply is a sentence about its result
        canonical = f"{texts[0]} {database[requests[0].table][requests[0].row]}"
        return after, messages, requests, [f"the tool gave {messages[-1]['content']}"], report, canonical
    messages += [{"role": "assistant", "content": report}, user(texts[1])]  # a second request follows
    return after, messages, requests, steps[1:], written_calls(requests[1:]), " ".join(texts)


def drawn(generator: random.Random, difficulty: int) -> Exercise:
    """One conversation of the difficulty; its verifier finds the database in the state before the reply."""
    database, messages, requests, steps, answer, canonical = drawn_conversation(generator, difficulty)
    tools = drawn_tools(generator, requests, NUM_TOOLS[difficulty])
    details = json.dumps({"database": database}, ensure_ascii=False)
    return Exercise("", FAMILY, tuple(messages), tools, "\n".join(steps), answer, canonical, details)


# The verifiers --------------------------------------------------------------------------------------------------------


def outcome(exercise: Exercise, reply: str) -> tuple[Database, list[tuple[str, dict[str, Any]]]]:
    """The database after the calls of a reply, and the name and result of each; ValueError if they are not valid."""
    database, results = json.loads(exercise.details)["database"], []
    for call in parse_tool_calls(reply):
        checked_call(exercise.tools, call)
        database, result = run_call(database, call)
        results.append((call["name"], result))
    return database, results


REQUEST = re.compile(r"(What is|Set|Raise|Delete) the (\w+) of (\w+)(?: (?:to|by) (?:the (\w+) of )?(\w+))?[.?]")


def holds(exercise: Exercise) -> bool:
    """Whether the answer does, or says, what the user's words ask for, read from them by other code."""
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
    """Exercises of one split; a smaller number of them is the beginning of a larger one.

    Args:
        num_exercises: how many; 0 gives none.
        seed: picks which.
        split: "train" or "evaluation"; their tasks are disjoint, whatever the seeds and difficulties.
        difficulty: 1 one call of one tool; 2 four tools to choose from, or a sentence about a result; 3 six
            tools, two calls or a second request; 4 eight tools, and results to act on or to compare.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return drawn_exercises(FAMILY, drawn, holds, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply's calls change and read what they should, or its sentence is the right one."""
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
