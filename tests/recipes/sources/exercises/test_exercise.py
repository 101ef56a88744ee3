"""Drawing exercises, their rows, and comparing replies with answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises import algebra, instructions
from nemotron.recipes.sources.exercises import exercise as exercise_module
from nemotron.recipes.sources.exercises.exercise import (
    Exercise,
    draw_exercises,
    exercise_from_row,
    exercise_to_row,
    last_word,
    of_every_difficulty,
    same_text,
    same_words,
)
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.sources.problems.problem import split_of


@given(name=st.sampled_from(sorted(FAMILIES)), seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_an_exercise_equals_the_one_read_back_from_its_row(name: str, seed: int, difficulty: int) -> None:
    (exercise,) = FAMILIES[name].generate_exercises(1, seed, split="evaluation", difficulty=difficulty)
    row = exercise_to_row(exercise)
    assert all(isinstance(value, str) for value in row.values())
    assert exercise_from_row(row) == exercise


def test_a_wrong_answer_stops_the_generation() -> None:
    def wrong(generator, difficulty: int) -> Exercise:
        return Exercise("", "math", ({"role": "user", "content": "What is 1 + 1?"},), (), "1 + 1 = 3", "3", "1 + 1")

    with pytest.raises(AssertionError, match=r"sft/math/000000: '3' does not answer 'What is 1 \+ 1\?'"):
        draw_exercises("math", wrong, algebra.is_correct, 1, 0, "train", 1)


@pytest.mark.parametrize(
    ("reply", "right"),
    [("7", True), (" 7.\n", True), ("7..", False), ("7 .", False), ("07", False), ("7,", False), ("", False)],
)
def test_same_text(reply: str, right: bool) -> None:
    assert same_text(reply, "7") is right
    assert same_text(reply, "7.") is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("it IS\n b", True),
        ("It is **b**.", True),
        (" It is b. ", True),
        ("It is b..", False),
        ("Itis b", False),
        ("It is a b", False),
        ("", False),
    ],
)
def test_same_words(reply: str, right: bool) -> None:
    assert same_words(reply, "It is b.") is right


def test_last_word() -> None:
    assert [last_word(answer) for answer in ("It is 31.", "The phone of Ada is 007.", "cups")] == ["31", "007", "cups"]


def test_no_exercises_are_allowed_and_fewer_are_refused() -> None:
    assert algebra.generate_exercises(0, 0, split="train") == []
    with pytest.raises(ValueError, match="num_exercises=-1 must not be negative"):
        algebra.generate_exercises(-1, 0, split="train")


def draw_from(tasks: list[tuple[str, str]]):
    """Draws one of the (question, canonical form) at random."""

    def draw(generator, difficulty: int) -> Exercise:
        question, canonical = tasks[int(generator.random() * len(tasks))]
        return Exercise("", "math", ({"role": "user", "content": question},), (), "", "", canonical)

    return draw


IN_TRAINING = [name for name in map(str, range(40)) if split_of(name) == "train"]
IN_EVALUATION = [name for name in map(str, range(200)) if split_of(name) == "evaluation"]


def questions(tasks: list[tuple[str, str]], num_exercises: int, split="train") -> list[str]:
    drawn = draw_exercises("math", draw_from(tasks), lambda exercise: True, num_exercises, 0, split, 1)
    return [exercise.messages[0]["content"] for exercise in drawn]


def test_training_has_a_task_in_each_wording_once_and_evaluation_once() -> None:
    train, evaluation = ([(f"{way} {task}", task) for task in tasks[:3] for way in ("What is", "Say")]
                         for tasks in (IN_TRAINING, IN_EVALUATION))  # fmt: skip
    assert sorted(questions(train, 6)) == sorted(question for question, _ in train)
    assert len({question.split()[-1] for question in questions(evaluation, 3, "evaluation")}) == 3


def test_a_family_with_fewer_exercises_than_asked_for_gives_all_and_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(exercise_module, "MAX_FAILED_DRAWS", 300)
    tasks = [(task, task) for task in IN_TRAINING[:5]]
    assert sorted(questions(tasks, 12)) == sorted(IN_TRAINING[:5])
    said = "math has only 5 different exercises for train at difficulty 1, not 12: the rest is left out\n"
    assert capsys.readouterr().err == said
    assert questions(tasks, 5)
    assert capsys.readouterr().err == ""


def test_a_conversation_is_of_a_split_only_with_all_of_its_tasks() -> None:
    mixed = [(str(n), f"{one}\n{other}") for n, (one, other) in enumerate(
        [(IN_TRAINING[0], IN_EVALUATION[0]), (IN_TRAINING[1], IN_TRAINING[2]), (IN_EVALUATION[1], IN_EVALUATION[2])]
    )]  # fmt: skip
    assert questions(mixed, 1) == ["1"]
    assert questions(mixed, 1, "evaluation") == ["2"]


def test_an_exercise_does_not_depend_on_how_many_there_are_or_on_another_index() -> None:
    tasks = [(task, task) for task in IN_TRAINING]
    assert questions(tasks, 8)[:5] == questions(tasks, 5)


def test_every_difficulty_has_an_equal_number() -> None:
    exercises = of_every_difficulty(instructions.generate_exercises, 11, 0, "train", 3)
    assert [one.difficulty for one in exercises] == [1] * 4 + [2] * 4 + [3] * 3
    assert [one.id.rpartition("/")[2] for one in exercises] == [str(one.difficulty) for one in exercises]
    assert len({one.id for one in exercises}) == 11


def test_the_first_exercises_of_every_difficulty_are_left_out() -> None:
    whole = of_every_difficulty(instructions.generate_exercises, 11, 0, "train", 3)
    parts = [of_every_difficulty(instructions.generate_exercises, 11 - n, 0, "train", 3, first=n) for n in (0, 4, 11)]
    assert parts[0] == whole
    assert [one for one in whole if one in parts[1]] == parts[1]
    assert (len(parts[1]), parts[2]) == (7, [])


def test_exercises_of_training_and_evaluation_of_every_difficulty_share_no_task() -> None:
    train, held_out = (
        of_every_difficulty(instructions.generate_exercises, 100, 0, split, 2) for split in ("train", "evaluation")
    )
    assert not {task for one in train for task in one.tasks} & {task for one in held_out for task in one.tasks}
