"""What replies earn, what happens if a verifier fails, and what policies earn that do not do what is asked."""

import re
import threading
from itertools import combinations
from types import SimpleNamespace

import pytest

from nemotron.recipes.chat.tokenizer import save_chat_tokenizer
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.scoring import rewards
from nemotron.recipes.scoring.chance import COPIES, PLAUSIBLE, Chance, answer_reward, best_copying, best_rewarded
from nemotron.recipes.scoring.exercises import prompt_ids
from nemotron.recipes.scoring.rewards import (
    Prompt,
    Reward,
    Verifier,
    loosely,
    loosened,
    reward_parts,
    total_reward,
)
from nemotron.recipes.sources.exercises.exercise import Exercise, user_exercise
from nemotron.recipes.sources.exercises.families import FAMILIES, VERIFIERS
from nemotron.recipes.sources.exercises.instructions import WORDS, make_exercise, recitations

END = "<SPECIAL_12>"
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
needs_alarms = pytest.mark.posix


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(["the thought closes </think> with an answer"], 300), path)
    save_chat_tokenizer(CHAT, path, path)
    return path


@pytest.fixture(scope="module")
def verify(tokenizer_path):
    return Verifier(CHAT, tokenizer_path, seconds=5.0)


def replied(verify: Verifier, text: str) -> Continuation:
    """A reply of this text; it ended its turn if the text ends with the token for it."""
    tokens = verify.tokenizer.encode(text.removesuffix(END), add_special_tokens=False).ids
    tokens += [CHAT.special_ids[END]] * text.endswith(END)
    return Continuation(tokens, [0.0] * len(tokens), [False] * len(tokens), "stop" if text.endswith(END) else "length")


def earned(verify: Verifier, exercise: Exercise, text: str, *, thinking: bool = False) -> Reward:
    (reward,) = verify([Prompt(exercise, thinking, (1,))], [replied(verify, text)])
    return reward


def addition(name: str = "sft/math/000001") -> Exercise:
    exercise = user_exercise("math", "What is 1 + 2?", "", "3", "1 + 2")
    return Exercise(**{**vars(exercise), "id": name})


LISTED = make_exercise(
    "Reply with different words from this list, separated by commas: apple, bread, cloud.",
    [("count", 2), ("with", "bread"), ("upper", None)],
    "APPLE, BREAD",
    {"words": ["apple", "bread", "cloud"]},
)


# --- form and parts ---


@every_family
@pytest.mark.parametrize("thinking", [False, True])
def test_the_right_answer_of_every_family_earns_exactly_1(verify, family, thinking) -> None:
    for difficulty in (1, 2, 3, 4):
        for exercise in family.generate_exercises(3, 3, split="train", difficulty=difficulty):
            text = ("so it is\n</think>\n\n" if thinking else "") + exercise.answer + END
            reward = earned(verify, exercise, text, thinking=thinking)
            assert (reward.total, reward.form, reward.right) == (1.0, 1.0, True), reward
            assert reward.answer == exercise.answer.strip()
            assert set(reward.parts.values()) == {1.0}
            assert not reward.fault


@pytest.mark.parametrize(
    ("text", "total", "form", "right"),
    [
        ("3" + END, 1.0, 1.0, 1.0),
        ("4" + END, 0.1, 1.0, 0.0),
        ("3", 0.05, 0.5, 0.0),  # never ends its turn
        ("</think>3" + END, 0.05, 0.5, 0.0),  # a thinking tag, though no thought was asked for
        ("<think>3", 0.0, 0.0, 0.0),  # both
        ("3" * 200, 0.05, 0.5, 0.0),
        (END, 0.1, 1.0, 0.0),
        ("", 0.05, 0.5, 0.0),
    ],
)
def test_what_a_reply_earns_by_its_form(verify, text, total, form, right) -> None:
    reward = earned(verify, addition(), text)
    assert reward == Reward(total, form, {"right": right}, right == 1, text.removesuffix(END) if form == 1 else "")


def test_a_reply_that_does_not_think_as_asked_has_half_of_its_form(verify) -> None:
    for text in ("</think>\n\n3" + END, "\n</think>3" + END):  # no format error, and no thought
        reward = earned(verify, addition(), text, thinking=True)
        assert (reward.total, reward.form, reward.right) == (0.05, 0.5, False)


def test_a_verifier_that_fails_on_a_looser_reading_changes_nothing(verify, monkeypatch) -> None:
    reward = earned(verify, LISTED, "Sure.\nAPPLE, BREAD" + END)
    assert loosely(LISTED, reward) == [1, 1, 1] != list(reward.parts.values())
    monkeypatch.setattr(rewards, "reward_parts", lambda *given: 1 / 0)
    assert loosely(LISTED, reward) == list(reward.parts.values())


@pytest.mark.parametrize(
    ("text", "count", "bread", "upper"),
    [
        ("APPLE, BREAD", 1, 1, 1),
        ("apple, bread", 1, 1, 0),
        ("apple, cloud", 1, 0, 0),
        ("BREAD", 0, 1, 1),
        ("bread, stone", 1 / 2, 1 / 2, 0),  # half of its words are from the list
        ("river, stone", 0, 0, 0),
    ],
)
def test_each_constraint_of_an_instruction_has_its_share(verify, text, count, bread, upper) -> None:
    reward = earned(verify, LISTED, text + END)
    assert reward.parts == {"count": count, "with": bread, "upper": upper}
    assert reward.total == pytest.approx(0.1 + 0.9 * (count + bread + upper) / 3, abs=1e-12)
    assert reward.right == (count == bread == upper == 1)


def test_a_reply_without_its_form_earns_nothing_for_its_constraints(verify) -> None:
    reward = earned(verify, LISTED, "APPLE, BREAD")
    assert reward == Reward(0.05, 0.5, {"count": 0, "with": 0, "upper": 0}, False, "")


def test_parts_of_the_same_sum_earn_the_same_reward() -> None:
    """0.2 + 0.2 + 0.2 is more than 0.6 + 0 + 0 in floats."""
    fifths = total_reward(1, {"a": 0.2, "b": 0.2, "c": 0.2})
    assert (
        fifths == total_reward(1, {"a": 0.6, "b": 0.0, "c": 0.0}) == total_reward(1, {"a": 0, "b": 0.6, "c": 0}) == 0.28
    )
    assert total_reward(1, {"a": 1.0}) == 1
    assert total_reward(0.5, {"a": 0.0}) == 0.05


def test_the_parts_of_an_answer() -> None:
    assert reward_parts(addition(), "3") == {"right": 1.0}
    assert reward_parts(addition(), "4") == {"right": 0.0}
    assert list(reward_parts(LISTED, "")) == ["count", "with", "upper"]


# --- verifiers that fail ---


@pytest.fixture
def broken(monkeypatch):
    """A family whose verifier does what a test gives it."""

    def install(check_answer) -> Exercise:
        monkeypatch.setitem(VERIFIERS, "broken", SimpleNamespace(FAMILY="broken", check_answer=check_answer))
        return Exercise(**{**vars(user_exercise("broken", "Do it.", "", "x", "x")), "id": "sft/broken/000007"})

    return install


def raising(exercise, reply):
    raise ValueError("no such\nkey")


def hanging(exercise, reply):
    while True:
        pass


def stubborn(exercise, reply):
    """Takes every exception for a wrong reply."""
    try:
        hanging(exercise, reply)
    except Exception:
        return False


@pytest.mark.parametrize(
    ("check_answer", "fault"),
    [
        (raising, "ValueError: no such key"),
        (lambda exercise, reply: None, "TypeError: .*NoneType.*"),
        (lambda exercise, reply: "".join(reply for _ in range(2)).missing, "AttributeError: .*"),
        pytest.param(hanging, r"TimeoutError: no result after 0\.1 s", marks=needs_alarms),
        pytest.param(stubborn, r"TimeoutError: no result after 0\.1 s", marks=needs_alarms),
    ],
    ids=["raises", "gives nothing", "has a mistake", "hangs", "hangs and goes on"],
)
def test_a_verifier_that_fails_earns_0_and_is_named(tokenizer_path, broken, capsys, check_answer, fault) -> None:
    exercise = broken(check_answer)
    verify = Verifier(CHAT, tokenizer_path, seconds=0.1)
    prompts = [Prompt(exercise, False, (1,)), Prompt(addition(), False, (1,))]
    failed, passed = verify(prompts, [replied(verify, "3" + END)] * 2)
    assert failed == Reward(0.0, fault=failed.fault)
    assert re.fullmatch(fault, failed.fault)
    assert passed.total == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [f"the verifier of broken failed on sft/broken/000007: {failed.fault}"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2, -0.5, 1 + 1e-9])
def test_a_verifier_that_gives_no_number_from_0_to_1_ends_the_run_with_the_name_of_the_prompt(
    verify, broken, value
) -> None:
    exercise = broken(lambda exercise, reply: value)
    sentence = r"the verifier of broken gives the prompt sft/broken/000007 the parts .*; each must be a number from 0"
    for text in ("3" + END, "3"):  # also if the form alone would decide
        with pytest.raises(ValueError, match=sentence) as error:
            earned(verify, exercise, text)
        assert "\n" not in str(error.value)


def test_a_share_is_no_right_answer(verify, broken) -> None:
    reward = earned(verify, broken(lambda exercise, reply: 0.5), "3" + END)
    assert (reward.total, reward.parts, reward.right) == (0.55, {"right": 0.5}, False)


@needs_alarms
def test_after_a_verifier_hung_the_prompts_other_replies_get_its_fault_at_once(tokenizer_path, broken, capsys) -> None:
    asked = []
    exercise = broken(lambda exercise, reply: asked.append(reply) or hanging(exercise, reply))
    verify = Verifier(CHAT, tokenizer_path, seconds=0.1)
    prompts = [Prompt(exercise, False, (1,)), Prompt(addition(), False, (1,))]
    rewards = verify(prompts, [replied(verify, "3" + END)] * 16)
    assert asked == ["3"]
    fault = "TimeoutError: no result after 0.1 s"
    assert [reward.fault for reward in rewards] == [fault] * 8 + [""] * 8
    assert capsys.readouterr().err.count(f"the verifier of broken failed on sft/broken/000007: {fault}") == 8


def test_outside_of_the_main_thread_replies_are_judged_without_a_limit_of_time(verify) -> None:
    found: list[Reward] = []
    thread = threading.Thread(target=lambda: found.append(earned(verify, addition(), "3" + END)))
    thread.start()
    thread.join()
    assert [reward.total for reward in found] == [1.0]


# --- prompts and their replies ---


def test_each_prompt_is_judged_by_its_own_verifier(verify) -> None:
    """Replies of a prompt are next to each other, in the order of the prompts."""
    prompts = [Prompt(addition(), False, (1,)), Prompt(LISTED, False, (1,)), Prompt(addition(), True, (1,))]
    texts = ["3", "APPLE, BREAD", "BREAD, APPLE", "3", "so\n</think>\n\n3", "3"]
    rewards = verify(prompts, [replied(verify, text + END) for text in texts])
    assert [reward.right for reward in rewards] == [True, False, True, False, True, False]
    assert [list(reward.parts) for reward in rewards[::2]] == [["right"], ["count", "with", "upper"], ["right"]]


@pytest.mark.parametrize("thinking", [False, True])
def test_a_prompt_is_the_exercise_as_the_exam_asks_it(verify, thinking) -> None:
    prompt = verify.prompt_of(LISTED, thinking=thinking)
    assert list(prompt.tokens) == prompt_ids(LISTED, verify.tokenizer, verify.chat, thinking=thinking)
    assert (prompt.exercise, prompt.thinking) == (LISTED, thinking)
    assert verify.decode(prompt.tokens).endswith("Assistant\n<think>\n" if thinking else "<think></think>")


def test_the_text_of_a_reply_has_its_special_tokens(verify) -> None:
    assert verify.decode(replied(verify, "an answer" + END).tokens) == "an answer" + END


# --- the loose measure ---


def test_an_answer_is_also_read_without_its_first_and_last_line_and_without_asterisks() -> None:
    assert loosened("Sure!\n*a*\n\nDone.") == [
        "Sure!\n*a*\n\nDone.", "*a*\n\nDone.", "Sure!\n*a*", "*a*", "Sure!\na\n\nDone.", "a\n\nDone.", "Sure!\na", "a",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "readings"), [("a", ["a"]), ("", [""]), ("**a**", ["**a**", "a"]), ("a\nb", ["a\nb", "b", "a"])]
)
def test_what_is_left_of_an_answer_is_never_nothing(answer, readings) -> None:
    assert loosened(answer) == readings


# --- policies that do not do what is asked ---

# Of the first 150 exercises with seed 1234: what earns most, and how much; 0.1 is for the form alone.
# For instructions, every word, every pair of words and recitations of all are tried, in lower and upper case, and every
# triple of words in upper case, which earns what lower case earns and more.
HALVES = f"{' '.join(WORDS[:12])}. {' '.join(WORDS[12:])}.".upper()  # two sentences with every word
TWO = "its first two listed words, or the words to repeat twice"
THREE = "its first three listed words, or the words to repeat twice"
EARNED = [
    ("math", 1, ("4", 0.226), ("its last word", 0.154)),
    ("code", 1, ("9", 0.16), ("the question", 0.1)),
    ("science", 1, ("17", 0.118), ("the question", 0.1)),
    ("tool_calling", 1, ("", 0.1), ("the question", 0.1)),
    ("instruction_following", 1, ("KITE, LAMP, RIVER", 0.183), (f"{THREE}, in upper case", 0.544)),
    ("instruction_following", 2, (HALVES, 0.2005), (f"{TWO}, in upper case", 0.413)),
    ("instruction_following", 3, ("APPLE, PAPER", 0.20275), (f"{TWO}, in upper case", 0.409)),
    ("instruction_following", 4, (HALVES, 0.1996), (f"{TWO}, in upper case", 0.4174)),
    ("long_context", 1, ("33", 0.124), ("the question", 0.1)),
    ("multilingual", 1, ("9", 0.148), ("its last word", 0.274)),
    ("safety", 1, ("", 0.1), ("the question", 0.1)),
]


def wordings() -> list[str]:
    lists = [*WORDS, *(", ".join(pair) for pair in combinations(WORDS, 2))]
    triples = [", ".join(triple).upper() for triple in combinations(WORDS, 3)]
    return [*lists, *(text.upper() for text in lists), *triples, *recitations()]


@pytest.mark.parametrize(("family", "difficulty", "constant", "copying"), EARNED)
def test_what_the_best_constant_and_the_best_copying_policy_earn(family, difficulty, constant, copying) -> None:
    exercises = FAMILIES[family].generate_exercises(150, 1234, split="train", difficulty=difficulty)
    replies = [*PLAUSIBLE, *(wordings() if family == "instruction_following" else ())]
    assert best_rewarded(exercises, replies) == Chance(constant[0], pytest.approx(constant[1], abs=5e-7))
    assert best_copying(exercises) == Chance(copying[0], pytest.approx(copying[1], abs=5e-7))
    assert {answer_reward(exercise, exercise.answer) for exercise in exercises} == {1}


def test_every_family_is_played() -> None:
    assert {family for family, *_ in EARNED} == set(FAMILIES)


def test_the_best_constant_is_the_one_that_earns_most_and_of_those_the_shortest_and_first() -> None:
    other = make_exercise("Reply.", [("count", 2), ("with", "stone")], "stone, lamp", {"words": ["stone", "lamp"]})
    for replies in (
        ["apple", "BREAD, APPLE", "CLOUD, BREAD", "bread", ""],
        ["", "bread", "CLOUD, BREAD", "BREAD, APPLE"],
    ):
        assert best_rewarded([LISTED, other], replies) == Chance("BREAD, APPLE", pytest.approx(0.1 + 0.9 / 2))
    assert best_rewarded([addition()], ["5", "4"]) == Chance("4", pytest.approx(0.1))


def test_what_is_copied_from_a_question() -> None:
    copied = {name: copy(LISTED) for name, copy in COPIES.items()}
    question = LISTED.messages[-1]["content"]
    assert copied == {
        "the question": question,
        "its last word": "case",
        "its first sentence": "Reply with different words from this list, separated by commas: apple, bread, cloud",
        "what follows its first colon": "apple, bread, cloud",
        "the first half of that": "apple, bread",
        "that in upper case": "APPLE, BREAD, CLOUD",
        TWO: "apple, bread",
        THREE: "apple, bread, cloud",
        f"{TWO}, in upper case": "APPLE, BREAD",
        f"{THREE}, in upper case": "APPLE, BREAD, CLOUD",
    }
    assert best_copying([LISTED]) == Chance(f"{TWO}, in upper case", 1.0)


def test_words_to_repeat_are_copied_twice() -> None:
    repetition = make_exercise(
        "Write the words ink lamp.", [("repeat", 2)], "ink lamp, ink lamp", {"words": ["ink lamp"]}
    )
    assert COPIES[TWO](repetition) == COPIES[THREE](repetition) == "ink lamp, ink lamp"
    assert answer_reward(repetition, COPIES[TWO](repetition)) == 1
