"""Multilingual: simple tasks asked and answered in English, German, French or Spanish, with English reasoning.

In: a number of exercises, a seed, a split, a difficulty. Out: "Welche Zahl ist am größten, 12 oder 31?", with reasoning
in English as in the published data and the answer "Es ist 31." A task is in the same split in all languages.

    python -c "import nemotron.recipes.sources.exercises.multilingual as e; \
        print(e.generate_exercises(1, 0, split='train'))"

The published data is translated from English (arXiv 2508.14444, section 3). Left out: translation, the other languages,
replies of more than a few words.
"""

import random
import re

from nemotron.recipes.sources import tasks
from nemotron.recipes.sources.answers import parse_number
from nemotron.recipes.sources.exercises.exercise import (
    Exercise,
    draw_exercises,
    last_word,
    same_text,
    same_words,
    user_exercise,
)
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item, draw_several

FAMILY = "multilingual"
LETTERS = "abcdefgh"
LANGUAGES = ("English", "German", "French", "Spanish")

# Every table has one column for each language.
REPLY = ("It is {}.", "Es ist {}.", "C'est {}.", "Es {}.")
GROUP = (",", ".", " ", ".")
"""What parts groups of three digits."""
OR = (" or ", " oder ", " ou ", " o ")
QUESTIONS = {
    "larger": ("Which number is the largest, {}?", "Welche Zahl ist am größten, {}?",
               "Quel nombre est le plus grand, {} ?", "¿Qué número es el mayor, {}?"),
    "smaller": ("Which number is the smallest, {}?", "Welche Zahl ist am kleinsten, {}?",
                "Quel nombre est le plus petit, {} ?", "¿Qué número es el menor, {}?"),
    "sum": ("What is {}?", "Was ist {}?", "Combien font {} ?", "¿Cuánto es {}?"),
    "backwards": ("Write {} backwards.", "Schreibe {} rückwärts.", "Écris {} à l'envers.", "Escribe {} al revés."),
    "colour": ("What colour is {}?", "Welche Farbe hat {}?", "De quelle couleur est {} ?", "¿De qué color es {}?"),
}  # fmt: skip
IS = ("is", "ist", "est", "es")
OBJECTS = (
    ("the bag", "der Beutel", "le sac", "el bolso"),
    ("the ball", "der Ball", "le ballon", "el balón"),
    ("the book", "das Buch", "le livre", "el libro"),
    ("the coat", "der Mantel", "le manteau", "el abrigo"),
    ("the hat", "der Hut", "le chapeau", "el sombrero"),
    ("the pencil", "der Stift", "le crayon", "el lápiz"),
    ("the roof", "das Dach", "le toit", "el techo"),
    ("the truck", "der Lastwagen", "le camion", "el camión"),
)
COLOURS = (
    ("black", "schwarz", "noir", "negro"),
    ("blue", "blau", "bleu", "azul"),
    ("green", "grün", "vert", "verde"),
    ("red", "rot", "rouge", "rojo"),
    ("white", "weiß", "blanc", "blanco"),
    ("yellow", "gelb", "jaune", "amarillo"),
)


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """One task in one language; numbers and lists get longer with the difficulty."""
    kind = draw_item(generator, list(QUESTIONS))
    language = draw_integer(generator, 0, len(LANGUAGES) - 1)
    before, asked, canonical = "", "", ""
    if kind in ("larger", "smaller"):
        numbers: list[int] = []
        while len(numbers) <= difficulty:
            numbers += [n for n in [draw_integer(generator, 10, 10 ** (1 + difficulty) - 1)] if n not in numbers]
        value = str(max(numbers) if kind == "larger" else min(numbers))
        asked = f"{', '.join(map(str, numbers[:-1]))}{OR[language]}{numbers[-1]}"
        which = f"{kind.removesuffix('r')}st"
        steps = f"the {which} of {', '.join(map(str, numbers))} is {value}"
        canonical = tasks.canonical_choice(which, numbers)
    elif kind == "sum":
        numbers = [draw_integer(generator, 1, 10**difficulty - 1) for _ in range(3)]
        while sum(numbers) >= 10**difficulty:
            numbers = [draw_integer(generator, 1, 10**difficulty - 1) for _ in range(3)]
        totals = [sum(numbers[: place + 1]) for place in range(len(numbers))]
        lines = zip(totals, numbers[1:], totals[1:], strict=False)
        steps = "\n".join(f"{total} + {number} = {new}" for total, number, new in lines)
        asked, value = " + ".join(map(str, numbers)), str(totals[-1])
        canonical = tasks.canonical_form(tasks.sum_of(numbers))
    elif kind == "backwards":
        # Digits at difficulty 1: which letters a token contains is too hard for a small model to learn.
        characters = "0123456789" if difficulty == 1 else LETTERS
        asked = "".join(draw_item(generator, characters) for _ in range(difficulty + 2))
        value = "".join(asked[-place] for place in range(1, len(asked) + 1))
        steps = f"characters: {', '.join(asked)}\nbackwards: {', '.join(value)}"
        canonical = tasks.canonical_reversal(asked)
    else:
        things, colours = (draw_several(generator, names, difficulty + 1) for names in (OBJECTS, COLOURS))
        pairs = list(zip(things, colours, strict=True))
        thing, colour = draw_item(generator, pairs)
        sentences = (f"{one[language]} {IS[language]} {other[language]}. " for one, other in pairs)
        before = "".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
        asked, value, steps = thing[language], colour[language], f"{thing[0]} is {colour[0]}"
        canonical = f"colour of {thing[0]} {sorted((one[0], other[0]) for one, other in pairs)}"
    question = before + QUESTIONS[kind][language].format(asked)
    return user_exercise(FAMILY, question, steps, REPLY[language].format(value), canonical)


def is_correct(exercise: Exercise) -> bool:
    """Whether parsing the question gives the answer, in the same language."""
    question, answers = exercise.messages[-1]["content"], []
    for kind, forms in QUESTIONS.items():
        for language, form in enumerate(forms):
            beginning, end = form.split("{}")
            before, found, asked = question.removesuffix(end).partition(beginning)
            if not found or not question.endswith(end):
                continue
            numbers = [int(number) for number in re.findall(r"\d+", asked)]
            if kind == "colour":
                value = re.findall(rf"{asked[1:]} {IS[language]} (\w+)\.", before)[0]
            elif kind == "backwards":
                value = asked[::-1]
            else:
                value = str({"larger": max(numbers), "smaller": min(numbers), "sum": sum(numbers)}[kind])
            answers.append(REPLY[language].format(value))
    return answers == [exercise.answer]


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Exercises of one split; fewer exercises are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none. Difficulty 1 has about 9,200 training tasks and 1,090 evaluation tasks,
            each in four languages.
        seed: selects the exercises.
        split: "train" or "evaluation"; they share no task, for any seeds, difficulties and languages.
        difficulty: 1: two numbers or things, three digits; each higher difficulty adds a thing and a digit; letters
            from 2 on.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply is the answer in the language of the question, as a sentence or as the value alone.

    A word to write backwards must keep its upper and lower case, and digits to write backwards are not a number.
    """
    same = same_text if exercise.canonical.startswith("backwards") else same_words
    value = last_word(exercise.answer)
    if same(reply, exercise.answer) or same(reply, value):
        return True
    if exercise.canonical.startswith("backwards") or not value.isdecimal():
        return False
    sentence = exercise.answer.removesuffix(f"{value}.")
    language = [form.removesuffix("{}.") for form in REPLY].index(sentence)
    return parse_number(reply, group=GROUP[language], before=re.escape(sentence)) == int(value)
