import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.curation.long_context import (
    CHUNK_SHARE,
    MAX_FACTS_PER_CHUNK,
    MIN_CHUNK_TOKENS,
    MIN_RECALL_DISTANCE,
    LongDocuments,
    long_document_qa,
    recall_distances,
    recall_rows,
)
from nemotron.recipes.sources.problems import lookup
from nemotron.recipes.sources.problems.lookup import NUM_VALUES
from nemotron.recipes.sources.problems.problem import problem_text, split_of

END = 0
FACT = re.compile(r"The code of (\w+) is (\d{3})\.\n")
QUESTION = re.compile(r"What is the code of (\w+)\? (\d{3})")


def encode(text):
    return list(text.encode())


def decode(tokens):
    return bytes(tokens).decode()


@pytest.fixture(scope="module")
def documents():
    return [(f"module{i // 4}", encode(f"This is line one of {i}.\n" * (3 + i % 9))) for i in range(80)]


def qa_rows(documents, **changes):
    arguments = {"end_of_document": END, "seed": 1, "length": 2048, "num_sequences": 8} | changes
    return list(long_document_qa(documents, encode, **arguments))


def joined_of(documents, **arguments):
    return list(LongDocuments(documents, **arguments))


def all_recall_rows(documents, **changes):
    arguments = {"seed": 1, "sequence_length": 256, "long_context_length": 1024, "rows_per_distance": 12} | changes
    return recall_rows(documents, encode, **arguments)


def test_a_long_module_gives_documents_from_its_own_text_only():
    documents = [("long", [1] * 25), ("short", [2] * 4), ("other", [3] * 4)]
    assert joined_of(documents, separator=[0], seed=1, length=10)[:2] == [[1] * 10, [1] * 10]


def test_long_modules_take_turns():
    documents = [("a", [1] * 7), ("b", [2] * 3), ("c", [3] * 5)]
    long = joined_of(documents, separator=[], seed=1, length=2)
    assert [set(tokens) for tokens in long[3:6]] in ([{1}, {3}, {1}], [{3}, {1}, {1}])
    assert sorted(tokens[0] for tokens in long[:3]) == [1, 2, 3]


def test_the_seed_alone_decides_the_order_of_joined_modules():
    documents = [(f"module{i}", [i, i]) for i in range(9)]
    joined = joined_of(documents, separator=[99], seed=1, length=8)
    assert joined == joined_of(documents[::-1], separator=[99], seed=1, length=8)
    assert joined != joined_of(documents, separator=[99], seed=2, length=8)
    assert all(len(tokens) == 8 for tokens in joined)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=20), length=st.integers(1, 40))
def test_long_documents_use_every_token_once_except_the_last_few(sizes, length):
    documents = [(f"module{module}", [index] * size) for index, (module, size) in enumerate(sizes, start=1)]
    long = joined_of(documents, separator=[0], seed=3, length=length)
    assert {len(tokens) for tokens in long} <= {length}
    available = sum(size + 1 for _, size in sizes)
    assert len(long) == available // length
    for index, (_, size) in enumerate(sizes, start=1):
        assert sum(tokens.count(index) for tokens in long) <= size


def test_questions_and_answers_of_a_row_match_its_facts(documents):
    for row in qa_rows(documents):
        assert len(row) == 2049
        assert row[-1] == END
        facts, questions = FACT.findall(decode(row)), QUESTION.findall(decode(row))
        assert len(dict(facts)) == len(facts) > 0
        assert sorted(facts) == sorted(questions)


def test_all_questions_come_after_the_document(documents):
    for row in qa_rows(documents):
        text = decode(row[:-1])
        end = text[QUESTION.search(text).start() :]
        assert re.fullmatch(r"(What is the code of \w+\? \d{3}\n)+", end)
        assert "The code of" not in end


def test_facts_and_their_distance_increase_up_to_a_tenth_of_all_chunks(documents):
    rows = [decode(row) for row in qa_rows(documents, num_sequences=20)]
    num_facts = [len(FACT.findall(row)) for row in rows]
    assert num_facts == sorted(num_facts)
    assert num_facts[0] == 1
    assert num_facts[-1] == round(2048 // MIN_CHUNK_TOKENS * CHUNK_SHARE) * MAX_FACTS_PER_CHUNK
    # The fact of the first row is right before the questions; later rows have facts everywhere.
    distances = [QUESTION.search(row).start() - FACT.search(row).start() for row in rows]
    assert distances[0] < 4 * MIN_CHUNK_TOKENS
    assert max(distances[10:]) > 1024
    first_half, second_half = sum(distances[:10]) / 10, sum(distances[10:]) / 10
    assert first_half < second_half


def test_the_document_between_the_facts_is_the_source_text(documents):
    source = decode(joined_of(documents, separator=encode("\n\n"), seed=1, length=2049)[0])
    text = decode(qa_rows(documents, num_sequences=1)[0])
    body = re.sub(r"\n(The code of \w+ is \d{3}\.\n)+", "", text[: QUESTION.search(text).start() - 1])
    assert len(body) > 1200
    assert source.startswith(body)


def test_the_seed_alone_decides_the_rows(documents):
    assert qa_rows(documents) == qa_rows(documents)
    assert qa_rows(documents) != qa_rows(documents, seed=2)
    assert all_recall_rows(documents) == all_recall_rows(documents)
    assert all_recall_rows(documents) != all_recall_rows(documents, seed=2)


def test_a_row_may_have_as_few_tokens_of_document_as_chunks(documents):
    (row,) = qa_rows(documents, length=241, num_sequences=1)
    assert len(row) == 242
    with pytest.raises(ValueError, match=r"leaves 2 tokens of document beside .*, fewer than 3; use a larger"):
        qa_rows(documents, length=240, num_sequences=1)


def test_a_recall_row_may_be_filled_to_the_last_token(documents):
    rows = all_recall_rows(documents, sequence_length=385, long_context_length=385)
    assert max(len(row.tokens) for row in rows) == 386
    with pytest.raises(ValueError, match=r"have no room for a fact of \d+ and a question of \d+ tokens at a distance"):
        all_recall_rows(documents, sequence_length=340, long_context_length=340)


def test_the_shortest_distance_is_tested_and_the_longest_once():
    assert recall_distances(4 * MIN_RECALL_DISTANCE, 1024) == [64, 128, 256, 512, 960]
    assert recall_distances(4 * MIN_RECALL_DISTANCE - 4, 1024) == [126, 252, 504, 960]
    assert recall_distances(256, 273) == [64, 128, 255]
    assert recall_distances(1024 * 15 // 16, 1024) == [240, 480, 960]  # 960 is both a multiple and the longest


def test_zero_sequences_give_no_row():
    assert qa_rows([], num_sequences=0) == []


def test_training_and_test_rows_share_no_key(documents):
    trained = {key for row in qa_rows(documents) for key, _ in FACT.findall(decode(row))}
    tested = {key for row in all_recall_rows(documents) for key, _ in FACT.findall(decode(row.tokens))}
    assert len(trained) > 20
    assert {split_of(key.lower()) for key in trained} == {"train"}
    assert {split_of(key.lower()) for key in tested} == {"evaluation"}


def test_facts_and_questions_read_as_in_the_problems_that_teach_them():
    (problem,) = lookup.generate_problems(1, 0, split="train")
    text = problem_text(problem) + "\n"
    assert FACT.sub("", text, count=1) == QUESTION.search(text).group() + "\n"
    assert len(FACT.findall(text)) == 1


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((128, 512), [64, 128, 256, 480]), ((256, 2048), [64, 128, 256, 512, 1024, 1920]), ((128, 128), [64, 120])],
)
def test_distances_double_up_to_what_a_long_row_holds(lengths, expected):
    assert recall_distances(*lengths) == expected


def test_the_distance_is_counted_from_the_digits_of_the_fact_to_those_of_the_answer(documents):
    for row in all_recall_rows(documents):
        assert row.answer_start == len(row.tokens) - 3
        value = row.tokens[row.answer_start :]
        assert row.tokens[row.answer_start - row.distance :][:3] == value


def test_a_recall_row_holds_one_question_with_its_answer(documents):
    rows = all_recall_rows(documents)
    assert [row.distance for row in rows] == [d for d in recall_distances(256, 1024) for _ in range(12)]
    for row in rows:
        text = decode(row.tokens)
        assert len(row.tokens) <= 1025
        ((key, value),) = QUESTION.findall(text)
        facts = FACT.findall(text)
        assert len(dict(facts)) == row.num_facts == len(facts)
        assert dict(facts)[key] == value
        assert text.endswith(f"? {value}")


def test_rows_start_at_different_places_in_the_text(documents):
    texts = [FACT.sub("", decode(row.tokens)).replace("\n", "") for row in all_recall_rows(documents[:10])]
    assert len({text.index("This") for text in texts}) > 5  # the ten documents fill one or two long texts


def test_neither_the_first_nor_the_last_fact_is_always_the_answer(documents):
    rows = [decode(row.tokens) for row in all_recall_rows(documents) if row.distance >= 256]
    places = {[value for _, value in FACT.findall(row)].index(row[-3:]) for row in rows}
    assert places == {0, 1, 2, 3}


def test_values_come_from_the_whole_range(documents):
    values = [int(decode(row.tokens)[-3:]) for row in all_recall_rows(documents, rows_per_distance=200)]
    assert len(set(values)) > 0.6 * NUM_VALUES
    assert min(values) < 20
    assert max(values) > 980


def test_less_text_than_one_row_is_an_error(documents):
    with pytest.raises(ValueError, match=r"80 documents have \d+ tokens, fewer than one long row of 100001"):
        qa_rows(documents, length=100_000)
    with pytest.raises(ValueError, match="fewer than one long row of 1025"):
        all_recall_rows([("module", [1, 2])])


def test_rows_too_short_for_their_facts_are_an_error(documents):
    with pytest.raises(ValueError, match=r"long_context_length=64 leaves .* tokens of document"):
        qa_rows(documents, length=64, num_sequences=1)


def test_distances_too_short_for_fact_and_question_are_an_error(documents):
    with pytest.raises(ValueError, match="a question of 33 tokens at a distance of 37;"):
        all_recall_rows(documents, sequence_length=20, long_context_length=40)


def test_a_tokenizer_that_joins_digits_is_an_error(documents):
    def joining(text):
        return [1000 + int(piece) if piece.isdigit() else ord(piece[0]) for piece in re.findall(r"\d+|\D", text)]

    with pytest.raises(ValueError, match="three single digits"):
        recall_rows(documents, joining, seed=1, sequence_length=256, long_context_length=1024, rows_per_distance=1)
