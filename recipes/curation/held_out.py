"""What pretraining is evaluated on: validation sequences, long sequences, problems and recall rows, as Parquet files.

In: the tokenized documents of the validation split, and problems. Out: four files in the Dataset's directory.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer

from nemotron.recipes.curation.long_context import LongDocuments, recall_rows
from nemotron.recipes.curation.packing import cut_once
from nemotron.recipes.curation.rows import TOKENS, Row, write_rows
from nemotron.recipes.curation.tokenized import TokenizedDocuments, streams_of
from nemotron.recipes.sources.problems.problem import Problem


def write_held_out_data(
    work: Path,
    documents: TokenizedDocuments,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    seed: int,
    sequence_length: int,
    long_context_length: int,
    validation_sequences: int,
    long_validation_sequences: int,
    rows_per_distance: int,
) -> None:
    """Write validation.parquet, long_validation.parquet, problems.parquet and recall.parquet.

    Args:
        work: directory of the Dataset.
        documents: of both splits; only the validation split is used.
        sequence_length: predicted tokens in a validation sequence; the last one of a category may be shorter.
        long_context_length: predicted tokens in a long sequence.
        validation_sequences: maximum number of validation sequences of each category.
        long_validation_sequences: maximum number of long sequences.
        rows_per_distance: number of recall rows for each distance (`recall_distances`).
    """
    sequences: list[Row] = []
    for category, stream in streams_of(documents, "validation", min_tokens=2).items():
        cut = cut_once(stream.tokens[: validation_sequences * sequence_length + 1], sequence_length)
        sequences += [{"category": category, "tokens": tokens} for tokens in cut]
    write_rows(work / "validation.parquet", sequences, category=pa.string(), tokens=TOKENS)

    # A long sequence comes from a single document if one is long enough, else from several with a blank line between.
    held_out = documents.documents("validation", by="id")
    blank_line = tokenizer.encode("\n\n").ids
    long = LongDocuments(held_out, separator=blank_line, seed=seed, length=long_context_length + 1)
    long_rows = [{"tokens": tokens} for tokens in long[:long_validation_sequences]]
    write_rows(work / "long_validation.parquet", long_rows, tokens=TOKENS)

    text = dict.fromkeys(("id", "question"), pa.string())
    problem_rows = [asdict(problem) for problem in problems]
    write_rows(work / "problems.parquet", problem_rows, **text, choices=pa.list_(pa.string()), correct=pa.int32())

    recall = recall_rows(
        held_out,
        lambda text: tokenizer.encode(text).ids,
        seed=seed,
        sequence_length=sequence_length,
        long_context_length=long_context_length,
        rows_per_distance=rows_per_distance,
    )
    numbers = dict.fromkeys(("answer_start", "distance", "num_facts"), pa.int32())
    write_rows(work / "recall.parquet", [asdict(row) for row in recall], tokens=TOKENS, **numbers)
