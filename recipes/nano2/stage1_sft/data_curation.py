"""Curate the conversations for supervised fine-tuning: from exercises or your own files to rows of tokens and a mask.

In: the Checkpoint of stage 0, for its tokenizer; generated exercises, or conversations in the columns of NVIDIA's
released post-training datasets (--sources). Out: a Dataset: rows for each of the three published parts of
fine-tuning, what to evaluate on, and for every filter what it dropped and why.
Source: arXiv 2508.14444, section 3. Published: about 10 % of the reasoning traces are emptied. The first part
concatenates all samples; the second is tool calling, not concatenated, and a subsample of the rest; the third is long
context, and traces cut to a budget with their answers kept. What the paper leaves open is marked where it is decided.
Run: python -m nemotron.recipes.nano2.stage1_sft.data_curation --scale tiny --base-checkpoint-path <directory>

Left out: conversations that language models write or translate, which is nearly all of the published data; generated
exercises with verifiers take the place of its categories. No license is filtered; the attribution list counts those
that your rows state.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from tokenizers import Tokenizer

from nemotron import Artifact, apply_scale, print_complete
from nemotron.artifact import working_directory
from nemotron.config import (
    Fraction,
    ScaledConfig,
    at_every_scale,
    by_scale,
    input_path,
    our_choice,
    output_below,
    parse_command_line,
    proxy,
    published,
)
from nemotron.ladder import Ladder
from nemotron.pipe import step_process
from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.chat.template import format_of
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer, save_chat_tokenizer
from nemotron.recipes.curation.chats import ROW_COLUMNS, Chats, EncodedConversation, encode_files, write_packed_rows
from nemotron.recipes.curation.conversations import (
    answer_language_rule,
    asked,
    contamination_rule,
    conversation_of,
    duplicate_rule,
    length_rule,
    repetition_rule,
    structure_rule,
)
from nemotron.recipes.curation.digests import digest_of, falls_into_share, sha256_of
from nemotron.recipes.curation.licence import Attribution, attribution_of_pairs
from nemotron.recipes.curation.rows import Phase, num_rows, read_chunks, row_counts, write_rows
from nemotron.recipes.curation.rules import DroppedItem, FilterReport, apply_to_files, progress, report_unreadable
from nemotron.recipes.curation.traces import encoded_turns, samples_page, with_cut_thought, without_thought
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.sources import Unreadable
from nemotron.recipes.sources.conversations import (
    DEFAULT_CATEGORY,
    Conversation,
    document_conversation,
    first_of_categories,
    store_conversations,
    stored_conversations,
    write_conversations,
)
from nemotron.recipes.sources.dataframes import check_runner
from nemotron.recipes.sources.documents import read_values
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_to_row
from nemotron.recipes.sources.exercises.families import FAMILIES, exam_exercises
from nemotron.recipes.sources.listing import find_files, sources_field
from nemotron.recipes.training.run import Base, base_checkpoint

# Exercises of each family, relative to each other. Our choice: what a small model learns slowly comes often, what is
# long or learned fast comes rarely. Published samples, in millions: math 1.5, code 1.1, science 2.0, tools 0.4,
# conversation 1.5, multilingual 5.0, safety 0.05 (sources differ).
EXERCISE_WEIGHTS = {
    "math": 1.4, "code": 1.5, "science": 1.2, "tool_calling": 0.5, "instruction_following": 1.3, "long_context": 0.4,
    "multilingual": 1.3, "safety": 0.4,
}  # fmt: skip
# At tiny, less of what is long, and more of what has the shortest replies: its few steps learn those first.
EXERCISE_WEIGHTS_AT_TINY = {
    "math": 2.0, "code": 2.0, "science": 1.0, "tool_calling": 0.4, "instruction_following": 0.7, "long_context": 0.15,
    "multilingual": 1.2, "safety": 0.8,
}  # fmt: skip
EVERYTHING, TOOLS, LONG_CONTEXT = "everything", "tools", "long_context"
"""The three published parts of fine-tuning, in order."""
TOO_LONG_FOR_ANY_PART, TOO_LONG_FOR_A_ROW = "too long for any part", "too long for a row"
"""The filters that come after the others: a conversation is shorter without its trace."""
LONG_CONTEXT_CATEGORY = "long_context"
MADE_FOR = {TOOLS: "tool_calling", LONG_CONTEXT: LONG_CONTEXT_CATEGORY}
"""The categories that the second and the third part are made for."""


@dataclass
class Config(ScaledConfig):
    """Curate the conversations for fine-tuning."""

    seed: int = 1234
    """Picks the exercises, their order, and the traces that are emptied or cut."""
    output_dir: Path = output_below("nano2", "stage1_sft", "data_curation")
    """Where the Dataset goes."""
    base_checkpoint_path: Path | None = input_path()
    """Directory of stage 0's Checkpoint, or of a published model; read from the pipe if left out."""

    # The raw conversations.
    sources: tuple[str, ...] = sources_field()
    """Files, directories, globs or URIs (.jsonl, .jsonl.gz, .parquet) with the columns of NVIDIA's post-training
    datasets, for example hf://datasets/nvidia/Nemotron-Post-Training-Dataset-v2/data/*.parquet. Left out: exercises."""
    raw_conversations: PositiveInt | Literal["all"] = by_scale(
        tiny=48_000, small=230_000, medium=2_000_000, full=our_choice("all", "the published run read about 80B tokens")
    )
    """Number of raw conversations, of which the scale takes its share; "all" reads every one of the sources."""
    difficulty: Literal[1, 2, 3, 4] = by_scale(tiny=1, small=1, medium=2, full=our_choice(4))
    """Difficulty of the generated exercises."""

    # What becomes training data.
    sequence_length: PositiveInt = by_scale(
        tiny=352, small=256, medium=16_383, full=published(131_072, "about 128k tokens, section 3")
    )
    """Predicted tokens in a packed row; no conversation may be longer. At tiny, tool calling takes up to 330."""
    long_context_length: PositiveInt = by_scale(
        tiny=511, small=1023, medium=16_383, full=proxy(262_144, "Nemotron 3 Nano, rows of 256k tokens")
    )
    """Predicted tokens in a row of the third part."""
    empty_trace_share: Fraction = at_every_scale(published(0.1, "about 10 % of the prompts, section 3"))
    """Share of the conversations whose reasoning trace is emptied, so that they answer at once."""
    rest_share: Fraction = at_every_scale(our_choice(0.1, "the published subsample is unknown to us"))
    """Share of the other conversations that the second and the third part repeat."""
    trace_tokens_min: PositiveInt = by_scale(
        tiny=2, small=4, medium=published(1000, "section 3"), full=published(1000, "section 3")
    )
    """The third part cuts a trace to a number of tokens between this and trace_tokens_max."""
    trace_tokens_max: PositiveInt = by_scale(
        tiny=8, small=16, medium=published(2000, "section 3"), full=published(2000, "section 3")
    )
    """The longest that a cut trace may be, in tokens."""

    # What is held out for evaluation.
    exercises_per_family: PositiveInt = by_scale(tiny=24, small=50, medium=200, full=our_choice(500))
    """Evaluation exercises of each family."""

    def check(self) -> None:
        if self.trace_tokens_min > self.trace_tokens_max:
            raise ValueError(
                f"trace_tokens_min={self.trace_tokens_min} is above trace_tokens_max={self.trace_tokens_max}; swap them"
            )


class Dataset(Artifact):
    """Conversations as rows of tokens, in training order, with what counts in the loss."""

    num_examples: int = Field(gt=0)
    """Rows of all three parts."""
    num_conversations: int = Field(gt=0)
    """Conversations that every filter kept, except those for length, which come later."""
    base_checkpoint_path: Path
    """Stage 0's Checkpoint, whose tokenizer wrote the rows and whose weights training starts from."""
    sequence_length: int
    long_context_length: int
    tokenizer_path: Path
    """The base model's tokenizer with the chat template."""
    phases: list[Phase]
    """The three parts, in training order. Columns of their files: tokens, in_loss (whether a token counts in the loss
    when it is predicted), segments (number of the token's conversation in its row). "everything" packs all
    conversations, several to a row; "tools" has tool calling and a share of the rest, each conversation in a row by
    itself; "long_context" has long context, and a share of the rest with its traces cut."""
    validation_path: Path
    """Rows as in the phases, with the column family: the evaluation exercises with a right reply."""
    exercises_path: Path
    """Evaluation exercises, the fields of `Exercise`, with messages and tools as JSON."""
    samples_path: Path
    """Markdown: a conversation of each category as the model reads it, with what counts in the loss marked."""
    filters: dict[str, FilterReport]
    """In the order in which they were applied."""
    unreadable: list[DroppedItem]
    """The first of the rows that a source could not read."""
    num_unreadable: int
    num_emptied_traces: int
    attribution: list[Attribution]
    num_cut_traces: int

    def counts(self) -> dict[str, int]:
        """What a step that reads this Dataset records in its ladder as inputs."""
        names = ("num_examples", "num_conversations", "sequence_length", "long_context_length")
        return {name: getattr(self, name) for name in names}


def check_sources(config: Config) -> None:
    """Raise ValueError or FileNotFoundError if everything is wanted of no sources, or a source is not there."""
    if config.raw_conversations == "all" and not config.sources:
        raise ValueError(
            "raw_conversations=all needs --sources, because exercises have no end; name your conversations, for "
            "example hf://datasets/nvidia/Nemotron-Post-Training-Dataset-v2/data/*.parquet"
        )
    for source in config.sources:
        find_files(source, DEFAULT_CATEGORY)


def raw_conversations(config: Config, directory: Path) -> tuple[list[Path], list[Unreadable]]:
    """Files of the scale's share of the raw conversations: of the sources, or exercises of every family."""
    check_sources(config)
    count = None if config.raw_conversations == "all" else apply_scale(config.raw_conversations, config.scale)
    if config.sources or count is None:
        return write_conversations(config.sources, directory, num_conversations=count)
    # Each family gets its weight's share, drawn from its own generator: more of one changes none of another.
    weights = EXERCISE_WEIGHTS_AT_TINY if config.scale == "tiny" else EXERCISE_WEIGHTS
    paths = {name: directory / f"{name}.parquet" for name in FAMILIES}
    for name, family in FAMILIES.items():
        number = max(1, round(count * weights[name] / sum(weights.values())))
        exercises = family.generate_exercises(number, config.seed, split="train", difficulty=config.difficulty)
        store_conversations(paths[name], map(conversation_of, exercises))
    return list(paths.values()), []


def curate(
    raw: Sequence[Path], evaluation: list[Exercise], directory: Path, chat: ChatFormat = CHAT
) -> tuple[list[Path], dict[str, FilterReport]]:
    """Files of the conversations that every rule keeps, and the reports.

    Args:
        directory: where conversations are written between two passes.
    """

    def check(conversation: Conversation) -> None:
        for messages in chat.training_conversations(conversation.messages):
            chat.check_conversation(messages, conversation.tools, for_training=True)

    # What each conversation shows by itself: it can be learned, does not repeat itself, answers in the right language.
    reports: dict[str, FilterReport] = {}
    rules = [structure_rule(check), repetition_rule(), answer_language_rule()]
    paths = apply_to_files(raw, rules, reports, directory / "first", document_conversation)
    # What it repeats: another conversation, or a question of the evaluation.
    questions = {asked(exercise.messages) for exercise in evaluation}
    rules = [duplicate_rule(paths), contamination_rule(questions)]
    return apply_to_files(paths, rules, reports, directory / "second", document_conversation), reports


def emptied(conversation: Conversation, config: Config, chat: ChatFormat) -> Conversation:
    """The conversation, with its thoughts emptied if it is one of the drawn ones."""
    drawn = falls_into_share(config.empty_trace_share, "emptied", config.seed, conversation.id)
    return without_thought(chat, conversation) if conversation.reasoning and drawn else conversation


def encoded(conversation: Conversation, tokenizer: Tokenizer, chat: ChatFormat, config: Config) -> EncodedConversation:
    """The token ids of a conversation, and the parts that it is drawn for."""
    c = emptied(conversation, config, chat)
    turns = encoded_turns(chat, c, tokenizer)
    # Part 2 repeats tool calling and a share of the rest, so that the rest is not forgotten. Part 3 repeats long
    # context, and a share of the rest with the thought cut, to learn to answer from a thought that a budget ended.
    chosen = {
        part: c.category == category or falls_into_share(config.rest_share, part, config.seed, c.id)
        for part, category in MADE_FOR.items()
    }
    cut = None
    fits = max(len(turn.ids) for turn in turns) <= config.long_context_length + 1
    if chosen[LONG_CONTEXT] and fits and c.category != LONG_CONTEXT_CATEGORY:
        span = config.trace_tokens_max - config.trace_tokens_min + 1
        num_tokens = config.trace_tokens_min + int(digest_of("cut", config.seed, c.id)[:8], 16) % span
        cut = with_cut_thought(chat, c, tokenizer, num_tokens)
    return EncodedConversation(c.id, c.category, turns, cut, c is not conversation, chosen[TOOLS], chosen[LONG_CONTEXT])


def rows_of_parts(chats: Chats, config: Config, reports: dict[str, FilterReport]) -> dict[str, list[list[int]]]:
    """The chats of each row of the three parts; what is too long goes into the reports."""
    capacity, long_capacity = config.sequence_length + 1, config.long_context_length + 1
    any_part = length_rule(TOO_LONG_FOR_ANY_PART, f"{long_capacity} tokens", long_capacity)
    one_row = length_rule(TOO_LONG_FOR_A_ROW, f"{capacity} tokens, else only in part 3", capacity)
    long = chats.kept_by(any_part, np.ones(len(chats.facts), dtype=bool), reports)
    everything = chats.kept_by(one_row, long, reports)
    for (part, category), among in zip(MADE_FOR.items(), (everything, long), strict=True):
        made = chats.of_category(category)
        if made.any() and not (made & among).any():
            progress.print(f"the part {part!r} has no conversation of {category}: all are too long; raise its length")

    def of(conversations: np.ndarray) -> np.ndarray:
        """Whether each chat is of one of these conversations."""
        return conversations[chats.conversation]

    tools = of(everything & chats.column("in_tools")) & ~chats.is_cut
    budgeted = of(long & chats.column("in_long_context")) & (chats.is_cut | ~of(chats.column("is_cut")))
    return {
        EVERYTHING: chats.packed(of(everything) & ~chats.is_cut, capacity),
        TOOLS: [[number] for number in np.flatnonzero(tools).tolist()],
        LONG_CONTEXT: chats.packed(budgeted, long_capacity),
    }


def curation_ladder(config: Config, base: Base, raw: Sequence[Path], chats: Chats, dataset: Dataset) -> Ladder:
    """What a run must reproduce, in the order in which it happens: the first entry that differs names the cause."""
    ladder = Ladder()
    ladder.add_config(config)
    tokenizer = base.checkpoint_path / "tokenizer.json"
    ladder.add("inputs", tokenizer=hashlib.sha256(tokenizer.read_bytes()).hexdigest())
    texts = (json.dumps([c.id, c.messages, c.tools], ensure_ascii=False) for c in stored_conversations(raw))
    ladder.add("conversations", sha256=sha256_of(texts))
    exercises = pq.read_table(dataset.exercises_path).to_pylist()
    ladder.add("exercises", sha256=sha256_of(json.dumps(row, ensure_ascii=False) for row in exercises))
    filters = {name: report.recorded() for name, report in dataset.filters.items()}
    lengths = {name: filters.pop(name) for name in (TOO_LONG_FOR_ANY_PART, TOO_LONG_FOR_A_ROW)}
    ladder.add("filters", filters)
    changed = {name: chats.facts.filter(chats.facts[name])["id"].to_pylist() for name in ("is_emptied", "is_cut")}
    ladder.add("emptied traces", sha256=sha256_of(changed["is_emptied"]), num_traces=len(changed["is_emptied"]))
    ladder.add("length filters", lengths)
    ladder.add("cut traces", sha256=sha256_of(changed["is_cut"]), num_traces=len(changed["is_cut"]))
    files = {phase.name: phase.paths(dataset.path) for phase in dataset.phases}
    files["validation"] = [dataset.validation_path]
    for part, paths in files.items():
        ladder.add("tokens", {part: row_counts(paths)})
        for name in ROW_COLUMNS:
            values = (str(int(value)) for chunk in read_chunks(paths, name) for row in chunk for value in row.as_py())
            ladder.add("token ids", {f"{part}/{name}": sha256_of(values)})
    return ladder


def main(config: Config) -> Dataset:
    """Curate and return the Dataset."""
    made_by = f"python -m nemotron.recipes.nano2.stage0_pretrain --scale {config.scale}"
    base = base_checkpoint(config.base_checkpoint_path, made_by=made_by, scale=config.scale)
    check_runner()
    with working_directory(config.output_dir, Dataset) as work:
        scratch = work / "scratch"
        save_chat_tokenizer(CHAT, base.checkpoint_path, work / "tokenizer")
        tokenizer = load_chat_tokenizer(CHAT, work / "tokenizer")
        chat = format_of(CHAT, work / "tokenizer")  # with the template that the base model brings, if it brings one

        # From raw conversations to those that every rule keeps.
        raw, unreadable = raw_conversations(config, scratch / "raw")
        progress.print(f"{num_rows(raw):,} raw conversations, {len(unreadable):,} unreadable")
        first_unreadable = report_unreadable(unreadable)
        evaluation = exam_exercises(config.exercises_per_family, config.seed, config.difficulty)
        kept, filters = curate(raw, evaluation, scratch, chat)

        # From conversations, some of them with their thoughts emptied or cut, to rows of tokens for each of the parts.
        chats = encode_files(kept, partial(encoded, config=config), CHAT, work / "tokenizer", scratch)
        parts = rows_of_parts(chats, config, filters)
        lengths = dict.fromkeys(parts, config.sequence_length) | {LONG_CONTEXT: config.long_context_length}
        phases: list[Phase] = []
        for part, rows in parts.items():
            if not rows:
                raise ValueError(f"no conversation for the part {part!r}; bring more, or raise --rest-share")
            phases.append(write_packed_rows(work, part, chats, rows, lengths[part], config.seed))
            counts = row_counts(phases[-1].paths(work))
            num_tokens, num_in_loss = counts["num_tokens"], counts["num_in_loss"]
            progress.print(f"{part}: {len(rows):,} rows, {num_tokens:,} tokens, of which {num_in_loss:,} in the loss")

        # What to evaluate on, and samples for a person.
        validation = []
        for exercise in evaluation:
            solved = chat.encode(tokenizer, conversation_of(exercise).messages, exercise.tools)
            row = {"tokens": solved.ids, "in_loss": solved.in_loss, "segments": [0] * len(solved.ids)}
            validation.append({**row, "family": exercise.family})
        write_rows(work / "validation.parquet", validation, **ROW_COLUMNS, family=pa.string())
        text = dict.fromkeys(asdict(evaluation[0]), pa.string())
        write_rows(work / "exercises.parquet", map(exercise_to_row, evaluation), **text)
        page = samples_page(chat, [emptied(one, config, chat) for one in first_of_categories(kept)], tokenizer)
        (work / "samples.md").write_text(page, encoding="utf-8", newline="\n")
        dataset = Dataset(
            path=work,
            num_examples=sum(map(len, parts.values())),
            num_conversations=len(chats.facts),
            base_checkpoint_path=base.path,
            sequence_length=config.sequence_length,
            long_context_length=config.long_context_length,
            tokenizer_path=work / "tokenizer",
            phases=phases,
            validation_path=work / "validation.parquet",
            exercises_path=work / "exercises.parquet",
            samples_path=work / "samples.md",
            filters=filters,
            unreadable=first_unreadable,
            num_unreadable=len(unreadable),
            num_emptied_traces=int(chats.column("is_emptied").sum()),
            attribution=attribution_of_pairs(read_values(kept, "origin", "licence")),
            num_cut_traces=int(chats.column("is_cut").sum()),
        )
        ladder = curation_ladder(config, base, raw, chats, dataset)
        shutil.rmtree(scratch)
        dataset.save(config, ladder)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"dataset": main(config)})
