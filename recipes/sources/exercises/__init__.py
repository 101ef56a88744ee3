"""Chat exercises with verified answers, one module a family: offline stand-ins for the published SFT categories.

What goes in: a number of exercises, a seed, a split, a difficulty from 1 to 4. What comes out: conversations that end
where the assistant has to speak, with the thinking that leads to a right reply, that reply, and a verifier for replies.

    python -c "import nemotron.recipes.sources.exercises.algebra as e;print(e.generate_exercises(1, 0, split='train'))"

Every family offers `FAMILY`, `generate_exercises(num_exercises, seed, *, split, difficulty)` and
`check_answer(exercise, reply)`. Math, code, science, tool calling, multilingual and safety are categories of arXiv
2508.14444, section 3; instruction following is its IFEval stage, long context its third SFT stage. Difficulty 1 is made
for 256 tokens and a model of 4 M parameters, difficulty 4 comes closest to the published ones. Left out: conversation,
whose replies no rule can verify.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from nemotron.recipes.sources.problems import Split, seeded_random, split_of

DIFFICULTIES = (1, 2, 3, 4)
NAMES = ("Ada", "Ben", "Carl", "Dina", "Emil", "Fay", "Gus", "Hana", "Ivan", "Joan", "Kofi", "Lena", "Maya", "Noor",
         "Omar", "Pia", "Quin", "Rosa", "Sam", "Tina", "Uma", "Vera", "Will", "Zoe")  # fmt: skip


@dataclass(frozen=True)
class Exercise:
    """One conversation up to where the assistant speaks, and what a right reply is."""

    id: str
    """"sft/math/000123" in training, "evaluation/math/000123" in evaluation."""
    family: str
    messages: tuple[dict[str, Any], ...]
    """{"role": "system", "user", "assistant" or "tool", "content": text}; an assistant's may have "tool_calls": a list
    of {"type": "function", "function": {"name", "arguments"}}. The last one is a user's or a tool's."""
    tools: tuple[dict[str, Any], ...]
    """{"name", "description", "parameters"}, the last a JSON schema; () where nothing can be called."""
    reasoning: str
    """Worked steps, one a line, without thinking tags. The answer follows from the last of them."""
    answer: str
    """A right reply; a call is written '<TOOLCALL>[{"name": ..., "arguments": {...}}]</TOOLCALL>'."""
    canonical: str
    """The task without its wording, the same for all wordings; decides the split."""
    details: str = "{}"
    """JSON: what the verifier needs beyond the answer."""


def user_exercise(family: str, question: str, reasoning: str, answer: str, canonical: str) -> Exercise:
    """An exercise of a single message and no tools, without its id."""
    return Exercise("", family, ({"role": "user", "content": question},), (), reasoning, answer, canonical)


def drawn_exercises(
    family: str,
    drawn: Callable[[random.Random, int], Exercise],
    holds: Callable[[Exercise], bool],
    num_exercises: int,
    seed: int,
    split: Split,
    difficulty: int,
) -> list[Exercise]:
    """Exercises of one split; each depends on its index, not on how many there are.

    Args:
        family: names the sequence of draws and the ids.
        drawn: one exercise from a generator and a difficulty; drawn again until its canonical form is in the split.
        holds: whether the answer is right, found from the messages by another way than the one that made it.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
        AssertionError: if an answer does not hold.
    """
    if num_exercises < 0:
        raise ValueError(f"num_exercises={num_exercises} must not be negative")
    if split not in ("train", "evaluation"):
        raise ValueError(f"split={split!r} must be 'train' or 'evaluation'")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty={difficulty} must be one of {', '.join(map(str, DIFFICULTIES))}")
    exercises: list[Exercise] = []
    for index in range(num_exercises):
        generator = seeded_random(family, seed, split, difficulty, index)
        exercise = drawn(generator, difficulty)
        while split_of(exercise.canonical) != split:
            exercise = drawn(generator, difficulty)
        name = f"{'sft' if split == 'train' else 'evaluation'}/{family}/{index:06d}"
        if not holds(exercise):
            raise AssertionError(f"{name}: {exercise.answer!r} does not answer {exercise.messages[-1]['content']!r}")
        exercises.append(replace(exercise, id=name))
    return exercises


def same_text(reply: str, answer: str) -> bool:
    """Whether the reply is the answer, apart from space around it and one period at its end."""
    return reply.strip().removesuffix(".") == answer.removesuffix(".")


def same_words(reply: str, answer: str) -> bool:
    """As `same_text`, where the question asks for no spelling: upper and lower case, and any white space, are one."""
    return same_text(" ".join(reply.lower().split()), answer.lower())


def same_number(reply: str, answer: str, unit: str) -> bool:
    """Whether the reply is the whole number or fraction, with or without the unit that the question asks for."""
    number = re.escape(answer).replace("/", r"\s*/\s*")
    return re.fullmatch(rf"{number}(?:\s*{re.escape(unit)})?\.?", reply.strip()) is not None


def last_word(answer: str) -> str:
    """What was asked for, where the answer is a sentence that ends in it: "31" of "It is 31."."""
    return answer.removesuffix(".").split()[-1]


from nemotron.recipes.sources.exercises import (  # noqa: E402  they import what stands above
    algebra,
    code_output,
    instructions,
    long_context,
    multilingual,
    safety,
    science,
    tool_calling,
)

FAMILIES: dict[str, ModuleType] = {
    family.FAMILY: family
    for family in (
        algebra,
        code_output,
        science,
        tool_calling,
        instructions,
        long_context,
        multilingual,
        safety,
    )
}
