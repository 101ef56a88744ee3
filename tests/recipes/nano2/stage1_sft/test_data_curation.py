"""The parts of curation, on conversations small enough to check by eye."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.nano2.chat import EncodedChat, encode_chat
from nemotron.recipes.nano2.sizes import resolved
from nemotron.recipes.nano2.stage1_sft import data_curation
from nemotron.recipes.nano2.stage1_sft.data_curation import Config
from nemotron.recipes.sources.conversations import Conversation
from nemotron.recipes.sources.exercises import FAMILIES

THOUGHT = "three and four make seven"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is three and four? three and four make seven"], 300)


def conversation(id="1", question="What is 3 + 4?", reply=f"<think>\n{THOUGHT}\n</think>\n\n7", **changes):
    given = {"category": "math", "reasoning": True, "tools": (), "licence": "Apache-2.0", "origin": "somewhere"}
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": reply})
    return Conversation(**({"id": id, "messages": messages} | given | changes))


def configured(**changes):
    return resolved(Config(**changes), "stage1_sft", "data_curation")


def curated(conversations, evaluation=()):
    return data_curation.curate(conversations, list(evaluation), configured())


@pytest.mark.parametrize(
    ("bad", "filter_name"),
    [
        (conversation("2", "Hello", "<think>\nnever closed"), "structure"),
        (conversation("2", "Hello", "no thought at all"), "structure"),
        (conversation("2", messages=conversation().messages[:1]), "structure"),
        (
            conversation(
                "2",
                messages=(
                    *conversation(reply="<think>\nnever closed").messages,
                    *conversation(reply="<think>\na</think>7").messages,
                ),
            ),
            "structure",
        ),
        (conversation("2", "Hello", f"<think>\n{'a b c d e f g h ' * 4}\n</think>\n\nyes"), "repetition"),
        (conversation("2"), "duplicates"),
    ],
)
def test_a_filter_drops_what_it_is_for_and_says_so(bad, filter_name):
    kept, reports = curated([conversation(), bad])
    assert [one.id for one in kept] == ["1"]
    assert {name: report.num_dropped for name, report in reports.items() if report.num_dropped} == {filter_name: 1}
    assert reports[filter_name].examples[0].id == "2"


def test_an_earlier_turn_without_a_thought_is_read_and_not_learnt(tokenizer):
    two_turns = conversation("2", messages=(*conversation("1", "Hello", "Hi.").messages, *conversation().messages))
    kept, _ = curated([two_turns])
    assert kept == [two_turns]
    (chat,) = data_curation.encoded_turns(two_turns, tokenizer)
    learnt = tokenizer.decode([token for token, counts in zip(chat.ids, chat.in_loss, strict=True) if counts])
    assert "Hi." in tokenizer.decode(chat.ids)
    assert "Hi." not in learnt
    assert learnt.strip().endswith("7")


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_exercises_of_every_difficulty_can_be_learnt(family, difficulty):
    exercises = FAMILIES[family].generate_exercises(30, 0, split="train", difficulty=difficulty)
    faults = [data_curation.fault_of_structure(data_curation.conversation_of(one)) for one in exercises]
    assert faults == [""] * 30


def test_what_a_user_repeats_is_no_repetition():
    again = conversation("2", "Say it again. " * 40)
    assert data_curation.fault_of_repetition(again) == ""


TOOL_CALLS = [{"type": "function", "function": {"name": name, "arguments": {"x": 1}}} for name in ("f", "g")]
TOOL_LIST = ({"name": "f", "parameters": {}}, {"name": "g", "parameters": {}})


def calling(id, call, question="Do it.", tools=TOOL_LIST):
    reply = {"role": "assistant", "content": "<think>\nwhich?\n</think>\n\n", "tool_calls": [call]}
    return conversation(id, messages=({"role": "user", "content": question}, reply), tools=tools)


def test_the_same_question_with_another_call_is_no_duplicate():
    kept, reports = curated([calling("1", TOOL_CALLS[0]), calling("2", TOOL_CALLS[1]), calling("3", TOOL_CALLS[0])])
    assert [one.id for one in kept] == ["1", "2"]
    assert reports["duplicates"].num_dropped == 1


def test_the_same_call_among_other_tools_is_no_duplicate():
    kept, _ = curated([calling("1", TOOL_CALLS[0]), calling("2", TOOL_CALLS[0], tools=TOOL_LIST[:1])])
    assert len(kept) == 2


GERMAN = "Das Haus am Fluss ist alt, und die Leute aus dem Dorf gehen jeden Abend hin, um die Sonne am Wasser zu sehen."


@pytest.mark.parametrize(
    ("category", "answer", "kept"),
    [
        ("multilingual_de", GERMAN, True),
        ("multilingual_fr", GERMAN, False),
        ("multilingual_fr", "Das ist kurz.", True),  # too short to tell
        ("math", GERMAN, True),
    ],
)
def test_an_answer_in_another_language_than_its_category_is_dropped(category, answer, kept):
    other = conversation("2", "Und?", f"<think>\nit is German\n</think>\n\n{answer}", category=category)
    conversations, reports = curated([conversation(), other])
    assert len(conversations) == 1 + kept
    assert reports["language"].num_dropped == 1 - kept


def test_a_question_of_the_evaluation_is_dropped_whatever_its_layout():
    (exercise,) = FAMILIES["math"].generate_exercises(1, 0, split="evaluation")
    asked = exercise.messages[-1]["content"].replace(" ", "\n ").upper()
    kept, reports = curated([conversation(), conversation("2", asked)], [exercise])
    assert [one.id for one in kept] == ["1"]
    assert reports["decontamination"].num_dropped == 1


def test_an_exercise_that_differs_by_an_operator_is_another_task():
    (exercise,) = FAMILIES["math"].generate_exercises(1, 0, split="evaluation")
    exercise = replace(exercise, messages=({"role": "user", "content": "What is 7 + 2 - 5?"},))
    other = conversation("2", "What is 7 - 2 + 5?")
    kept, _ = curated([conversation(), replace(other, origin="procedural")], [exercise])
    assert [one.id for one in kept] == ["1", "2"]
    kept, _ = curated([conversation(), other], [exercise])  # of a user's own, who may have it from anywhere
    assert [one.id for one in kept] == ["1"]


def test_thirteen_words_of_an_evaluation_question_are_too_many_in_a_users_conversation():
    (exercise,) = FAMILIES["long_context"].generate_exercises(1, 0, split="evaluation")
    words = exercise.messages[-1]["content"].split()
    assert len(words) > 15
    _, reports = curated([conversation(), conversation("2", "Well: " + " ".join(words[:14]))], [exercise])
    assert reports["decontamination"].num_dropped == 1


def test_a_filter_that_would_leave_nothing_stops_the_run():
    with pytest.raises(ValueError, match=r"structure dropped all 1 conversations, 1: "):
        curated([conversation(reply="no thought")])


def test_an_emptied_trace_leaves_the_answer_and_asks_for_no_thinking():
    emptied = data_curation.without_thought(conversation())
    assert emptied.messages[0] == {"role": "user", "content": "What is 3 + 4? /no_think"}
    assert emptied.messages[-1]["content"] == "<think></think>7"
    assert not emptied.reasoning


def test_every_trace_after_the_last_question_is_emptied(tokenizer):
    call = {**TOOL_CALLS[0]}
    messages = (
        *conversation().messages,
        {"role": "user", "content": "Do it."},
        {"role": "assistant", "content": "<think>\nwhich?\n</think>\n\n", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "<think>\nit is done\n</think>\n\nDone."},
    )
    emptied = data_curation.without_thought(conversation(messages=messages, tools=TOOL_LIST))
    chats = data_curation.encoded_turns(emptied, tokenizer)
    learnt = [
        tokenizer.decode([token for token, counts in zip(chat.ids, chat.in_loss, strict=True) if counts])
        for chat in chats
    ]
    assert THOUGHT in learnt[0]  # before the question
    assert learnt[1].startswith("<TOOLCALL>")
    assert learnt[2].startswith("Done.")


def test_a_call_without_content_can_be_emptied():
    call = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALLS[0]]}
    emptied = data_curation.without_thought(
        conversation(messages=(conversation().messages[0], call, {"role": "tool", "content": "7"},
                               conversation().messages[1]), tools=TOOL_LIST)
    )  # fmt: skip
    assert [message["content"] for message in emptied.messages[1::2]] == ["<think></think>", "<think></think>7"]


def test_an_emptied_trace_wins_over_a_flag_of_the_user(tokenizer):
    emptied = data_curation.without_thought(conversation(question="What is 3 + 4? /think"))
    (chat,) = data_curation.encoded_turns(emptied, tokenizer)
    assert "<think></think>7" in tokenizer.decode(chat.ids)


def test_a_cut_trace_keeps_its_first_tokens_and_the_whole_answer_which_alone_counts(tokenizer):
    cut = data_curation.with_cut_thought(conversation(), tokenizer, 5)
    text = tokenizer.decode(cut.ids, skip_special_tokens=False)
    first = tokenizer.decode(tokenizer.encode(THOUGHT).ids[:5]).strip()
    assert f"<think>\n{first}\n</think>\n\n7\n<SPECIAL_12>" in text
    learnt = [token for token, counts in zip(cut.ids, cut.in_loss, strict=True) if counts]
    assert tokenizer.decode(learnt, skip_special_tokens=False) == "\n\n7\n<SPECIAL_12>"


def test_white_space_before_the_thought_is_no_part_of_it(tokenizer):
    plain = data_curation.with_cut_thought(conversation(), tokenizer, 5)
    spaced = conversation(reply=f"\n <think>\n{THOUGHT}\n</think>\n\n7")
    assert data_curation.with_cut_thought(spaced, tokenizer, 5) == plain


def test_a_cut_leaves_no_half_of_a_character(tokenizer):
    spoken = conversation(reply="<think>\n" + "\N{GREEK SMALL LETTER OMEGA}" * 20 + "\n</think>\n\n7")
    for num_tokens in range(3, 9):
        cut = data_curation.with_cut_thought(spoken, tokenizer, num_tokens)
        assert "\ufffd" not in tokenizer.decode(cut.ids)


@pytest.mark.parametrize("unthinking", [True, False])
def test_what_is_no_longer_than_the_cut_stays_as_it_is(tokenizer, unthinking):
    whole = data_curation.without_thought(conversation()) if unthinking else conversation()
    assert data_curation.with_cut_thought(whole, tokenizer, 100) is None


def test_every_assistant_turn_is_learnt_once(tokenizer):
    messages = (*conversation().messages, {"role": "user", "content": "And 5 + 5?"},
                {"role": "assistant", "content": "<think>\nten\n</think>\n\n10"})  # fmt: skip
    turns = data_curation.encoded_turns(replace(conversation(), messages=messages), tokenizer)
    learnt = [
        tokenizer.decode([token for token, counts in zip(turn.ids, turn.in_loss, strict=True) if counts])
        for turn in turns
    ]
    assert [text.split()[-1] for text in learnt] == ["7", "10"]
    assert THOUGHT not in tokenizer.decode(turns[1].ids)


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=30))
def test_packing_loses_no_token_and_duplicates_none(lengths):
    chats = [EncodedChat(list(range(100 * i, 100 * i + n)), [False] + [True] * (n - 1)) for i, n in enumerate(lengths)]
    rows = data_curation.packed(chats, 40)
    found = []
    for row in rows:
        assert len(row.tokens) == len(row.in_loss) == len(row.segments) <= 40
        for number in range(row.segments[-1] + 1):
            places = [place for place, segment in enumerate(row.segments) if segment == number]
            assert places == list(range(places[0], places[-1] + 1))
            found.append(([row.tokens[place] for place in places], [row.in_loss[place] for place in places]))
    assert sorted(found) == sorted((chat.ids, chat.in_loss) for chat in chats)


def test_the_parts_are_everything_then_tools_and_then_long_context_each_with_a_share_of_the_rest(tokenizer):
    conversations = [
        conversation(f"{category}/{number}", f"{category} {number}?", category=category)
        for category in ("math", "tool_calling", "long_context")
        for number in range(30)
    ]
    parts, num_cut, reports = data_curation.parts_of(conversations, tokenizer, configured(rest_share=0.2))
    questions = {part: [tokenizer.decode(row["tokens"]) for row in rows] for part, rows in parts.items()}
    counts = {
        part: {name: sum(text.count(f"{name} ") for text in texts) for name in ("math", "tool_calling", "long_context")}
        for part, texts in questions.items()
    }
    assert counts["everything"] == {"math": 30, "tool_calling": 30, "long_context": 30}
    assert counts["tools"]["tool_calling"] == counts["long_context"]["long_context"] == 30
    assert 0 < counts["tools"]["math"] < 15
    assert 0 < counts["long_context"]["math"] < 15
    assert max(segment for row in parts["everything"] for segment in row["segments"]) > 0
    assert {segment for row in parts["tools"] for segment in row["segments"]} == {0}
    assert num_cut > 0
    assert [report.num_dropped for report in reports.values()] == [0, 0]


def test_what_is_too_long_for_a_row_is_only_in_the_third_part(tokenizer):
    long = conversation("2", "word " * 40, category="long_context")
    length = len(encode_chat(tokenizer, long.messages).ids)
    config = configured(sequence_length=length - 2, long_context_length=2 * length)
    parts, _, reports = data_curation.parts_of([conversation(), long], tokenizer, config)
    assert sum(len(row["tokens"]) for row in parts["everything"]) < length
    assert sum(len(row["tokens"]) for row in parts["long_context"]) >= length
    assert [report.num_dropped for report in reports.values()] == [0, 1]


def test_every_turn_of_a_conversation_is_in_the_first_two_parts_and_what_fits_nowhere_in_none(tokenizer):
    second = conversation(question="And 5 + 5?", reply="<think>\nten\n</think>\n\n10")
    both = conversation("2", messages=(*conversation().messages, *second.messages), category="tool_calling")
    longest = conversation("3", "word " * 60)
    fits = len(encode_chat(tokenizer, both.messages).ids)
    context = conversation("4", reply="<think>\nelse\n</think>\n\n1", category="long_context")
    config = configured(sequence_length=2 * fits, long_context_length=2 * fits)
    assert len(encode_chat(tokenizer, longest.messages).ids) > 2 * fits + 1
    parts, _, reports = data_curation.parts_of([both, longest, context], tokenizer, config)
    for part in ("everything", "tools"):
        learnt = "".join(
            tokenizer.decode([token for token, counts in zip(row["tokens"], row["in_loss"], strict=True) if counts])
            for row in parts[part]
        )
        assert THOUGHT in learnt
        assert "ten" in learnt
    assert reports["too long for any part"].num_dropped == 1
    assert "word word" not in "".join(tokenizer.decode(row["tokens"]) for rows in parts.values() for row in rows)


@settings(max_examples=10)
@given(seed=st.integers(0, 100))
def test_an_exercise_comes_back_from_its_row(seed):
    for family in FAMILIES.values():
        (exercise,) = family.generate_exercises(1, seed, split="evaluation", difficulty=2)
        row = data_curation.exercise_row(exercise)
        assert data_curation.exercise_of(json.loads(json.dumps(row))) == exercise


def test_a_scale_without_exercises_asks_for_sources():
    with pytest.raises(ValueError, match=r"scale=full trains on conversations of your own; name them with --sources"):
        data_curation.raw_conversations(configured(scale="full"))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(ValueError, match=f"empty_trace_share={share} must be at least 0 and at most 1"):
        Config(empty_trace_share=share)


def test_the_shorter_cut_comes_first():
    with pytest.raises(ValueError, match="trace_tokens_min=10 is above trace_tokens_max=9; give the shorter"):
        Config(trace_tokens_min=10, trace_tokens_max=9)
    assert Config(trace_tokens_min=9, trace_tokens_max=9).trace_tokens_min == 9


def test_a_part_that_lacks_what_it_is_made_for_says_so(tokenizer, capsys):
    short, long = conversation(), conversation("2", "word " * 60, category="tool_calling")
    length = len(encode_chat(tokenizer, long.messages).ids)
    data_curation.parts_of([short, long], tokenizer, configured(sequence_length=length - 2, rest_share=1.0))
    assert "the part 'tools' has no conversation of tool_calling: all are too long" in capsys.readouterr().err
    data_curation.parts_of([short, long], tokenizer, configured(sequence_length=length, rest_share=1.0))
    assert "has no conversation" not in capsys.readouterr().err


def test_where_everything_is_too_long_the_sentence_names_the_flag(tokenizer):
    with pytest.raises(ValueError, match=r"too long for a row dropped all 1 conversations.*raise --sequence-length"):
        data_curation.parts_of([conversation()], tokenizer, configured(sequence_length=3))
