"""Rows that are packed and written from files, against rows that are put together in memory."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.chat.format import EncodedChat
from nemotron.recipes.curation import chats as module
from nemotron.recipes.curation import packing, rows
from nemotron.recipes.curation.chats import Chats, EncodedConversation, write_chats, write_packed_rows
from nemotron.recipes.curation.conversations import length_rule
from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.curation.packing import best_fit


def chat(*tokens):
    return EncodedChat(list(tokens), [False, *(token % 3 == 0 for token in tokens[1:])])


def conversation(id, *turns, cut=None, **changes):
    given = {"category": "math", "is_emptied": False, "in_tools": False, "in_long_context": False}
    return EncodedConversation(**{"id": id, "turns": list(turns), "cut": cut} | given | changes)


def chats_of(directory, *files):
    for number, conversations in enumerate(files):
        write_chats(directory, number, conversations)
    return Chats(directory, len(files))


def packed_in_memory(turns, capacity, seed, part):
    """The rows in training order, from tokens that are all in memory."""
    found = []
    for members in best_fit([len(turn.ids) for turn in turns], capacity):
        tokens = [token for index in members for token in turns[index].ids]
        in_loss = [counts for index in members for counts in turns[index].in_loss]
        segments = [number for number, index in enumerate(members) for _ in turns[index].ids]
        found.append({"tokens": tokens, "in_loss": in_loss, "segments": segments})
    return sorted(found, key=lambda row: digest_of(seed, part, *row["tokens"]))


def written(directory, chats, capacity, name="everything", seed=7, chosen=None):
    chosen = np.ones(len(chats.lengths), dtype=bool) if chosen is None else chosen
    phase = write_packed_rows(directory, name, chats, chats.packed(chosen, capacity), capacity - 1, seed)
    return [pq.read_table(path).to_pylist() for path in phase.paths(directory)]


TURNS = [chat(*range(100 * number, 100 * number + number % 9 + 2)) for number in range(40)]


@pytest.fixture
def many(tmp_path, monkeypatch):
    """The turns in three files, with row groups that end within them."""
    monkeypatch.setattr(packing, "TOKENS_PER_GROUP", 7)
    parts = TURNS[:3], TURNS[3:30], TURNS[30:]
    files = [[conversation(f"{number}/{index}", turn) for index, turn in enumerate(part)]
             for number, part in enumerate(parts)]  # fmt: skip
    return chats_of(tmp_path / "scratch", *files)


@pytest.mark.parametrize("group_tokens", [1, 30, 1 << 20])
@pytest.mark.parametrize("shard_tokens", [1, 40, 1 << 24])
def test_rows_are_the_same_in_any_number_of_files(many, tmp_path, monkeypatch, shard_tokens, group_tokens):
    monkeypatch.setattr(rows, "SHARD_TOKENS", shard_tokens)
    monkeypatch.setattr(rows, "GROUP_TOKENS", group_tokens)
    files = written(tmp_path, many, 12)
    assert [row for file in files for row in file] == packed_in_memory(TURNS, 12, 7, "everything")
    assert max(map(len, files)) == min(max(1, shard_tokens // 12), sum(map(len, files)))


def test_files_can_be_made_in_any_order(many, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "SHARD_TOKENS", 40)
    monkeypatch.setattr(module, "run_tasks", lambda function, tasks: [function(task) for task in tasks[::-1]][::-1])
    files = written(tmp_path, many, 12)
    assert len(files) > 3
    assert [row for file in files for row in file] == packed_in_memory(TURNS, 12, 7, "everything")


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=30))
@settings(max_examples=10)
def test_packing_neither_loses_nor_duplicates_a_token(lengths, tmp_path_factory):
    directory = tmp_path_factory.mktemp("chats")
    turns = [chat(*range(100 * number, 100 * number + length)) for number, length in enumerate(lengths)]
    chats = chats_of(directory, [conversation(str(number), turn) for number, turn in enumerate(turns)])
    found = []
    for row in written(directory, chats, 40)[0]:
        assert len(row["tokens"]) == len(row["in_loss"]) == len(row["segments"]) <= 40
        for number in range(row["segments"][-1] + 1):
            places = [place for place, segment in enumerate(row["segments"]) if segment == number]
            assert places == list(range(places[0], places[-1] + 1))
            found.append(tuple([row[name][place] for place in places] for name in ("tokens", "in_loss")))
    assert sorted(found) == sorted((turn.ids, turn.in_loss) for turn in turns)


def first_tokens(directory, order, **changes):
    chats = chats_of(directory, [conversation(str(number), chat(number, number + 1)) for number in order])
    return [row["tokens"][0] for row in written(directory, chats, 2, **changes)[0]]


def test_the_training_order_is_the_recorded_one(tmp_path):
    """hash() would give another one in every process."""
    assert first_tokens(tmp_path, range(5), name="tools", seed=1234) == [4, 0, 1, 2, 3]


def test_the_training_order_does_not_depend_on_the_order_of_the_conversations(tmp_path):
    assert first_tokens(tmp_path / "1", range(20)) == first_tokens(tmp_path / "2", range(20)[::-1])


def test_the_training_order_changes_with_the_seed_and_the_part(tmp_path):
    one = first_tokens(tmp_path, range(20))
    assert sorted(one) == list(range(20))
    assert one != first_tokens(tmp_path, range(20), seed=8)
    assert one != first_tokens(tmp_path, range(20), name="tools")


def test_what_is_known_of_the_chats_of_a_conversation(tmp_path):
    cut = conversation("b", chat(7, 8), chat(9, 10, 11), cut=chat(*range(20, 26)), in_long_context=True)
    chats = chats_of(tmp_path, [conversation("a", chat(1, 2)), cut], [conversation("c", chat(3, 4, 5))])
    assert chats.facts["id"].to_pylist() == ["a", "b", "c"]
    assert chats.facts["longest"].to_pylist() == [2, 3, 3]  # without the chat that is cut
    assert chats.column("in_long_context").tolist() == [False, True, False]
    assert chats.conversation.tolist() == [0, 1, 1, 1, 2]
    assert chats.lengths.tolist() == [2, 2, 3, 6, 3]
    assert chats.is_cut.tolist() == [False, False, False, True, False]
    assert [[row["tokens"] for row in file] for file in written(tmp_path, chats, 6, chosen=chats.is_cut)] == [
        [[20, 21, 22, 23, 24, 25]]
    ]


def test_a_rule_sees_only_the_conversations_among_which_it_chooses(tmp_path):
    chats = chats_of(tmp_path, [conversation(str(length), chat(*range(length))) for length in (5, 2, 4, 3)])
    reports = {}
    kept = chats.kept_by(length_rule("long", "3", 3), np.array([False, True, True, True]), reports)
    assert kept.tolist() == [False, True, False, True]
    assert (reports["long"].num_seen, [one.id for one in reports["long"].examples]) == (3, ["4"])


def test_a_part_without_a_row_is_an_empty_file(many, tmp_path):
    assert written(tmp_path, many, 12, chosen=np.zeros(len(TURNS), dtype=bool)) == [[]]


def test_a_chat_whose_first_token_counts_is_a_mistake(tmp_path):
    with pytest.raises(AssertionError):
        write_chats(tmp_path, 0, [conversation("a", EncodedChat([5, 6], [True, True]))])
