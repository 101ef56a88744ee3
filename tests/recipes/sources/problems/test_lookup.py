"""The question has the answer exactly once, and training never has a key of evaluation."""

import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.sources.problems.lookup import (
    MAX_FACTS,
    check_answer,
    draw_facts,
    fact_sentence,
    generate_problems,
    num_facts_at,
    question_sentence,
)
from nemotron.recipes.sources.problems.problem import Problem, problem_text, seeded_random, split_of

SEEDS = st.integers(0, 2**63)


def facts_in(problem: Problem) -> dict[str, str]:
    pairs = re.findall(r"The code of (\w+) is (\d{3})\.", problem.question)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_the_wording_is_that_of_the_recall_evaluation() -> None:
    problem = generate_problems(1, 0, split="train")[0]
    key, value = next(iter(facts_in(problem).items()))
    assert problem_text(problem) == f"{fact_sentence(key, int(value))}\n{question_sentence(key)} {value}"
    assert fact_sentence("Bakide", 7) == "The code of Bakide is 007."


@given(seed=SEEDS, difficulty=st.integers(0, 40), split=st.sampled_from(["train", "evaluation"]))
def test_the_answer_is_the_code_that_the_question_states(seed: int, difficulty: int, split) -> None:
    for index, problem in enumerate(generate_problems(12, seed, split=split, difficulty=difficulty)):
        facts = facts_in(problem)
        asked = re.search(r"What is the code of (\w+)\?$", problem.question)
        assert asked
        assert problem.answer == facts[asked.group(1)]
        assert problem.canonical == asked.group(1).lower()
        assert len(facts) == num_facts_at(index, difficulty)
        assert {split_of(key.lower()) for key in facts} == {split}
        assert len(set(problem.choices)) == 4
        assert problem.choices[problem.correct] == problem.answer
        assert check_answer(problem, f" {problem.answer}.")
        assert [check_answer(problem, choice) for choice in problem.choices].count(True) == 1


def test_wrong_choices_are_first_the_codes_of_other_keys() -> None:
    problem = generate_problems(40, 0, split="train", difficulty=4)[-1]
    others = set(facts_in(problem).values()) - {problem.answer}
    assert set(problem.choices) - {problem.answer} <= others


def test_the_number_of_facts_grows_from_one_to_the_maximum() -> None:
    numbers = [num_facts_at(index, 1) for index in range(20_000)]
    assert (numbers[0], numbers[100], numbers[-1]) == (1, 3, MAX_FACTS)
    assert numbers == sorted(numbers)
    assert {num_facts_at(index, 0) for index in range(20_000)} == {1}


@given(seed=SEEDS, num_problems=st.integers(0, 20), more=st.integers(0, 20))
def test_fewer_problems_are_a_prefix_of_more(seed: int, num_problems: int, more: int) -> None:
    larger = generate_problems(num_problems + more, seed, split="train")
    assert generate_problems(num_problems, seed, split="train") == larger[:num_problems]


@settings(max_examples=25)
@given(SEEDS)
def test_every_fact_is_asked_about_equally_often(seed: int) -> None:
    places = [
        list(facts_in(p)).index(p.canonical.capitalize()) / len(facts_in(p))
        for p in generate_problems(60, seed, split="train", difficulty=30)
    ]
    assert 0.25 < sum(places) / len(places) < 0.7


@pytest.mark.parametrize("answer", ["", "41", "4170", "417 ", "0417", "417.0", "four"])
def test_only_the_three_digits_are_correct(answer: str) -> None:
    problem = Problem("", "lookup", "", "", "417", (), 0, "")
    assert check_answer(problem, answer) is (answer == "417 ")


def test_keys_are_unique_and_values_cover_three_digits() -> None:
    facts = draw_facts(seeded_random("test"), "train", 5_000)
    assert len({key for key, _value in facts}) == 5_000
    values = {value for _key, value in facts}
    assert (min(values), max(values)) == (0, 999)


def test_problems_are_the_same_on_every_machine() -> None:
    # Recorded with CPython 3.11.7, 3.12.1 and 3.13.0.
    problems = [generate_problems(300, seed, split=split) for seed in (1, 2) for split in ("train", "evaluation")]
    assert hashlib.sha256(repr(problems).encode()).hexdigest() == (
        "185b4921d2bbfe4ab2ff9117df3985b3d76893d479dafcbc1dd44dc7c16d2b16"
    )
