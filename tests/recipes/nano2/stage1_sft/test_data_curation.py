"""The parts of curation, on conversations small enough to check by eye."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest

from nemotron.recipes.curation.chats import Chats, write_chats, write_packed_rows
from nemotron.recipes.curation.conversations import conversation_of
from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage1_sft import data_curation
from nemotron.recipes.nano2.stage1_sft.data_curation import Config
from nemotron.recipes.sources.conversations import Conversation, store_conversations, stored_conversations
from nemotron.recipes.sources.exercises.families import FAMILIES

THOUGHT = "three and four make seven"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is three and four? three and four make seven"], 300)


def conversation(id="1", question="What is 3 + 4?", reply=f"<think>\n{THOUGHT}\n</think>\n\n7", **changes):
    given = {"category": "math", "reasoning": True, "tools": (), "licence": "Apache-2.0", "origin": "somewhere"}
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": reply})
    return Conversation(**({"id": id, "messages": messages} | given | changes))


def curate(directory, conversations, evaluation=()):
    """The conversations that are kept, and the reports."""
    store_conversations(directory / "raw.parquet", conversations)
    paths, reports = data_curation.curate([directory / "raw.parquet"], list(evaluation), directory)
    return list(stored_conversations(paths)), reports


def parts_of(conversations, tokenizer, config):
    """The rows of the three parts, the ids of the cut traces, and the reports."""
    with TemporaryDirectory() as name:
        directory, reports = Path(name), {}
        write_chats(directory, 0, (data_curation.encoded(one, tokenizer, CHAT, config) for one in conversations))
        chats = Chats(directory, 1)
        parts = data_curation.rows_of_parts(chats, config, reports)
        rows = {}
        for part, members in parts.items():
            phase = write_packed_rows(directory, part, chats, members, config.sequence_length, config.seed)
            rows[part] = [row for path in phase.paths(directory) for row in pq.read_table(path).to_pylist()]
        return rows, chats.facts.filter(chats.facts["is_cut"])["id"].to_pylist(), reports


def learned(row, tokenizer):
    """The text that counts in the loss."""
    pairs = zip(row["tokens"], row["in_loss"], strict=True)
    return tokenizer.decode([token for token, counts in pairs if counts])


# --- which conversations are kept ---

EARLIER = conversation(reply="<think>\nnever closed").messages
UNLEARNABLE = {
    "the thought is not closed": conversation("2", "Hello", "<think>\nnever closed"),
    "there is no thought": conversation("2", "Hello", "no thought at all"),
    "there is no reply": conversation("2", messages=conversation().messages[:1]),
    "an earlier thought is not closed": conversation(
        "2", messages=(*EARLIER, *conversation(reply="<think>\na</think>7").messages)
    ),
}


@pytest.mark.parametrize("bad", UNLEARNABLE.values(), ids=UNLEARNABLE)
def test_a_conversation_that_cannot_be_learned_is_dropped_and_reported(bad, tmp_path):
    kept, reports = curate(tmp_path, [conversation(), bad])
    assert [one.id for one in kept] == ["1"]
    assert {name: report.num_dropped for name, report in reports.items() if report.num_dropped} == {"structure": 1}
    assert reports["structure"].examples[0].id == "2"


def test_an_earlier_turn_without_a_thought_is_kept(tmp_path):
    two_turns = conversation("2", messages=(*conversation("1", "Hello", "Hi.").messages, *conversation().messages))
    assert curate(tmp_path, [two_turns])[0] == [two_turns]


def test_a_repeated_conversation_is_dropped(tmp_path):
    kept, reports = curate(tmp_path, [conversation("1"), conversation("2")])
    assert [one.id for one in kept] == ["1"]
    assert reports["duplicates"].num_dropped == 1


def test_a_question_of_the_evaluation_is_dropped(tmp_path):
    (exercise,) = FAMILIES["math"].generate_exercises(1, 0, split="evaluation")
    asked = conversation_of(exercise)
    kept, reports = curate(tmp_path, [conversation(), asked], [exercise])
    assert [one.id for one in kept] == ["1"]
    assert reports["decontamination"].num_dropped == 1


def test_a_rule_that_would_leave_nothing_stops_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"the filter 'structure' leaves none of 1 items, for example 1 "):
        curate(tmp_path, [conversation(reply="no thought")])


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_exercises_of_every_difficulty_can_be_learned(family, difficulty, tmp_path):
    exercises = FAMILIES[family].generate_exercises(30, 0, split="train", difficulty=difficulty)
    _, reports = curate(tmp_path, [conversation_of(exercise) for exercise in exercises])
    assert reports["structure"].num_seen == 30
    assert reports["structure"].num_dropped == 0


# --- the three parts ---


def test_the_parts_are_everything_then_tools_then_long_context_each_with_a_share_of_the_rest(tokenizer):
    conversations = [
        conversation(f"{category}/{number}", f"{category} {number}?", category=category)
        for category in ("math", "tool_calling", "long_context")
        for number in range(30)
    ]
    parts, cut, reports = parts_of(conversations, tokenizer, Config(rest_share=0.2))
    questions = {part: [tokenizer.decode(row["tokens"]) for row in rows] for part, rows in parts.items()}
    counts = {
        part: {name: sum(text.count(f"{name} ") for text in texts) for name in ("math", "tool_calling", "long_context")}
        for part, texts in questions.items()
    }
    assert list(parts) == ["everything", "tools", "long_context"]
    assert counts["everything"] == {"math": 30, "tool_calling": 30, "long_context": 30}
    assert counts["tools"]["tool_calling"] == counts["long_context"]["long_context"] == 30
    assert 0 < counts["tools"]["math"] < 15
    assert 0 < counts["long_context"]["math"] < 15
    assert max(segment for row in parts["everything"] for segment in row["segments"]) > 0
    assert {segment for row in parts["tools"] for segment in row["segments"]} == {0}
    assert cut
    for texts in questions.values():  # one that is cut is not there as it was, too
        assert max(sum(text.count(f"math {number}?") for text in texts) for number in range(30)) == 1
    assert [report.num_dropped for report in reports.values()] == [0, 0]


def test_a_conversation_too_long_for_a_row_is_only_in_the_third_part(tokenizer):
    long = conversation("2", "word " * 40, category="long_context")
    length = len(CHAT.encode(tokenizer, long.messages).ids)
    config = Config(sequence_length=length - 2, long_context_length=2 * length)
    parts, _, reports = parts_of([conversation(), long], tokenizer, config)
    assert sum(len(row["tokens"]) for row in parts["everything"]) < length
    assert sum(len(row["tokens"]) for row in parts["long_context"]) >= length
    assert [report.num_dropped for report in reports.values()] == [0, 1]


def test_every_turn_is_in_the_first_two_parts_and_what_fits_nowhere_in_none(tokenizer):
    second = conversation(question="And 5 + 5?", reply="<think>\nten\n</think>\n\n10")
    both = conversation("2", messages=(*conversation().messages, *second.messages), category="tool_calling")
    longest = conversation("3", "word " * 60)
    fits = len(CHAT.encode(tokenizer, both.messages).ids)
    context = conversation("4", reply="<think>\nelse\n</think>\n\n1", category="long_context")
    config = Config(sequence_length=2 * fits, long_context_length=2 * fits)
    assert len(CHAT.encode(tokenizer, longest.messages).ids) > 2 * fits + 1
    parts, _, reports = parts_of([both, longest, context], tokenizer, config)
    for part in ("everything", "tools"):
        text = "".join(learned(row, tokenizer) for row in parts[part])
        assert THOUGHT in text
        assert "ten" in text
    assert reports["too long for any part"].num_dropped == 1
    assert "word word" not in "".join(tokenizer.decode(row["tokens"]) for rows in parts.values() for row in rows)


@pytest.mark.parametrize("extra", [0, 1])
def test_the_longest_conversation_of_a_row_has_one_token_more_than_it_predicts(tokenizer, extra):
    length = len(CHAT.encode(tokenizer, conversation().messages).ids)
    config = Config(sequence_length=length - 2 + extra)
    short = conversation("2", "3 + 4?")
    _, _, reports = parts_of([conversation(), short], tokenizer, config)
    assert reports["too long for a row"].num_dropped == 1 - extra


def test_a_part_without_its_category_is_reported(tokenizer, capsys):
    short, long = conversation(), conversation("2", "word " * 60, category="tool_calling")
    length = len(CHAT.encode(tokenizer, long.messages).ids)
    parts_of([short, long], tokenizer, Config(sequence_length=length - 2, rest_share=1.0))
    assert "the part 'tools' has no conversation of tool_calling: all are too long" in capsys.readouterr().err
    parts_of([short, long], tokenizer, Config(sequence_length=length, rest_share=1.0))
    assert "has no conversation" not in capsys.readouterr().err


def test_a_length_that_fits_nothing_is_refused_with_its_flag(tokenizer):
    with pytest.raises(ValueError, match=r"'too long for a row' leaves none of 1 items.*raise --sequence-length"):
        parts_of([conversation()], tokenizer, Config(sequence_length=3))


# --- the Config ---


def test_a_scale_without_exercises_asks_for_sources(tmp_path):
    with pytest.raises(ValueError, match=r"raw_conversations=all needs --sources, because exercises have no end"):
        data_curation.raw_conversations(Config(scale="full"), tmp_path)


@pytest.mark.parametrize("name", ["empty_trace_share", "rest_share"])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_0_and_1(name, share):
    with pytest.raises(ValueError, match=f"^{name}={share}: Input should be"):
        Config(**{name: share})


def test_the_longest_cut_trace_is_not_below_the_shortest():
    with pytest.raises(ValueError, match="trace_tokens_min=10 is above trace_tokens_max=9; swap them"):
        Config(trace_tokens_min=10, trace_tokens_max=9)
    assert Config(trace_tokens_min=9, trace_tokens_max=9).trace_tokens_min == 9


def test_a_missing_base_model_is_refused_with_the_command_that_makes_it(tmp_path):
    command = r"make one with python -m nemotron\.recipes\.nano2\.stage0_pretrain --scale small, or name one"
    with pytest.raises(ValueError, match=command):
        data_curation.main(Config(scale="small", base_checkpoint_path=tmp_path / "none", output_dir=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
