"""Curate the conversations for supervised fine-tuning: from exercises or your own files to rows of tokens and a mask.

In: the Checkpoint of stage 0, for its tokenizer; generated exercises, or conversations in the columns of NVIDIA's
released post-training datasets (--sources). Out: a Dataset: a file of rows for each of the three published parts of
fine-tuning, what to evaluate on, and for every filter what it dropped and why.
Source: arXiv 2508.14444, section 3. Published: about 10 % of the reasoning traces emptied, samples concatenated, then
tool calling without concatenation with a subsample of the rest, then long context with traces cut to a budget and their
answers kept. What the paper leaves open is marked where it stands.
Run: python -m nemotron.recipes.nano2.stage1_sft.data_curation --scale tiny --base-checkpoint-path <directory>

Left out: conversations that language models write or translate, which is nearly all of the published data; generated
exercises with verifiers stand in for its categories.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from pydantic import Field
from tokenizers import Tokenizer

from nemotron import Artifact, Scale, apply_scale, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process
from nemotron.recipes.curation.decontaminate import evaluation_runs, first_overlap, words_of
from nemotron.recipes.curation.filters import MAX_EXAMPLES, DroppedDocument, FilterReport, progress
from nemotron.recipes.curation.language import likeliest_language
from nemotron.recipes.curation.packing import PackedRow, best_fit
from nemotron.recipes.curation.split import digest_of, falls_into_share
from nemotron.recipes.nano2.blend import EXERCISE_WEIGHTS
from nemotron.recipes.nano2.chat import (
    NO_THINK,
    EncodedChat,
    check_conversation,
    encode_chat,
    load_chat_tokenizer,
    save_chat_tokenizer,
    training_conversations,
    with_flag,
)
from nemotron.recipes.nano2.sizes import resolved
from nemotron.recipes.nano2.stage0_pretrain.data_curation import sha256_of, write_rows
from nemotron.recipes.nano2.stage0_pretrain.training import Checkpoint
from nemotron.recipes.sources import Unreadable
from nemotron.recipes.sources.conversations import Conversation, read_conversations
from nemotron.recipes.sources.exercises import FAMILIES, Exercise


@dataclass
class Config:
    """Curate the conversations for fine-tuning. A number left out is the one in sizes.py for the scale."""

    scale: Scale = "tiny"
    """Share of the raw conversations and size of everything made from them: tiny, small, medium or full."""
    seed: int = 1234
    """Picks the exercises, their order, and the traces that are emptied or cut."""
    output_dir: Path | None = None
    """Where the Dataset goes; outputs/nano2/<scale>/stage1_sft/data_curation if left out."""
    base_checkpoint_path: Path | None = None
    """Directory of stage 0's Checkpoint; read from the pipe if left out."""
    sources: tuple[str, ...] = ()
    """Files, directories, globs or URIs (.jsonl, .jsonl.gz, .parquet) with the columns of NVIDIA's post-training
    datasets, for example hf://datasets/nvidia/Nemotron-Post-Training-Dataset-v2/data/*.parquet. Left out: exercises."""
    raw_conversations: int | None = None
    """Number of raw conversations, of which the scale takes its share."""
    difficulty: int | None = None
    """Of the generated exercises: 1 to 4."""
    sequence_length: int | None = None
    """Predicted tokens in a packed row; no conversation may be longer."""
    long_context_length: int | None = None
    """The same for the rows of the third part."""
    empty_trace_share: float = 0.1  # published
    """Share of the conversations whose reasoning trace is emptied, so that they answer at once."""
    rest_share: float = 0.1  # our choice; the published subsample is unknown to us
    """Share of the other conversations that the second and the third part repeat."""
    trace_tokens_min: int | None = None
    """The third part cuts a trace to a number of tokens between this and trace_tokens_max."""
    trace_tokens_max: int | None = None
    """See trace_tokens_min."""
    exercises_per_family: int | None = None
    """Evaluation exercises of each family."""

    def __post_init__(self) -> None:
        for name in (
            *("raw_conversations", "difficulty", "sequence_length", "long_context_length"),
            *("trace_tokens_min", "trace_tokens_max", "exercises_per_family"),
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be greater than 0")
        shortest, longest = self.trace_tokens_min, self.trace_tokens_max
        if shortest is not None and longest is not None and shortest > longest:
            raise ValueError(
                f"trace_tokens_min={shortest} is above trace_tokens_max={longest}; give the shorter length first"
            )
        for name in ("empty_trace_share", "rest_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and at most 1")


class Dataset(Artifact):
    """Conversations as rows of tokens, in training order, with what counts in the loss."""

    num_examples: int = Field(gt=0)
    """Rows of all three parts."""
    num_conversations: int = Field(gt=0)
    """Conversations that every filter kept."""
    base_checkpoint_path: Path
    """Stage 0's Checkpoint, whose tokenizer wrote the rows and whose weights training starts from."""
    sequence_length: int
    long_context_length: int
    tokenizer_path: Path
    """The base model's tokenizer with the chat template."""
    everything_path: Path
    """All conversations, several to a row: tokens, in_loss (whether a token counts in the loss when it is predicted),
    segments (number in its row of the conversation that a token belongs to). At most sequence_length + 1 tokens."""
    tools_path: Path
    """As everything_path: tool calling and a share of the rest, each conversation a row of its own."""
    long_context_path: Path
    """As everything_path, at most long_context_length + 1 tokens a row: long context, and a share of the rest with its
    traces cut."""
    validation_path: Path
    """As tools_path, with the column family: the evaluation exercises with a right reply."""
    exercises_path: Path
    """Evaluation exercises, the fields of `Exercise`, with messages and tools as JSON."""
    samples_path: Path
    """Markdown: a conversation of each category as the model reads it, with what counts in the loss marked."""
    filters: dict[str, FilterReport]
    """In the order in which they were applied."""
    unreadable: list[DroppedDocument]
    """The first of the rows that a source could not read."""
    num_unreadable: int
    num_emptied_traces: int
    num_cut_traces: int


Row = dict[str, Any]
PARTS = ("everything", "tools", "long_context")
"""The three published parts of fine-tuning in their order; <part>.parquet holds the rows."""
ROW_COLUMNS = {
    "tokens": pa.list_(pa.int32()),
    "in_loss": pa.list_(pa.bool_()),
    "segments": pa.list_(pa.int32()),
}
LONG_CONTEXT, TOOL_CALLING = "long_context", "tool_calling"
"""Categories that a part is made for."""


def raw_conversations(config: Config) -> tuple[list[Conversation], list[Unreadable]]:
    """The scale's share of the raw conversations: of the sources, or exercises of every family."""
    count = None if config.raw_conversations is None else apply_scale(config.raw_conversations, config.scale)
    if config.sources:
        return read_conversations(config.sources, num_conversations=count)
    if count is None:
        raise ValueError(
            f"scale={config.scale} trains on conversations of your own; name them with --sources, for example "
            f"hf://datasets/nvidia/Nemotron-Post-Training-Dataset-v2/data/*.parquet"
        )
    assert config.difficulty
    total = sum(EXERCISE_WEIGHTS.values())
    exercises = [
        exercise
        for name, family in FAMILIES.items()
        for exercise in family.generate_exercises(
            max(1, round(count * EXERCISE_WEIGHTS[name] / total)),
            config.seed,
            split="train",
            difficulty=config.difficulty,
        )
    ]
    return [conversation_of(exercise) for exercise in exercises], []


def conversation_of(exercise: Exercise) -> Conversation:
    """The exercise with its right reply, thought included."""
    reply = f"<think>\n{exercise.reasoning}\n</think>\n\n{exercise.answer}"
    return Conversation(
        id=exercise.id,
        category=exercise.family,
        reasoning=True,
        messages=(*exercise.messages, {"role": "assistant", "content": reply}),
        tools=exercise.tools,
        licence="Apache-2.0",
        origin="procedural",
    )


# The filters: a conversation's fault in a few words, or nothing if it stays. ------------------------------------------


def fault_of_structure(conversation: Conversation) -> str:
    """Roles in an impossible order, tool calls without a definition or that are no JSON, thoughts that never end."""
    try:
        for messages in training_conversations(conversation.messages):
            check_conversation(messages, conversation.tools, for_training=True)
    except ValueError as error:
        return str(error)
    return "" if conversation.messages[-1]["role"] == "assistant" else "it does not end with a reply"


def fault_of_repetition(conversation: Conversation) -> str:
    """Eight words in a row that an assistant says four times (proxy: Nemotron 3 Nano filters repeated n-grams)."""
    for message in conversation.messages:
        if message["role"] != "assistant":
            continue
        words = words_of(message["content"])
        counts: dict[tuple[str, ...], int] = {}
        for start in range(len(words) - 7):
            run = tuple(words[start : start + 8])
            counts[run] = counts.get(run, 0) + 1
            if counts[run] == 4:
                return " ".join(run)
    return ""


def fault_of_language(conversation: Conversation) -> str:
    """An answer in another language than its category names (published: a language-ID filter for the multilingual set).

    Categories as in the released datasets, multilingual_de; answers below 20 words are too short to tell (our choice).
    """
    _, named, language = conversation.category.partition("multilingual_")
    answer = split_reply(conversation.messages[-1]["content"])[1]
    if not named or len(words_of(answer)) < 20:
        return ""
    found = likeliest_language(answer)
    return "" if found == language else f"the answer is {found}, not {language}"


def asked(messages: Iterable[Row]) -> str:
    """What is asked, whatever its layout and case: two conversations that ask the same have the same."""
    texts = (message["content"] for message in messages if message["role"] != "assistant")
    return " | ".join(" ".join(text.split()).casefold() for text in texts)


def asked_and_answered(conversation: Conversation) -> str:
    """What two conversations have in common of which one is enough."""
    *_, reply = conversation.messages
    return json.dumps([asked(conversation.messages), reply, conversation.tools], sort_keys=True)


def kept(
    conversations: list[Conversation],
    name: str,
    threshold: str,
    fault: Callable[[Conversation], str],
    reports: dict[str, FilterReport],
) -> list[Conversation]:
    """The conversations without that fault; the report goes to `reports` and to stderr."""
    faults = [fault(conversation) for conversation in conversations]
    dropped = [(c.id, found) for c, found in zip(conversations, faults, strict=True) if found]
    progress.print(f"{name:<28} {len(faults):>9,} -> {len(faults) - len(dropped):>9,} ({len(dropped):,} dropped)")
    reports[name] = FilterReport(
        threshold=threshold,
        num_seen=len(faults),
        num_dropped=len(dropped),
        examples=[DroppedDocument(id=id, value=found[:200]) for id, found in sorted(dropped)[:MAX_EXAMPLES]],
    )
    if len(dropped) == len(faults):
        remedy = "raise --sequence-length or --long-context-length" if "too long" in name else "mend the sources"
        raise ValueError(f"{name} dropped all {len(faults)} conversations, {dropped[0][0]}: {dropped[0][1]}; {remedy}")
    return [c for c, found in zip(conversations, faults, strict=True) if not found]


def curate(
    raw: list[Conversation], evaluation: list[Exercise], config: Config
) -> tuple[list[Conversation], dict[str, FilterReport]]:
    """The conversations that every filter keeps, and the reports."""
    reports: dict[str, FilterReport] = {}
    threshold = "the template can say it (proxy: Nemotron 3 Nano)"
    conversations = kept(raw, "structure", threshold, fault_of_structure, reports)
    conversations = kept(conversations, "repetition", "no 8 words 4 times", fault_of_repetition, reports)

    threshold = "the answer's language is that of its category (published)"
    conversations = kept(conversations, "language", threshold, fault_of_language, reports)

    first_with: dict[str, str] = {}
    for conversation in conversations:
        first_with.setdefault(asked_and_answered(conversation), conversation.id)

    def fault_of_duplicates(conversation: Conversation) -> str:
        first = first_with[asked_and_answered(conversation)]
        return "" if first == conversation.id else f"the same as {first}"

    conversations = kept(conversations, "duplicates", "not asked and answered before", fault_of_duplicates, reports)

    questions = {asked(exercise.messages) for exercise in evaluation}
    in_words = {" ".join(words_of(question)) for question in questions}
    runs = {"evaluation": evaluation_runs(questions)}

    def fault_of_contamination(conversation: Conversation) -> str:
        text = asked(conversation.messages)
        if text in questions:
            return f"asked in evaluation: {text}"
        if conversation.origin == "procedural":  # shares wordings with the evaluation, and by construction no task
            return ""
        if " ".join(words_of(text)) in in_words:
            return f"asked in evaluation, but for punctuation: {text}"
        return first_overlap(text, runs) or ""

    threshold = "no question of the evaluation, nor 13 of its words in a row (GPT-3)"
    conversations = kept(conversations, "decontamination", threshold, fault_of_contamination, reports)
    return conversations, reports


# What is made of a conversation. --------------------------------------------------------------------------------------


def split_reply(content: str) -> tuple[str, str]:
    """The thought and the answer of an assistant's turn that begins with <think>."""
    thought, _, answer = content.strip().removeprefix("<think>").partition("</think>")
    return thought.strip(), answer.strip()


def without_thought(conversation: Conversation) -> Conversation:
    """The same with the traces after its last question emptied, and asked to be."""
    messages = with_flag(conversation.messages, NO_THINK)
    for message in reversed(messages):
        if message["role"] in ("system", "user"):
            break
        if message["role"] == "assistant":
            message["content"] = f"<think></think>{split_reply(message['content'] or '')[1]}"
    return replace(conversation, reasoning=False, messages=tuple(messages))


def with_cut_thought(conversation: Conversation, tokenizer: Tokenizer, num_tokens: int) -> EncodedChat | None:
    """The conversation with only the first tokens of its last trace and the whole answer; None if it is no longer.

    Only the answer counts in the loss (our choice): the budget ends the thought, so the model need not learn to.
    """
    *history, reply = conversation.messages
    thought, answer = split_reply(reply["content"])
    ids = tokenizer.encode(thought, add_special_tokens=False).ids
    if not conversation.reasoning or len(ids) <= num_tokens:
        return None
    cut = tokenizer.decode(ids[:num_tokens]).rstrip("\ufffd")  # half a character
    thought = f"{cut.strip()}\n</think>"
    messages = [*history, {**reply, "content": f"<think>\n{thought}\n\n{answer}"}]
    encoded = encode_chat(tokenizer, messages, conversation.tools)
    prompt = encode_chat(tokenizer, history, conversation.tools, add_generation_prompt=True)
    num_thought = len(prompt.ids) + len(tokenizer.encode(thought, add_special_tokens=False).ids)
    in_loss = [counts and index >= num_thought for index, counts in enumerate(encoded.in_loss)]
    return EncodedChat(encoded.ids, in_loss)


def encoded_turns(conversation: Conversation, tokenizer: Tokenizer) -> list[EncodedChat]:
    """One entry for every assistant turn that can be learnt, each with the history that it answers."""
    turns = training_conversations(conversation.messages)
    return [encode_chat(tokenizer, messages, conversation.tools) for messages in turns]


def packed(chats: list[EncodedChat], capacity: int) -> list[PackedRow]:
    """Rows of several conversations, at most `capacity` tokens each, every conversation whole."""
    rows = []
    for members in best_fit([len(chat.ids) for chat in chats], capacity):
        row = PackedRow()
        for index in members:
            row.append(chats[index].ids, chats[index].in_loss)
        rows.append(row)
    return rows


def in_training_order(rows: list[PackedRow], seed: int, part: str) -> list[Row]:
    """The rows in an order that depends on nothing but what is in them."""
    keyed = [(digest_of(seed, part, *row.tokens), asdict(row)) for row in rows]
    return [row for _, row in sorted(keyed, key=lambda pair: pair[0])]


def parts_of(
    conversations: list[Conversation], tokenizer: Tokenizer, config: Config
) -> tuple[dict[str, list[Row]], int, dict[str, FilterReport]]:
    """The rows of the three parts, the number of traces that were cut, and the reports of what was too long."""
    assert config.sequence_length and config.long_context_length
    assert config.trace_tokens_min and config.trace_tokens_max
    reports: dict[str, FilterReport] = {}
    turns = {c.id: encoded_turns(c, tokenizer) for c in conversations}

    def too_long(capacity: int) -> Callable[[Conversation], str]:
        def fault(conversation: Conversation) -> str:
            longest = max(len(turn.ids) for turn in turns[conversation.id])
            return f"{longest} tokens" if longest > capacity else ""

        return fault

    capacity, long_capacity = config.sequence_length + 1, config.long_context_length + 1
    long = kept(conversations, "too long for any part", f"{long_capacity} tokens", too_long(long_capacity), reports)
    threshold = f"{capacity} tokens, else only in the third part"
    everything = kept(long, "too long for a row", threshold, too_long(capacity), reports)
    for part, category, among in (("tools", TOOL_CALLING, everything), ("long_context", LONG_CONTEXT, long)):
        if all(c.category != category for c in among) and any(c.category == category for c in conversations):
            progress.print(f"the part {part!r} has no conversation of {category}: all are too long; raise its length")

    def chosen(part: str, wanted: str, among: list[Conversation]) -> list[Conversation]:
        return [
            c for c in among if c.category == wanted or falls_into_share(config.rest_share, part, config.seed, c.id)
        ]

    tools = [turn for c in chosen("tools", TOOL_CALLING, everything) for turn in turns[c.id]]
    num_cut = 0
    budgeted: list[EncodedChat] = []
    for c in chosen("long_context", LONG_CONTEXT, long):
        span = config.trace_tokens_max - config.trace_tokens_min + 1
        num_tokens = config.trace_tokens_min + int(digest_of("cut", config.seed, c.id)[:8], 16) % span
        cut = None if c.category == LONG_CONTEXT else with_cut_thought(c, tokenizer, num_tokens)
        num_cut += cut is not None
        budgeted += turns[c.id] if cut is None else [cut]
    rows = {
        "everything": packed([turn for c in everything for turn in turns[c.id]], capacity),
        "tools": [row for turn in tools for row in packed([turn], capacity)],
        "long_context": packed(budgeted, long_capacity),
    }
    return {part: in_training_order(rows[part], config.seed, part) for part in PARTS}, num_cut, reports


def samples_page(conversations: list[Conversation], tokenizer: Tokenizer) -> str:
    """Markdown: the first conversation of each category, what counts in the loss in bold brackets."""
    lines = ["# Conversations as the model reads them", "", "What counts in the loss stands between ⟦ and ⟧.", ""]
    for category in sorted({c.category for c in conversations}):
        first = next(c for c in conversations if c.category == category)
        chat = encoded_turns(first, tokenizer)[-1]
        start = chat.in_loss.index(True)
        end = len(chat.in_loss) - chat.in_loss[::-1].index(True)
        pieces = (tokenizer.decode(ids, skip_special_tokens=False) for ids in
                  (chat.ids[:start], chat.ids[start:end], chat.ids[end:]))  # fmt: skip
        lines += [f"## {category}", "", "```", "{}⟦{}⟧{}".format(*pieces).rstrip(), "```", ""]
    return "\n".join(lines)


def evaluation_exercises(config: Config) -> list[Exercise]:
    """Exercises of every family whose task is in no training exercise."""
    assert config.exercises_per_family and config.difficulty
    return [
        exercise
        for family in FAMILIES.values()
        for exercise in family.generate_exercises(
            config.exercises_per_family, config.seed, split="evaluation", difficulty=config.difficulty
        )
    ]


def exercise_row(exercise: Exercise) -> Row:
    """An exercise as a row of a Parquet file; `exercise_of` is the way back."""
    return {**asdict(exercise), "messages": json.dumps(exercise.messages), "tools": json.dumps(exercise.tools)}


def exercise_of(row: Row) -> Exercise:
    """The exercise of a row that `exercise_row` made."""
    return Exercise(**{**row, "messages": tuple(json.loads(row["messages"])), "tools": tuple(json.loads(row["tools"]))})


def curation_ladder(config: Config, base: Checkpoint, raw: list[Conversation], dataset: Dataset) -> list[Row]:
    """What a run must reproduce, in the order in which it happens: the first entry that differs names the cause."""
    ladder: list[Row] = []

    def add(rung: str, name: str, value: Any) -> None:
        ladder.append({"rung": rung, "name": name, "step": 0, "value": value})

    for name, value in asdict(config).items():
        if name not in ("output_dir", "base_checkpoint_path"):
            add("config", name, list(value) if isinstance(value, tuple) else value)
    tokenizer = base.checkpoint_path / "tokenizer.json"
    add("inputs", "tokenizer", hashlib.sha256(tokenizer.read_bytes()).hexdigest())
    texts = (json.dumps([c.id, c.messages, c.tools], ensure_ascii=False) for c in raw)
    add("conversations", "sha256", sha256_of(texts))
    exercises = pq.read_table(dataset.exercises_path).to_pylist()
    add("exercises", "sha256", sha256_of(json.dumps(row, ensure_ascii=False) for row in exercises))
    for name, report in dataset.filters.items():
        add("filters", name, {"num_seen": report.num_seen, "num_dropped": report.num_dropped})
    add("traces", "emptied", dataset.num_emptied_traces)
    add("traces", "cut", dataset.num_cut_traces)
    for part in (*PARTS, "validation"):
        table = pq.read_table(dataset.path / f"{part}.parquet")
        columns = {name: table[name].combine_chunks().flatten().to_pylist() for name in ROW_COLUMNS}
        add("tokens", part, {"num_rows": len(table), "num_tokens": len(columns["tokens"]),
                             "num_in_loss": sum(columns["in_loss"])})  # fmt: skip
        for name, values in columns.items():
            add("token ids", f"{part}/{name}", sha256_of(map(str, map(int, values))))
    return ladder


def main(config: Config) -> Dataset:
    """Curate and return the Dataset."""
    config = resolved(config, "stage1_sft", "data_curation")
    assert config.output_dir and config.sequence_length and config.long_context_length
    base = Checkpoint.load(path=config.base_checkpoint_path)
    with working_directory(config.output_dir, Dataset) as work:
        save_chat_tokenizer(base.checkpoint_path, work / "tokenizer")
        tokenizer = load_chat_tokenizer(work / "tokenizer")
        raw, unreadable = raw_conversations(config)
        progress.print(f"{len(raw):,} raw conversations, {len(unreadable):,} unreadable")
        evaluation = evaluation_exercises(config)
        conversations, filters = curate(raw, evaluation, config)
        emptied = {
            c.id: without_thought(c)
            for c in conversations
            if c.reasoning and falls_into_share(config.empty_trace_share, "emptied", config.seed, c.id)
        }
        conversations = [emptied.get(c.id, c) for c in conversations]
        parts, num_cut, too_long = parts_of(conversations, tokenizer, config)
        for part, rows in parts.items():
            if not rows:
                raise ValueError(f"no conversation for the part {part!r}; bring more, or raise --rest-share")
            num_tokens, num_in_loss = (sum(sum(map(bool, r[k])) if k == "in_loss" else len(r[k]) for r in rows)
                                       for k in ("tokens", "in_loss"))  # fmt: skip
            write_rows(work / f"{part}.parquet", rows, **ROW_COLUMNS)
            progress.print(f"{part}: {len(rows):,} rows, {num_tokens:,} tokens, of which {num_in_loss:,} in the loss")
        validation = []
        for exercise in evaluation:
            for row in packed([encode_chat(tokenizer, conversation_of(exercise).messages, exercise.tools)], 10**9):
                validation.append({**asdict(row), "family": exercise.family})
        write_rows(work / "validation.parquet", validation, **ROW_COLUMNS, family=pa.string())
        text = dict.fromkeys(asdict(evaluation[0]), pa.string())
        write_rows(work / "exercises.parquet", map(exercise_row, evaluation), **text)
        (work / "samples.md").write_text(samples_page(conversations, tokenizer), encoding="utf-8")
        dataset = Dataset(
            path=work,
            num_examples=sum(map(len, parts.values())),
            num_conversations=len(conversations),
            base_checkpoint_path=base.path,
            sequence_length=config.sequence_length,
            long_context_length=config.long_context_length,
            tokenizer_path=work / "tokenizer",
            everything_path=work / "everything.parquet",
            tools_path=work / "tools.parquet",
            long_context_path=work / "long_context.parquet",
            validation_path=work / "validation.parquet",
            exercises_path=work / "exercises.parquet",
            samples_path=work / "samples.md",
            filters={**filters, **too_long},
            unreadable=[DroppedDocument(id=item.id, value=item.reason) for item in unreadable[:MAX_EXAMPLES]],
            num_unreadable=len(unreadable),
            num_emptied_traces=len(emptied),
            num_cut_traces=num_cut,
        )
        (work / "ladder.json").write_text(json.dumps(curation_ladder(config, base, raw, dataset), indent=1))
        dataset.save(config)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        print_complete({"dataset": main(config)})
