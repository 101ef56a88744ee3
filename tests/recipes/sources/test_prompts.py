"""Rows with the columns of NVIDIA's sets for reinforcement learning become exercises; the others are named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.documents import Unreadable
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_from_row, exercise_to_row
from nemotron.recipes.sources.exercises.ifeval import check_answer, constraint_results
from nemotron.recipes.sources.prompts import COLUMNS, read_prompts, row_exercise
from nemotron.recipes.sources.reading import Row, SourceFile

SUFFIXES = ["jsonl", "jsonl.gz", "parquet"]
ASKED = "Write about the sea. Use at least 3 words and no commas."
IDS = ["length_constraints:number_words", "punctuation:no_comma", "keywords:existence"]
KWARGS = [{"num_words": 3, "relation": "at least"}, None, {"keywords": ["sea"]}]
INSTRUCTIONS = [
    {"id": "length_constraints:number_words", "kwargs": {"num_words": 3, "relation": "at least"}},
    {"id": "punctuation:no_comma", "kwargs": {}},
    {"id": "keywords:existence", "kwargs": {"keywords": ["sea"]}},
]
INPUT = [{"role": "user", "content": ASKED}]

# The same prompt as in each of the sets.
GYM = {
    "id": 7,
    "responses_create_params": {"input": INPUT, "tools": [], "parallel_tool_calls": False},
    "instruction_id_list": IDS,
    "prompt": ASKED,
    "kwargs": KWARGS,
    "grading_mode": "binary",
}
NEWER_GYM = {
    "id": 7,
    "responses_create_params": {"input": INPUT},
    "verifier_metadata": {"instruction_id_list": IDS, "prompt": ASKED, "kwargs": KWARGS, "grading_mode": "binary"},
}
LLAMA_NEMOTRON = {
    "id": 7,
    "input": INPUT,
    "args": {"instruction_id_list": IDS, "instruction_kwargs": KWARGS},
    "category": "instruction following",
}
IFEVAL = {"key": 7, "prompt": ASKED, "instruction_id_list": IDS, "kwargs": KWARGS}
TEXTS = {"uuid": "7", "prompt": ASKED, "instruction_id_list": json.dumps(IDS), "kwargs": json.dumps(KWARGS)}
TEXT_EACH = {
    **GYM,
    "kwargs": [json.dumps(KWARGS[0]), "", json.dumps(KWARGS[2])],
    "responses_create_params": json.dumps({"input": ASKED}),
}
FORMS = {
    "gym": GYM,
    "newer_gym": NEWER_GYM,
    "llama": LLAMA_NEMOTRON,
    "ifeval": IFEVAL,
    "texts": TEXTS,
    "each": TEXT_EACH,
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        content = b"".join(json.dumps(one).encode() + b"\n" for one in rows)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def reason_of(tmp_path: Path, **changes: Any) -> str:
    """Why the row of NeMo Gym with these changes is not read; a good row beside it is."""
    exercises, [unreadable] = read_prompts([write(tmp_path / "a.jsonl", [{**GYM, **changes}, {**GYM, "id": "good"}])])
    assert [one.id for one in exercises] == ["good"]
    return unreadable.reason


# The released columns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_each_set_becomes_the_same_exercise(tmp_path: Path, form: str, suffix: str) -> None:
    source = write(tmp_path / f"a.{suffix}", [{**FORMS[form], "License": "CC-BY-4.0"}])
    exercises, unreadable = read_prompts([source])
    assert unreadable == []
    assert exercises == [
        Exercise(
            id="7",
            family="ifeval",
            messages=({"role": "user", "content": ASKED},),
            tools=(),
            reasoning="",
            answer="",
            canonical=ASKED.casefold(),
            details=json.dumps({"instructions": INSTRUCTIONS, "licence": "CC-BY-4.0", "origin": source}),
            difficulty=3,
        )
    ]
    assert exercise_from_row(exercise_to_row(exercises[0])) == exercises[0]
    assert check_answer(exercises[0], "I like the sea.")
    assert list(constraint_results(exercises[0], "The sea, no").values()) == [True, False, True]


def test_a_null_among_the_arguments_is_none(tmp_path: Path) -> None:
    padded = [{"num_words": None, "relation": None, "keywords": None, **(one or {})} for one in KWARGS]
    for form in (json.dumps(padded), padded):
        [one], _ = read_prompts([write(tmp_path / "a.jsonl", [{**GYM, "kwargs": form}])])
        assert json.loads(one.details)["instructions"] == INSTRUCTIONS


def test_parquet_gives_what_jsonl_gives(tmp_path: Path) -> None:
    """Parquet pads every object with the arguments of all others."""
    rows = [
        {**GYM, "id": "a"},
        {**GYM, "id": "b", "instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": "Bye"}]},
        {**GYM, "id": "c", "instruction_id_list": ["detectable_format:title"], "kwargs": [{}]},
        {**GYM, "id": "d", "instruction_id_list": ["startend:end_checker"], "kwargs": [{"num_words": 3}]},
    ]
    table = pa.Table.from_pylist(rows)
    assert len(table.schema.field("kwargs").type.value_type) == 4
    read = []
    for suffix in SUFFIXES:
        (tmp_path / suffix).mkdir()
        exercises, unreadable = read_prompts([write(tmp_path / suffix / f"x.{suffix}", rows)])
        details = [json.loads(one.details)["instructions"] for one in exercises]
        read.append(([(one.id, one.messages, one.canonical) for one in exercises], details, unreadable))
    assert read[0] == read[1] == read[2]
    assert [name for name, *_ in read[0][0]] == ["a", "b", "c"]
    assert [(one.id, one.reason) for one in read[0][2]] == [
        ("d", "startend:end_checker lacks the argument 'end_phrase'")
    ]


def test_a_conversation_is_kept_and_its_canonical_form_is_what_the_user_says(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello\n there"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": ASKED},
    ]
    typed = [{**message, "type": "message"} for message in messages]
    [one], _ = read_prompts([write(tmp_path / "a.jsonl", [{**GYM, "responses_create_params": {"input": typed}}])])
    assert list(one.messages) == messages
    assert one.canonical == f"hello there | {ASKED.casefold()}"


def test_difficulty_is_the_number_of_instructions_up_to_4(tmp_path: Path) -> None:
    rows = [{**GYM, "instruction_id_list": ["punctuation:no_comma"] * n, "kwargs": [{}] * n} for n in (1, 4, 6)]
    exercises, _ = read_prompts([write(tmp_path / "a.jsonl", rows)])
    assert [one.difficulty for one in exercises] == [1, 4, 4]


def test_repeated_ids_are_numbered_and_a_missing_one_is_the_row(tmp_path: Path) -> None:
    rows = [GYM, GYM, {**GYM, "id": None}, {**GYM, "id": None, "uuid": "u"}]
    exercises, _ = read_prompts([write(tmp_path / "a.jsonl", rows)])
    assert [one.id for one in exercises] == ["7", "7#2", "a.jsonl#2", "u"]


def test_files_of_a_directory_and_a_glob_are_read_in_order_and_sources_take_turns(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "sub/c.jsonl.gz"):
        write(tmp_path / name, [{**IFEVAL, "key": f"{name}-{row}"} for row in range(2)])
    expected = [f"{name}-{row}" for name in ("a.parquet", "b.jsonl", "sub/c.jsonl.gz") for row in range(2)]
    assert [one.id for one in read_prompts([str(tmp_path)])[0]] == expected
    assert [one.id for one in read_prompts([f"{tmp_path}/*.jsonl"])[0]] == expected[2:4]
    assert [one.id for one in read_prompts([f"file://{tmp_path}/b.jsonl"])[0]] == expected[2:4]
    sources = [f"{tmp_path}/b.jsonl", f"{tmp_path}/a.parquet"]
    assert [one.id for one in read_prompts(sources, num_prompts=3)[0]] == [*expected[2:4], expected[0]]


# What is not read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"instruction_id_list": None}, "it has no instruction that a rule can check"),
        ({"instruction_id_list": []}, "it has no instruction that a rule can check"),
        ({"instruction_id_list": [7, 8, 9]}, "'instruction_id_list' is not a list of texts"),
        ({"instruction_id_list": "no json"}, "'instruction_id_list' is not JSON: "),
        (
            {"instruction_id_list": ["count:words"], "kwargs": [{}]},
            "the instruction 'count:words' is not one that IFEval",
        ),
        ({"kwargs": None}, "'kwargs' is not a list of 3 objects, one for each instruction"),
        ({"kwargs": KWARGS[:2]}, "'kwargs' is not a list of 3 objects, one for each instruction"),
        ({"kwargs": "[{"}, "'kwargs' is not JSON: "),
        ({"kwargs": [KWARGS[0], 5, KWARGS[2]]}, "kwargs[1] is int, not an object"),
        (
            {"kwargs": [{"num_words": 3}, {}, KWARGS[2]]},
            "length_constraints:number_words lacks the argument 'relation'",
        ),
        ({"responses_create_params": None, "prompt": None}, "it has none of responses_create_params, input, prompt"),
        ({"responses_create_params": {}}, "'responses_create_params' has no 'input'"),
        (
            {"responses_create_params": {"input": []}},
            "'responses_create_params' is neither text nor a list of messages",
        ),
        ({"responses_create_params": {"input": 5}}, "'responses_create_params' is neither text nor a list of messages"),
        ({"responses_create_params": {"input": INPUT, "tools": [{"name": "add"}]}}, "has 'tools', which are not read"),
        (
            {"responses_create_params": {"input": INPUT, "instructions": "Be brief."}},
            "has 'instructions', which are not",
        ),
        (
            {"responses_create_params": {"input": [*INPUT, {"role": "assistant", "content": "a"}]}},
            "the assistant's, not",
        ),
        ({"responses_create_params": {"input": [{"role": "user", "content": 1}]}}, "messages[0] has int as content"),
        ({"responses_create_params": {"input": ["a"]}}, "messages[0] is str, not an object"),
        ({"responses_create_params": {"input": " "}}, "its last message is empty"),
        ({"responses_create_params": {"input": "\ud800"}}, "messages[0] holds half a surrogate pair"),
    ],
)
def test_a_row_that_cannot_be_read_has_a_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    found = reason_of(tmp_path, **changes)
    assert reason in found
    assert "\n" not in found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(IDS),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(
            st.sampled_from([*COLUMNS, "role", "content", "num_words", "relation", "keywords", "instruction_kwargs"]),
            values,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(st.sampled_from(list(FORMS.values())), st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=3))
def test_any_row_becomes_an_exercise_or_has_a_reason(form: dict[str, Any], changes: dict[str, Any]) -> None:
    file = SourceFile("a.jsonl", "a.jsonl", "x", "a.jsonl")
    read = row_exercise(Row("a.jsonl#0", {**form, **changes}), file)
    if isinstance(read, Unreadable):
        assert read.reason
    else:
        assert check_answer(read, "A reply.") in (True, False)
        assert exercise_from_row(exercise_to_row(read)) == read


def test_the_columns_instruction_id_list_and_kwargs_win_over_nested_ones(tmp_path: Path) -> None:
    [one], _ = read_prompts([write(tmp_path / "a.jsonl", [{**GYM, "args": "--fast", "verifier_metadata": {"a": 1}}])])
    assert json.loads(one.details)["instructions"] == INSTRUCTIONS


def test_a_parquet_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="has no column instruction_id_list or verifier_metadata or args, only prompt;"
    ):
        read_prompts([write(tmp_path / "a.parquet", [{"prompt": "a"}])])
    with pytest.raises(ValueError, match="has no column responses_create_params or input or prompt, only args, text;"):
        read_prompts([write(tmp_path / "a.parquet", [{"args": "a", "text": "b"}])])


def test_a_limit_within_which_no_row_can_be_read_is_an_error(tmp_path: Path) -> None:
    """A whole file without a prompt is one; a file whose first rows are unreadable was none, and gave 0 prompts."""
    other = {**GYM, "instruction_id_list": ["paragraphs:paragraphs"], "kwargs": [{}]}
    source = write(tmp_path / "a.jsonl", [{**other, "id": number} for number in range(3)] + [GYM])
    sentence = (
        r"^the first 2 rows of the sources hold no prompt, the first is 0: the instruction 'paragraphs:paragraphs' is "
        r"not one that IFEval has; read more rows, or name other sources$"
    )
    with pytest.raises(ValueError, match=sentence):
        read_prompts([source], num_prompts=2)
    assert len(read_prompts([source], num_prompts=4)[0]) == 1


def test_plain_text_a_source_without_prompts_and_a_category_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A text.", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds no prompt .*plain text holds no prompts with instructions"):
        read_prompts([str(tmp_path / "a.txt")])
    with pytest.raises(ValueError, match=r"source 'math=a\.jsonl' has the category 'math', but prompts have none"):
        read_prompts(["math=a.jsonl"])
    with pytest.raises(ValueError, match="num_prompts=0 must be at least 1"):
        read_prompts([write(tmp_path / "a.jsonl", [GYM])], num_prompts=0)
    with pytest.raises(FileNotFoundError):
        read_prompts([str(tmp_path / "none.jsonl")])
