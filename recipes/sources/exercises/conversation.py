"""Conversation: questions as people ask them, with a greeting or a name, and replies of graded quality.

In: a number of exercises, a seed, a split, a difficulty. Out: "Hello. I am Ada. Which number is the largest, 31 or 12?"
with the reply "It is 31."; and for any such question replies that are better or worse: wrong, bare, in another
language, too long, rude, empty. ../rubric.py judges them, and no others are right.

    python -c "import nemotron.recipes.sources.exercises.conversation as e; \
        print(e.generate_exercises(1, 0, split='train'))"

A stand-in for the contexts of HelpSteer3, of which the published stage uses those in English (arXiv 2508.14444, section
3). What is asked is from math, science and the English part of multilingual, with the canonical form that it has there,
so a task that is held out there is held out here. It is not a family of the exam (families.py): a reply is graded, and
its verifier is a rubric. Left out: conversations of several turns.
"""

import json
import random
from dataclasses import replace

from nemotron.recipes.sources.exercises import algebra, multilingual, science
from nemotron.recipes.sources.exercises.exercise import NAMES, Exercise, draw_exercises, last_word
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item
from nemotron.recipes.sources.rubric import WORD, rubric_parts

FAMILY = "conversation"
FRAMES = (
    "{question}", "Hi! {question}", "Hello. I am {name}. {question}", "Good morning! {question}",
    "Hi! {question} Thank you!", "My name is {name}. {question}", "Dear assistant. {question} Kind regards, {name}",
)  # fmt: skip
"""How somebody asks."""
REPLY = "It is {}."
COLOURS = tuple(row[0] for row in multilingual.COLOURS)
HARDEST = 2  # of the tasks inside: what is harder has fractions and letters as answers

REPLIES = {
    "sentence": (8, REPLY),
    "bare": (4, "{}"),
    "fragment": (2, "it is {}"),
    "hedged": (2, "It is {} or {other}."),
    "German": (1, "Es ist {}."),
    "French": (1, "C'est {}."),
    "Spanish": (1, "Es {}."),
    "shouted": (1, "IT IS {}!"),
    "rude": (2, "Obviously it is {}."),
    "long": (2, "Hello, and thank you for the question. I am glad to help with it. The answer is {}."),
    "repeated": (2, "It is {}. It is {}. It is {}."),
    "refusal": (2, "I cannot help with that."),
    "empty": (1, ""),
}
"""Kinds of reply, each with its weight among the draws: our choice, so that most pairs differ in their form as well."""
WRONG_SHARE = 0.4  # our choice: of the replies with an answer


def draw_task(generator: random.Random, difficulty: int) -> Exercise:
    """A question of another family whose answer is one number or one word."""
    difficulty = min(difficulty, HARDEST)
    family = draw_item(generator, (algebra, science, multilingual))
    while True:
        if family is science:
            return science.draw_table(generator, difficulty)
        task = family.draw_exercise(generator, difficulty)
        is_english = family is algebra or task.answer.startswith("It is ")
        if is_english and not (task.canonical.startswith("backwards") and difficulty > 1):
            return task


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """One question in the words of somebody who asks it."""
    task = draw_task(generator, difficulty)
    value = last_word(task.answer)
    words = (science.MATERIALS, COLOURS)
    candidates = next((list(names) for names in words if value in names), [])
    asked = draw_item(generator, FRAMES).format(question=task.messages[-1]["content"], name=draw_item(generator, NAMES))
    return replace(
        task,
        family=FAMILY,
        messages=({"role": "user", "content": asked},),
        answer=REPLY.format(value),
        details=json.dumps({"value": value, "candidates": candidates, "task": task.family}),
    )


def is_correct(exercise: Exercise) -> bool:
    """Whether the verifier of the family that the question is from accepts the value, asked without the frame."""
    details = json.loads(exercise.details)
    family = {one.FAMILY: one for one in (algebra, science, multilingual)}[details["task"]]
    question = exercise.messages[-1]["content"]
    for frame in FRAMES[1:]:
        before, _, after = frame.partition("{question}")
        for name in NAMES:
            question = question.removeprefix(before.format(name=name)).removesuffix(after.format(name=name))
    answer = exercise.answer if family is multilingual else details["value"]
    bare = replace(exercise, messages=({"role": "user", "content": question},), answer=answer)
    return family.is_correct(bare) and check_answer(exercise, exercise.answer)


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Exercises of one split, none of them twice; fewer exercises are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none.
        seed: selects the exercises.
        split: "train" or "evaluation"; they share no task, for any seeds and difficulties, here and in the families
            that the tasks are from.
        difficulty: 1 to 4; that of the task, and from 2 on the same.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply earns every part of the rubric."""
    return all(part == 1 for part in rubric_parts(exercise, reply).values())


def draw_reply(generator: random.Random, exercise: Exercise) -> str:
    """A reply of some quality to one of these exercises."""
    weighted = [form for weight, form in REPLIES.values() for _ in range(weight)]
    value, other = json.loads(exercise.details)["value"], wrong_value(generator, exercise)
    if generator.random() < WRONG_SHARE:
        value, other = other, value
    return draw_item(generator, weighted).replace("{other}", other).replace("{}", value)


def wrong_value(generator: random.Random, exercise: Exercise) -> str:
    """Another answer that somebody may give: one that the question names or, for a number, one near it."""
    details = json.loads(exercise.details)
    value, question = details["value"], exercise.messages[-1]["content"]
    if details["candidates"]:
        named = [word for word in WORD.findall(question) if word in details["candidates"] and word != value]
        return draw_item(generator, named)
    near = draw_integer(generator, 1, 9)
    number = int(value) + (near if generator.random() < 0.5 or int(value) < near else -near)
    return str(number).zfill(len(value))
