"""One exercise, and what all families share: drawing exercises, and comparing replies with answers."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from nemotron.recipes.sources.answers import plain
from nemotron.recipes.sources.problems.problem import Split, check_split, seeded_random, split_of
from nemotron.terminal import print_line

DIFFICULTIES = (1, 2, 3, 4)
MAX_FAILED_DRAWS = 20_000  # consecutive draws without a new exercise, after which a family counts as exhausted
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
    """The task without its wording: the same for all wordings of a task, in all families. It decides the split. A
    conversation in which several things are asked has one task on each line, all of the same split."""
    details: str = "{}"
    """JSON: what the verifier needs besides the answer."""
    difficulty: int = 1
    """From 1 to 4."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The canonical form of each thing that is asked."""
        return tuple(self.canonical.split("\n"))


def user_exercise(family: str, question: str, reasoning: str, answer: str, canonical: str) -> Exercise:
    """An exercise with a single message and no tools; its id is still empty."""
    return Exercise("", family, ({"role": "user", "content": question},), (), reasoning, answer, canonical)


def exercise_to_row(exercise: Exercise) -> dict[str, Any]:
    """The exercise as a row of a Parquet file; `exercise_from_row` reads it."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in asdict(exercise).items()}


def exercise_from_row(row: dict[str, Any]) -> Exercise:
    """The exercise in a row that `exercise_to_row` made."""
    messages, tools, difficulty = (json.loads(row[name]) for name in ("messages", "tools", "difficulty"))
    return Exercise(**{**row, "messages": tuple(messages), "tools": tuple(tools), "difficulty": difficulty})


def draw_exercises(
    family: str,
    draw_exercise: Callable[[random.Random, int], Exercise],
    is_correct: Callable[[Exercise], bool],
    num_exercises: int,
    seed: int,
    split: Split,
    difficulty: int,
) -> list[Exercise]:
    """Exercises of one split, none of them twice; fewer exercises are a prefix of more.

    In training no conversation is repeated, but a task may be, in other words. In evaluation no task is. If a family
    has fewer exercises than asked for, it gives those that it has and says so.

    Args:
        family: part of the random seed and of the ids, so that a change of one family changes no other.
        draw_exercise: draws one exercise; called again until its tasks are in the split and it is new.
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
    drawn: set[str] = set()
    for index in range(num_exercises):
        generator = seeded_random(family, seed, split, difficulty, index)
        exercise = draw_new(lambda: draw_exercise(generator, difficulty), split, drawn)  # noqa: B023  called here
        if exercise is None:
            print_line(
                f"{family} has only {index:,} different exercises for {split} at difficulty {difficulty}, not "
                f"{num_exercises:,}: the rest is left out"
            )
            break
        name = f"{'sft' if split == 'train' else 'evaluation'}/{family}/{index:06d}"
        if not is_correct(exercise):
            raise AssertionError(f"{name}: {exercise.answer!r} does not answer {exercise.messages[-1]['content']!r}")
        exercises.append(replace(exercise, id=name, difficulty=difficulty))
    return exercises


def of_every_difficulty(
    generate: Callable[..., list[Exercise]], number: int, seed: int, split: Split, max_difficulty: int, first: int = 0
) -> list[Exercise]:
    """Exercises of one family, an equal number of each difficulty; their ids say which.

    Args:
        generate: `generate_exercises` of the family.
        first: of `first + number` exercises, the first ones to leave out, because they have another use.
    """
    exercises = []
    for difficulty in range(1, max_difficulty + 1):
        start, end = (
            total // max_difficulty + (difficulty <= total % max_difficulty) for total in (first, first + number)
        )
        drawn = generate(end, seed, split=split, difficulty=difficulty)[start:]
        exercises += [replace(exercise, id=f"{exercise.id}/{difficulty}") for exercise in drawn]
    return exercises


def draw_new(draw: Callable[[], Exercise], split: Split, drawn: set[str]) -> Exercise | None:
    """The first exercise whose tasks are in the split and that `drawn` lacks, which gets it; None if there is none."""
    for _ in range(MAX_FAILED_DRAWS):
        exercise = draw()
        if any(split_of(task) != split for task in exercise.tasks):
            continue
        repeats = exercise.canonical if split == "evaluation" else json.dumps(exercise.messages)
        if repeats not in drawn:
            drawn.add(repeats)
            return exercise
    return None


def same_text(reply: str, answer: str) -> bool:
    """Whether the reply is the answer, ignoring surrounding white space, one final period and what only decorates."""
    return plain(reply) == answer.removesuffix(".")


def same_words(reply: str, answer: str) -> bool:
    """Like `same_text`, but ignoring upper and lower case and the amount of white space."""
    return " ".join(plain(reply).casefold().split()) == answer.removesuffix(".").casefold()


def last_word(answer: str) -> str:
    """The last word of an answer, without the period: "31" of "It is 31."."""
    return answer.removesuffix(".").split()[-1]
