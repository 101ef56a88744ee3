"""Multiple choice by log-likelihood: the model never sees the choices side by side, it says how likely each answer is.

In: questions with their choices, a model's `Score`, the tokenizer. Out: the choice that each question gets.
Each choice is scored by the total log-likelihood of its tokens and of the end of the document after the prompt. The
end belongs to it: without it "1" would be likelier than "12" whatever the question. The total is not divided by the
length of the choice: with its end an answer is a whole, and the likeliest whole is what greedy decoding looks for.

Left out: a prompt with solved examples, which a model of a few million parameters does not learn from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemotron.recipes.scoring.accuracy import Accuracy
from nemotron.recipes.scoring.likelihood import Score


@dataclass(frozen=True)
class Question:
    """One question; `prompt` ends where the answer begins, without the space before it."""

    prompt: str
    choices: tuple[str, ...]
    correct: int
    """Index of the right choice."""

    def __post_init__(self) -> None:
        if not 0 <= self.correct < len(self.choices):
            raise ValueError(f"correct={self.correct} is none of the {len(self.choices)} choices of {self.prompt!r}")


def pick_choices(
    score: Score, questions: Sequence[Question], encode: Callable[[str], list[int]], end_of_document: int
) -> list[int]:
    """Index of the likeliest choice of every question; the first one of equals.

    Args:
        score: the model.
        questions: any number, each with its own number of choices.
        encode: text -> token ids, without special tokens.
        end_of_document: token id that ends every training document.
    """
    rows: list[list[int]] = []
    starts: list[int] = []
    for question in questions:
        prompt = encode(question.prompt)
        for choice in question.choices:
            row = [*encode(f"{question.prompt} {choice}"), end_of_document]
            # A tokenizer may join the prompt's end with the choice; the answer starts where the tokens first differ.
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
    """Share of questions whose right choice was picked; guessing gets the mean of 1 / (number of choices)."""
    right = sum(question.correct == choice for question, choice in zip(questions, picked, strict=True))
    chance_level = sum(1 / len(question.choices) for question in questions) / len(questions)
    return Accuracy(right, len(questions), chance_level)
