"""Instruction following: a reply made of given words, under constraints that a rule can check.

In: a number of exercises, a seed, a split, a difficulty, which is the number of constraints. Out: "Reply with different
words from this list, separated by commas: river, lamp, stone. Use exactly 2 words." Any reply that satisfies all
constraints is correct, not only `Exercise.answer`.

    python -c "import nemotron.recipes.sources.exercises.instructions as e; \
        print(e.generate_exercises(1, 0, split='train'))"

Modeled on IFEval (arXiv 2311.07911), as is the published instruction stage. Left out: constraints on free text, whose
meaning no rule can check.
"""

import json
import random
import re
from dataclasses import replace
from itertools import permutations
from typing import Any

from nemotron.recipes.sources.exercises.exercise import Exercise, draw_exercises, user_exercise
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item, draw_several

FAMILY = "instruction_following"
# Each begins with a different letter.
WORDS = ("apple", "bread", "cloud", "dance", "eagle", "field", "glass", "house", "ink", "juice", "kite", "lamp", "moon",
         "night", "ocean", "paper", "queen", "river", "stone", "train", "uncle", "voice", "water", "yard")  # fmt: skip

Constraint = tuple[str, Any]
"""A key of `SENTENCES` and its value: a number, a word, a letter or None."""

SENTENCES = {
    "repeat": "Repeat them exactly {value} times, with a comma after each time but the last.",
    "count": "Use exactly {value} words.",
    "end": "End with the word {value}.",
    "start": "Start with the word that begins with {value}.",
    "without": "Do not use the word {value}.",
    "alphabet": "Keep the words in alphabetical order.",
    "upper": "Write everything in upper case.",
}


def satisfies_constraints(listed: list[str], constraints: list[Constraint], reply: str) -> bool:
    """Whether a reply satisfies all constraints and is made of words of the list, each once, separated by commas.

    White space around a comma does not matter, nor does upper and lower case unless a constraint is about it.
    """
    words = [" ".join(word.split()) for word in reply.strip().removesuffix(".").split(",")]
    kinds = [kind for kind, _value in constraints]
    if "upper" in kinds and words != [word.upper() for word in words]:
        return False
    words = [word.lower() for word in words]
    if not set(words) <= set(listed) or ("repeat" not in kinds and len(set(words)) < len(words)):
        return False
    return all(
        len(words) == value if kind in ("repeat", "count")
        else words[-1] == value if kind == "end"
        else words[0].startswith(value) if kind == "start"
        else value not in words if kind == "without"
        else words == sorted(words) if kind == "alphabet"
        else kind == "upper"
        for kind, value in constraints
    )  # fmt: skip


def longest_correct_reply(listed: list[str], constraints: list[Constraint]) -> str | None:
    """The longest correct reply, and of those the first in the order of the list; None if there is none."""
    kinds = dict(constraints)
    replies = [listed * kinds["repeat"]] if "repeat" in kinds else [
        list(words) for length in range(len(listed), 0, -1) for words in permutations(listed, length)
    ]  # fmt: skip
    for words in replies:
        reply = ", ".join(word.upper() if "upper" in kinds else word for word in words)
        if satisfies_constraints(listed, constraints, reply):
            return reply
    return None


def worked_steps(listed: list[str], constraints: list[Constraint], answer: str) -> str:
    """One line about each constraint, then the reply."""
    words = answer.lower().split(", ")
    notes = {
        "repeat": ", ".join(f"{word} {place}" for place, word in enumerate(words, 1)),
        "count": ", ".join(f"{word} {place}" for place, word in enumerate(words, 1)),
        "end": f"{words[-1]} comes last",
        "start": f"{words[0]} comes first",
        "without": f"{dict(constraints).get('without')} is left out",
        "alphabet": "letters in order: " + ", ".join(word[0] for word in words),
        "upper": "in upper case",
    }
    return "\n".join([*(notes[kind] for kind, _value in constraints), answer])


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """A list of words with `difficulty` constraints, drawn again until a reply can satisfy all of them."""
    while True:
        listed: list[str] = []
        repeated = difficulty < 3 and generator.random() < 0.2
        num_words = 2 if repeated else 3 if difficulty == 1 else 5
        while len(listed) < num_words:
            listed += [word for word in [draw_item(generator, WORDS)] if word not in listed]
        word = draw_item(generator, listed)
        values = {
            "count": draw_integer(generator, 2, max(2, len(listed) - 1)),
            "end": word,
            "start": draw_item(generator, listed)[0],
            "without": draw_item(generator, listed),
            "alphabet": None,
            "upper": None,
        }
        if repeated:
            listed = [" ".join(listed)]
            values = {"repeat": draw_integer(generator, 2, 3 if difficulty == 1 else 5), "upper": None}
        kinds = list(values) if difficulty > 1 else [kind for kind in values if kind != "alphabet"]
        kinds = kinds[:difficulty] if repeated else draw_several(generator, kinds, difficulty)
        constraints = [(kind, values[kind]) for kind in kinds]
        answer = longest_correct_reply(listed, constraints)
        if answer is None:
            continue
        base = "Write the words" if repeated else "Reply with different words from this list, separated by commas:"
        sentences = [SENTENCES[kind].format(value=value) for kind, value in constraints]
        question = " ".join([f"{base} {', '.join(listed)}.", *sentences])
        canonical = f"{sorted(listed)} {' '.join(sorted(sentences))}"
        exercise = user_exercise(FAMILY, question, worked_steps(listed, constraints, answer), answer, canonical)
        return replace(exercise, details=json.dumps({"words": listed, "constraints": constraints}))


def is_correct(exercise: Exercise) -> bool:
    """Whether the answer satisfies the constraints parsed from the question, and the details state the same ones."""
    listed, *sentences = re.findall(r"[^.:]+\.", exercise.messages[-1]["content"])
    constraints: list[Constraint] = []
    for sentence in sentences:
        for kind, form in SENTENCES.items():
            if match := re.fullmatch(re.escape(form).replace(r"\{value\}", r"(\w+)"), sentence.strip()):
                value = match.group(1) if match.groups() else None
                constraints.append((kind, int(value) if kind in ("repeat", "count") and value else value))
    words = listed.removeprefix("Write the words").strip(" .").split(", ")
    stated = json.loads(exercise.details)
    found = {"words": words, "constraints": [list(constraint) for constraint in constraints]}
    return stated == found and satisfies_constraints(words, constraints, exercise.answer)


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Exercises of one split; fewer exercises are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none.
        seed: selects the exercises.
        split: "train" or "evaluation"; they share no task, for any seeds and difficulties.
        difficulty: 1 to 4, the number of constraints.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply satisfies every constraint; more than one reply can be correct."""
    details = json.loads(exercise.details)
    return satisfies_constraints(details["words"], [(kind, value) for kind, value in details["constraints"]], reply)
