"""Procedural problems with verified answers, one module a family."""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from nemotron.recipes.sources.documents import Document

Split = Literal["train", "evaluation"]

PROBLEMS_PER_BLOCK = 20
EVALUATION_SHARE = 0.1  # our choice: the share of all canonical forms that training never sees


@dataclass(frozen=True)
class Problem:
    """One question with its worked steps, its answer and four choices."""

    id: str
    """"math/arithmetic/000123" in training, "evaluation/arithmetic/000123" in evaluation."""
    family: str
    question: str
    steps: str
    """One worked step a line; the last one ends in the answer."""
    answer: str
    choices: tuple[str, ...]
    correct: int
    """Index of the answer in `choices`."""
    canonical: str
    """The same string for all wordings of the same task: it decides the split."""


def seeded_random(*parts: str | int) -> random.Random:
    """A generator for one purpose. Only its `random()` may be called: the one method that Python promises to keep."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def split_of(canonical: str) -> Split:
    """The split a task belongs to, by digest: the same task can never be trained on and asked."""
    fraction = int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8], "big") / 2**64
    return "evaluation" if fraction < EVALUATION_SHARE else "train"


def problem_text(problem: Problem) -> str:
    """What a model trains on: question, worked steps, answer."""
    return f"Question: {problem.question}\n{problem.steps}\nAnswer: {problem.answer}"


def problem_documents(problems: list[Problem]) -> list[Document]:
    """Training problems as documents of the category "math", in blocks of twenty."""
    return [
        Document(
            id=problem.id,
            module=f"math/{problem.family}/{index // PROBLEMS_PER_BLOCK:04d}",
            category="math",
            text=problem_text(problem),
            licence="Apache-2.0",
            origin="procedural",
        )
        for index, problem in enumerate(problems)
    ]
