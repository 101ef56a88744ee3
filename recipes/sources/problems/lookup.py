"""Facts and a question about one of them: "The code of Bakide is 417." What is the code of Bakide?

In: a number of problems, a seed, a split. Out: problems whose question contains the answer, one of 1,000 values. The
number of facts grows from problem to problem. They train recall, in the same words in which evaluation measures it
over a distance.

    python -c "import nemotron.recipes.sources.problems.lookup as p;print(p.generate_problems(9, 0, split='train')[-1])"

Training and evaluation share no key. Left out: text between the facts.
"""

import math
import random

from nemotron.recipes.sources.answers import plain
from nemotron.recipes.sources.problems.problem import (
    Problem,
    Split,
    check_num_problems,
    check_split,
    draw_integer,
    draw_item,
    problem_id,
    seeded_random,
    split_of,
)

FAMILY = "lookup"
NUM_VALUES = 1000  # three digits, so a guess is correct once in 1,000 times
MAX_FACTS = 32  # our choice: about 400 tokens of a small vocabulary
NUM_CHOICES = 4
KEY_SYLLABLES = 3  # 343,000 keys


def fact_sentence(key: str, value: int) -> str:
    """A sentence that states the code of a key."""
    return f"The code of {key} is {value:03d}."


def question_sentence(key: str) -> str:
    """A question for the code of a key; the three digits follow after a space."""
    return f"What is the code of {key}?"


def draw_key(generator: random.Random, split: Split) -> str:
    """A made-up name of three syllables whose digest is in the split."""
    while True:
        syllables = (
            draw_item(generator, "bdfgklmnprstvz") + draw_item(generator, "aeiou") for _ in range(KEY_SYLLABLES)
        )
        key = "".join(syllables)
        if split_of(key) == split:
            return key.capitalize()


def draw_facts(generator: random.Random, split: Split, num_facts: int) -> list[tuple[str, int]]:
    """`num_facts` facts about different keys: (key, value), value from 0 to 999."""
    facts: dict[str, int] = {}
    while len(facts) < num_facts:
        facts.setdefault(draw_key(generator, split), draw_integer(generator, 0, NUM_VALUES - 1))
    return list(facts.items())


def num_facts_at(index: int, difficulty: int) -> int:
    """Facts in the problem at `index`: one at first, growing with the square root of `index` up to `MAX_FACTS`."""
    return min(1 + difficulty * math.isqrt(index) // 4, MAX_FACTS)


def generate_problems(num_problems: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Problem]:
    """Problems from easy to hard; fewer problems are a prefix of more.

    Args:
        num_problems: how many; 0 gives none.
        seed: selects the problems.
        split: "train" or "evaluation"; they share no key.
        difficulty: how fast the number of facts grows, at least 0; 0 keeps it at one.
    Returns:
        Problems without steps: the answer follows the question on the same line.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    check_num_problems(num_problems)
    if difficulty < 0:
        raise ValueError(f"difficulty={difficulty} must not be negative")
    check_split(split)
    generator = seeded_random(FAMILY, seed, split, difficulty)
    problems: list[Problem] = []
    for index in range(num_problems):
        facts = draw_facts(generator, split, num_facts_at(index, difficulty))
        key, value = draw_item(generator, facts)
        correct = draw_integer(generator, 0, NUM_CHOICES - 1)
        wrong = draw_wrong_values(generator, value, [other for _key, other in facts])
        choices = [*wrong[:correct], value, *wrong[correct:]]
        problems.append(
            Problem(
                id=problem_id(FAMILY, split, index),
                family=FAMILY,
                question="\n".join([*(fact_sentence(*fact) for fact in facts), question_sentence(key)]),
                steps="",
                answer=f"{value:03d}",
                choices=tuple(f"{choice:03d}" for choice in choices),
                correct=correct,
                canonical=key.lower(),
            )
        )
    return problems


def draw_wrong_values(generator: random.Random, value: int, stated: list[int]) -> list[int]:
    """Three unique wrong values; codes of other keys in the problem come first."""
    wrong: list[int] = []
    for other in stated:
        if other != value and other not in wrong and len(wrong) < NUM_CHOICES - 1:
            wrong.append(other)
    while len(wrong) < NUM_CHOICES - 1:
        other = draw_integer(generator, 0, NUM_VALUES - 1)
        if other != value and other not in wrong:
            wrong.append(other)
    return wrong


def check_answer(problem: Problem, answer: str) -> bool:
    """Whether `answer` is the three digits that the problem asks for, and nothing else."""
    return plain(answer) == problem.answer
