"""Question and answer share a language, the reasoning is in English, and a task has the same split in all languages."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises.exercise import user_exercise
from nemotron.recipes.sources.exercises.multilingual import (
    COLOURS,
    IS,
    LANGUAGES,
    OBJECTS,
    OR,
    QUESTIONS,
    REPLY,
    check_answer,
    draw_exercise,
    generate_exercises,
    is_correct,
)
from nemotron.recipes.sources.problems.problem import split_of


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Which number is the largest, 12 or 31?", "It is 31."),
        ("Welche Zahl ist am größten, 12 oder 31?", "Es ist 31."),
        ("Quel nombre est le plus petit, 102, 31 ou 45 ?", "C'est 31."),
        ("¿Qué número es el menor, 12 o 31?", "Es 12."),
        ("What is 3 + 5 + 1?", "It is 9."),
        ("Combien font 3 + 5 + 1 ?", "C'est 9."),
        ("Schreibe bad rückwärts.", "Es ist dab."),
        ("Écris bad à l'envers.", "C'est dab."),
        ("El bolso es rojo. El libro es azul. ¿De qué color es el libro?", "Es azul."),
        ("Der Hut ist weiß. Das Dach ist grün. Welche Farbe hat der Hut?", "Es ist weiß."),
        ("Le sac est noir. Le toit est vert. De quelle couleur est le toit ?", "C'est vert."),
        ("The bag is red. The hat is blue. What colour is the bag?", "It is red."),
    ],
)
def test_is_correct_on_written_cases(question: str, answer: str) -> None:
    exercise = user_exercise("multilingual", question, "", answer, "")
    assert is_correct(exercise)
    for language in REPLY:
        right_value = language.format(answer.removesuffix(".").split()[-1])
        assert is_correct(replace(exercise, answer=right_value)) is (right_value == answer)
    assert not is_correct(replace(exercise, answer=answer.replace(" ", " 1")))


def test_every_table_has_every_language() -> None:
    assert {len(row) for row in (*QUESTIONS.values(), *OBJECTS, *COLOURS, REPLY, OR, IS)} == {len(LANGUAGES)}
    for column in zip(*COLOURS, strict=True):
        assert len(set(column)) == len(COLOURS)
    assert {question.count("{}") for row in QUESTIONS.values() for question in row} == {1}


def test_languages_are_equally_frequent_and_every_kind_occurs() -> None:
    exercises = generate_exercises(2_000, 0, split="train")
    replies = Counter(e.answer.rsplit(" ", 1)[0] for e in exercises)
    assert set(replies) == {"It is", "Es ist", "C'est", "Es"}
    assert max(abs(count - 500) for count in replies.values()) < 100
    kinds = Counter(re.split(r"[ +]", e.canonical)[0] for e in exercises)
    assert set(kinds) == {"largest", "smallest", "(", "backwards", "colour"}
    assert min(kinds.values()) > 180  # of the sums there are few, and none comes twice
    assert max(kinds.values()) < 550


def test_a_task_is_the_same_in_all_languages() -> None:
    answers: dict[str, set[str]] = {}
    generator = random.Random(0)
    for _ in range(40_000):
        exercise = draw_exercise(generator, 1)
        if split_of(exercise.canonical) == "evaluation":
            answers.setdefault(exercise.canonical, set()).add(exercise.answer.rsplit(" ", 1)[0])
    assert max(map(len, answers.values())) == len(LANGUAGES)
    assert sum(len(languages) > 1 for languages in answers.values()) > len(answers) / 2


@given(seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_the_reasoning_is_english_and_names_the_value(seed: int, difficulty: int) -> None:
    english = {colours[index]: colours[0] for colours in COLOURS for index in range(4)}
    for exercise in generate_exercises(10, seed, split="train", difficulty=difficulty):
        value = exercise.answer.removesuffix(".").split()[-1]
        assert exercise.reasoning.isascii()
        assert english.get(value, value) in exercise.reasoning.replace(", ", "") + exercise.reasoning


@pytest.mark.parametrize(
    ("canonical", "answer", "right", "wrong"),
    [
        (
            "sum [1, 3, 5]",
            "Es ist 9.",
            ["9", "9.", "es ist 9"],
            ["It is 9.", "8", "9 9", "ist 9", "Es", "Es ist Es ist 9"],
        ),
        ("sum [1, 12000]", "Es ist 12001.", ["12.001", "Es ist **12.001**."], ["12,001", "12.0.01"]),
        ("sum [1, 12000]", "It is 12001.", ["12,001", "It is $12,001$."], ["12.001", "1,2,0,0,1"]),
        ("sum [1, 12000]", "C'est 12001.", ["12 001", "C’est 12\u202f001."], ["12,001"]),
        ("colour of the hat", "C'est noir.", ["Noir", "noir.", "c'est noir"], ["black", "Es noir.", "vert", "c'est"]),
        ("colour of the hat", "Es ist weiß.", ["Weiß"], ["white", "weis", "blanco"]),
        ("backwards bad", "It is dab.", ["dab", "It is dab"], ["Dab", "It is DAB.", "bad"]),
    ],
)
def test_the_value_alone_is_correct_in_the_language_of_the_question(
    canonical: str, answer: str, right: list[str], wrong: list[str]
) -> None:
    exercise = user_exercise("multilingual", "", "", answer, canonical)
    assert [reply for reply in right if not check_answer(exercise, reply)] == []
    assert [reply for reply in wrong if check_answer(exercise, reply)] == []
