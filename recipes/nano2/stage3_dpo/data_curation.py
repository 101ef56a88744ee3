"""Curate tasks with tools at a difficulty worth learning from, and the first pairs of a right and a wrong try.

In: the Checkpoint of stage 2; generated tasks of several calls, of which the last is left at difficulty 1
(sources/exercises/workplace.py). Out: a Dataset: tasks that the policy solves in some of its tries and not in others;
pairs of those tries, from which the first round of training learns; held-out tasks and exercises; for every filter what
it dropped and why.
Source: arXiv 2508.14444, section 3. Published: tool tasks of several steps (WorkBench), judged by the state of a
database; right and wrong tries of the policy itself; several iterations. Which tasks are kept is our choice.
Run: python -m nemotron.recipes.nano2.stage3_dpo.data_curation --scale tiny --base-checkpoint-path <directory>

At tiny the policy makes no call. There, tries are also compared if none is right: one that got further is better, see
`LEVELS` of training/tries.py; and no task is too hard. At the other scales only right tries are chosen.

Left out: your own tasks, and NVIDIA's released tasks with tools. A try is judged by the state of a database, and there
is no reader for tasks that bring one. Prompts with instructions that rules can check are read by stage 2 (--sources).
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

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
)
from nemotron.ladder import Ladder
from nemotron.pipe import step_process
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer, save_chat_tokenizer
from nemotron.recipes.curation.conversations import asked
from nemotron.recipes.curation.digests import digest_of, falls_into_share, sha256_of
from nemotron.recipes.curation.licence import Attribution, attribution_of
from nemotron.recipes.curation.rows import TOKENS, write_rows
from nemotron.recipes.curation.rules import FilterReport, Rule, apply_to_list, progress
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import DEVICES
from nemotron.recipes.nemotron_h.checkpoint import load_config, load_for_inference
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.scoring.rewards import Prompt, Verifier
from nemotron.recipes.sources.exercises import workplace
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_to_row, of_every_difficulty
from nemotron.recipes.sources.exercises.families import exam_exercises
from nemotron.recipes.sources.problems.problem import Split
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.pairs import ROW_COLUMNS, by_task, pair_rows, pairs_of
from nemotron.recipes.training.run import Base, base_checkpoint
from nemotron.recipes.training.tries import Try, draw_tries, solved_share

TOO_LONG, REPEATED = "length", "held out or repeated"
TOO_EASY, TOO_HARD, NO_PAIR = "solved too often", "solved too rarely", "no better and worse try"
"""The filters, in order; the last three after the policy has tried the task."""


@dataclass
class Config(ScaledConfig):
    """Curate tasks with tools, and pairs of the policy's own tries."""

    seed: int = 1234
    """Picks the tasks, their order, and the replies that are tried."""
    output_dir: Path = output_below("nano2", "stage3_dpo", "data_curation")
    """Where the Dataset goes."""
    base_checkpoint_path: Path | None = input_path()
    """Directory of stage 2's Checkpoint, or of a published model; read from the pipe if left out."""

    # The tasks.
    raw_tasks: PositiveInt = by_scale(tiny=2_400, small=6_000, medium=4_000, full=our_choice(16_000))
    """Number of tasks before any filter, of which the scale takes its share."""
    max_difficulty: Literal[1, 2, 3, 4] = by_scale(tiny=1, small=1, medium=3, full=our_choice(4))
    """The tasks have difficulties from 1 to this, in equal numbers."""
    single_share: Fraction = by_scale(tiny=0.0, small=0.4, medium=0.25, full=our_choice(0.25, "so that they are kept"))
    """Requests that one call serves, as a share of the other tasks. They stay however often the policy solves them: as
    soon as it fails some of its tries, they have pairs."""
    tools_described: bool = by_scale(tiny=False, small=True, medium=True, full=our_choice(True))
    """Whether a tool has its description, which repeats its name; with it, a call does not fit into tiny's context."""
    thinking_share: Fraction = at_every_scale(our_choice(0.5))
    """Share of the tasks that ask for thinking; the others ask for an answer at once."""
    max_prompt_tokens: PositiveInt = by_scale(tiny=444, small=384, medium=4096, full=our_choice(8192))
    """Longer tasks are dropped."""

    # What the policy tries.
    tries: Annotated[int, Field(ge=2)] = by_scale(tiny=4, small=6, medium=8, full=our_choice(16))
    """Conversations about each task, from which its difficulty is measured."""
    max_turns: PositiveInt = by_scale(tiny=2, small=1, medium=6, full=our_choice(10))
    """Replies of a conversation, at most."""
    max_new_tokens: PositiveInt = by_scale(tiny=48, small=96, medium=2048, full=our_choice(8192))
    """Tokens of one reply, at most."""
    temperature: PositiveFloat = at_every_scale(our_choice(1.0, "the policy itself"))
    """Temperature of the tries."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to try: cpu, cuda, cuda:1, ..."""

    # What is learned from.
    solved_min: Fraction = by_scale(tiny=0.0, small=0.3, medium=0.3, full=our_choice(0.3))
    """Tasks of which the policy solves a smaller share are dropped."""
    solved_max: Fraction = by_scale(tiny=1.0, small=0.7, medium=0.7, full=our_choice(0.7))
    """Tasks of which the policy solves a larger share are dropped."""
    graded: bool = by_scale(tiny=True, small=False, medium=False, full=our_choice(False))
    """Whether a wrong try that got further than another is chosen where none is right."""
    pairs_per_task: PositiveInt = by_scale(tiny=1, small=1, medium=2, full=our_choice(4))
    """Pairs of one task, at most; no try is in two of them."""

    # What is held out for evaluation.
    held_out_tasks: Annotated[int, Field(ge=3)] = by_scale(tiny=18, small=150, medium=500, full=our_choice(500))
    """Evaluation tasks, of the difficulties that are trained on."""
    exercises_per_family: PositiveInt = by_scale(tiny=6, small=50, medium=200, full=our_choice(500))
    """Evaluation exercises of each family."""

    def check(self) -> None:
        if self.solved_min > self.solved_max:
            raise ValueError(
                f"solved_min={self.solved_min} is above solved_max={self.solved_max}; give the smaller share first"
            )


class Dataset(Artifact):
    """Tasks in training order, and the pairs of the first round."""

    num_tasks: int = Field(gt=0)
    num_pairs: int = Field(gt=0)
    """Pairs of the first round."""
    base_checkpoint_path: Path
    """Stage 2's Checkpoint, which tried the tasks and which training starts from."""
    tokenizer_path: Path
    """Its tokenizer, with the chat template."""
    tasks_path: Path
    """Parquet, in training order. The fields of `Exercise`, thinking (whether the task asks for it), tokens (ids of the
    prompt), solved (share of the tries) and pairs (of the first round)."""
    pairs_path: Path
    """Parquet: rows in twos, the chosen try and then the rejected one; the columns of training/pairs.py."""
    exercises_path: Path
    """Evaluation exercises of every family, the fields of `Exercise`."""
    held_out_path: Path
    """Evaluation tasks, the fields of `Exercise` and thinking; none is trained on."""
    graded: bool
    """Whether a wrong try that got further than another is chosen where none is right."""
    filters: dict[str, FilterReport]
    """In the order in which they were applied."""
    attribution: list[Attribution]
    solved: float
    """Share of the tries at the tasks that are left."""
    num_unpaired: int = Field(ge=0)
    """Requests for a single call without a pair in the first round; they stay, and later rounds try them again."""

    def counts(self) -> dict[str, int | float]:
        """What a step that reads this Dataset records in its ladder as inputs."""
        return {"num_tasks": self.num_tasks, "num_pairs": self.num_pairs, "solved": self.solved}

    def base(self) -> Base:
        """Stage 2's Checkpoint: the policy at its start.

        Raises:
            ValueError: if it is not the one that tried the tasks, or has another tokenizer.
        """
        return base_checkpoint(self.base_checkpoint_path, self.tokenizer_path)


def tasks_of_every_difficulty(number: int, config: Config, split: Split, single_share: float = 0) -> list[Exercise]:
    """Tasks, an equal number of each difficulty; their ids say which. Requests for a single call follow, as a share."""
    tasks = of_every_difficulty(workplace.generate_exercises, number, config.seed, split, config.max_difficulty)
    singles = round(single_share * number)
    tasks += of_every_difficulty(workplace.generate_singles, singles, config.seed, split, config.max_difficulty)
    if config.tools_described:
        return tasks
    fields = ("name", "parameters")
    return [replace(one, tools=tuple({name: tool[name] for name in fields} for tool in one.tools)) for one in tasks]


def first_rules(config: Config, prompts: dict[str, Prompt], held_out: Sequence[Exercise]) -> list[Rule[Exercise]]:
    """What can be said about a task before anybody tries it."""
    questions = {asked(task.messages) for task in held_out}
    first: dict[tuple[str, str], str] = {}
    for id, prompt in prompts.items():
        first.setdefault((asked(prompt.exercise.messages), prompt.exercise.details), id)

    def too_long(task: Exercise) -> str | None:
        length = len(prompts[task.id].tokens)
        return f"{length} tokens" if length > config.max_prompt_tokens else None

    def repeated(task: Exercise) -> str | None:
        if asked(task.messages) in questions:
            return "it is a task of the evaluation"
        other = first[asked(task.messages), task.details]
        return None if other == task.id else f"it repeats {other}"

    length = f"at most {config.max_prompt_tokens} tokens (our choice)"
    return [
        Rule(TOO_LONG, length, too_long, "raise --max-prompt-tokens"),
        Rule(REPEATED, "asked once about the same database, and not in the evaluation", repeated),
    ]


def pair_rules(config: Config, tries: dict[str, list[Try]]) -> list[Rule[Exercise]]:
    """Drops tasks that are too easy or too hard for the policy, and those whose tries are all as good as each other."""
    remedy = "raise --tries or --raw-tasks, widen --solved-min and --solved-max, or train stage 2 for longer"

    def too_easy(task: Exercise) -> str | None:
        found = solved_share(tries[task.id])
        return f"{found:.0%} of {len(tries[task.id])} tries are right" if found > config.solved_max else None

    def too_hard(task: Exercise) -> str | None:
        found = solved_share(tries[task.id])
        return f"{found:.0%} of {len(tries[task.id])} tries are right" if found < config.solved_min else None

    def no_pair(task: Exercise) -> str | None:
        return None if pairs_of(tries[task.id], graded=config.graded, at_most=1) else "its tries are equally good"

    wanted = "its tries differ" if config.graded else "a try is right, and another one wrong"
    return [
        Rule(TOO_EASY, f"at most {config.solved_max:.0%} of the tries are right (our choice)", too_easy, remedy),
        Rule(TOO_HARD, f"at least {config.solved_min:.0%} of the tries are right (our choice)", too_hard, remedy),
        Rule(NO_PAIR, wanted, no_pair, remedy),
    ]


def main(config: Config) -> Dataset:
    """Curate and return the Dataset."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    made_by = f"python -m nemotron.recipes.nano2.stage2_rlvr --scale {config.scale}"
    base = base_checkpoint(config.base_checkpoint_path, made_by=made_by, scale=config.scale)
    load_chat_tokenizer(CHAT, base.checkpoint_path)  # refuses a base model, which cannot answer in the format
    context = load_config(base.checkpoint_path).max_position_embeddings
    if config.max_prompt_tokens >= context:
        raise ValueError(
            f"max_prompt_tokens={config.max_prompt_tokens} leaves no room for a reply in the {context} tokens that the "
            f"model reads; give at most {context - 1}"
        )
    with working_directory(config.output_dir, Dataset) as work, threads_of(config.scale):
        save_chat_tokenizer(CHAT, base.checkpoint_path, work / "tokenizer")
        verify = Verifier(CHAT, work / "tokenizer")

        # The tasks, and what the evaluation asks.
        raw = tasks_of_every_difficulty(
            apply_scale(config.raw_tasks, config.scale), config, "train", config.single_share
        )
        held_out = tasks_of_every_difficulty(config.held_out_tasks, config, "evaluation")
        exercises = exam_exercises(config.exercises_per_family, config.seed)
        progress.print(f"{len(raw):,} raw tasks")
        prompts = {
            one.id: verify.prompt_of(
                one, thinking=falls_into_share(config.thinking_share, "thinking", config.seed, one.id)
            )
            for one in [*raw, *held_out]
        }
        filters: dict[str, FilterReport] = {}
        raw_prompts = {one.id: prompts[one.id] for one in raw}
        kept = apply_to_list(raw, first_rules(config, raw_prompts, held_out), filters)

        # The policy tries each of them, and the tools say what comes of it.
        model = load_for_inference(base.checkpoint_path, device=config.device)
        sampling = Sampling(config.max_new_tokens, verify.chat.stop_ids, config.temperature)
        drawn = draw_tries(
            model, verify, [prompts[one.id] for one in kept], config.tries, sampling, ("try", config.seed),
            max_turns=config.max_turns,
        )  # fmt: skip
        tries = by_task(drawn)
        several = [one for one in kept if workplace.kind_of(one) != workplace.SINGLE]
        singles = [one for one in kept if workplace.kind_of(one) == workplace.SINGLE]
        kept = apply_to_list(several, pair_rules(config, tries), filters) + singles
        kept.sort(key=lambda one: digest_of("order", config.seed, one.id))

        # Pairs of a better and a worse try of the same task.
        pairs = {one.id: pairs_of(tries[one.id], graded=config.graded, at_most=config.pairs_per_task) for one in kept}
        unpaired = [one.id for one in singles if not pairs[one.id]]
        if unpaired:
            count = f"{len(unpaired):,} of {len(singles):,}"
            progress.print(f"{count} requests for a single call have no pair, the first is {unpaired[0]}")
        rows: list[dict[str, Any]] = [
            {
                **exercise_to_row(one),
                "thinking": prompts[one.id].thinking,
                "tokens": prompts[one.id].tokens,
                "solved": solved_share(tries[one.id]),
                "pairs": len(pairs[one.id]),
            }
            for one in kept
        ]
        text = dict.fromkeys(exercise_to_row(exercises[0]), pa.string())
        asks = {"thinking": pa.bool_(), "tokens": TOKENS}
        write_rows(work / "tasks.parquet", rows, **text, **asks, solved=pa.float64(), pairs=pa.int64())
        paired = [row for one in kept for row in pair_rows(pairs[one.id])]
        write_rows(work / "pairs.parquet", paired, **ROW_COLUMNS)
        write_rows(work / "exercises.parquet", map(exercise_to_row, exercises), **text)
        asked_later = [
            {**exercise_to_row(one), "thinking": prompts[one.id].thinking, "tokens": prompts[one.id].tokens}
            for one in held_out
        ]
        write_rows(work / "held_out.parquet", asked_later, **text, **asks)
        dataset = Dataset(
            path=work,
            num_tasks=len(kept),
            num_pairs=len(paired) // 2,
            base_checkpoint_path=base.path,
            tokenizer_path=work / "tokenizer",
            tasks_path=work / "tasks.parquet",
            pairs_path=work / "pairs.parquet",
            exercises_path=work / "exercises.parquet",
            held_out_path=work / "held_out.parquet",
            graded=config.graded,
            filters=filters,
            attribution=attribution_of(kept),
            solved=sum(row["solved"] for row in rows) / len(rows),
            num_unpaired=len(unpaired),
        )

        # What a run must reproduce, in the order in which it happens.
        ladder = Ladder()
        ladder.add_config(config)
        ladder.add("inputs", weight_fingerprint(model))
        for name, members in (("tasks", raw), ("held_out", held_out), ("exercises", exercises)):
            ladder.add("exercises", {name: sha256_of(json.dumps(exercise_to_row(one)) for one in members)})
        recorded = {name: report.recorded() for name, report in filters.items()}
        ladder.add("filters", {name: recorded[name] for name in (TOO_LONG, REPEATED)})
        tokens = (str(token) for one in drawn for written in one.tokens for token in [*written, -1])
        logprobs = sum(sum(turn.reply.logprobs) for one in drawn for turn in one.turns)
        ladder.add("tries", tokens=sha256_of(tokens), logprobs=logprobs)
        ladder.add("rewards", {id: [one.level for one in found] for id, found in tries.items()})
        ladder.add("prompts", {name: recorded[name] for name in (TOO_EASY, TOO_HARD, NO_PAIR)})
        ladder.add("prompts", {"order": sha256_of(one.id for one in kept), **dataset.counts()})
        ladder.add("token ids", pairs=sha256_of(json.dumps(row) for row in paired))
        dataset.save(config, ladder)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"dataset": main(config)})
