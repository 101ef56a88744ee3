from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from nemotron.recipes.curation.conversations import (
    Length,
    answer_language_fault,
    answer_language_rule,
    asked,
    contamination_rule,
    duplicate_rule,
    length_rule,
    repetition_fault,
    repetition_rule,
    split_reply,
    structure_rule,
)
from nemotron.recipes.curation.rules import apply_to_list
from nemotron.recipes.sources.conversations import Conversation, store_conversations


def conversation(id="1", question="What is 3 + 4?", reply="<think>\nadd them\n</think>\n\n7", **changes):
    given = {"category": "math", "reasoning": True, "tools": (), "licence": "Apache-2.0", "origin": "somewhere"}
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": reply})
    return Conversation(**({"id": id, "messages": messages} | given | changes))


@pytest.mark.parametrize(
    ("content", "thought", "answer"),
    [
        ("<think>\nadd them\n</think>\n\n7", "add them", "7"),
        ("\n <think>a</think> b </think>", "a", "b </think>"),
        ("<think></think>7", "", "7"),
    ],
)
def test_split_reply_separates_the_thought_from_the_answer(content, thought, answer):
    assert split_reply(content) == (thought, answer)


def test_asked_ignores_layout_case_and_replies():
    one = conversation(question="What  is\n3 + 4?")
    other = conversation(question="what is 3 + 4? ", reply="something else")
    assert asked(one.messages) == asked(other.messages) == "what is 3 + 4?"


def test_asked_has_the_texts_of_the_system_and_of_tools():
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "tool")]
    assert asked(messages) == "system | user | tool"


def test_every_rule_has_a_name_and_a_threshold():
    rules = [
        *(structure_rule(lambda conversation: None), repetition_rule(), answer_language_rule()),
        *(duplicate_rule([]), contamination_rule(set())),
    ]
    names = [rule.name for rule in rules]
    assert names == ["structure", "repetition", "language", "duplicates", "decontamination"]
    assert all(rule.threshold for rule in rules)


def test_the_structure_rule_reports_what_the_check_raises():
    def check(conversation):
        if conversation.id == "2":
            raise ValueError("no thought")

    assert structure_rule(check).fault(conversation("1")) is None
    assert structure_rule(check).fault(conversation("2")) == "no thought"


@pytest.mark.parametrize(("num_added", "name"), [(0, "messages[1]"), (1, "messages[0]")])
def test_messages_are_numbered_as_in_the_row(num_added, name):
    def check(conversation):
        raise ValueError("messages[1] says 'messages[1]'")

    rule = structure_rule(check)
    assert rule.fault(conversation(num_added_messages=num_added)) == f"{name} says 'messages[1]'"
    assert rule.prints_reasons


def test_a_conversation_without_a_last_reply_is_dropped():
    unanswered = conversation(messages=conversation().messages[:1])
    assert structure_rule(lambda conversation: None).fault(unanswered) == "it does not end with a reply"


@pytest.mark.parametrize(("times", "dropped"), [(3, False), (4, True)])
def test_eight_words_may_occur_three_times_in_a_reply(times, dropped):
    reply = " and ".join(["a b c d e f g h"] * times)
    assert repetition_fault(conversation(reply=reply)) == ("a b c d e f g h" if dropped else None)


def test_seven_words_may_be_repeated():
    reply = " ".join(f"a b c d e f g {number}" for number in range(9))
    assert repetition_fault(conversation(reply=reply)) is None


def test_a_user_may_repeat_words():
    assert repetition_fault(conversation(question="Say it again. " * 40)) is None


def test_repetition_is_counted_within_one_reply():
    once = conversation(reply="a b c d e f g h").messages
    assert repetition_fault(conversation(messages=once * 4)) is None


GERMAN = "Das Haus am Fluss ist alt, und die Leute aus dem Dorf gehen jeden Abend hin, um die Sonne am Wasser zu sehen."


@pytest.mark.parametrize(
    ("category", "answer", "fault"),
    [
        ("multilingual_de", GERMAN, None),
        ("multilingual_fr", GERMAN, "the answer is de, not fr"),
        ("multilingual_fr", "Das ist kurz.", None),  # too short to tell
        ("math", GERMAN, None),
    ],
)
def test_an_answer_must_be_in_the_language_of_its_category(category, answer, fault):
    reply = f"<think>\nit is German\n</think>\n\n{answer}"
    assert answer_language_fault(conversation(reply=reply, category=category)) == fault


@pytest.mark.parametrize(("num_words", "judged"), [(19, False), (20, True), (21, True)])
def test_an_answer_of_twenty_words_shows_its_language(num_words, judged):
    answer = " ".join(GERMAN.split()[:num_words])
    assert len(answer.split()) == num_words
    thought = "<think>\nseven words that do not count here\n</think>\n\n"
    for reply in (f"<think></think>{answer}", thought + answer):
        found = answer_language_fault(conversation(reply=reply, category="multilingual_fr"))
        assert found == ("the answer is de, not fr" if judged else None)


def rule_for(conversations):
    """The rule of duplicates for conversations in two files."""
    with TemporaryDirectory() as directory:
        paths = [Path(directory) / name for name in ("z.parquet", "a.parquet")]
        store_conversations(paths[0], conversations[:1])
        store_conversations(paths[1], conversations[1:])
        return duplicate_rule(paths)


def kept_ids(conversations):
    return [one.id for one in apply_to_list(conversations, [rule_for(conversations)], {})]


def test_the_first_of_equal_conversations_stays_in_the_order_of_the_files():
    twice = [conversation("b"), conversation("a"), conversation("c", question="what is  3 + 4?")]
    assert kept_ids(twice) == ["b"]
    others = [conversation(id, question="What else?") for id in "de"]
    assert kept_ids([others[0], *twice, others[1]]) == ["d", "b"]
    assert rule_for(twice).fault(twice[1]) == "the same as b"


def test_the_same_question_with_another_reply_is_not_a_duplicate():
    assert kept_ids([conversation("1"), conversation("2", reply="<think>\ncount\n</think>\n\n7")]) == ["1", "2"]


TOOL_CALLS = [{"type": "function", "function": {"name": name, "arguments": {"x": 1}}} for name in ("f", "g")]
TOOL_LIST = ({"name": "f", "parameters": {}}, {"name": "g", "parameters": {}})


def calling(id, call, tools=TOOL_LIST):
    reply = {"role": "assistant", "content": "<think>\nwhich?\n</think>\n\n", "tool_calls": [call]}
    return conversation(id, messages=({"role": "user", "content": "Do it."}, reply), tools=tools)


def solving(id, *middle):
    question, reply = conversation().messages
    return conversation(id, messages=(question, *middle, reply))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A", "B"),
        ("A", "a"),
        ([TOOL_CALLS[0]], [TOOL_CALLS[1]]),
        ([TOOL_CALLS[0]], TOOL_CALLS),
    ],
)
def test_earlier_turns_of_the_assistant_must_be_the_same_too(one, other):
    def turn(said):
        return {"role": "assistant", "content": said} if isinstance(said, str) else {
            "role": "assistant", "content": "", "tool_calls": said
        }  # fmt: skip

    result = {"role": "tool", "content": "done"}
    pair = [solving("1", turn(one), result), solving("2", turn(other), result)]
    assert kept_ids(pair) == ["1", "2"]
    assert kept_ids([pair[0], solving("2", turn(one), result)]) == ["1"]


def test_who_says_what_distinguishes_conversations():
    def said(id, *messages):
        return solving(id, *({"role": role, "content": content} for role, content in messages))

    assert kept_ids([said("1", ("tool", "a")), said("2", ("user", "a"))]) == ["1", "2"]
    assert kept_ids([said("1", ("user", "a | b")), said("2", ("user", "a"), ("user", "b"))]) == ["1", "2"]


def test_the_same_question_with_another_call_is_not_a_duplicate():
    assert kept_ids([calling("1", TOOL_CALLS[0]), calling("2", TOOL_CALLS[1]), calling("3", TOOL_CALLS[0])]) == [
        "1",
        "2",
    ]


def test_the_same_call_among_other_tools_is_not_a_duplicate():
    assert kept_ids([calling("1", TOOL_CALLS[0]), calling("2", TOOL_CALLS[0], tools=TOOL_LIST[:1])]) == ["1", "2"]


QUESTION = "If a train leaves at nine and drives for two hours, how far does it get at sixty?"


def contamination(question, origin="somewhere", evaluation=QUESTION):
    rule = contamination_rule({asked([{"role": "user", "content": evaluation}])})
    return rule.fault(replace(conversation(question=question), origin=origin))


@pytest.mark.parametrize("origin", ["somewhere", "procedural"])
def test_a_question_of_the_evaluation_is_dropped_in_any_layout_and_case(origin):
    fault = contamination(QUESTION.replace(" ", "\n ").upper(), origin)
    assert fault == f"asked in evaluation: {QUESTION.casefold()}"


def test_thirteen_words_of_an_evaluation_question_are_too_many():
    words = QUESTION.replace(",", "").split()
    assert contamination(f"Well: {' '.join(words[:13])}") == f"evaluation: {' '.join(words[:13]).lower()}"
    assert contamination(f"Well: {' '.join(words[:12])}") is None


def test_an_exercise_may_share_words_with_the_evaluation():
    assert contamination(f"Well: {QUESTION}", "procedural") is None


def test_an_exercise_that_differs_by_an_operator_is_another_task():
    assert contamination("What is 7 - 2 + 5?", "procedural", evaluation="What is 7 + 2 - 5?") is None


def test_other_conversations_may_not_differ_by_punctuation_alone():
    fault = contamination("What is 7 - 2 + 5?", evaluation="What is 7 + 2 - 5?")
    assert fault == "asked in evaluation, except for punctuation: what is 7 - 2 + 5?"


def test_a_conversation_may_be_as_long_as_a_row_and_no_longer():
    rule = length_rule("too long", "7 tokens", capacity=7)
    assert rule.fault(Length("full", 7)) is None
    assert rule.fault(Length("longer", 8)) == "8 tokens"
