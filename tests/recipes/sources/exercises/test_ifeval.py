"""Every instruction of IFEval on written cases, at its bound, and against replies that follow nothing on purpose."""

import inspect
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.ifeval import (
    CHECKS,
    FAMILY,
    LANGUAGES,
    OPTIONS,
    check_answer,
    constraint_results,
    fault,
    follows,
    num_sentences_of,
    words,
)
from nemotron.recipes.sources.languages import likeliest_language

GERMAN = "Der Fluss liegt neben dem Haus, und das Haus ist alt."
FRENCH = "La rivière est à côté de la maison, et la maison est vieille."
ENGLISH = "the river is next to the house and the house is much older than the river"
NINE_WORDS = "der Fluss liegt neben dem Haus und das Haus"  # of ASCII letters
HINDI = "नदी घर के पास है और घर बहुत पुराना है।"

# id, arguments, replies that follow, replies that do not; a count is met exactly and missed by one.
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["river", "old house", "don't"]},
        ["I don't see a River. It is an OLD HOUSE.", "don’t river old\n house"],
        ["I don't see a river or house.", "bobriver, old house, don't", "rivers, old house, don't", "old house, don't"],
    ),
    ("keywords:existence", {"keywords": ["c.t"]}, ["A c.t"], ["A cat"]),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        ["cat, Cat", "A cat (cat) cat."],
        ["cat", "cat catalog concatenate cats"],
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "less than"},
        ["cat", "cats cats", "dog"],
        ["cat cat", "cat CAT cat"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["cat", "big dog"]},
        ["A concatenation.", "A dog, and it is big."],
        ["A CAT.", "cat", "One big\ndog"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "A", "let_frequency": 3, "let_relation": "at least"},
        ["banana", "A, a and a"],
        ["canal", "bbb"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 1, "let_relation": "less than"},
        ["Yes."],
        ["Yes!", "Yes!!"],
    ),
    ("language:response_language", {"language": "de"}, [GERMAN, GERMAN.upper()], [FRENCH, ENGLISH, "7"]),
    ("language:response_language", {"language": "hi"}, [HINDI], [GERMAN]),
    ("language:response_language", {"language": "ar"}, ["البيت كبير جدا."], [GERMAN]),
    (
        "language:response_language",
        {"language": "en"},
        [ENGLISH, "river, lamp", NINE_WORDS],
        [GERMAN, FRENCH, "schönes Haus", f"{NINE_WORDS} ist"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One is here. Two is here!", "“One?” Two", "Title\n\nOne", "1. One.\n2. Two.", "这是一。这是二。"],
        ["One is here", "Dr. J. Smith of the U.S. army", "1. 2. 3.", "One\nis here", "v2.0 is here"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["One."],
        ["One. Two.", "So do I. Two"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n***\nTwo", "***\nOne\n *** \nTwo\n***", "One\r\n***\r\nTwo"],
        ["One\n\nTwo", "One *** Two", "One\n***\nTwo\n***\nThree", "One\n***\n***\nTwo", "One\n***\n-\n***", "One"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        ["One two three four", "One two - three well-known"],
        ["One two three", "One two three - !", "one-two-three-four"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "less than"},
        ["One two three"],
        ["One two three four"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ["One\n\nweekend is near", "One\n \n\n**Weekend:** now", "One\n\n***\n\nWEEKEND", "One\n \nWeekend"],
        ["One\n\nThe weekend", "Weekend\n\nOne", "One\n\nWeekend\n\nTwo", "One\nWeekend", "One\n\nWeekends"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        [
            "Dear you.\n\nP.S. Write soon.",
            "Dear you.\n**p. s.** Write",
            "Dear you.\nP.S.\nWrite soon.",
            "P.S. Dear you.\nP.S. Write",
        ],
        ["Dear you. P.S. Write", "P.S. Write soon.", "Dear you.\nP.S.", "Dear you.\nP.P.S. Write", "Dear.\nPS Write"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] lives in [home town].", "[a] [b] [c]"],
        ["[name] lives", "[name] [ ] []", "[name] [here](http://x)", "[a\nb] [c]", "[[name"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["Two:\n* one\n - two", "+ one\n* two\n***\n---"],
        ["* one", "* one\n* two\n* three", "*one\n*two", "* one\n*", "one * two\n* two"],
    ),
    ("detectable_format:title", {}, ["<<A poem>>\nText", "Text <<a>>"], ["<A poem>", "<<>> a", "<< >> a", "<<A\na>>"]),
    (
        "detectable_format:constrained_response",
        {},
        [*OPTIONS, "*My answer is no.* Really."],
        ["My answer is yes", "my answer is yes.", " ".join(OPTIONS), "Yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and **two words**", "* *one* and ***two***", "*one*, *two*, *three*"],
        [
            "*one*",
            "* one* *two*",
            "**one* *two*",
            "*one** *two*",
            "*one * *two*",
            "*one\na* *two*",
            "* one * two *",
            "* one\n* two",
            "**one*  *two**",
            "*one* ** **",
            "*one* *-*",
            "*one\n* *two*",
        ],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": " Section ", "num_sections": 2},
        ["Section 1\nOne\nSection 2\nTwo", "## SECTION 1: One\n**section 2** Two\nsection 3 Three"],
        [
            "Section 1\nOne",
            "Section 1\nOne\nSection 2",
            "Section 2\nOne\nSection 3\nTwo",
            "Section\nSection\nx",
            "Section 1\nOne Section 2 Two",
            "Section 1\nOne\nSection 1\nTwo",
            "Section 1st one\nSection 2nd two",
        ],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', ' [1, "b"] ', '```json\n{"a": {"b": null}}\n```', "```\n[1]```"],
        [
            "1",
            '"a"',
            "{}",
            "[]",
            "```json\n{}\n```",
            "{'a': 1}",
            'Here: {"a": 1}',
            '{"a": NaN}',
            "[" * 100_000 + "1",
            "1" * 5000,
            "a",
        ],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem about “rain”."},
        ['write a poem about "rain".\n\nIt rains.', "Write  a poem about “rain”. A"],
        [
            "Write a poem about “rain”.",
            "Write a poem about “rain”. !",
            "Sure: Write a poem about “rain”. It",
            "It rains.",
            "Write a poem on “rain”. A",
        ],
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write on rain"}, ["Write on rain: it"], ["Write on rainbows"]),
    (
        "combination:two_responses",
        {},
        ["One ****** Two", "******\nOne\n******\nTwo\n******"],
        ["One", "One ****** one", "One ****** Two ****** Three", "One ******* Two", "One ***** Two", "One ****** -"],
    ),
    ("change_case:english_capital", {}, ["HELLO WORLD 1!", ENGLISH.upper()], ["HELLO World", GERMAN.upper(), "12"]),
    ("change_case:english_lowercase", {}, ["hello world 1!", ENGLISH], ["hello World", GERMAN.lower(), "12"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and the U.S.", "I SEE (IT)"],
        ["NASA", "I am A NASA-fan", "A4 and B5"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["I see NASA", "none"],
        ["I SEE NASA"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Is there anything else?"},
        ["Yes.\nis there anything else?", '"Is there  anything else?" '],
        [
            "Is there anything else? No.",
            "Is there anything else? ........................",
            "This there anything else?",
            "sIs there anything else?",
            "Yes.",
        ],
    ),
    ("startend:quotation", {}, ['"a"', ' “Yes, "no".” '], ["a", '"a', 'a"', '"', '""', "'a'"]),
    ("punctuation:no_comma", {}, ["a; b. c"], ["a, b", "甲，乙", "甲、乙", "ا، ب"]),
]


def exercise(*instructions: tuple[str, dict[str, Any]], prompt: str = "Say something.") -> Exercise:
    details = json.dumps({"instructions": [{"id": name, "kwargs": kwargs} for name, kwargs in instructions]})
    return Exercise("a", FAMILY, ({"role": "user", "content": prompt},), (), "", "", prompt, details)


# Each instruction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "right", "wrong"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)]
)
def test_each_instruction_on_written_cases(
    name: str, kwargs: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert fault(name, kwargs) is None
    assert [reply for reply in right if not follows(name, kwargs, reply)] == []
    assert [reply for reply in wrong if follows(name, kwargs, reply)] == []


def test_all_25_instructions_of_the_benchmark_have_a_case() -> None:
    assert len(CHECKS) == 25
    assert {name for name, *_ in CASES} == set(CHECKS)


@pytest.mark.parametrize("reply", ["", " \n", ".", "******", "[]", "<<>>", '""', "{}", "!?"])
def test_a_reply_without_a_letter_or_digit_follows_nothing(reply: str) -> None:
    assert [name for name, kwargs, *_ in CASES if follows(name, kwargs, reply)] == []


@given(count=st.integers(1, 30), bound=st.integers(1, 30))
def test_at_least_includes_the_bound_and_less_than_excludes_it(count: int, bound: int) -> None:
    for name, argument, relation, unit in [
        ("length_constraints:number_words", "num_words", "relation", "word "),
        ("length_constraints:number_sentences", "num_sentences", "relation", "A cat sleeps. "),
        ("change_case:capital_word_frequency", "capital_frequency", "capital_relation", "NASA "),
        ("keywords:letter_frequency", "let_frequency", "let_relation", "q "),
        ("keywords:frequency", "frequency", "relation", "cat "),
    ]:
        more = {"letter": "q"} if argument == "let_frequency" else {"keyword": "cat"} if argument == "frequency" else {}
        at_least, less = ({**more, argument: bound, relation: one} for one in ("at least", "less than"))
        assert follows(name, at_least, unit * count) == (count >= bound)
        assert follows(name, less, unit * count) == (count < bound)


@given(count=st.integers(1, 9), wanted=st.integers(1, 9))
def test_an_exact_number_is_neither_less_nor_more(count: int, wanted: int) -> None:
    bullets = "\n".join(f"* point {number}" for number in range(count))
    paragraphs = "\n***\n".join(f"Paragraph {number}" for number in range(count))
    assert follows("detectable_format:number_bullet_lists", {"num_bullets": wanted}, bullets) == (count == wanted)
    assert follows("length_constraints:number_paragraphs", {"num_paragraphs": wanted}, paragraphs) == (count == wanted)


@given(st.text(), st.sampled_from(CASES))
def test_any_reply_gets_a_verdict(reply: str, case: tuple[str, dict[str, Any], list[str], list[str]]) -> None:
    assert follows(case[0], case[1], reply) in (True, False)
    assert 0 <= num_sentences_of(reply) <= len(reply)
    assert all(word in reply for word in words(reply))


REPEATED = ["a", "*", "* a", "a* ", "[", "[a", "<<", "<a", "\n", "\n ", " ", "\t\r\n", "P.S.", "\nP.S.", "\nSection 1",
            "Section ", "\nSection", "1", "'", "!", "a.", "A. ", "```", "```\n", "{", "[[", '{"a":', "\\", "#*_ ", "。",
            "\n- ", "a b ", "\n\na", "\n***"]  # fmt: skip


def test_long_replies_of_one_repeated_part_are_judged_in_time_proportional_to_their_length() -> None:
    """0.1 seconds at most for one reply; an expression that tries all pairs of positions takes 1 to 20."""
    kwargs_of = {name: kwargs for name, kwargs, *_ in CASES}
    for part in REPEATED:
        for before, after in (("", ""), ("a\n", "b"), ("```json\n", "x")):
            reply = before + part * (40_000 // len(part)) + after
            for name, kwargs in kwargs_of.items():
                start = time.process_time()
                follows(name, kwargs, reply)
                assert time.process_time() - start < 1, (name, part, before)


# What cannot be checked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("paragraphs:paragraphs", {}, "the instruction 'paragraphs:paragraphs' is not one that IFEval has"),
        ("punctuation:no_comma", {"n": 1}, "punctuation:no_comma has the argument 'n', which it does not take"),
        ("startend:end_checker", {}, "startend:end_checker lacks the argument 'end_phrase'"),
        (
            "startend:end_checker",
            {"end_phrase": "'"},
            'has end_phrase="\'", which is not a text with a letter or digit',
        ),
        ("startend:end_checker", {"end_phrase": 1}, "has end_phrase=1, which is not a text with a letter or digit"),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": 0},
            "num_bullets=0, which is not a whole number from 1",
        ),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": True},
            "num_bullets=True, which is not a whole number",
        ),
        ("detectable_format:number_bullet_lists", {"num_bullets": "3"}, "num_bullets='3', which is not a whole number"),
        ("keywords:existence", {"keywords": "a"}, "has keywords='a', which is not a list of words"),
        ("keywords:existence", {"keywords": []}, "has keywords=[], which is not a list of words"),
        ("keywords:existence", {"keywords": ["a", None]}, "has keywords=['a', None], which is not a list of words"),
        ("keywords:forbidden_words", {"forbidden_words": ["!"]}, "which is not a list of words"),
        ("length_constraints:number_words", {"num_words": 3}, "lacks the argument 'relation'"),
        (
            "length_constraints:number_words",
            {"num_words": 3, "relation": "at most"},
            "has relation='at most', which is not 'at least' or 'less than'",
        ),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": "at least"},
            "has letter='ab', which is not one character",
        ),
        (
            "keywords:letter_frequency",
            {"letter": " ", "let_frequency": 1, "let_relation": "at least"},
            "has letter=' ', which is not one character",
        ),
        ("language:response_language", {"language": "tlh"}, "has language='tlh', which is not one of af, ar, bg,"),
        ("language:response_language", {"language": ["de"]}, "has language=['de'], which is not one of af, ar, bg,"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "length_constraints:nth_paragraph_first_word asks for paragraph 3 of 2",
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "a b"},
            "has first_word='a b', which is not one word",
        ),
    ],
)
def test_an_instruction_that_cannot_be_checked_has_a_reason(name: str, kwargs: dict[str, Any], reason: str) -> None:
    found = fault(name, kwargs)
    assert found is not None
    assert reason in found
    assert "\n" not in found


@pytest.mark.parametrize("name", CHECKS)
def test_every_argument_is_needed(name: str) -> None:
    kwargs = next(case[1] for case in CASES if case[0] == name)
    assert list(inspect.signature(CHECKS[name]).parameters)[1:] == list(kwargs)
    for argument in kwargs:
        rest = {key: value for key, value in kwargs.items() if key != argument}
        assert fault(name, rest) == f"{name} lacks the argument {argument!r}"


@given(st.sampled_from([(name, argument) for name, kwargs, *_ in CASES for argument in kwargs]),
       st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=3),
       st.text())  # fmt: skip
def test_an_instruction_without_a_fault_can_be_checked(case: tuple[str, str], value: Any, reply: str) -> None:
    name, argument = case
    kwargs = {**next(kwargs for other, kwargs, *_ in CASES if other == name and argument in kwargs), argument: value}
    if fault(name, kwargs) is None:
        assert follows(name, kwargs, reply) in (True, False)


def test_languages_are_those_that_the_identifier_knows() -> None:
    assert {likeliest_language("a", among=(code,)) for code in LANGUAGES} == set(LANGUAGES)


# Several instructions -------------------------------------------------------------------------------------------------


def test_each_instruction_of_an_exercise_has_a_result_and_all_of_them_make_it_right() -> None:
    several = exercise(
        ("punctuation:no_comma", {}),
        ("keywords:existence", {"keywords": ["river"]}),
        ("keywords:existence", {"keywords": ["lamp"]}),
        ("keywords:existence", {"keywords": ["stone"]}),
    )
    names = ["punctuation:no_comma", "keywords:existence", "keywords:existence#2", "keywords:existence#3"]
    assert constraint_results(several, "lamp, river") == dict(zip(names, [False, True, True, False], strict=True))
    assert not check_answer(several, "lamp, river, stone")
    assert check_answer(several, "river lamp stone")


def test_an_exercise_without_instructions_has_no_right_answer() -> None:
    assert not check_answer(exercise(), "Anything.")


def test_a_reply_that_only_repeats_the_message_follows_nothing() -> None:
    one = exercise(("punctuation:no_comma", {}), prompt="Write a poem without commas.")
    assert not check_answer(one, "write a poem\nwithout commas.")
    assert check_answer(one, "write a poem\nwithout commas. Rain")


PROMPTS = [
    exercise(("punctuation:no_comma", {}),
             ("length_constraints:number_words", {"num_words": 5, "relation": "at least"}),
             prompt="Describe the sea. Do not use commas. Write at least 5 words."),
    exercise(("detectable_format:json_format", {}), prompt="List two rivers. Wrap the entire output in JSON format."),
    exercise(("keywords:existence", {"keywords": ["river", "lamp"]}), ("detectable_format:title", {}),
             prompt="Write a story with the keywords river and lamp. Give it a title such as <<poem of joy>>."),
    exercise(("detectable_format:constrained_response", {}),
             prompt=f"Is Mars red? Answer with one of these options: {', '.join(OPTIONS)}"),
    exercise(("combination:repeat_prompt", {"prompt_to_repeat": "Write about rain."}),
             prompt="Write about rain. First repeat the request word for word and then give your answer."),
    exercise(("detectable_format:number_bullet_lists", {"num_bullets": 3}),
             prompt="Name three colors. Use exactly 3 bullet points such as:\n* This is a point."),
    exercise(("startend:end_checker", {"end_phrase": "That is all."}), ("startend:quotation", {}),
             prompt="What is a lamp? End with the exact phrase That is all. Wrap it all in double quotation marks."),
    exercise(("change_case:english_lowercase", {}), ("combination:two_responses", {}),
             prompt="Give two answers in lowercase, separated by ******. Why is the sky blue?"),
]  # fmt: skip


def earned(replies: list[str]) -> tuple[float, int]:
    """The mean share of instructions that the replies follow, and how many of them are right."""
    results = [list(constraint_results(one, reply).values()) for one, reply in zip(PROMPTS, replies, strict=True)]
    return round(sum(sum(each) / len(each) for each in results) / len(results), 4), sum(map(all, results))


def test_the_best_constant_reply_is_written_for_the_prompts() -> None:
    """No reply of the written cases follows many of them, but one that joins what several ask for does."""
    of_cases = sorted({reply for case in CASES for reply in (*case[2], *case[3])})
    best = max(of_cases, key=lambda reply: earned([reply] * len(PROMPTS)))
    assert (best, earned([best] * len(PROMPTS))) == ("*My answer is no.* Really.", (0.25, 2))
    joined = '"<<a>> river lamp\n* a\n* b\n* c\n******\nthat is all."'
    assert earned([joined] * len(PROMPTS)) == (0.625, 5)


def test_copying_the_prompt_earns_nothing_and_copying_parts_of_it_little() -> None:
    prompts = [one.messages[-1]["content"] for one in PROMPTS]
    assert earned(prompts) == (0, 0)
    assert earned([f"{prompt} a" for prompt in prompts]) == (0.4375, 3)
    assert earned([prompt[: len(prompt) // 2] for prompt in prompts]) == (0.25, 2)
