"""Multiple choice by log-likelihood: the model scores each choice separately, as the text after the prompt.

In: questions with their choices, a model's `Score`, the tokenizer. Out: the most likely choice of each question.
The score of a choice is the total log-likelihood of its tokens and of the end of the document, given the prompt. The
end is part of the answer: without it, "1" would always be more likely than "12". The total is not divided by the length
of the choice, because with its end an answer is complete, and complete answers compare by their probability.

Left out: prompts with solved examples, which a model of a few million parameters does not learn from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemotron.recipes.scoring.accuracy import Accuracy
from nemotron.recipes.scoring.likelihood import Score


@dataclass(frozen=True)
class Question:
    """One question.

    Raises:
        ValueError: if `correct` is not an index of `choices`.
    """

    prompt: str
    """Text up to the answer, without the space before it."""
    choices: tuple[str, ...]
    correct: int
    """Index of the right choice."""

    def __post_init__(self) -> None:
        if not 0 <= self.correct < len(self.choices):
            raise ValueError(
                f"correct={self.correct} must be an index of the {len(self.choices)} choices of {self.prompt!r}"
            )


def pick_choices(
    score: Score, questions: Sequence[Question], encode: Callable[[str], list[int]], end_of_document: int
) -> list[int]:
    """Index of the most likely choice of every question; of equally likely ones, the first.

    Args:
        score: scores rows with the model.
        questions: may differ in their number of choices.
        encode: maps text to token ids, without special tokens.
        end_of_document: id of the token that ends every training document.
    """
    rows: list[list[int]] = []
    starts: list[int] = []
    for question in questions:
        prompt = encode(question.prompt)
        for choice in question.choices:
            row = [*encode(f"{question.prompt} {choice}"), end_of_document]
            # The tokenizer may merge the end of the prompt with the choice, so score from the first token that differs.
            shared = next((place for place, token in enumerate(prompt) if row[place] != token), len(prompt))
            rows.append(row)
            starts.append(max(1, shared))  # a row's first token has no score
    totals = [float(scores.losses[start - 1 :].sum()) for start, scores in zip(starts, score(rows), strict=True)]
    picked = []
    for question in questions:
        own, totals = totals[: len(question.choices)], totals[len(question.choices) :]
        picked.append(own.index(min(own)))
    return picked


def choice_accuracy(questions: Sequence[Question], picked: Sequence[int]) -> Accuracy:
    """Share of questions whose correct choice was picked. The chance level is the mean of 1 / (number of choices)."""
    right = sum(question.correct == choice for question, choice in zip(questions, picked, strict=True))
    chance_level = sum(1 / len(question.choices) for question in questions) / len(questions)
    return Accuracy(right, len(questions), chance_level)
