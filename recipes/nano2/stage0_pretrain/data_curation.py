"""Curate the pretraining data: from raw documents to token sequences in training order.

In: the text of four installed packages and generated problems (tiny, small), NVIDIA's released datasets (medium,
full), or your own files (--sources). Out: a Dataset: a tokenizer, a file of sequences for each phase, held-out data to
evaluate on, and for every filter what it dropped and why.
Source: arXiv 2508.14444, sections 2.2, 2.3 and 2.6; its English web text is made as in Nemotron-CC (arXiv 2412.02595).
What the papers leave open is marked where it is decided.
Run: python -m nemotron.recipes.nano2.stage0_pretrain.data_curation --scale tiny

Every step reads files and writes files, a part at a time, wherever Daft runs (DAFT_RUNNER=ray). Held in memory are
id, module and category of every document, and the category of every row of a phase.

Left out: text from HTML, exact-substring deduplication, and what language models write or rewrite, a third of the
published corpus.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from tokenizers import Tokenizer

from nemotron import Artifact, apply_scale, print_complete
from nemotron.artifact import working_directory
from nemotron.config import (
    BelowOne,
    Fraction,
    ScaledConfig,
    by_scale,
    our_choice,
    output_below,
    parse_command_line,
    published,
)
from nemotron.ladder import Ladder
from nemotron.pipe import step_process
from nemotron.recipes.curation.blending import BlendShare, blend_order
from nemotron.recipes.curation.decontaminate import decontamination_rule, without_imports
from nemotron.recipes.curation.dedup import exact_duplicates_rule, near_duplicates_rule
from nemotron.recipes.curation.digests import sha256_of, sha256_of_ids
from nemotron.recipes.curation.held_out import write_held_out_data
from nemotron.recipes.curation.language import language_rule
from nemotron.recipes.curation.licence import Attribution, attribution_of_pairs, licence_rule
from nemotron.recipes.curation.long_context import long_document_qa
from nemotron.recipes.curation.normalise import normalised
from nemotron.recipes.curation.packing import TokenFiles, write_token_rows
from nemotron.recipes.curation.quality import quality_rules
from nemotron.recipes.curation.rows import Phase, num_rows, planned_phase, read_chunks
from nemotron.recipes.curation.rules import DroppedItem, FilterReport, apply_to_dataframe, progress, report_unreadable
from nemotron.recipes.curation.scorers import GROUPS, ScorerReport, add_buckets, bucket_rule, group_of
from nemotron.recipes.curation.sequences import write_sequences
from nemotron.recipes.curation.tokenized import TokenizedDocuments, split_and_tokenize, streams_of, token_counts
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, MIN_VOCAB_SIZE, save_tokenizer, vocabulary_digest
from nemotron.recipes.nano2.blend import BLEND, LONG_DOCUMENT_QA, LONG_DOCUMENT_QA_SHARE, RELEASED, renormalised
from nemotron.recipes.nano2.models import BATCH_SEQUENCES, VOCAB_SIZES
from nemotron.recipes.sources import Unreadable
from nemotron.recipes.sources.dataframes import check_runner, daft, read_files
from nemotron.recipes.sources.documents import read_values, write_documents
from nemotron.recipes.sources.files import write_sources
from nemotron.recipes.sources.listing import sources_field
from nemotron.recipes.sources.packages import PACKAGES, package_documents, package_test_texts
from nemotron.recipes.sources.problems.families import generate_problems
from nemotron.recipes.sources.problems.problem import Problem, problem_documents

LONG_CONTEXT = "long_context"  # name of the last phase


@dataclass
class Config(ScaledConfig):
    """Curate the pretraining data."""

    seed: int = 1234
    """Picks the validation modules, the order of the documents and the generated problems."""
    output_dir: Path = output_below("nano2", "stage0_pretrain", "data_curation")
    """Where the Dataset goes."""

    # The raw text.
    sources: tuple[str, ...] = sources_field()
    """Files, directories, globs or URIs (.txt, .jsonl, .jsonl.gz, .parquet), each as <path> or <category>=<path>. Left
    out: installed packages and generated problems at tiny and small, NVIDIA's released datasets at medium and full."""
    text_column: str = "text"
    """Column of the sources that holds the text."""
    raw_documents: PositiveInt | Literal["all"] = by_scale(
        tiny=150_000, small=150_000, medium=20_000_000, full=our_choice("all")
    )
    """Size of the raw corpus, of which the scale takes its share; "all" reads every row of the sources."""
    package_share: Fraction = by_scale(tiny=0.6, small=0.35, medium=0.6, full=our_choice(0.6))
    """Share of an offline corpus that is text of packages; the rest is generated problems."""

    # What becomes training data.
    vocab_size: PositiveInt = by_scale(**VOCAB_SIZES)
    """Tokens of the tokenizer."""
    num_sequences: PositiveInt = by_scale(
        tiny=100 * 8,
        small=1300 * 8,  # docstrings are read about four times; at more epochs of less text the model memorizes them
        medium=11_444 * 256,  # 20 tokens per parameter
        full=published(3_178_914 * 768, "20T tokens in whole batches, section 2.5"),
    )
    """Training sequences of phases 1 to 3 together."""
    batch_sequences: PositiveInt = by_scale(**BATCH_SEQUENCES)
    """Sequences per optimizer step of training, which must be the same there: phases 1 and 2 have whole batches."""
    sequence_length: PositiveInt = by_scale(tiny=128, small=256, medium=2048, full=published(8192, "section 2.5"))
    """Predicted tokens in a training sequence of phases 1 to 3."""
    long_context_sequences: NonNegativeInt = by_scale(
        tiny=10, small=60, medium=1600, full=published(18_900_000_000 // 524_288, "18.9B tokens, section 2.6")
    )
    """Training sequences of the long-context phase."""
    long_context_length: PositiveInt = by_scale(
        tiny=512, small=1024, medium=16_384, full=published(524_288, "section 2.6")
    )
    """Predicted tokens in a sequence of the long-context phase."""

    # What is held out for evaluation.
    held_out_share: BelowOne = by_scale(tiny=0.1, small=0.1, medium=0.01, full=our_choice(0.001))
    """Share of the modules that no training sequence comes from."""
    validation_sequences: PositiveInt = by_scale(tiny=128, small=256, medium=1024, full=our_choice(4096))
    """Validation sequences of each category, at most."""
    long_validation_sequences: PositiveInt = by_scale(tiny=8, small=16, medium=64, full=our_choice(64))
    """Long validation sequences, at most."""
    num_problems: PositiveInt = by_scale(tiny=100, small=300, medium=1000, full=our_choice(1000))
    """Multiple-choice problems for evaluation."""
    recall_rows: PositiveInt = by_scale(tiny=8, small=25, medium=100, full=our_choice(100))
    """Recall rows for evaluation, of each distance."""

    def check(self) -> None:
        if self.vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(f"vocab_size={self.vocab_size} must be {MIN_VOCAB_SIZE} or more, for all bytes")
        self.check_left_out("text_column", when=not self.sources, because="without --sources")
        self.check_left_out("package_share", when=self.sources or self.scale in ("medium", "full"), because="on files")
        if self.scale in ("tiny", "small") and self.raw_documents == "all" and not self.sources:
            raise ValueError("raw_documents=all needs --sources: the offline corpus has no end; give a number")


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
    phases: list[Phase]
    """In training order. The columns of their files: category, tokens (sequence_length + 1 ids; the next row of a
    category starts with the last token of this one)."""
    validation_path: Path
    """Rows as in the phases, from held-out modules; the last row of a category may be shorter."""
    long_validation_path: Path
    """tokens (long_context_length + 1 ids): each of one held-out document, or of several joined if none is so long."""
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
    unreadable: list[DroppedItem]
    """The first documents that could not be read."""
    num_unreadable: int
    scorers: list[ScorerReport]
    attribution: list[Attribution]
    blend: dict[str, dict[str, BlendShare]]
    """Phase -> category."""
    absent_categories: list[str]
    """Categories of the blend that have no document; the others of their kind share their weight."""

    def counts(self) -> dict[str, int]:
        """What a step that reads this Dataset records in its ladder as inputs."""
        names = ("num_examples", "num_documents", "vocab_size", "sequence_length", "long_context_length")
        return {name: getattr(self, name) for name in names}


def planned_phases(config: Config) -> list[Phase]:
    """The four phases; they switch at 60 % and 90 % of the batches (published, section 2.3), rounded down."""
    batch, total = config.batch_sequences, config.num_sequences
    first, second = (total * percent // (100 * batch) * batch for percent in (60, 90))
    sequences = {"phase1": first, "phase2": second - first, "phase3": total - second}
    phases = [(name, number, config.sequence_length) for name, number in sequences.items()]
    phases.append((LONG_CONTEXT, config.long_context_sequences, config.long_context_length))
    return [planned_phase(*phase) for phase in phases]


def raw_documents(config: Config, directory: Path) -> tuple[list[Path], list[Unreadable]]:
    """Files of the scale's share of `raw_documents`, or of a few more: packages are read in whole modules."""
    num_documents = None if config.raw_documents == "all" else apply_scale(config.raw_documents, config.scale)
    released = tuple(f"{category}={uri}" for category, uris in RELEASED.items() for uri in uris)
    sources = config.sources or (released if config.scale in ("medium", "full") else ())
    if sources or num_documents is None:
        paths, unreadable = write_sources(
            sources, directory, text_column=config.text_column, num_documents=num_documents
        )
    else:
        num_problems = round(num_documents * (1 - config.package_share))
        documents, unreadable = package_documents(max(1, num_documents - num_problems))
        documents += problem_documents(generate_problems(num_problems, config.seed, "train"))
        paths = [directory / "00000.parquet"]
        write_documents(paths[0], documents)
    number = num_rows(paths)
    progress.print(f"{number:,} raw documents, {len(unreadable):,} unreadable")
    if not number:
        raise ValueError(f"all {len(unreadable)} documents are unreadable, {unreadable[0].id}: {unreadable[0].reason}")
    if unknown := sorted({category for (category,) in read_values(paths, "category")} - set(BLEND["phase1"])):
        raise ValueError(f"{unknown[0]!r} is not a category of the blend; use one of {', '.join(BLEND['phase1'])}")
    return paths, unreadable


def evaluation_texts(raw: Sequence[Path], problems: Sequence[Problem]) -> dict[str, Iterable[str]]:
    """The evaluation sets of which no training document may repeat 13 words.

    Two more sets are kept apart in other ways: recall questions ask for keys that no training text has; the validation
    split takes whole modules and is not compared by words, because modules share boilerplate.
    """
    texts: dict[str, Iterable[str]] = {"evaluation problems": [problem.question for problem in problems]}
    modules = {module for module, origin in read_values(raw, "module", "origin") if origin.split(" ")[0] in PACKAGES}
    if modules:
        tests, unreadable = package_test_texts(modules)
        texts["tests of the packages"] = [without_imports(test.text) for test in tests]
        for item in unreadable:
            progress.print(f"not decontaminated against {item.id}: {item.reason}")
    return texts


def curate(
    raw: Sequence[Path], evaluation_sets: dict[str, Iterable[str]], seed: int, directory: Path
) -> tuple[daft.DataFrame, dict[str, FilterReport], list[ScorerReport]]:
    """The normalized documents that every filter keeps, with their buckets, and all reports.

    The scorers come last: before duplicates are dropped, modules that test a scorer repeat modules that trained it.

    Args:
        directory: where documents are written between two filters.
    """
    filters: dict[str, FilterReport] = {}
    documents = read_files(raw)
    # One spelling for one text, or equal texts would not be found equal below.
    documents = documents.with_column("text", normalised(daft.col("text")))
    # What each document shows by itself: whether it may be used, is English, and looks like prose or code.
    rules = [licence_rule(), language_rule(), *quality_rules()]
    documents = apply_to_dataframe(documents, rules, filters, directory)
    # What it repeats. A model memorizes what it reads often; exact copies go first, since comparing pairs is slow.
    documents = apply_to_dataframe(documents, [exact_duplicates_rule(documents)], filters, directory)
    rule = near_duplicates_rule(documents, directory / "pairs")
    documents = apply_to_dataframe(documents, [rule], filters, directory)
    # What it shares with the evaluation: a model that has read the questions is not tested by them.
    documents = apply_to_dataframe(documents, [decontamination_rule(evaluation_sets)], filters, directory)
    # How good it is, among its kind: 20 buckets of equal mass, of which the lowest are dropped (Nemotron-CC).
    documents, scorers = add_buckets(documents, seed)
    documents = apply_to_dataframe(documents, [bucket_rule()], filters, directory)
    return documents, filters, scorers


def write_training_sequences(
    work: Path, documents: TokenizedDocuments, tokenizer: Tokenizer, config: Config
) -> dict[str, dict[str, BlendShare]]:
    """Write the files of all phases. Each reads on in a category where the last one stopped, and wraps at its end."""
    # The documents of a category lie end to end as one stream of tokens, which the phases read one after another.
    streams = streams_of(documents, "train", config.sequence_length + 1)
    blend: dict[str, dict[str, BlendShare]] = {}
    for phase in planned_phases(config):
        weights = renormalised(BLEND[phase.name], list(streams))
        made: dict[str, TokenFiles] = {}
        if phase.name == LONG_CONTEXT:
            weights = {name: weight * (1 - LONG_DOCUMENT_QA_SHARE) for name, weight in weights.items()}
            weights[LONG_DOCUMENT_QA] = LONG_DOCUMENT_QA_SHARE
        # Which category each sequence comes from: at every point of the phase, close to the shares of the blend.
        order = blend_order(weights, phase.num_sequences)
        if phase.name == LONG_CONTEXT:  # about academic documents, as published; about any if there are none
            category = "academic" if "academic" in streams else None
            rows = long_document_qa(
                documents.documents("train", category),
                lambda text: tokenizer.encode(text).ids,
                end_of_document=END_OF_DOCUMENT,
                seed=config.seed,
                length=phase.sequence_length,
                num_sequences=order.count(LONG_DOCUMENT_QA),
            )
            made[LONG_DOCUMENT_QA] = write_token_rows(documents.directory / LONG_DOCUMENT_QA, rows)
        epochs_before = {category: stream.epochs for category, stream in streams.items()}
        write_sequences(work, phase, order, streams, made)
        epochs = {category: stream.epochs - epochs_before[category] for category, stream in streams.items()}
        blend[phase.name] = {
            name: BlendShare(weight=weight, num_sequences=order.count(name), epochs=epochs.get(name))
            for name, weight in weights.items()
        }
        shares = ", ".join(f"{name} {share.num_sequences:,}" for name, share in blend[phase.name].items())
        progress.print(f"{phase.name}: {phase.num_sequences:,} sequences of {phase.sequence_length:,} tokens: {shares}")
    return blend


def curation_ladder(config: Config, raw: Sequence[Path], documents: TokenizedDocuments, dataset: Dataset) -> Ladder:
    """What a run must reproduce, in the order in which it happens: the first entry that differs names the cause."""
    ladder = Ladder()
    ladder.add("package versions", {name: version(name) for name in sorted(PACKAGES)})
    ladder.add_config(config)
    texts = (part for row in read_values(raw, "id", "text") for part in row)
    problems = sha256_of(map(str, pq.read_table(dataset.problems_path).to_pylist()))
    ladder.add("inputs", num_documents=num_rows(raw), sha256=sha256_of(texts), problems=problems)
    filters, last = {name: report.recorded() for name, report in dataset.filters.items()}, bucket_rule().name
    ladder.add("filters", {name: recorded for name, recorded in filters.items() if name != last})
    ladder.add("scorers", {scorer.label: scorer.model_dump() for scorer in dataset.scorers})
    ladder.add("bucket filter", {last: filters[last]})
    ladder.add("documents", {"quality groups": dataset.quality_groups})
    texts = (part for row in read_values(documents.texts, "id", "text") for part in row)
    ladder.add("documents", num_documents=dataset.num_documents, sha256=sha256_of(texts))
    ladder.add("split", sha256=sha256_of(split for (split,) in read_values([dataset.documents_path], "split")))
    ladder.add("tokenizer", vocab_size=dataset.vocab_size, sha256=vocabulary_digest(dataset.tokenizer_path))
    ladder.add("tokens", token_counts(documents))
    for phase, shares in dataset.blend.items():
        ladder.add("blend", {phase: {name: share.model_dump() for name, share in shares.items()}})
    files = {phase.name: phase.paths(dataset.path) for phase in dataset.phases}
    files |= {name: [dataset.path / f"{name}.parquet"] for name in ("validation", "long_validation", "recall")}
    for name, paths in files.items():
        digest = sha256_of_ids(read_chunks(paths, "tokens"))
        ladder.add("token ids", {name: {"num_sequences": num_rows(paths), "sha256": digest}})
    return ladder


def main(config: Config) -> Dataset:
    """Curate and return the Dataset."""
    check_runner()
    with working_directory(config.output_dir, Dataset) as work:
        scratch = work / "scratch"
        # From raw text to documents that every filter keeps.
        raw, unreadable = raw_documents(config, scratch / "raw")
        first_unreadable = report_unreadable(unreadable)
        problems = generate_problems(config.num_problems, config.seed, "evaluation")
        kept, filters, scorers = curate(raw, evaluation_texts(raw, problems), config.seed, scratch)

        # From documents to rows of tokens: in training order for each phase, and held out for evaluation.
        documents, tokenizer = split_and_tokenize(
            kept, scratch, held_out_share=config.held_out_share, vocab_size=config.vocab_size, seed=config.seed
        )
        save_tokenizer(tokenizer, work / "tokenizer")
        blend = write_training_sequences(work, documents, tokenizer, config)
        write_held_out_data(
            work,
            documents,
            tokenizer,
            problems,
            seed=config.seed,
            sequence_length=config.sequence_length,
            long_context_length=config.long_context_length,
            validation_sequences=config.validation_sequences,
            long_validation_sequences=config.long_validation_sequences,
            rows_per_distance=config.recall_rows,
        )

        # The record: which document went where, what is missing, who is to be credited.
        record = work / "documents.parquet"
        shutil.move(documents.facts_path, record)
        absent = sorted(set(BLEND["phase1"]) - set(documents.categories))
        if absent:
            progress.print(f"absent categories, whose weight the others of their kind share: {', '.join(absent)}")
        groups = Counter(group_of(bucket) for (bucket,) in read_values([record], "bucket") if bucket is not None)
        dataset = Dataset(
            path=work,
            metrics={f"scorer_accuracy/{scorer.label}": scorer.held_out_accuracy for scorer in scorers},
            num_examples=sum(share.num_sequences for shares in blend.values() for share in shares.values()),
            num_documents=num_rows([record]),
            vocab_size=tokenizer.get_vocab_size(),
            sequence_length=config.sequence_length,
            long_context_length=config.long_context_length,
            tokenizer_path=work / "tokenizer",
            phases=planned_phases(config),
            validation_path=work / "validation.parquet",
            long_validation_path=work / "long_validation.parquet",
            problems_path=work / "problems.parquet",
            recall_path=work / "recall.parquet",
            documents_path=record,
            quality_groups={name: groups[name] for name in GROUPS},
            filters=filters,
            unreadable=first_unreadable,
            num_unreadable=len(unreadable),
            scorers=scorers,
            attribution=attribution_of_pairs(read_values([record], "origin", "licence")),
            blend=blend,
            absent_categories=absent,
        )
        ladder = curation_ladder(config, raw, documents, dataset)
        shutil.rmtree(scratch)
        dataset.save(config, ladder)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"dataset": main(config)})
