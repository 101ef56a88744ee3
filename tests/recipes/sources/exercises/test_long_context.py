"""The text has the answer once and the right length, and the position of the fact gives nothing away."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises.exercise import user_exercise
from nemotron.recipes.sources.exercises.long_context import check_answer, generate_exercises, is_correct

TEXT = "Ada lives in Oslo. The road was wet that day. Ben owns 7 pens. The mayor of Oslo is Fay. Ada owns 5 pens.\n"


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        ("Where does Ada live?", "Oslo", True),
        ("Where does Ada live?", "Rome", False),
        ("How many pens does Ben own?", "7", True),
        ("How many pens does Ben own?", "5", False),
        ("How many cups does Ben own?", "7", False),
        ("How many pens do Ada and Ben own together?", "12", True),
        ("How many pens do Ada and Ben own together?", "57", False),
        ("Who is the mayor of the town where Ada lives?", "Fay", True),
        ("Who is the mayor of the town where Ada lives?", "Ada", False),
    ],
)
def test_is_correct_on_written_cases(question: str, answer: str, right: bool) -> None:
    assert is_correct(user_exercise("long_context", TEXT + question, "", answer, "")) is right
    assert not is_correct(user_exercise("long_context", f"Ada lives in Rome. {TEXT}{question}", "", answer, ""))


@given(seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_the_steps_quote_sentences_of_the_text(seed: int, difficulty: int) -> None:
    for exercise in generate_exercises(2, seed, split="train", difficulty=difficulty):
        text, _question = exercise.messages[0]["content"].split("\n")
        facts = [line for line in exercise.reasoning.split("\n") if "+" not in line]
        assert len(facts) == (1 if difficulty < 3 else 2)
        assert all(text.count(fact) == 1 for fact in facts)
        assert not check_answer(exercise, facts[-1])


@pytest.mark.parametrize(("difficulty", "words", "facts"), [(1, 50, 5), (2, 255, 14), (3, 1_000, 66), (4, 4_000, 225)])
def test_texts_grow_with_difficulty(difficulty: int, words: int, facts: int) -> None:
    texts = [e.messages[0]["content"] for e in generate_exercises(20, 0, split="train", difficulty=difficulty)]
    assert sum(len(text.split()) for text in texts) / 20 == pytest.approx(words, rel=0.2)
    stated = [len(re.findall(r" lives in | owns |The mayor of \w+ is", text)) for text in texts]
    assert sum(stated) / 20 == pytest.approx(facts, rel=0.15)


def test_the_fact_can_be_anywhere_in_the_text() -> None:
    places = [e.messages[0]["content"].index(e.reasoning) / len(e.messages[0]["content"])
              for e in generate_exercises(400, 0, split="train")]  # fmt: skip
    assert sum(places) / 400 == pytest.approx(0.43, abs=0.06)
    assert min(places) == 0
    assert max(places) > 0.75


def test_both_kinds_of_question_are_equally_frequent() -> None:
    exercises = generate_exercises(400, 0, split="train")
    assert sum(e.answer.isdecimal() for e in exercises) == pytest.approx(200, abs=40)


def test_is_correct_rejects_a_wrong_fact() -> None:
    for exercise in generate_exercises(20, 0, split="train", difficulty=2):
        assert not is_correct(replace(exercise, answer=exercise.answer + "a"))


@pytest.mark.parametrize(
    ("question", "answer", "right", "wrong"),
    [
        ("Where does Ada live?", "Oslo", ["Oslo", "oslo", "OSLO."], ["Rome", "Ada", "Oslo Rome", "Oslo.."]),
        (
            "How many pens does Ben own?",
            "7",
            ["7", "7 pens", "7 pens."],
            ["5 pens", "7 cups", "pens", "77", "7 pens.."],
        ),
        ("How many pens do Ada and Ben own together?", "12", ["12 pens"], ["5 pens", "5 + 7", "12 pen"]),
    ],
)
def test_the_reply_may_repeat_the_noun_and_be_in_lower_case(
    question: str, answer: str, right: list[str], wrong: list[str]
) -> None:
    exercise = user_exercise("long_context", TEXT + question, "", answer, "")
    assert [reply for reply in right if not check_answer(exercise, reply)] == []
    assert [reply for reply in wrong if check_answer(exercise, reply)] == []


def test_two_facts_are_joined_from_difficulty_three_on():
    asked = {
        difficulty: {
            exercise.messages[-1]["content"].splitlines()[-1]
            for exercise in generate_exercises(12, 0, split="train", difficulty=difficulty)
        }
        for difficulty in (2, 3)
    }
    assert all("mayor" not in question and "together" not in question for question in asked[2])
    assert all("mayor" in question or "together" in question for question in asked[3])
