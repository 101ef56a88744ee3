"""Instruction following: replies under several constraints at once that a rule can check.

In: a number of exercises, a seed, a split, a difficulty. Out: "Reply with different words from this list, separated by
commas: river, lamp, stone, ink. Use exactly 2 words. End with the word lamp.", words to repeat, and from difficulty 2
on "Write exactly 2 sentences about the river. Mention the words lamp and stone." Any reply that satisfies all
constraints is correct, not only `Exercise.answer`. Every exercise states what to say and how much of it, so no single
reply satisfies more than a few of them.

    python -c "import nemotron.recipes.sources.exercises.instructions as e; \
        print(e.generate_exercises(1, 0, split='train'))"

Modeled on IFEval (arXiv 2311.07911), as is the published instruction stage. Left out: whether a sentence makes sense,
which no rule can check.
"""

import json
import random
import re
from dataclasses import replace
from itertools import permutations
from typing import Any

from nemotron.recipes.sources.answers import plain
from nemotron.recipes.sources.exercises.exercise import Exercise, draw_exercises, user_exercise
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item, draw_several

FAMILY = "instruction_following"
# Each begins with a different letter.
WORDS = ("apple", "bread", "cloud", "dance", "eagle", "field", "glass", "house", "ink", "juice", "kite", "lamp", "moon",
         "night", "ocean", "paper", "queen", "river", "stone", "train", "uncle", "voice", "water", "yard")  # fmt: skip
# Sentences about a topic that mention a word; all have at least seven words.
STATEMENTS = ("The {topic} is right next to the {word}.", "The {topic} is not like the {word}.",
              "The {topic} is older than the {word}.")  # fmt: skip
SENTENCE = re.compile(r"(?:[^\W\d_]|[ ,;:'-])+[.!?]")
LONGEST_SENTENCE = 12  # words; half of WORDS, so that a list of them all is not a sentence, nor two of them

Constraint = tuple[str, Any]
"""A key of `SENTENCES` and its value: a number, a word, a letter or None."""

SENTENCES = {
    "repeat": "Repeat them exactly {value} times, with a comma after each time but the last.",
    "count": "Use exactly {value} words.",
    "end": "End with the word {value}.",
    "start": "Start with the word that begins with {value}.",
    "with": "Use the word {value}.",
    "without": "Do not use the word {value}.",
    "alphabet": "Keep the words in alphabetical order.",
    "upper": "Write everything in upper case.",
    "mention": "Mention the words {value}.",
    "long": "Use at least {value} words in each sentence.",
}
LIST = "Reply with different words from this list, separated by commas: {}."
REPEAT = "Write the words {}."
ABOUT = "Write exactly {} sentences about the {}."


# The verifier ---------------------------------------------------------------------------------------------------------


def parts_of_list(listed: list[str], constraints: list[Constraint], reply: str) -> dict[str, float]:
    """Constraint -> how far a reply satisfies it, from 0 to 1.

    A reply is made of words of the list, each once, separated by commas. A constraint that it satisfies counts as much
    as the share of its words that are so: a reply of other words earns nothing. White space around a comma does not
    matter, nor does upper and lower case unless a constraint is about it.
    """
    written = [" ".join(word.split()) for word in plain(reply).split(",")]
    words = [word.lower() for word in written]
    kinds = dict(constraints)
    good = sum(word in listed for word in words) if "repeat" in kinds else len(set(words) & set(listed))
    satisfied = {
        "repeat": len(words) == kinds.get("repeat"),
        "count": len(words) == kinds.get("count"),
        "end": words[-1] == kinds.get("end"),
        "start": words[0].startswith(kinds.get("start", "")),
        "with": kinds.get("with") in words,
        "without": kinds.get("without") not in words,
        "alphabet": words == sorted(words),
        "upper": written == [word.upper() for word in written],
    }
    return {kind: good / len(words) * satisfied[kind] for kind in kinds}


def parts_of_sentences(topic: str, number: int, constraints: list[Constraint], reply: str) -> dict[str, float]:
    """Constraint -> how far a reply satisfies it, from 0 to 1; "sentences" is the number of sentences.

    A sentence names the topic, begins with a capital letter, is made of words, at least four, and repeats no word but
    "the", "a" and "is". A constraint counts as much as the share of the sentences that are so and differ.
    """
    text = plain(reply)
    text += "" if text.endswith(("!", "?")) else "."
    found = [" ".join(part.split()) for part in re.findall(r"[^.!?]+[.!?]", text)]
    kinds = dict(constraints)
    if "".join("".join(found).split()) != "".join(text.split()):
        return dict.fromkeys(["sentences", *kinds], 0.0)
    sentences = [tuple(re.findall(r"[^\W_]+(?:['-][^\W_]+)*", sentence.lower())) for sentence in found]

    def is_good(sentence: str, words: tuple[str, ...]) -> bool:
        others = [word for word in words if word not in ("the", "a", "is")]
        return (
            bool(SENTENCE.fullmatch(sentence))
            and sentence[0].isupper()
            and topic in words
            and 4 <= len(words) <= LONGEST_SENTENCE
            and len(set(others)) == len(others)
        )

    good = {words for sentence, words in zip(found, sentences, strict=True) if is_good(sentence, words)}
    said = {word for words in sentences for word in words}
    satisfied = {
        "sentences": len(found) == number,
        "mention": set(kinds["mention"].split(" and ")) <= said,
        "long": all(len(words) >= kinds.get("long", 0) for words in sentences),
        "upper": text == text.upper(),
        "end": bool(sentences[-1]) and sentences[-1][-1] == kinds.get("end"),
    }
    return {kind: len(good) / len(found) * satisfied[kind] for kind in ["sentences", *kinds]}


# Drawing an exercise --------------------------------------------------------------------------------------------------


def longest_correct_reply(listed: list[str], constraints: list[Constraint]) -> str | None:
    """The longest correct reply, and of those the first in the order of the list; None if there is none."""
    kinds = dict(constraints)
    lengths = [kinds["count"]] if "count" in kinds else range(len(listed), 0, -1)
    replies = [listed * kinds["repeat"]] if "repeat" in kinds else [
        list(words) for length in lengths for words in permutations(listed, length)
    ]  # fmt: skip
    for words in replies:
        reply = ", ".join(word.upper() if "upper" in kinds else word for word in words)
        if is_complete(parts_of_list(listed, constraints, reply)):
            return reply
    return None


def worked_steps(constraints: list[Constraint], answer: str) -> str:
    """One line about each constraint, then the reply."""
    kinds, words = dict(constraints), answer.lower().split(", ")
    notes = {
        "repeat": ", ".join(f"{word} {place}" for place, word in enumerate(words, 1)),
        "count": ", ".join(f"{word} {place}" for place, word in enumerate(words, 1)),
        "end": f"{words[-1].removesuffix('.').split()[-1]} comes last",
        "start": f"{words[0]} comes first",
        "with": f"{kinds.get('with')} is used",
        "without": f"{kinds.get('without')} is left out",
        "alphabet": "letters in order: " + ", ".join(word[0] for word in words),
        "upper": "in upper case",
        "mention": f"one sentence each for {kinds.get('mention')}",
        "long": f"at least {kinds.get('long')} words each",
    }
    return "\n".join([*(notes[kind] for kind, _value in constraints), answer])


def make_exercise(base: str, constraints: list[Constraint], answer: str, details: dict[str, Any]) -> Exercise:
    """An exercise whose canonical form ignores the order of the constraints and of the words of a list."""
    sentences = [SENTENCES[kind].format(value=value) for kind, value in constraints]
    in_any_order = [" ".join(sorted(re.findall(r"\w+", sentence))) for sentence in (base, *sentences)]
    canonical = ". ".join(sorted(in_any_order))
    steps = worked_steps(constraints, answer)
    exercise = user_exercise(FAMILY, " ".join([base, *sentences]), steps, answer, canonical)
    return replace(exercise, details=json.dumps({**details, "constraints": constraints}))


def draw_list(generator: random.Random, difficulty: int) -> Exercise:
    """Words to choose from a list: how many, and `difficulty` other constraints; drawn until they can be satisfied."""
    while True:
        listed = draw_several(generator, WORDS, 4 if difficulty == 1 else 6)
        values = {
            "end": draw_item(generator, listed),
            "start": draw_item(generator, listed)[0],
            "with": draw_item(generator, listed),
            "without": draw_item(generator, listed),
            "upper": None,
            "alphabet": None,
        }
        kinds = draw_several(generator, [kind for kind in values if difficulty > 1 or kind != "alphabet"], difficulty)
        count = draw_integer(generator, 2, len(listed) - (1 if difficulty == 1 else 2))
        constraints: list[Constraint] = [("count", count), *((kind, values[kind]) for kind in kinds)]
        answer = longest_correct_reply(listed, constraints)
        if answer is not None:
            return make_exercise(LIST.format(", ".join(listed)), constraints, answer, {"words": listed})


def draw_repetition(generator: random.Random, difficulty: int) -> Exercise:
    """Two words to repeat; from difficulty 2 on in upper case, from 3 on four words."""
    pair = " ".join(draw_several(generator, WORDS, 2 if difficulty < 3 else 4))
    times = draw_integer(generator, 2, 3 if difficulty == 1 else 5)
    constraints: list[Constraint] = [("repeat", times), ("upper", None)][: 1 if difficulty == 1 else 2]
    answer = ", ".join([pair if difficulty == 1 else pair.upper()] * times)
    return make_exercise(REPEAT.format(pair), constraints, answer, {"words": [pair]})


def draw_sentences(generator: random.Random, difficulty: int) -> Exercise:
    """Sentences about a topic that mention given words; at difficulty 3 of a length, at 4 in upper case as well."""
    number = draw_integer(generator, 2, 3)
    topic, *mentioned = draw_several(generator, WORDS, number + 1)
    constraints: list[Constraint] = [("mention", " and ".join(mentioned))]
    if difficulty > 2:
        constraints.append(("long", draw_integer(generator, 5, 7)))
    if difficulty > 3:
        constraints += [("upper", None), ("end", mentioned[-1])]
    statements = draw_several(generator, STATEMENTS, number)
    pairs = zip(statements, mentioned, strict=True)
    answer = " ".join(statement.format(topic=topic, word=word) for statement, word in pairs)
    answer = answer.upper() if difficulty > 3 else answer
    return make_exercise(ABOUT.format(number, topic), constraints, answer, {"topic": topic, "sentences": number})


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """One exercise of the difficulty."""
    kind = draw_item(generator, (draw_list, draw_list, draw_list, draw_list, draw_repetition))
    if difficulty > 1 and generator.random() < 0.3:
        kind = draw_sentences
    return kind(generator, difficulty)


def is_correct(exercise: Exercise) -> bool:
    """Whether the answer satisfies the constraints parsed from the question, and the details state the same ones."""
    base, *sentences = re.findall(r"[^.]+\.", exercise.messages[-1]["content"])
    constraints: list[list[Any]] = []
    for sentence in sentences:
        for kind, form in SENTENCES.items():
            if match := re.fullmatch(re.escape(form).replace(r"\{value\}", r"([\w ]+)"), sentence.strip()):
                value = match.group(1) if match.groups() else None
                constraints.append([kind, int(value) if value and value.isdigit() else value])
    if about := re.fullmatch(ABOUT.format(r"(\d)", r"(\w+)"), base):
        found: dict[str, Any] = {"topic": about[2], "sentences": int(about[1])}
    else:
        found = {"words": re.split(r"commas: |Write the words ", base.removesuffix("."))[1].split(", ")}
    stated = {**found, "constraints": constraints}
    return json.loads(exercise.details) == stated and check_answer(exercise, exercise.answer)


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Exercises of one split, none of them twice; fewer exercises are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none.
        seed: selects the exercises.
        split: "train" or "evaluation"; they share no task, for any seeds and difficulties.
        difficulty: 1 to 4: how many constraints there are on words from a list, besides their number.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply satisfies every constraint; more than one reply can be correct."""
    return is_complete(satisfied_parts(exercise, reply))


def satisfied_parts(exercise: Exercise, reply: str) -> dict[str, float]:
    """Constraint -> how far the reply satisfies it, from 0 to 1; all are 1 exactly if the reply is correct."""
    details = json.loads(exercise.details)
    constraints = [(kind, value) for kind, value in details["constraints"]]
    if "topic" in details:
        return parts_of_sentences(details["topic"], details["sentences"], constraints, reply)
    return parts_of_list(details["words"], constraints, reply)


def recitations() -> list[str]:
    """Replies that recite every word: as a list, and as sentences; what somebody may try who does not read."""
    forwards, backwards = " ".join(WORDS).capitalize(), " ".join(reversed(WORDS)).capitalize()
    halves = [" ".join(WORDS[:12]).capitalize(), " ".join(WORDS[12:]).capitalize()]
    texts = [
        ", ".join(WORDS),
        f"{forwards}.",
        f"{forwards}. {backwards}.",
        f"{forwards}. {backwards}. {forwards}, too.",
        f"{halves[0]}. {halves[1]}.",
    ]
    return [*texts, *(text.upper() for text in texts)]


def is_complete(parts: dict[str, float]) -> bool:
    """Whether every constraint is satisfied."""
    return all(part == 1 for part in parts.values())
