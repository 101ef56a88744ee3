"""One problem, and what all families share: random draws, the split, texts and documents."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from nemotron.recipes.sources.documents import Document

Split = Literal["train", "evaluation"]
Item = TypeVar("Item")

PROBLEMS_PER_BLOCK = 20  # our choice: problems that the train/validation split keeps together
EVALUATION_SHARE = 0.1  # our choice: share of all tasks that training never sees


@dataclass(frozen=True)
class Problem:
    """One question with its worked steps, its answer and its choices."""

    id: str
    """"math/arithmetic/000123" in training, "evaluation/arithmetic/000123" in evaluation."""
    family: str
    question: str
    steps: str
    """One worked step per line; "" if there is nothing to work out, and the answer directly follows the question."""
    answer: str
    choices: tuple[str, ...]
    """Unique answers, one of them correct."""
    correct: int
    """Index of the answer in `choices`."""
    canonical: str
    """The task without its wording: the same for all wordings of a task, in all families. It decides the split."""


def seeded_random(*parts: str | int) -> random.Random:
    """A generator seeded by the parts. Call only `random()`, the one method whose sequence Python promises to keep."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def split_of(canonical: str) -> Split:
    """The split of a task, decided by its digest: no task is in both training and evaluation."""
    fraction = int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8], "big") / 2**64
    return "evaluation" if fraction < EVALUATION_SHARE else "train"


def draw_integer(generator: random.Random, low: int, high: int) -> int:
    """A uniform integer from `low` to `high`, both included."""
    return low + int(generator.random() * (high - low + 1))


def draw_item(generator: random.Random, items: Sequence[Item]) -> Item:
    """One of the items, uniformly."""
    return items[int(generator.random() * len(items))]


def draw_several(generator: random.Random, items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items without replacement, in random order."""
    return sorted(items, key=lambda _: generator.random())[:count]


def check_split(split: str) -> None:
    """ValueError if the split is unknown."""
    if split not in ("train", "evaluation"):
        raise ValueError(f"split={split!r} must be 'train' or 'evaluation'")


def problem_id(family: str, split: Split, index: int) -> str:
    """The id of the problem at `index` of its split."""
    return f"{'math' if split == 'train' else 'evaluation'}/{family}/{index:06d}"


def check_num_problems(num_problems: int) -> None:
    """ValueError if `num_problems` is negative."""
    if num_problems < 0:
        raise ValueError(f"num_problems={num_problems} must not be negative")


def problem_text(problem: Problem, *, with_steps: bool = True) -> str:
    """The text that a model trains on: question, worked steps (unless left out) and answer."""
    if not problem.steps:
        return f"{problem.question} {problem.answer}"
    steps = f"{problem.steps}\n" if with_steps else ""
    return f"Question: {problem.question}\n{steps}Answer: {problem.answer}"


def problem_documents(problems: Sequence[Problem]) -> list[Document]:
    """Training problems as documents, in blocks of twenty that the train/validation split keeps together.

    Every second one has no steps, so that a model also learns to answer immediately, as in multiple choice.
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
