"""What holds for every family of exercises: draws, split, verifier, lengths."""

import hashlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.sources.problems import arithmetic, lookup
from nemotron.recipes.sources.problems.problem import split_of

SEEDS = st.integers(0, 2**63)
SPLITS = st.sampled_from(["train", "evaluation"])
FAMILY_NAMES = st.sampled_from(sorted(FAMILIES))
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


def few_at(difficulty: int) -> int:
    """A number of exercises that keeps the test fast even with long texts."""
    return {1: 12, 2: 8, 3: 3, 4: 2}[difficulty]


def test_every_published_category_and_both_later_stages_have_a_family() -> None:
    assert list(FAMILIES) == [
        "math", "code", "science", "tool_calling", "instruction_following", "long_context", "multilingual", "safety",
    ]  # fmt: skip


@given(name=FAMILY_NAMES, seed=SEEDS, difficulty=st.integers(1, 4), split=SPLITS)
def test_an_exercise_is_complete_and_its_answer_is_correct(name: str, seed: int, difficulty: int, split) -> None:
    family = FAMILIES[name]
    for index, exercise in enumerate(
        family.generate_exercises(few_at(difficulty), seed, split=split, difficulty=difficulty)
    ):
        assert exercise.id == f"{'sft' if split == 'train' else 'evaluation'}/{name}/{index:06d}"
        assert (exercise.family, exercise.difficulty) == (name, difficulty)
        assert {split_of(task) for task in exercise.tasks} == {split}
        assert exercise.messages[-1]["role"] in ("user", "tool")
        assert all(message["content"] or message.get("tool_calls") for message in exercise.messages)
        assert all(line.strip() == line != "" for line in exercise.reasoning.split("\n"))
        assert "think" not in repr(exercise.messages) + exercise.reasoning + exercise.answer
        assert isinstance(json.loads(exercise.details), dict)
        assert family.check_answer(exercise, exercise.answer)
        assert family.check_answer(exercise, f"\n{exercise.answer}  ")
        if not exercise.answer.startswith("<TOOLCALL>"):
            assert family.check_answer(exercise, f"**{exercise.answer}**")
            assert family.check_answer(exercise, exercise.answer.replace("'", "’").removesuffix(".") + ".")


@every_family
def test_a_wrong_reply_is_rejected(family) -> None:
    exercises = [e for split in ("train", "evaluation") for e in family.generate_exercises(60, 0, split=split)]
    for exercise, other in zip(exercises, [*exercises[1:], exercises[0]], strict=True):
        wrong = ["", " ", ".", "None", f"<think></think>{exercise.answer}", f"{exercise.answer}</think>"]
        wrong += [f"{exercise.answer} {exercise.answer}", f"Not {exercise.answer}", f"{exercise.answer}.."]
        wrong += [exercise.reasoning + "\n" + exercise.answer, exercise.answer[:-2], exercise.answer[1:]]
        wrong += [other.answer] if other.answer != exercise.answer else []
        assert [reply for reply in wrong if family.check_answer(exercise, reply)] == []


@every_family
@given(reply=st.text())
def test_a_verifier_accepts_any_text_without_an_exception(family, reply: str) -> None:
    for difficulty in (1, 2):
        (exercise,) = family.generate_exercises(1, 0, split="train", difficulty=difficulty)
        assert family.check_answer(exercise, reply) in (True, False)
        assert family.check_answer(exercise, f"<TOOLCALL>{reply}</TOOLCALL>") is False


@given(name=FAMILY_NAMES, seed=SEEDS, split=SPLITS, numbers=st.tuples(st.integers(0, 15), st.integers(0, 15)))
def test_fewer_exercises_are_a_prefix_of_more(name: str, seed: int, split, numbers: tuple[int, int]) -> None:
    few, more = sorted(numbers)
    exercises = FAMILIES[name].generate_exercises(more, seed, split=split)
    assert FAMILIES[name].generate_exercises(few, seed, split=split) == exercises[:few]
    assert len(exercises) == more


def tasks_of_problems(seed: int, split, difficulty: int) -> set[str]:
    """The tasks of pretraining's problems; the keys of lookup have other words and are compared with their own."""
    arithmetic_problems = arithmetic.generate_problems(60, seed, split=split, difficulty=difficulty)
    lookup_problems = lookup.generate_problems(20, seed, split=split)
    return {problem.canonical for problem in [*arithmetic_problems, *lookup_problems]}


@settings(max_examples=15)
@given(seeds=st.tuples(SEEDS, SEEDS), difficulties=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_no_task_of_the_evaluation_is_trained_on_in_any_family(seeds: tuple, difficulties: tuple) -> None:
    tasks = {}
    for seed, difficulty, split in zip(seeds, difficulties, ("train", "evaluation"), strict=True):
        exercises = [e for family in FAMILIES.values() for e in family.generate_exercises(
            40 if difficulty < 3 else 4, seed, split=split, difficulty=difficulty
        )]  # fmt: skip
        tasks[split] = {task for exercise in exercises for task in exercise.tasks}
        tasks[split] |= tasks_of_problems(seed, split, difficulty)
    assert not tasks["train"] & tasks["evaluation"]


WORDS_FOR = ("What is ", "Was ist ", "Combien font ", "¿Cuánto es ", "Solve ", "?", " ?", " for x.", "Write ",
             "Schreibe ", "Écris ", "Escribe ", " backwards.", " rückwärts.", " à l'envers.", " al revés.",
             "What does print(", ") print?", '"', "[::-1]")  # fmt: skip


def asked(question: str) -> str | None:
    """What a question asks for, read from its text alone: the sum of terms in order of size, or text to reverse."""
    text = question
    for words in WORDS_FOR:
        text = text.replace(words, "")
    if re.fullmatch(r"[0-9]+", text):
        return f"backwards {text}"
    if re.fullmatch(r"x( [+-] [0-9]+)? = [-+0-9 ]+", text):  # x - 3 = 4 asks for 4 + 3
        left, right = text.split(" = ")
        text = right + left.removeprefix("x").translate(str.maketrans("+-", "-+"))
    if re.fullmatch(r"[0-9]+( [+-] [0-9]+)+", text):
        return str(sorted(map(int, text.replace("- ", "-").replace("+ ", "").split())))
    return None


@pytest.mark.parametrize("seed", [1234, 7])
def test_no_question_of_the_evaluation_is_asked_in_training_in_other_words(seed: int) -> None:
    """As many exercises as at small, compared without the canonical forms."""
    training, evaluation = (
        {asked(e.messages[-1]["content"]) for name in names for e in FAMILIES[name].generate_exercises(
            number, seed, split=split
        )} - {None}
        for split, number, names in (
            ("train", 2_000, ("math", "code", "multilingual")), ("evaluation", 50, ("math", "code", "multilingual")),
        )
    )  # fmt: skip
    training |= {asked(problem.question) for problem in arithmetic.generate_problems(2_000, seed, split="train")}
    assert len(evaluation) > 40
    assert len(training) > 1_500
    assert not training & evaluation


@every_family
@pytest.mark.parametrize("difficulty", [1, 2, 3, 4])
def test_no_exercise_is_drawn_twice(family, difficulty: int) -> None:
    long = family.FAMILY == "long_context" and difficulty > 2
    for seed in (0, 1234):
        training = family.generate_exercises(20 if long else 400, seed, split="train", difficulty=difficulty)
        evaluation = family.generate_exercises(10 if long else 100, seed, split="evaluation", difficulty=difficulty)
        assert len({repr(exercise.messages) for exercise in training}) == len(training) == (20 if long else 400)
        assert len({exercise.canonical for exercise in evaluation}) == len(evaluation) == (10 if long else 100)


@every_family
def test_another_seed_or_difficulty_gives_different_exercises(family) -> None:
    messages = [
        tuple(repr(e.messages) for e in family.generate_exercises(10, seed, split="train", difficulty=difficulty))
        for seed, difficulty in ((0, 1), (1, 1), (0, 2))
    ]
    assert len(set(messages)) == 3


@every_family
def test_difficulty_one_is_short(family) -> None:
    for exercise in family.generate_exercises(400, 1, split="train"):
        assert len(exercise.messages) == 1
        assert len(exercise.messages[0]["content"].split()) <= 60
        assert len(exercise.reasoning.split()) <= 25
        assert len(exercise.answer.split()) <= 12


@every_family
def test_difficulty_one_has_enough_tasks_for_training_and_evaluation(family) -> None:
    tasks = {
        split: len(family.generate_exercises(number, 2, split=split))
        for split, number in (("train", 4_400), ("evaluation", 150))
    }
    assert tasks == {"train": 4_400, "evaluation": 150}  # small draws as many


@every_family
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_exercises": -1, "split": "train"}, "num_exercises=-1 must not be negative"),
        ({"num_exercises": 1, "split": "test"}, "split='test' must be 'train' or 'evaluation'"),
        ({"num_exercises": 1, "split": "train", "difficulty": 0}, "difficulty=0 must be one of 1, 2, 3, 4"),
        ({"num_exercises": 1, "split": "train", "difficulty": 5}, "difficulty=5 must be one of 1, 2, 3, 4"),
    ],
)
def test_an_argument_out_of_range_raises_a_value_error(family, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family.generate_exercises(seed=0, **arguments)


# Recorded with CPython 3.11.7; a version that draws or writes differently fails here.
DIGESTS = {
    ("math", "train"): "bbeecb9d6254bd32bd6f8aa50acbeb29eb2f0f7fdcaa463aa5fa14759bb9e765",
    ("math", "evaluation"): "d4fb7daf2779c3ab5f9b85873e08c7de8b04a1fffadf6e040c837a010d35e2f2",
    ("code", "train"): "999f224d8d9a0af2ec9bd778f6360cbabbd68e0c237a793e761157f25840275b",
    ("code", "evaluation"): "48206f358a616e0cccdc85db5f007150659492d8ba36fe584604d60ffca7520b",
    ("science", "train"): "f79a99d10768ec029872fdd8b6bafcb4d4757bfbf8b7bedc41fa2c393870e94a",
    ("science", "evaluation"): "a9ec15fba142247669b3b253a96d16f76472fb5f3f23bb9553ecf931ea9f6ee6",
    ("tool_calling", "train"): "ed8f29e2068e15234b6b58f95174afddc040c517d1aa4bfd2c55c9959e863309",
    ("tool_calling", "evaluation"): "68a8ab671984b96aa80f85cf448f2877d97a7a308c542be9a044215f0ffd0204",
    ("instruction_following", "train"): "3efccbd25117594e492e45577dea4de7738ea1293b7c25d04e96aaf2e6e17cba",
    ("instruction_following", "evaluation"): "39d888c4d468baf0c3f7a60cd6203c178062d80ed1fb76a8d582c30ad60e863c",
    ("long_context", "train"): "cca8011d1c2344cbd62561af2b58cca496b47075809eaa3da7f85337732c6732",
    ("long_context", "evaluation"): "a9eab8e1ed6dfa6cf883c8a0bfdf21a9012d2d8ba275c532ede224f416a712e7",
    ("multilingual", "train"): "46143bb9526901fd9a908e00d445c392e28f4103e94042ee200fbf5229c9f46e",
    ("multilingual", "evaluation"): "14c3d82c6ae2bc91a5aa4fa4a8769356803f04a71fb441c519cfaed6c7f3e91f",
    ("safety", "train"): "bba9d0c4ddcc9dc119f542809c1366ab5355d6e8da7d2c843a9a0340dcdfb27e",
    ("safety", "evaluation"): "419342fc8cf4006dc2f1a0185bbcc628307e9be27f0c8c4415b92dcde0ad5368",
}


@every_family
@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_exercises_are_the_same_on_every_machine(family, split) -> None:
    exercises = [
        family.generate_exercises(number, 1, split=split, difficulty=difficulty)
        for difficulty, number in ((1, 50), (2, 20), (3, 5), (4, 5))
    ]
    digest = hashlib.sha256(repr(exercises).encode()).hexdigest()
    assert digest == DIGESTS[family.FAMILY, split]
