"""Long context: find a fact among others in a made-up text, or combine two at higher difficulties.

In: a number of exercises, a seed, a split, a difficulty. Out: a text of facts ("Ada lives in Oslo.") among irrelevant
sentences, and a question about it. Every answer is confirmed by parsing the text.

    python -c "import nemotron.recipes.sources.exercises.long_context as e; \
        print(e.generate_exercises(1, 0, split='train'))"

A stand-in for the long-context data of the third SFT stage (arXiv 2508.14444, section 3). The lengths are our choice;
the published ones are unknown to us. Left out: several turns, facts that change within the text.
"""

import random
import re

from nemotron.recipes.sources.answers import parse_number
from nemotron.recipes.sources.exercises.exercise import (
    NAMES,
    Exercise,
    draw_exercises,
    same_words,
    user_exercise,
)
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item, draw_several

FAMILY = "long_context"
TEXT_WORDS = {1: 47, 2: 250, 3: 1_000, 4: 4_000}  # a minimum; the sentence that reaches it is the last one added
NUM_PEOPLE = {1: (4, 6), 2: (12, 16), 3: (20, 24), 4: (70, 80)}
TOWNS = ("Accra", "Basel", "Berne", "Cairo", "Delhi", "Ghent", "Hanoi", "Kyoto", "Lima", "Lyon", "Milan",
         "Minsk", "Nice", "Oslo", "Paris", "Porto", "Quito", "Riga", "Rome", "Sofia", "Tokyo",
         "Tunis", "Turin", "Vienna")  # fmt: skip
THINGS = ("books", "cups", "hats", "keys", "lamps", "pens", "pots", "ropes")
SYLLABLES = ("ba", "do", "fi", "ga", "ke", "lu", "mi", "no", "pa", "ri", "so", "ta", "ve", "zu")
SUBJECTS = ("The river", "The bridge", "A grey cat", "The market", "A small boat", "The wind", "The road", "A bell")
VERBS = ("was quiet", "could be heard", "was seen", "looked empty", "seemed slow", "stood still", "was wet", "was warm")
TIMES = ("that day", "at noon", "all night", "in spring", "after the rain", "on Sunday", "for a while", "as always")


def draw_names(generator: random.Random, num_names: int, num_syllables: int) -> list[str]:
    """Unique made-up names."""
    names: dict[str, None] = {}
    while len(names) < num_names:
        names["".join(draw_item(generator, SYLLABLES) for _ in range(num_syllables)).capitalize()] = None
    return list(names)


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """A text and a question about one fact; from difficulty 3 on, about two related facts."""
    num_people = draw_integer(generator, *NUM_PEOPLE[difficulty])
    if difficulty == 1:
        people, towns = (draw_several(generator, list(names), num_people) for names in (NAMES, TOWNS))
    else:
        people, towns = (draw_names(generator, num_people, num_syllables) for num_syllables in (2, 3))
    thing, first, second = draw_item(generator, THINGS), people[0], people[1]
    owned = [draw_integer(generator, 2, 99) for _ in people]
    lives = [f"{person} lives in {town}." for person, town in zip(people, towns, strict=True)]
    owns = [f"{person} owns {number} {thing}." for person, number in zip(people, owned, strict=True)]
    mayors = [
        f"The mayor of {town} is {name}."
        for town, name in zip(towns, draw_names(generator, num_people, 4), strict=True)
    ]
    about_place = generator.random() < 0.5
    if difficulty < 3:
        facts = [draw_item(generator, pair) for pair in zip(lives, owns, strict=True)]
        facts[0] = steps = lives[0] if about_place else owns[0]
        question = f"Where does {first} live?" if about_place else f"How many {thing} does {first} own?"
        answer = towns[0] if about_place else str(owned[0])
    else:
        facts = [*lives, *owns, *mayors]
        if about_place:
            question = f"Who is the mayor of the town where {first} lives?"
            steps, answer = f"{lives[0]}\n{mayors[0]}", mayors[0].split()[-1].removesuffix(".")
        else:
            question = f"How many {thing} do {first} and {second} own together?"
            answer = str(owned[0] + owned[1])
            steps = f"{owns[0]}\n{owns[1]}\n{owned[0]} + {owned[1]} = {answer}"
    sentences = list(facts)
    num_words = sum(len(fact.split()) for fact in facts)
    while num_words < TEXT_WORDS[difficulty]:
        sentences.append(" ".join(draw_item(generator, part) for part in (SUBJECTS, VERBS, TIMES)) + ".")
        num_words += len(sentences[-1].split())
    text = f"{' '.join(draw_several(generator, sentences, len(sentences)))}\n{question}"
    return user_exercise(FAMILY, text, steps, answer, " ".join([question, *sorted(facts)]))


def is_correct(exercise: Exercise) -> bool:
    """Whether the text contains the answer, and each fact only once."""
    text, question = exercise.messages[-1]["content"].split("\n")
    lives, owns, mayors = (
        re.findall(form, text)
        for form in (r"(\w+) lives in (\w+)\.", r"(\w+) owns (\d+ \w+)\.", r"The mayor of (\w+) is (\w+)\.")
    )
    if any(len(dict(facts)) < len(facts) for facts in (lives, owns, mayors)):
        return False
    words = question.removesuffix("?").split()
    if words[0] == "Where":
        return dict(lives)[words[2]] == exercise.answer
    if words[0] == "Who":
        return dict(mayors)[dict(lives)[words[-2]]] == exercise.answer
    amounts = [dict(owns)[word] for word in words if word in dict(owns)]
    return {amount.split()[1] for amount in amounts} == {words[2]} and exercise.answer == str(
        sum(int(amount.split()[0]) for amount in amounts)
    )


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Exercises of one split; fewer exercises are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none.
        seed: selects the exercises.
        split: "train" or "evaluation"; they share no question about the same facts, for any seeds.
        difficulty: 1: one of four to six facts in 50 words; 2: one of about 14 in 250; 3: two facts in 1,000; 4: two in
            4,000.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply is the name or number that the question asks for; a number may be followed by its noun."""
    counted = re.search(r"\nHow many (\w+) do", exercise.messages[-1]["content"])
    if counted:
        return parse_number(reply, unit=counted[1]) == int(exercise.answer)
    return same_words(reply, exercise.answer)
