"""One exercise, and what all families share: drawing exercises, and comparing replies with answers."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from nemotron.recipes.sources.problems.problem import Split, check_split, seeded_random, split_of

DIFFICULTIES = (1, 2, 3, 4)
NAMES = ("Ada", "Ben", "Carl", "Dina", "Emil", "Fay", "Gus", "Hana", "Ivan", "Joan", "Kofi", "Lena", "Maya", "Noor",
         "Omar", "Pia", "Quin", "Rosa", "Sam", "Tina", "Uma", "Vera", "Will", "Zoe")  # fmt: skip


@dataclass(frozen=True)
class Exercise:
    """One conversation up to the assistant's turn, and a correct reply."""

    id: str
    """"sft/math/000123" in training, "evaluation/math/000123" in evaluation."""
    family: str
    messages: tuple[dict[str, Any], ...]
    """{"role": "system", "user", "assistant" or "tool", "content": text}. An assistant's message may have "tool_calls":
    a list of {"type": "function", "function": {"name", "arguments"}}. The last message is a user's or a tool's."""
    tools: tuple[dict[str, Any], ...]
    """{"name", "description", "parameters"}, where parameters is a JSON schema; () if there are no tools."""
    reasoning: str
    """Worked steps, one per line, without thinking tags. The answer follows from the last step."""
    answer: str
    """A correct reply; a call is written '<TOOLCALL>[{"name": ..., "arguments": {...}}]</TOOLCALL>'."""
    canonical: str
    """The task without its wording: the same for all wordings of a task. It decides the split."""
    details: str = "{}"
    """JSON: what the verifier needs besides the answer."""


def user_exercise(family: str, question: str, reasoning: str, answer: str, canonical: str) -> Exercise:
    """An exercise with a single message and no tools; its id is still empty."""
    return Exercise("", family, ({"role": "user", "content": question},), (), reasoning, answer, canonical)


def exercise_to_row(exercise: Exercise) -> dict[str, Any]:
    """The exercise as a row of a Parquet file; `exercise_from_row` reads it."""
    return {**asdict(exercise), "messages": json.dumps(exercise.messages), "tools": json.dumps(exercise.tools)}


def exercise_from_row(row: dict[str, Any]) -> Exercise:
    """The exercise in a row that `exercise_to_row` made."""
    return Exercise(**{**row, "messages": tuple(json.loads(row["messages"])), "tools": tuple(json.loads(row["tools"]))})


def draw_exercises(
    family: str,
    draw_exercise: Callable[[random.Random, int], Exercise],
    is_correct: Callable[[Exercise], bool],
    num_exercises: int,
    seed: int,
    split: Split,
    difficulty: int,
) -> list[Exercise]:
    """Exercises of one split. Each depends on its index, not on the number of exercises.

    Args:
        family: part of the random seed and of the ids.
        draw_exercise: draws one exercise; called again until the canonical form is in the split.
        is_correct: whether the answer is right, computed from the messages independently of how it was made.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
        AssertionError: if an answer is not correct.
    """
    if num_exercises < 0:
        raise ValueError(f"num_exercises={num_exercises} must not be negative")
    check_split(split)
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty={difficulty} must be one of {', '.join(map(str, DIFFICULTIES))}")
    exercises: list[Exercise] = []
    for index in range(num_exercises):
        generator = seeded_random(family, seed, split, difficulty, index)
        exercise = draw_exercise(generator, difficulty)
        while split_of(exercise.canonical) != split:
            exercise = draw_exercise(generator, difficulty)
        name = f"{'sft' if split == 'train' else 'evaluation'}/{family}/{index:06d}"
        if not is_correct(exercise):
            raise AssertionError(f"{name}: {exercise.answer!r} does not answer {exercise.messages[-1]['content']!r}")
        exercises.append(replace(exercise, id=name))
    return exercises


def same_text(reply: str, answer: str) -> bool:
    """Whether the reply is the answer, ignoring surrounding white space and one final period."""
    return reply.strip().removesuffix(".") == answer.removesuffix(".")


def same_words(reply: str, answer: str) -> bool:
    """Like `same_text`, but ignoring upper and lower case and the amount of white space."""
    return same_text(" ".join(reply.lower().split()), answer.lower())


def same_number(reply: str, answer: str, unit: str) -> bool:
    """Whether the reply is the whole number or fraction, with or without the unit in the question."""
    number = re.escape(answer).replace("/", r"\s*/\s*")
    return re.fullmatch(rf"{number}(?:\s*{re.escape(unit)})?\.?", reply.strip()) is not None


def last_word(answer: str) -> str:
    """The last word of an answer, without the period: "31" of "It is 31."."""
    return answer.removesuffix(".").split()[-1]
