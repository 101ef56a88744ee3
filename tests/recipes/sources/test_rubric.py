"""What the rubric gives to replies that a person would rank the same way."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from nemotron.recipes.sources.exercises.exercise import user_exercise
from nemotron.recipes.sources.rubric import WEIGHTS, language_part, rubric_parts, rubric_total


def exercise(value="9", candidates=(), question="What is 4 + 5?"):
    one = user_exercise("conversation", question, "", f"It is {value}.", question)
    return replace(one, details=json.dumps({"value": value, "candidates": list(candidates)}))


def parts(reply, **given):
    return rubric_parts(exercise(**given), reply)


def total(reply, **given):
    return rubric_total(parts(reply, **given))


REPLIES = {
    "It is 9.": (1, 1, 1, 1, 1),
    "9": (1, 1, 1, 0.5, 0.5),
    "it is 9": (1, 1, 1, 1, 0.5),
    "It is 8.": (1, 0, 1, 1, 1),
    "It is 8 or 9.": (1, 0.5, 1, 1, 1),
    "It is 9 or 9.": (1, 1, 1, 1, 1),
    "I cannot help with that.": (0, 0, 1, 1, 1),
    "Es ist 9.": (1, 1, 1, 0, 1),
    "It ist 9.": (1, 1, 1, 0.5, 1),
    "IT IS 9!": (1, 1, 1, 1, 0.5),
    "Obviously it is 9.": (1, 1, 1, 1, 0.5),
    "It is 9. It is 9. It is 9.": (1, 1, 8 / 9 / 3, 1, 1),
    "It is 19.": (1, 0, 1, 1, 1),
    "": (0, 0, 0, 0, 0),
    " \n": (0, 0, 0, 0, 0),
}
"""Reply to "What is 4 + 5?" -> helpful, correct, concise, language, tone."""


@pytest.mark.parametrize("reply", REPLIES)
def test_each_part_is_judged_alone(reply):
    assert parts(reply) == pytest.approx(dict(zip(WEIGHTS, REPLIES[reply], strict=True)))


def test_the_total_is_the_weighted_mean():
    assert rubric_total({"helpful": 1, "correct": 0.5, "concise": 0, "language": 1, "tone": 0.5}) == 0.65
    assert rubric_total({"concise": 1, "language": 0.25, "tone": 0}) == 0.375
    assert rubric_total(dict.fromkeys(WEIGHTS, 1.0)) == 1
    assert rubric_total(dict.fromkeys(WEIGHTS, 0.0)) == 0


def test_a_right_answer_in_a_poor_form_is_better_than_a_wrong_one_in_the_best():
    assert total("9") > total("It is 8.") > total("I cannot help with that.") > total("")


def test_a_word_is_stated_whatever_its_case_and_only_if_it_is_in_question():
    colours = {"value": "red", "candidates": ["red", "blue"], "question": "The hat is red. What colour is the hat?"}
    assert total("It is red.", **colours) == 1
    assert parts("RED", **colours)["correct"] == 1
    assert parts("It is green.", **colours)["helpful"] == 0
    assert parts("It is redder.", **colours)["helpful"] == 0
    assert parts("It is 9.", **colours)["helpful"] == 0


def test_a_word_of_the_question_is_english():
    assert language_part("It is wax.", "Masses in g: wax 7.") == 1
    assert language_part("It is wax.", "Masses in g.") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("The committee published its findings yesterday, and several members immediately criticized the methods "
         "that the authors had used throughout their long investigation.", 1),
        ("Der Ausschuss hat seine Ergebnisse gestern veröffentlicht, und mehrere Mitglieder haben die Methoden "
         "sofort kritisiert, die in der langen Untersuchung verwendet wurden.", 0),
    ],
)  # fmt: skip
def test_a_longer_text_is_identified(text, part):
    """Most of the words of the first are not in the list of frequent ones."""
    assert language_part(text, "") == part


def test_sentences_end_at_whole_runs_of_marks():
    assert parts("It is 9... It is 9?! It is 9!")["concise"] == pytest.approx(8 / 9 / 3)
    assert parts("It is 9...9. Yes")["concise"] == 1


def test_a_long_run_of_marks_is_judged_at_once():
    """In a child, so that a slow rule fails the test and does not hold it up: a search from every mark is quadratic."""
    code = "from nemotron.recipes.sources.rubric import concise_part; print(concise_part('!' * 200_000 + 'x'))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1.0\n", done.stderr


def test_a_prompt_without_an_answer_is_judged_by_three_parts():
    open_one = replace(exercise(), details="{}")
    assert rubric_parts(open_one, "It is a good day.") == {"concise": 1, "language": 1, "tone": 1}
    assert rubric_parts(open_one, "") == {"concise": 0, "language": 0, "tone": 0}


def test_the_limit_of_words_is_inclusive():
    assert parts("It is 9 and that is all of it.")["concise"] == pytest.approx(8 / 9)
    assert parts("It is 9 and that is all.")["concise"] == 1
    assert parts("It is 9 and that is all there.")["concise"] == 1
