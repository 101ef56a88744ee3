"""Problems of all families in one list."""

import pytest

from nemotron.recipes.sources.problems import arithmetic, lookup
from nemotron.recipes.sources.problems.families import generate_problems


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_each_family_contributes_half_of_the_problems(split) -> None:
    problems = generate_problems(7, 1, split)
    assert problems == [
        *arithmetic.generate_problems(4, 1, split=split),
        *lookup.generate_problems(3, 1, split=split),
    ]
    assert generate_problems(0, 1, split) == []


def test_training_and_evaluation_share_no_question() -> None:
    training, evaluation = (
        {problem.question for problem in generate_problems(600, 1234, split)} for split in ("train", "evaluation")
    )
    assert not training & evaluation
