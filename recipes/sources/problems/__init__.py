"""Procedural problems with verified answers, one module a family.

What goes in: a number of problems, a seed, a split. What comes out: problems with question, worked steps, answer and
four choices, and documents of the category "math" made from them. Training and evaluation share no task: which split a
task belongs to is read off a digest of the task itself.

    python -c "import nemotron.recipes.sources.problems.arithmetic as p;print(p.generate_problems(1, 0, split='train'))"

Every family offers `generate_problems(num_problems, seed, *, split, difficulty)` and `check_answer(problem, answer)`.
They stand in for the published math text, which is cleaned from web pages (arXiv 2508.14444, section 2.2).
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from nemotron.recipes.sources.documents import Document

Split = Literal["train", "evaluation"]
Item = TypeVar("Item")

PROBLEMS_PER_BLOCK = 20  # our choice: problems that stay together in the train/validation split
EVALUATION_SHARE = 0.1  # our choice: share of all tasks that training never sees


@dataclass(frozen=True)
class Problem:
    """One question with its worked steps, its answer and its choices."""

    id: str
    """"math/arithmetic/000123" in training, "evaluation/arithmetic/000123" in evaluation."""
    family: str
    question: str
    steps: str
    """One worked step a line; "" where there is nothing to work out: the answer then follows the question directly."""
    answer: str
    choices: tuple[str, ...]
    """Different answers, one of them right."""
    correct: int
    """Index of the answer in `choices`."""
    canonical: str
    """The task without its wording, the same for all wordings; decides the split."""


def seeded_random(*parts: str | int) -> random.Random:
    """A generator for one purpose. Call only its `random()`: the one method whose sequence Python promises to keep."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def split_of(canonical: str) -> Split:
    """The split a task belongs to, by digest: no task can be both trained on and asked."""
    fraction = int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8], "big") / 2**64
    return "evaluation" if fraction < EVALUATION_SHARE else "train"


def drawn_integer(generator: random.Random, low: int, high: int) -> int:
    """An integer from `low` to `high`, both included, uniform."""
    return low + int(generator.random() * (high - low + 1))


def drawn_item(generator: random.Random, items: Sequence[Item]) -> Item:
    """One of the items, uniform."""
    return items[int(generator.random() * len(items))]


def problem_id(family: str, split: Split, index: int) -> str:
    """The id of the problem at `index` of its split."""
    return f"{'math' if split == 'train' else 'evaluation'}/{family}/{index:06d}"


def checked_num_problems(num_problems: int) -> int:
    """`num_problems`, or a ValueError if it is negative."""
    if num_problems < 0:
        raise ValueError(f"num_problems={num_problems} must not be negative")
    return num_problems


def problem_text(problem: Problem, *, with_steps: bool = True) -> str:
    """What a model trains on: question, worked steps, answer; without steps, the question and its answer."""
    if not problem.steps:
        return f"{problem.question} {problem.answer}"
    steps = f"{problem.steps}\n" if with_steps else ""
    return f"Question: {problem.question}\n{steps}Answer: {problem.answer}"


def problem_documents(problems: Sequence[Problem]) -> list[Document]:
    """Training problems as documents, in blocks of twenty that the train/validation split keeps together.

    Every second one comes without its steps, so that a model can also answer at once, as multiple choice asks it to.
    """
    return [
        Document(
            id=problem.id,
            module=f"math/{problem.family}/{index // PROBLEMS_PER_BLOCK:04d}",
            category="math",
            text=problem_text(problem, with_steps=index % 2 == 0),
            licence="Apache-2.0",
            origin="procedural",
        )
        for index, problem in enumerate(problems)
    ]
