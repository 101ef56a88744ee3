"""Curate the pretraining data: from raw documents to token sequences in training order.

In: the text of four installed packages and generated problems (tiny, small), NVIDIA's released datasets (medium, full), or
your own files (--sources). Out: a Dataset: a tokenizer, packed sequences for each phase, held-out data to evaluate on,
and for every filter what it dropped and why.
Source: arXiv 2508.14444, sections 2.2, 2.3 and 2.6, whose English web text is made as in Nemotron-CC (arXiv 2412.02595).
What the papers leave open is marked where it stands.
Run: python -m nemotron.recipes.nano2.stage0_pretrain.data_curation --scale tiny

Left out: extraction of text from HTML, exact-substring deduplication, and all rewriting of documents by language models,
which makes a third of the published corpus.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nemotron.recipes.curation  # before daft: it switches Daft's telemetry off  # noqa: I001
import daft
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from daft import DataFrame, col
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

from nemotron import Artifact, Scale, apply_scale, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process
from nemotron.recipes.curation.blending import blend_order
from nemotron.recipes.curation.decontaminate import decontamination_filter
from nemotron.recipes.curation.dedup import exact_duplicate_filter, near_duplicate_filter
from nemotron.recipes.curation.filters import DroppedDocument, FilterReport, apply_filter
from nemotron.recipes.curation.language import language_filter
from nemotron.recipes.curation.licence import licence_filter
from nemotron.recipes.curation.long_context import long_document_qa, long_documents, recall_rows
from nemotron.recipes.curation.normalise import normalised
from nemotron.recipes.curation.packing import TokenStream, concatenate_documents, cut_once
from nemotron.recipes.curation.quality import quality_filters
from nemotron.recipes.curation.scorers import ScorerReport, add_buckets, bucket_filter
from nemotron.recipes.curation.split import held_out_modules, order_of
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, encode_documents, save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.blend import BLEND, LONG_DOCUMENT_QA, RELEASED, renormalised
from nemotron.recipes.nano2.sizes import phase_steps, resolved
from nemotron.recipes.sources import Document, Unreadable
from nemotron.recipes.sources.packages import PACKAGES, package_documents
from nemotron.recipes.sources.problems import Problem, problem_documents
from nemotron.recipes.sources.problems import arithmetic


@dataclass
class Config:
    """Curate the pretraining data. A number left out is the one in sizes.py for the scale."""

    scale: Scale = "tiny"
    """Share of the raw documents and size of everything made from them: tiny, small, medium or full."""
    seed: int = 1234
    """Picks the validation modules, the order of the documents and the generated problems."""
    output_dir: Path | None = None
    """Where the Dataset goes; outputs/nano2/<scale>/stage0_pretrain/data_curation if left out."""
    sources: tuple[str, ...] = ()
    """Files, directories, globs or URIs (.txt, .jsonl, .jsonl.gz, .parquet), each as <path> or <category>=<path>. Left out:
    installed packages and generated problems at tiny and small, NVIDIA's released datasets at medium and full."""
    text_column: str = "text"
    """Column of the sources that holds the text."""
    raw_documents: int | None = None
    """Size of the raw corpus, of which the scale takes its share."""
    vocab_size: int | None = None
    """Tokens of the tokenizer."""
    sequence_length: int | None = None
    """Predicted tokens in a training sequence of phases 1 to 3."""
    long_context_length: int | None = None
    """Predicted tokens in a sequence of the long-context phase."""
    num_steps: int | None = None
    """Optimizer steps of phases 1 to 3 that the dataset has sequences for."""
    batch_sequences: int | None = None
    """Sequences per optimizer step in phases 1 to 3."""
    long_context_steps: int | None = None
    """Optimizer steps of the long-context phase that the dataset has sequences for."""
    long_context_batch_sequences: int | None = None
    """Sequences per optimizer step in the long-context phase."""

    def __post_init__(self) -> None:
        for name in ("raw_documents", "sequence_length", "long_context_length", "num_steps", "batch_sequences",
                     "long_context_batch_sequences"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be greater than 0")
        if self.long_context_steps is not None and self.long_context_steps < 0:
            raise ValueError(f"long_context_steps={self.long_context_steps} must not be negative")


class BlendShare(BaseModel):
    """What one category contributes to one phase."""

    weight: float
    num_sequences: int
    epochs: float
    """How often the category's tokens are read in this phase."""


class Attribution(BaseModel):
    """How many kept documents come from one origin under one licence."""

    origin: str
    licence: str
    num_documents: int


class Dataset(Artifact):
    """Token sequences to train on, data to evaluate on, and the record of how they were made."""

    num_examples: int = Field(gt=0)
    """Training sequences of all phases."""
    num_documents: int = Field(gt=0)
    """Documents that every filter kept."""
    vocab_size: int
    sequence_length: int
    long_context_length: int
    tokenizer_path: Path
    """Directory that `AutoTokenizer.from_pretrained` reads."""
    phase1_path: Path
    """A row a sequence, in training order: category, tokens (sequence_length + 1; the next row of a category starts with
    the last token of this one). The other phases likewise."""
    phase2_path: Path
    phase3_path: Path
    long_context_path: Path
    validation_path: Path
    """As phase1_path, from held-out modules; the last row of a category may be shorter."""
    long_validation_path: Path
    """tokens (long_context_length + 1), each from one held-out document if there are such long ones, else from several."""
    problems_path: Path
    """Multiple-choice problems for evaluation: id, question, choices, correct."""
    recall_path: Path
    """Recall test rows: tokens, answer_start, distance, num_facts."""
    documents_path: Path
    """Every kept document: id, module, category, split, num_tokens, bucket, licence, origin."""
    filters: dict[str, FilterReport]
    """In the order in which they were applied."""
    unreadable: list[DroppedDocument]
    """The first of the things that a source could not read."""
    num_unreadable: int
    scorers: list[ScorerReport]
    attribution: list[Attribution]
    blend: dict[str, dict[str, BlendShare]]
    """Phase -> category."""
    absent_categories: dict[str, list[str]]
    """Phase -> categories of the published blend without a document; the others share their weight."""


@dataclass(frozen=True)
class HeldOut:
    """Sizes of everything that is evaluated on. Our choice throughout: what two processor cores evaluate in seconds (tiny)
    or in a minute (small)."""

    module_share: float
    """Share of the modules that no training sequence may contain."""
    sequences: int
    """Validation sequences of each category at most."""
    long_sequences: int
    problems: int
    """Problems of each family."""
    recall_rows: int
    """Recall rows of each distance."""


HELD_OUT = {
    "tiny": HeldOut(module_share=0.1, sequences=128, long_sequences=8, problems=40, recall_rows=8),
    "small": HeldOut(module_share=0.05, sequences=384, long_sequences=16, problems=250, recall_rows=50),
    "medium": HeldOut(module_share=0.01, sequences=1024, long_sequences=64, problems=1000, recall_rows=100),
    "full": HeldOut(module_share=0.001, sequences=4096, long_sequences=64, problems=1000, recall_rows=100),
}
PACKAGE_SHARE = 0.6  # our choice: of the offline corpus; the rest are problems

Row = dict[str, Any]


def raw_documents(config: Config) -> tuple[list[Document], list[Unreadable]]:
    """The raw corpus: as many documents as the scale's share of `raw_documents`; packages come by whole modules."""
    budget = None if config.raw_documents is None else apply_scale(config.raw_documents, config.scale)
    sources = config.sources
    if not sources and config.scale in ("medium", "full"):
        sources = tuple(f"{category}={uri}" for category, uris in RELEASED.items() for uri in uris)
    if sources:
        from nemotron.recipes.sources.files import read_sources
        return read_sources(sources, text_column=config.text_column, num_documents=budget)
    assert budget is not None
    num_package_documents = round(budget * PACKAGE_SHARE)
    documents, unreadable = package_documents(num_package_documents)
    problems = arithmetic.generate_problems(budget - num_package_documents, config.seed, split="train")
    return documents + problem_documents(problems), unreadable


def evaluation_problems(config: Config) -> list[Problem]:
    """Problems of every family whose task no training problem has."""
    return arithmetic.generate_problems(HELD_OUT[config.scale].problems, config.seed, split="evaluation")


def to_dataframe(documents: list[Document]) -> DataFrame:
    """One row a document, one column a field, the text normalised."""
    columns = {name: [getattr(document, name) for document in documents] for name in Document.__dataclass_fields__}
    schema = pa.schema([(name, pa.bool_() if name in ("has_example", "exported") else pa.string()) for name in columns])
    return daft.from_arrow(pa.table(columns, schema=schema)).with_column("text", normalised(col("text")))


def write_rows(path: Path, rows: list[Row], schema: dict[str, pa.DataType]) -> None:
    """One Parquet file with the columns of `schema`."""
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(schema.items()))), path)


TOKENS = pa.list_(pa.int32())
SEQUENCE_COLUMNS = {"category": pa.string(), "tokens": TOKENS}


def main(config: Config) -> Dataset:
    """Curate and return the Dataset."""
    config = resolved(config, "stage0_pretrain", "data_curation")
    assert config.output_dir and config.vocab_size and config.sequence_length and config.long_context_length
    assert config.num_steps and config.batch_sequences
    assert config.long_context_steps is not None and config.long_context_batch_sequences
    held_out = HELD_OUT[config.scale]

    with working_directory(config.output_dir, Dataset) as work:
        raw, unreadable = raw_documents(config)
        problems = evaluation_problems(config)
        evaluation_sets = {"evaluation problems": [f"{p.question} {choice}" for p in problems for choice in p.choices]}

        # Filters, each with its report.
        filters: dict[str, FilterReport] = {}
        documents = to_dataframe(raw)
        for rule in (licence_filter(), language_filter(), *quality_filters(), exact_duplicate_filter()):
            documents = apply_filter(documents, rule, filters)
        documents = apply_filter(documents, near_duplicate_filter(documents), filters)
        documents = apply_filter(documents, decontamination_filter(evaluation_sets), filters)
        documents, scorers = add_buckets(documents, config.seed)
        documents = apply_filter(documents, bucket_filter(), filters)

        # Split by module, then the tokenizer from the training side alone.
        rows = documents.sort("id").to_pylist()
        modules = held_out_modules(((row["module"], row["category"]) for row in rows), held_out.module_share, config.seed)
        for row in rows:
            row["split"] = "validation" if row["module"] in modules else "train"
        rows.sort(key=lambda row: order_of(config.seed, row["id"]))
        training = [row for row in rows if row["split"] == "train"]
        tokenizer = train_tokenizer((row["text"] for row in training), config.vocab_size)
        save_tokenizer(tokenizer, work / "tokenizer")
        for row, tokens in zip(rows, encode_documents(tokenizer, [row["text"] for row in rows]), strict=True):
            row["tokens"] = tokens
        validation = [row for row in rows if row["split"] == "validation"]

        # Training sequences: one cursor a category, running on from phase to phase.
        categories = sorted({row["category"] for row in rows})
        streams = {}
        for category in categories:
            stream = concatenate_documents((r["tokens"] for r in training if r["category"] == category), END_OF_DOCUMENT)
            if len(stream) <= config.sequence_length:
                raise ValueError(
                    f"category {category!r} has {len(stream)} training tokens, less than one sequence of "
                    f"{config.sequence_length}; bring more documents or lower --sequence-length"
                )
            streams[category] = TokenStream(stream)
        blend, absent = {}, {}
        steps = {name: (num, config.batch_sequences, config.sequence_length) for name, num in phase_steps(config.num_steps).items()}
        steps["long_context"] = (config.long_context_steps, config.long_context_batch_sequences, config.long_context_length)
        for phase, (num_steps, batch_sequences, length) in steps.items():
            weights = renormalised(BLEND[phase], [*categories, LONG_DOCUMENT_QA])
            absent[phase] = sorted(set(BLEND[phase]) - set(weights))
            order = blend_order(weights, num_steps * batch_sequences)
            counts = Counter(order)
            academic = [row for row in training if row["category"] == "academic"] or training
            questions = iter(
                long_document_qa(
                    [(row["module"], row["tokens"].tolist()) for row in academic],
                    lambda text: tokenizer.encode(text).ids,
                    end_of_document=END_OF_DOCUMENT,
                    seed=config.seed,
                    length=length,
                    num_sequences=counts[LONG_DOCUMENT_QA],
                )
            )
            before = {category: streams[category].epochs for category in categories}
            sequences = [
                {"category": c, "tokens": next(questions) if c == LONG_DOCUMENT_QA else streams[c].next_row(length)}
                for c in order
            ]
            write_rows(work / f"{phase}.parquet", sequences, SEQUENCE_COLUMNS)
            blend[phase] = {
                c: BlendShare(
                    weight=weights[c],
                    num_sequences=counts[c],
                    epochs=1.0 if c == LONG_DOCUMENT_QA else streams[c].epochs - before[c],
                )
                for c in weights
            }

        # Held-out data.
        validation_sequences = []
        for category in categories:
            stream = concatenate_documents((r["tokens"] for r in validation if r["category"] == category), END_OF_DOCUMENT)
            for tokens in cut_once(stream, config.sequence_length)[: held_out.sequences]:
                validation_sequences.append({"category": category, "tokens": tokens})
        write_rows(work / "validation.parquet", validation_sequences, SEQUENCE_COLUMNS)
        single = [(row["id"], row["tokens"].tolist()) for row in validation]
        blank_line = tokenizer.encode("\n\n").ids
        long = long_documents(single, separator=blank_line, seed=config.seed, length=config.long_context_length + 1)
        write_rows(work / "long_validation.parquet", [{"tokens": t} for t in long[: held_out.long_sequences]], {"tokens": TOKENS})
        write_rows(
            work / "problems.parquet",
            [asdict(problem) for problem in problems],
            {"id": pa.string(), "question": pa.string(), "choices": pa.list_(pa.string()), "correct": pa.int32()},
        )
        recall = recall_rows(
            single,
            lambda text: tokenizer.encode(text).ids,
            seed=config.seed,
            sequence_length=config.sequence_length,
            long_context_length=config.long_context_length,
            rows_per_distance=held_out.recall_rows,
        )
        write_rows(
            work / "recall.parquet",
            [asdict(row) for row in recall],
            {"tokens": TOKENS, "answer_start": pa.int32(), "distance": pa.int32(), "num_facts": pa.int32()},
        )

        for row in rows:
            row["num_tokens"] = len(row["tokens"])
        names = ("id", "module", "category", "split", "licence", "origin")
        write_rows(
            work / "documents.parquet",
            rows,
            {name: pa.string() for name in names} | {"num_tokens": pa.int32(), "bucket": pa.int32()},
        )
        attribution = Counter((row["origin"], row["licence"]) for row in rows)
        Dataset(
            path=work,
            num_examples=sum(share.num_sequences for shares in blend.values() for share in shares.values()),
            num_documents=len(rows),
            vocab_size=tokenizer.get_vocab_size(),
            sequence_length=config.sequence_length,
            long_context_length=config.long_context_length,
            tokenizer_path=work / "tokenizer",
            phase1_path=work / "phase1.parquet",
            phase2_path=work / "phase2.parquet",
            phase3_path=work / "phase3.parquet",
            long_context_path=work / "long_context.parquet",
            validation_path=work / "validation.parquet",
            long_validation_path=work / "long_validation.parquet",
            problems_path=work / "problems.parquet",
            recall_path=work / "recall.parquet",
            documents_path=work / "documents.parquet",
            filters=filters,
            unreadable=[DroppedDocument(id=u.id, value=u.reason) for u in unreadable[:5]],
            num_unreadable=len(unreadable),
            scorers=scorers,
            attribution=[
                Attribution(origin=origin, licence=licence, num_documents=count)
                for (origin, licence), count in sorted(attribution.items())
            ],
            blend=blend,
            absent_categories=absent,
        ).save(config)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        print_complete({"dataset": main(config)})
