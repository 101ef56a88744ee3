"""Facts and a question about one of them: "The code of Bakide is 417." What is the code of Bakide?

What goes in: a number of problems, a seed, a split. What comes out: problems whose answer stands in the question, one
of 1,000 values, with more facts from problem to problem. They train what the recall evaluation measures at a distance,
in the same words.

    python -c "import nemotron.recipes.sources.problems.lookup as p;print(p.generate_problems(9, 0, split='train')[-1])"

Training and evaluation draw from disjoint sets of keys. Left out: anything between the facts.
"""

import math
import random

from nemotron.recipes.sources.problems import (
    Problem,
    Split,
    checked_num_problems,
    drawn_integer,
    drawn_item,
    problem_id,
    problem_text,
    seeded_random,
    split_of,
)

__all__ = ["check_answer", "draw_facts", "draw_key", "fact_sentence", "generate_problems", "problem_text"]

FAMILY = "lookup"
NUM_VALUES = 1000  # three digits, so guessing is right once in 1,000 times
MAX_FACTS = 32  # our choice: about 400 tokens of a small vocabulary
NUM_CHOICES = 4
KEY_SYLLABLES = 3  # 343,000 keys


def fact_sentence(key: str, value: int) -> str:
    """States the code of a key."""
    return f"The code of {key} is {value:03d}."


def question_sentence(key: str) -> str:
    """Asks for the code of a key; the three digits follow after a space."""
    return f"What is the code of {key}?"


def draw_key(generator: random.Random, split: Split) -> str:
    """A made-up name of three syllables that belongs to the split."""
    while True:
        syllables = (
            drawn_item(generator, "bdfgklmnprstvz") + drawn_item(generator, "aeiou") for _ in range(KEY_SYLLABLES)
        )
        key = "".join(syllables)
        if split_of(key) == split:
            return key.capitalize()


def draw_facts(generator: random.Random, split: Split, num_facts: int) -> list[tuple[str, int]]:
    """`num_facts` facts about different keys: (key, value), value from 0 to 999."""
    facts: dict[str, int] = {}
    while len(facts) < num_facts:
        facts.setdefault(draw_key(generator, split), drawn_integer(generator, 0, NUM_VALUES - 1))
    return list(facts.items())


def num_facts_at(index: int, difficulty: int) -> int:
    """Facts in the problem at `index`: one at the start, growing with the square root, `MAX_FACTS` at most."""
    return min(1 + difficulty * math.isqrt(index) // 4, MAX_FACTS)


def generate_problems(num_problems: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Problem]:
    """Problems from easy to hard; a smaller number of them is the beginning of a larger one.

    Args:
        num_problems: how many; 0 gives none.
        seed: picks which.
        split: "train" or "evaluation"; no key of one stands in the other.
        difficulty: at least 0, how fast the number of facts grows; 0 leaves it at one.
    Returns:
        Problems without steps: the answer follows the question in its line.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    checked_num_problems(num_problems)
    if difficulty < 0:
        raise ValueError(f"difficulty={difficulty} must not be negative")
    if split not in ("train", "evaluation"):
        raise ValueError(f"split={split!r} must be 'train' or 'evaluation'")
    generator = seeded_random(FAMILY, seed, split, difficulty)
    problems: list[Problem] = []
    for index in range(num_problems):
        facts = draw_facts(generator, split, num_facts_at(index, difficulty))
        key, value = drawn_item(generator, facts)
        correct = drawn_integer(generator, 0, NUM_CHOICES - 1)
        wrong = drawn_wrong_values(generator, value, [other for _key, other in facts])
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


def drawn_wrong_values(generator: random.Random, value: int, stated: list[int]) -> list[int]:
    """Three different values other than the right one, codes of other keys of the problem before any others."""
    wrong: list[int] = []
    for other in stated:
        if other != value and other not in wrong and len(wrong) < NUM_CHOICES - 1:
            wrong.append(other)
    while len(wrong) < NUM_CHOICES - 1:
        other = drawn_integer(generator, 0, NUM_VALUES - 1)
        if other != value and other not in wrong:
            wrong.append(other)
    return wrong


def check_answer(problem: Problem, answer: str) -> bool:
    """Whether `answer` is the code that the problem asks for, all three digits and nothing else."""
    return answer.strip().removesuffix(".") == problem.answer
