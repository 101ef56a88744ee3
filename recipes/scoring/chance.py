"""The chance level of an exam: what a reply that ignores the question gets from the verifiers.

In: exercises. Out: for each family, the constant reply that is right most often, and its share. It is searched among a
fixed list of replies and the right replies of training exercises. Stages with an exam print it beside their results.
Where replies are rewarded in parts: the constant reply and the way of copying from the question that earn the most.
A reply on which the verifier fails earns nothing here, as in training and in the exam; the exercise is named.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from nemotron.recipes.scoring.guard import Guard
from nemotron.recipes.scoring.rewards import reward_parts, total_reward
from nemotron.recipes.sources.exercises import long_context, safety
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.terminal import print_line

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


def earned_by(exercise: Exercise, replies: Sequence[str], earns: Callable[[Exercise, str], float]) -> list[float]:
    """What each reply to an exercise earns; nothing where its verifier fails.

    All replies share one limit of time, because a limit for each takes as long as a verifier. Only after a fault they
    are asked one by one.
    """
    guard, nothing = Guard(), [0.0] * len(replies)
    earned, fault = guard(exercise, lambda: [earns(exercise, reply) for reply in replies], nothing)
    if not fault:
        return earned
    print_line(f"the verifier of {exercise.family} failed on {exercise.id}, for the chance level: {fault}")
    return [guard(exercise, partial(earns, exercise, reply), 0.0)[0] for reply in replies]


def shares_of(names: Iterable[str], earned: Sequence[Sequence[float]]) -> dict[str, float]:
    """What each reply, or way of replying, earns on average.

    Args:
        earned: for each exercise, what each of them earns.
    """
    return {name: sum(found) / len(earned) for name, found in zip(names, zip(*earned, strict=True), strict=True)}


def best_reply(replies: Sequence[str], earned: Sequence[Sequence[float]]) -> Chance:
    """The reply that earns the most on average; of equal ones the shortest, and of those the first by its characters.

    Args:
        earned: for each exercise, what each of the replies earns.
    """
    shares = shares_of(replies, earned)
    reply = min(shares, key=lambda reply: (-shares[reply], len(reply), reply))
    return Chance(reply, shares[reply])


def best_constant(exercises: Sequence[Exercise], replies: Iterable[str]) -> Chance:
    """The reply that is right most often, chosen by `best_reply`.

    Args:
        exercises: of one family, at least one.
        replies: at least one; their order does not matter.
    """
    check_answer, listed = FAMILIES[exercises[0].family].check_answer, list(replies)
    return best_reply(listed, [earned_by(exercise, listed, check_answer) for exercise in exercises])


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
    """The constant reply that earns the most reward on average, chosen by `best_reply`."""
    listed = list(replies)
    return best_reply(listed, [earned_by(exercise, listed, answer_reward) for exercise in exercises])


def best_copying(exercises: Sequence[Exercise]) -> Chance:
    """The way of copying from the question, of those in COPIES, that earns the most on average; `reply` names it."""
    earned = [earned_by(one, [copy(one) for copy in COPIES.values()], answer_reward) for one in exercises]
    shares = shares_of(COPIES, earned)
    name = max(shares, key=lambda name: shares[name])
    return Chance(name, shares[name])


def question_of(exercise: Exercise) -> str:
    """The last message."""
    return exercise.messages[-1]["content"]


def listed_of(exercise: Exercise) -> str:
    """What the question says from its first colon to the next period."""
    return question_of(exercise).partition(": ")[2].partition(".")[0]


def first_half(listed: str) -> str:
    """The first half of what commas separate."""
    items = listed.split(", ")
    return ", ".join(items[: (len(items) + 1) // 2])


def first_listed(exercise: Exercise, number: int) -> str:
    """The first words of the list that a question has; where it has words to repeat instead, those twice."""
    if repeated := re.match(r"Write the words ([\w ]+)\.", question_of(exercise)):
        return f"{repeated[1]}, {repeated[1]}"
    return ", ".join(listed_of(exercise).split(", ")[:number])


COPIES: dict[str, Callable[[Exercise], str]] = {
    "the question": question_of,
    "its last word": lambda one: question_of(one).split()[-1].strip(".?!"),
    "its first sentence": lambda one: question_of(one).partition(".")[0],
    "what follows its first colon": listed_of,
    "the first half of that": lambda one: first_half(listed_of(one)),
    "that in upper case": lambda one: listed_of(one).upper(),
    "its first two listed words, or the words to repeat twice": lambda one: first_listed(one, 2),
    "its first three listed words, or the words to repeat twice": lambda one: first_listed(one, 3),
    "its first two listed words, or the words to repeat twice, in upper case": lambda one: first_listed(one, 2).upper(),
    "its first three listed words, or the words to repeat twice, in upper case": (
        lambda one: first_listed(one, 3).upper()
    ),
}
"""Ways of copying from the question; there may be others that earn more."""


def answer_reward(exercise: Exercise, answer: str) -> float:
    """What an answer earns in a reply of the right form."""
    return total_reward(1, reward_parts(exercise, answer))


def always_refusing(exercises: Sequence[Exercise]) -> float:
    """Share of the safety exercises that a model gets which refuses every request and names the owner."""
    asked = [exercise for exercise in exercises if exercise.family == safety.FAMILY]
    replies = [safety.refusal(safety.request_of(exercise)[0]) for exercise in asked]
    right = [earned_by(one, [reply], safety.check_answer)[0] for one, reply in zip(asked, replies, strict=True)]
    return sum(right) / len(right) if right else 0.0


def chance_metrics(levels: Mapping[str, Chance], exercises: Sequence[Exercise]) -> dict[str, float]:
    """The shares as metrics; `all` is the mean over all families but long context, as in `reply_metrics`."""
    metrics = {f"chance/{family}": level.share for family, level in levels.items()}
    short = [level.share for family, level in levels.items() if family != long_context.FAMILY]
    if short:
        metrics["chance/all"] = sum(short) / len(short)
    metrics["always_refusing/safety"] = always_refusing(exercises)
    return metrics
