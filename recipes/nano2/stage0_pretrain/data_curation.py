"""Curate the pretraining data: from raw documents to token sequences in training order.

In: the text of four installed packages and generated problems (tiny, small), NVIDIA's released datasets (medium,
full), or your own files (--sources). Out: a Dataset: a tokenizer, a file of sequences for each phase, held-out data to
evaluate on, and for every filter what it dropped and why.
Source: arXiv 2508.14444, sections 2.2, 2.3 and 2.6; its English web text is made as in Nemotron-CC (arXiv 2412.02595).
What the papers leave open is marked where it stands.
Run: python -m nemotron.recipes.nano2.stage0_pretrain.data_curation --scale tiny

Left out: text from HTML, exact-substring deduplication, and everything that language models write or rewrite, which is
a third of the published corpus. Filters run as dataframes wherever Daft runs; reading, and the split, the tokenizer and
the packing that follow, hold all documents in the memory of one process.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

from nemotron import Artifact, Scale, apply_scale, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process
from nemotron.recipes.curation.blending import blend_order
from nemotron.recipes.curation.decontaminate import decontamination_filter, without_imports
from nemotron.recipes.curation.dedup import exact_duplicate_filter, near_duplicate_filter
from nemotron.recipes.curation.filters import MAX_EXAMPLES, DroppedDocument, FilterReport, apply_filter, progress
from nemotron.recipes.curation.language import language_filter
from nemotron.recipes.curation.licence import licence_filter
from nemotron.recipes.curation.long_context import long_document_qa, long_documents, recall_rows
from nemotron.recipes.curation.normalise import normalised
from nemotron.recipes.curation.packing import TokenStream, concatenate_documents, cut_once
from nemotron.recipes.curation.quality import quality_filters
from nemotron.recipes.curation.scorers import GROUPS, ScorerReport, add_buckets, bucket_filter, group_of
from nemotron.recipes.curation.split import digest_of, held_out_modules
from nemotron.recipes.curation.tokenizer import (
    END_OF_DOCUMENT,
    MIN_VOCAB_SIZE,
    encode_documents,
    save_tokenizer,
    train_tokenizer,
)
from nemotron.recipes.nano2.blend import (
    BLEND,
    LONG_DOCUMENT_QA,
    LONG_DOCUMENT_QA_SHARE,
    RELEASED,
    TEMPLATED,
    renormalised,
)
from nemotron.recipes.nano2.sizes import SIZES, phase_steps, resolved
from nemotron.recipes.sources import Document, Unreadable
from nemotron.recipes.sources.dataframes import daft
from nemotron.recipes.sources.files import read_sources
from nemotron.recipes.sources.packages import PACKAGES, package_documents, package_test_texts
from nemotron.recipes.sources.problems import Problem, Split, arithmetic, lookup, problem_documents


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
    """Files, directories, globs or URIs (.txt, .jsonl, .jsonl.gz, .parquet), each as <path> or <category>=<path>. Left
    out: installed packages and generated problems at tiny and small, NVIDIA's released datasets at medium and full."""
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
        for name in SIZES_ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be greater than 0")
        if self.vocab_size is not None and self.vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(f"vocab_size={self.vocab_size} must be {MIN_VOCAB_SIZE} or more, for all bytes")
        if self.long_context_steps is not None and self.long_context_steps < 0:
            raise ValueError(f"long_context_steps={self.long_context_steps} must not be negative")
        if self.text_column != "text" and not self.sources:
            raise ValueError(f"text_column={self.text_column!r} has no effect without --sources; add them")


SIZES_ABOVE_ZERO = (
    *("raw_documents", "sequence_length", "long_context_length"),
    *("num_steps", "batch_sequences", "long_context_batch_sequences"),
)


class BlendShare(BaseModel):
    """What one category contributes to one phase."""

    weight: float
    num_sequences: int
    epochs: float | None
    """How often the category's tokens are read in this phase; None for sequences that are made for it."""


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
    """A row a sequence, in training order: category, tokens (sequence_length + 1 ids; the next row of a category starts
    with the last token of this one). The other phases likewise."""
    phase2_path: Path
    phase3_path: Path
    long_context_path: Path
    validation_path: Path
    """As phase1_path, from held-out modules; the last row of a category may be shorter."""
    long_validation_path: Path
    """tokens (long_context_length + 1 ids): of one held-out document each, of several joined where none is so long."""
    problems_path: Path
    """Multiple-choice problems for evaluation: id, question, choices, correct."""
    recall_path: Path
    """Recall test rows: tokens, answer_start, distance, num_facts."""
    documents_path: Path
    """Every kept document: id, module, category, split, num_tokens, bucket, licence, origin."""
    quality_groups: dict[str, int]
    """Nemotron-CC's quality groups -> kept documents."""
    filters: dict[str, FilterReport]
    """In the order in which they were applied."""
    unreadable: list[DroppedDocument]
    """The first of the things that a source could not read."""
    num_unreadable: int
    scorers: list[ScorerReport]
    attribution: list[Attribution]
    blend: dict[str, dict[str, BlendShare]]
    """Phase -> category."""
    absent_categories: list[str]
    """Categories of the published blend that have no document; the others of their kind share their weight."""


Row = dict[str, Any]
TOKENS = pa.list_(pa.int32())
SEQUENCE_FILES = ("phase1", "phase2", "phase3", "long_context", "validation", "long_validation", "recall")


def raw_documents(config: Config) -> tuple[list[Document], list[Unreadable]]:
    """The raw corpus: the scale's share of `raw_documents`, a few more where packages come by whole modules."""
    num_documents = None if config.raw_documents is None else apply_scale(config.raw_documents, config.scale)
    released = tuple(f"{category}={uri}" for category, uris in RELEASED.items() for uri in uris)
    sources = config.sources or (released if config.scale in ("medium", "full") else ())
    if sources:
        documents, unreadable = read_sources(sources, text_column=config.text_column, num_documents=num_documents)
    else:
        assert num_documents is not None
        num_problems = round(num_documents * (1 - SIZES[config.scale].pretrain.package_share))
        documents, unreadable = package_documents(max(1, num_documents - num_problems))
        documents += problem_documents(generated_problems(num_problems, config.seed, "train"))
    progress.print(f"{len(documents):,} raw documents, {len(unreadable):,} unreadable")
    for item in unreadable[:MAX_EXAMPLES]:
        progress.print(f"unreadable: {item.id}: {item.reason}")
    if not documents:
        raise ValueError(f"all {len(unreadable)} documents are unreadable, {unreadable[0].id}: {unreadable[0].reason}")
    for category in sorted({document.category for document in documents} - set(BLEND["phase1"])):
        raise ValueError(f"{category!r} is no category of the blend; use one of {', '.join(BLEND['phase1'])}")
    return documents, unreadable


def generated_problems(num_problems: int, seed: int, split: Split) -> list[Problem]:
    """Problems of every family; a task of one split is never in the other."""
    half = num_problems // 2
    problems = arithmetic.generate_problems(num_problems - half, seed, split=split)
    return problems + lookup.generate_problems(half, seed, split=split)


def evaluation_texts(raw: list[Document], problems: list[Problem]) -> dict[str, Iterable[str]]:
    """The evaluation sets of which no training document may repeat 13 words.

    Two more are kept apart otherwise: recall questions ask for keys that no training text has, and the validation split
    takes whole modules, because modules share 13 words of boilerplate.
    """
    texts: dict[str, Iterable[str]] = {"evaluation problems": [problem.question for problem in problems]}
    modules = {document.module for document in raw if document.origin.split(" ")[0] in PACKAGES}
    if modules:
        tests, unreadable = package_test_texts(modules)
        texts["tests of the packages"] = [without_imports(test.text) for test in tests]
        for item in unreadable:
            progress.print(f"not decontaminated against {item.id}: {item.reason}")
    return texts


def curate(
    raw: list[Document], evaluation_sets: dict[str, Iterable[str]], seed: int
) -> tuple[daft.DataFrame, dict[str, FilterReport], list[ScorerReport]]:
    """The normalised documents that every filter keeps, with the column `bucket`, and all reports.

    The scorers come last: while there are duplicates, the modules that test a scorer repeat those that trained it.
    """
    columns = {field.name: [getattr(document, field.name) for document in raw] for field in fields(Document)}
    types = [(name, pa.bool_() if name in ("has_example", "exported") else pa.string()) for name in columns]
    documents = daft.from_arrow(pa.table(columns, schema=pa.schema(types)))
    documents = documents.with_column("text", normalised(daft.col("text")))

    filters: dict[str, FilterReport] = {}
    for rule in (licence_filter(), language_filter(), *quality_filters(), exact_duplicate_filter()):
        documents = apply_filter(documents, rule, filters)
    documents = apply_filter(documents, near_duplicate_filter(documents), filters)
    documents = apply_filter(documents, decontamination_filter(evaluation_sets), filters)
    documents, scorers = add_buckets(documents, seed)
    for scorer in scorers:
        progress.print(
            f"scorer of the stand-in label {scorer.label}: {scorer.held_out_accuracy:.1%} right on "
            f"{scorer.num_held_out:,} held-out documents, always the same label {scorer.majority_accuracy:.1%}"
        )
    if not scorers:
        progress.print("too few documents carry a label: no quality scorer, no buckets")
    documents = apply_filter(documents, bucket_filter(), filters)
    return documents, filters, scorers


def split_and_tokenize(documents: daft.DataFrame, config: Config) -> tuple[list[Row], Tokenizer]:
    """One row a document, with split and tokens, in training order; and the tokenizer of the training split."""
    assert config.vocab_size
    rows = sorted(documents.to_pylist(), key=lambda row: training_order(row, config.seed))
    modules = ((row["module"], row["category"]) for row in rows)
    held_out = held_out_modules(modules, SIZES[config.scale].held_out.module_share, config.seed)
    for row in rows:
        row["split"] = "validation" if row["module"] in held_out else "train"
    tokenizer = train_tokenizer((row["text"] for row in rows if row["split"] == "train"), config.vocab_size)
    for row, tokens in zip(rows, encode_documents(tokenizer, [row["text"] for row in rows]), strict=True):
        row["tokens"], row["num_tokens"] = tokens, len(tokens)
    return rows, tokenizer


def training_order(row: Row, seed: int) -> tuple[str, str]:
    """Sort key: documents by a digest of (seed, id); generated problems, which grow harder, by their number."""
    key = row["id"].rpartition("/")[2] if row["origin"] == "procedural" else digest_of(seed, row["id"])
    return key, row["id"]


def streams_of(rows: list[Row], split: str, min_tokens: int) -> dict[str, TokenStream]:
    """Category -> its documents of one split, one after the other.

    Raises:
        ValueError: if a category has fewer tokens than `min_tokens`.
    """
    streams = {}
    for category in sorted({row["category"] for row in rows}):
        members = (row["tokens"] for row in rows if row["category"] == category and row["split"] == split)
        tokens = concatenate_documents(members, None if category in TEMPLATED else END_OF_DOCUMENT)
        if len(tokens) < min_tokens:
            raise ValueError(
                f"the corpus is too small: the {split} split of category {category!r} has {len(tokens)} tokens and "
                f"needs {min_tokens}; bring more documents or lower --sequence-length"
            )
        streams[category] = TokenStream(tokens)
    return streams


def write_training_sequences(
    work: Path, rows: list[Row], tokenizer: Tokenizer, config: Config
) -> dict[str, dict[str, BlendShare]]:
    """One file a phase. Every category is read on from phase to phase, and from its beginning again when it ends."""
    assert config.sequence_length is not None
    assert config.long_context_length is not None
    assert config.num_steps is not None
    assert config.batch_sequences is not None
    assert config.long_context_steps is not None
    assert config.long_context_batch_sequences is not None
    streams = streams_of(rows, "train", config.sequence_length + 1)
    num_sequences = {phase: steps * config.batch_sequences for phase, steps in phase_steps(config.num_steps).items()}
    num_sequences["long_context"] = config.long_context_steps * config.long_context_batch_sequences
    academic = [row for row in rows if row["category"] == "academic"] or rows  # published: academic documents
    blend: dict[str, dict[str, BlendShare]] = {}
    for phase, count in num_sequences.items():
        length = config.long_context_length if phase == "long_context" else config.sequence_length
        weights = renormalised(BLEND[phase], list(streams))
        if phase == "long_context":
            weights = {name: weight * (1 - LONG_DOCUMENT_QA_SHARE) for name, weight in weights.items()}
            weights[LONG_DOCUMENT_QA] = LONG_DOCUMENT_QA_SHARE
        order = blend_order(weights, count)
        questions = iter(
            long_document_qa(
                [(row["module"], row["tokens"].tolist()) for row in academic if row["split"] == "train"],
                lambda text: tokenizer.encode(text).ids,
                end_of_document=END_OF_DOCUMENT,
                seed=config.seed,
                length=length,
                num_sequences=order.count(LONG_DOCUMENT_QA),
            )
        )
        epochs_before = {category: stream.epochs for category, stream in streams.items()}
        tokens = (next(questions) if name == LONG_DOCUMENT_QA else streams[name].next_row(length) for name in order)
        sequences = ({"category": name, "tokens": row} for name, row in zip(order, tokens, strict=True))
        write_rows(work / f"{phase}.parquet", sequences, category=pa.string(), tokens=TOKENS)
        blend[phase] = {
            name: BlendShare(
                weight=weight,
                num_sequences=order.count(name),
                epochs=streams[name].epochs - epochs_before[name] if name in streams else None,
            )
            for name, weight in weights.items()
        }
        shares = ", ".join(f"{name} {share.num_sequences:,}" for name, share in blend[phase].items())
        progress.print(f"{phase}: {count:,} sequences of {length:,} tokens: {shares}")
    return blend


def write_held_out_data(
    work: Path, rows: list[Row], tokenizer: Tokenizer, problems: list[Problem], config: Config
) -> None:
    """Validation sequences by category, long ones, multiple-choice problems and recall rows."""
    assert config.sequence_length is not None
    assert config.long_context_length is not None
    size = SIZES[config.scale].held_out
    sequences: list[Row] = []
    for category, stream in streams_of(rows, "validation", min_tokens=2).items():
        cut = cut_once(stream.tokens, config.sequence_length)[: size.sequences]
        sequences += [{"category": category, "tokens": tokens} for tokens in cut]
    write_rows(work / "validation.parquet", sequences, category=pa.string(), tokens=TOKENS)

    # Each document is a module of its own here: a long sequence is from one document where there is one so long.
    documents = [(row["id"], row["tokens"].tolist()) for row in rows if row["split"] == "validation"]
    blank_line = tokenizer.encode("\n\n").ids
    long = long_documents(documents, separator=blank_line, seed=config.seed, length=config.long_context_length + 1)
    write_rows(
        work / "long_validation.parquet", [{"tokens": tokens} for tokens in long[: size.long_sequences]], tokens=TOKENS
    )
    write_rows(
        work / "problems.parquet",
        [asdict(problem) for problem in problems],
        id=pa.string(),
        question=pa.string(),
        choices=pa.list_(pa.string()),
        correct=pa.int32(),
    )
    recall = recall_rows(
        documents,
        lambda text: tokenizer.encode(text).ids,
        seed=config.seed,
        sequence_length=config.sequence_length,
        long_context_length=config.long_context_length,
        rows_per_distance=size.recall_rows,
    )
    write_rows(
        work / "recall.parquet",
        [asdict(row) for row in recall],
        tokens=TOKENS,
        answer_start=pa.int32(),
        distance=pa.int32(),
        num_facts=pa.int32(),
    )


def write_rows(path: Path, rows: Iterable[Row], **columns: pa.DataType) -> None:
    """One Parquet file with these columns of the rows, a row group for every 10,000 of them."""
    schema = pa.schema(list(columns.items()))
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(remaining, 10_000)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def sha256_of(values: Iterable[str]) -> str:
    """One digest over many strings in their order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{len(value)}:{value}".encode())
    return digest.hexdigest()


def curation_ladder(config: Config, raw: list[Document], rows: list[Row], dataset: Dataset) -> list[Row]:
    """What a run must reproduce, in the order in which it happens: the first entry that differs names the cause."""
    ladder: list[Row] = []

    def add(rung: str, name: str, value: Any) -> None:
        ladder.append({"rung": rung, "name": name, "step": 0, "value": value})

    for name in sorted(PACKAGES):
        add("package versions", name, version(name))
    for name, value in asdict(config).items():
        if name != "output_dir":
            add("config", name, list(value) if isinstance(value, tuple) else value)
    add("inputs", "num_documents", len(raw))
    add("inputs", "sha256", sha256_of(part for document in raw for part in (document.id, document.text)))
    for name, report in dataset.filters.items():
        add("filters", name, {"num_seen": report.num_seen, "num_dropped": report.num_dropped})
    for scorer in dataset.scorers:
        add("scorers", scorer.label, scorer.model_dump())
    add("documents", "num_documents", len(rows))
    add("documents", "sha256", sha256_of(row["id"] for row in rows))
    add("documents", "quality groups", dataset.quality_groups)
    add("tokenizer", "vocab_size", dataset.vocab_size)
    for split in ("train", "validation"):
        for category in sorted({row["category"] for row in rows}):
            members = [row for row in rows if (row["split"], row["category"]) == (split, category)]
            counts = {"num_documents": len(members), "num_tokens": sum(row["num_tokens"] for row in members)}
            add("tokens", f"{split}/{category}", counts)
    for name in SEQUENCE_FILES:
        tokens = pq.read_table(dataset.path / f"{name}.parquet")["tokens"]
        digest = hashlib.sha256(tokens.combine_chunks().flatten().to_numpy().astype("<i4").tobytes()).hexdigest()
        add("token ids", name, {"num_sequences": len(tokens), "sha256": digest})
    for phase, shares in dataset.blend.items():
        add("blend", phase, {name: share.model_dump() for name, share in shares.items()})
    return ladder


def main(config: Config) -> Dataset:
    """Curate and return the Dataset."""
    config = resolved(config, "stage0_pretrain", "data_curation")
    assert config.output_dir is not None
    assert config.sequence_length is not None
    assert config.long_context_length is not None
    with working_directory(config.output_dir, Dataset) as work:
        raw, unreadable = raw_documents(config)
        problems = generated_problems(SIZES[config.scale].held_out.problems, config.seed, "evaluation")
        documents, filters, scorers = curate(raw, evaluation_texts(raw, problems), config.seed)
        rows, tokenizer = split_and_tokenize(documents, config)
        save_tokenizer(tokenizer, work / "tokenizer")
        blend = write_training_sequences(work, rows, tokenizer, config)
        write_held_out_data(work, rows, tokenizer, problems, config)
        text = dict.fromkeys(("id", "module", "category", "split", "licence", "origin"), pa.string())
        write_rows(work / "documents.parquet", rows, **text, num_tokens=pa.int32(), bucket=pa.int32())

        absent = sorted(set(BLEND["phase1"]) - {row["category"] for row in rows})
        if absent:
            progress.print(f"absent categories, whose weight the others of their kind share: {', '.join(absent)}")
        attribution = Counter((row["origin"], row["licence"]) for row in rows)
        groups = Counter(group_of(row["bucket"]) for row in rows if row["bucket"] is not None)
        dataset = Dataset(
            path=work,
            metrics={f"scorer_accuracy/{scorer.label}": scorer.held_out_accuracy for scorer in scorers},
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
            quality_groups={name: groups[name] for name in GROUPS},
            filters=filters,
            unreadable=[DroppedDocument(id=item.id, value=item.reason) for item in unreadable[:MAX_EXAMPLES]],
            num_unreadable=len(unreadable),
            scorers=scorers,
            attribution=[
                Attribution(origin=origin, licence=licence, num_documents=count)
                for (origin, licence), count in sorted(attribution.items())
            ],
            blend=blend,
            absent_categories=absent,
        )
        (work / "ladder.json").write_text(json.dumps(curation_ladder(config, raw, rows, dataset), indent=1))
        dataset.save(config)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        print_complete({"dataset": main(config)})
