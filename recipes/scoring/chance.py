"""The chance level of an exam: what a reply that ignores the question gets from the verifiers.

In: exercises. Out: for each family, the constant reply that is right most often, and its share. It is searched among a
fixed list of replies and the right replies of training exercises. Stages with an exam print it beside their results.
Where replies are rewarded in parts: the constant reply and the way of copying from the question that earn the most.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nemotron.recipes.scoring.rewards import reward_parts, total_reward
from nemotron.recipes.sources.exercises import long_context, safety
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.families import FAMILIES

MAX_ANSWERS = 5_000  # training exercises of each family whose replies are tried; small has at most 4,400 of one

PLAUSIBLE = (
    "", ".", "-", "x", "Yes.", "No.", "True", "False", "None", "[]", "I do not know.", "I cannot help with that.",
    "I cannot help with that, because the owner has not agreed.", "The owner must agree first.", "Sorry.", "Sure.",
    "It is", "Es ist", "C'est", "Es", "<think></think>", "<TOOLCALL>[]</TOOLCALL>", "a", "the", "word", "WORD",
    *map(str, range(-10, 101)), *(f"x = {number}" for number in range(11)),
    ", ".join(map(str, range(100))), " ".join(map(str, range(100))), "\n".join(map(str, range(100))),
)  # fmt: skip
"""Replies that somebody may try: nothing, one word, any small number, all of them."""


@dataclass(frozen=True)
class Chance:
    """The constant reply that is right most often."""

    reply: str
    share: float
    """Of the exercises, from 0 to 1."""


def best_constant(exercises: Sequence[Exercise], replies: Iterable[str]) -> Chance:
    """Of replies that are right equally often, the shortest; of those the first in the order of their characters.

    Args:
        exercises: of one family, at least one.
        replies: at least one; their order does not matter.
    """
    check_answer = FAMILIES[exercises[0].family].check_answer
    num_right = {reply: sum(check_answer(exercise, reply) for exercise in exercises) for reply in replies}
    reply = min(num_right, key=lambda reply: (-num_right[reply], len(reply), reply))
    return Chance(reply, num_right[reply] / len(exercises))


def chance_levels(exercises: Sequence[Exercise], *, num_answers: int, seed: int) -> dict[str, Chance]:
    """The chance level of every family that has exercises.

    Args:
        num_answers: training exercises of each family, of the same difficulty, whose right replies are tried too; at
            most MAX_ANSWERS.
        seed: selects them.
    """
    levels: dict[str, Chance] = {}
    for name, family in FAMILIES.items():
        asked = [exercise for exercise in exercises if exercise.family == name]
        if asked:
            number, difficulty = min(num_answers, MAX_ANSWERS), asked[0].difficulty
            trained = family.generate_exercises(number, seed, split="train", difficulty=difficulty)
            levels[name] = best_constant(asked, {*PLAUSIBLE, *(exercise.answer for exercise in trained)})
    return levels


def best_rewarded(exercises: Sequence[Exercise], replies: Iterable[str]) -> Chance:
    """The constant reply that earns the most reward on average, chosen like `best_constant`."""
    earned = {reply: mean_reward(exercises, [reply] * len(exercises)) for reply in replies}
    reply = min(earned, key=lambda reply: (-earned[reply], len(reply), reply))
    return Chance(reply, earned[reply])


def best_copying(exercises: Sequence[Exercise]) -> Chance:
    """The way of copying from the question that earns the most reward on average; `reply` names it."""
    earned = {name: mean_reward(exercises, [copy(one) for one in exercises]) for name, copy in COPIES.items()}
    name = max(earned, key=lambda name: earned[name])
    return Chance(name, earned[name])


def question_of(exercise: Exercise) -> str:
    """The last message."""
    return exercise.messages[-1]["content"]


COPIES: dict[str, Callable[[Exercise], str]] = {
    "the question": question_of,
    "its last word": lambda one: question_of(one).split()[-1].strip(".?!"),
    "its first sentence": lambda one: question_of(one).partition(".")[0],
    "what follows its first colon": lambda one: question_of(one).partition(": ")[2].partition(".")[0],
    "the first half of that": lambda one: ", ".join(
        (listed := question_of(one).partition(": ")[2].partition(".")[0].split(", "))[: (len(listed) + 1) // 2]
    ),
    "that in upper case": lambda one: question_of(one).partition(": ")[2].partition(".")[0].upper(),
}
"""Replies that copy from the question."""


def mean_reward(exercises: Sequence[Exercise], answers: Sequence[str]) -> float:
    """What one answer to each exercise earns on average, in replies of the right form."""
    earned = [total_reward(1, reward_parts(one, answer)) for one, answer in zip(exercises, answers, strict=True)]
    return sum(earned) / len(earned)


def always_refusing(exercises: Sequence[Exercise]) -> float:
    """Share of the safety exercises that a model gets which refuses every request and names the owner."""
    asked = [exercise for exercise in exercises if exercise.family == safety.FAMILY]
    replies = [safety.refusal(safety.request_of(exercise)[0]) for exercise in asked]
    right = [safety.check_answer(exercise, reply) for exercise, reply in zip(asked, replies, strict=True)]
    return sum(right) / len(right) if right else 0.0


def chance_metrics(levels: Mapping[str, Chance], exercises: Sequence[Exercise]) -> dict[str, float]:
    """The shares as metrics; `all` is the mean over all families but long context, as in `reply_metrics`."""
    metrics = {f"chance/{family}": level.share for family, level in levels.items()}
    short = [level.share for family, level in levels.items() if family != long_context.FAMILY]
    if short:
        metrics["chance/all"] = sum(short) / len(short)
    metrics["always_refusing/safety"] = always_refusing(exercises)
    return metrics
