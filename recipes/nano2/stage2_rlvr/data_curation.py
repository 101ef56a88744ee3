"""Curate the prompts of reinforcement learning: instructions that a rule can check, at a difficulty worth trying.

In: the Checkpoint of stage 1; generated exercises, or your own prompts with checkable instructions (--sources). Out: a
Dataset: prompts in training order, each with its verifier and what the fine-tuned model earns on it in a few tries;
held-out exercises; for every filter what it dropped and why.
Source: arXiv 2508.14444, section 3. Published: 16,000 prompts of users, to which instructions as in IFEval are added,
and a rule as verifier. The other families are our choice: a share of them keeps what the model has learned.
Run: python -m nemotron.recipes.nano2.stage2_rlvr.data_curation --scale tiny --base-checkpoint-path <directory>

Left out: prompts of LMSYS-Chat-1M, which need an agreement; generated instructions take their place. No
license is filtered; the attribution list counts those that your rows state.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import Artifact, apply_scale, print_complete
from nemotron.artifact import working_directory
from nemotron.config import (
    BelowOne,
    Fraction,
    ScaledConfig,
    at_every_scale,
    by_scale,
    input_path,
    our_choice,
    output_below,
    parse_command_line,
    published,
)
from nemotron.ladder import Ladder
from nemotron.pipe import step_process
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer, save_chat_tokenizer
from nemotron.recipes.curation.conversations import asked
from nemotron.recipes.curation.digests import digest_of, falls_into_share, sha256_of
from nemotron.recipes.curation.licence import Attribution, attribution_of
from nemotron.recipes.curation.rows import TOKENS, write_rows
from nemotron.recipes.curation.rules import DroppedItem, FilterReport, Rule, apply_to_list, progress, report_unreadable
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import DEVICES
from nemotron.recipes.nemotron_h.checkpoint import load_config, load_for_inference
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.scoring.rewards import Prompt, Reward, Verifier
from nemotron.recipes.sources import Unreadable
from nemotron.recipes.sources.exercises import ifeval, instructions
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_to_row, of_every_difficulty
from nemotron.recipes.sources.exercises.families import FAMILIES, exam_exercises
from nemotron.recipes.sources.listing import find_files, sources_field
from nemotron.recipes.sources.prompts import read_prompts
from nemotron.recipes.sources.reading import with_unique_ids
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.rollouts import draw_replies
from nemotron.recipes.training.run import Base, base_checkpoint

TOO_LONG, REPEATED, ALWAYS, NEVER = "length", "held out or repeated", "always solved", "never solved"
"""The filters, in order; the last two after the fine-tuned model has tried the prompt."""


@dataclass
class Config(ScaledConfig):
    """Curate the prompts for reinforcement learning."""

    seed: int = 1234
    """Picks the exercises, their order, and the replies that are tried."""
    output_dir: Path = output_below("nano2", "stage2_rlvr", "data_curation")
    """Where the Dataset goes."""
    base_checkpoint_path: Path | None = input_path()
    """Directory of stage 1's Checkpoint, or of a published model; read from the pipe if left out."""

    # The prompts.
    sources: tuple[str, ...] = sources_field()
    """Files, directories, globs or URIs (.jsonl, .jsonl.gz, .parquet) with the columns of NVIDIA's released sets for
    reinforcement learning on instructions. They take the place of the generated instructions. A row is read if all its
    instructions are among the 25 of IFEval."""
    raw_prompts: PositiveInt | Literal["all"] = by_scale(
        tiny=5_600, small=20_000, medium=16_000, full=published(16_000, "section 3")
    )
    """Number of prompts before any filter, those of the other families included (published: 16,000, all of them with
    instructions), of which the scale takes its share; "all" reads every one of the sources."""
    other_share: BelowOne = at_every_scale(our_choice(0.3, "so that they are not forgotten"))
    """Share of the raw prompts that are exercises of the other families, in equal numbers. The filters leave less of
    them: 17 % of the prompts at tiny, where max_prompt_tokens drops all of tool calling and long context, and 11.5 to
    14.8 % at small, by seed."""
    max_difficulty: Literal[1, 2, 3, 4] = by_scale(tiny=1, small=2, medium=3, full=our_choice(4))
    """The generated exercises have difficulties from 1 to this, in equal numbers."""
    thinking_share: Fraction = at_every_scale(our_choice(0.5))
    """Share of the prompts that ask for thinking; the others ask for an answer at once."""
    max_prompt_tokens: PositiveInt = by_scale(tiny=160, small=192, medium=2048, full=our_choice(4096))
    """Longer prompts are dropped."""

    # What the fine-tuned model tries.
    tries: Annotated[int, Field(ge=2)] = by_scale(tiny=3, small=4, medium=8, full=our_choice(8))
    """Replies to each prompt, from which its difficulty is measured; a single one would drop every prompt."""
    max_new_tokens: PositiveInt = by_scale(tiny=40, small=96, medium=4096, full=our_choice(8192))
    """Tokens of one reply, at most."""
    temperature: PositiveFloat = at_every_scale(our_choice(1.0))
    """Temperature of the tries."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to try: cpu, cuda, cuda:1, ..."""

    # What is held out for evaluation.
    exercises_per_family: PositiveInt = by_scale(tiny=6, small=50, medium=200, full=our_choice(500))
    """Evaluation exercises of each family."""
    held_out_instructions: Annotated[int, Field(ge=3)] = by_scale(tiny=12, small=200, medium=500, full=our_choice(500))
    """Evaluation exercises of instruction following, of the difficulties that are trained on."""


class Dataset(Artifact):
    """Prompts in training order, each with its verifier and what the fine-tuned model earns on it."""

    num_prompts: int = Field(gt=0)
    base_checkpoint_path: Path
    """Stage 1's Checkpoint, which tried the prompts and which training starts from."""
    tokenizer_path: Path
    """Its tokenizer, with the chat template."""
    prompts_path: Path
    """Parquet, in training order. The fields of `Exercise` (messages and tools as JSON; family and details are its
    verifier), thinking (whether the prompt asks for it), tokens (ids), mean_reward and solved (share) of the tries."""
    exercises_path: Path
    """Evaluation exercises of every family, the fields of `Exercise`."""
    held_out_path: Path
    """Evaluation exercises of instruction following, of every difficulty that is trained on; no task is trained on."""
    filters: dict[str, FilterReport]
    """In the order in which they were applied."""
    unreadable: list[DroppedItem]
    """The first of the rows that a source could not read."""
    num_unreadable: int
    attribution: list[Attribution]
    mean_reward: float
    """What the fine-tuned model earns on the prompts that are left."""

    def counts(self) -> dict[str, int | float]:
        """What a step that reads this Dataset records in its ladder as inputs."""
        return {"num_prompts": self.num_prompts, "mean_reward": self.mean_reward}

    def base(self) -> Base:
        """Stage 1's Checkpoint: the policy at its start, and the reference.

        Raises:
            ValueError: if it is not the one that tried the prompts, or has another tokenizer.
        """
        return base_checkpoint(self.base_checkpoint_path, self.tokenizer_path)


def check_sources(config: Config) -> None:
    """Raise ValueError or FileNotFoundError if all prompts are wanted and no sources are named, or one is not there."""
    if config.raw_prompts == "all" and not config.sources:
        raise ValueError("raw_prompts=all needs --sources, because exercises have no end; name files with your prompts")
    for source in config.sources:
        find_files(source, ifeval.FAMILY)


def raw_prompts(config: Config) -> tuple[list[Exercise], list[Unreadable]]:
    """Instructions, and a share of the other families."""
    check_sources(config)
    total = None if config.raw_prompts == "all" else apply_scale(config.raw_prompts, config.scale)
    unreadable: list[Unreadable] = []
    if config.sources:
        wanted = None if total is None else max(1, round(total * (1 - config.other_share)))
        prompts, unreadable = read_prompts(config.sources, num_prompts=wanted)
    else:
        number = round((total or 0) * (1 - config.other_share))
        prompts = of_every_difficulty(
            instructions.generate_exercises, number, config.seed, "train", config.max_difficulty
        )
        if not prompts:
            raise ValueError(
                f"raw_prompts={config.raw_prompts} at scale={config.scale} and other_share={config.other_share} leave "
                "no instruction; raise --raw-prompts, or lower --other-share"
            )
    others = [family for name, family in FAMILIES.items() if name != instructions.FAMILY]
    num_others = round(len(prompts) * config.other_share / (1 - config.other_share) / len(others))
    for family in others:
        prompts += of_every_difficulty(
            family.generate_exercises, num_others, config.seed, "train", config.max_difficulty
        )
    return with_unique_ids(prompts), unreadable  # a row of the user may have the id of an exercise


def first_rules(config: Config, prompts: dict[str, Prompt], held_out: Sequence[Exercise]) -> list[Rule[Exercise]]:
    """What can be said about a prompt before anybody tries it."""
    questions = {asked(exercise.messages) for exercise in held_out}
    first: dict[str, str] = {}
    for id, prompt in prompts.items():
        if len(prompt.tokens) <= config.max_prompt_tokens:  # an equal prompt may be longer, by its flag for thinking
            first.setdefault(asked(prompt.exercise.messages), id)

    def too_long(exercise: Exercise) -> str | None:
        length = len(prompts[exercise.id].tokens)
        return f"{length} tokens" if length > config.max_prompt_tokens else None

    def repeated(exercise: Exercise) -> str | None:
        question = asked(exercise.messages)
        if question in questions:
            return "it is an exercise of the evaluation"
        return None if first[question] == exercise.id else f"it repeats {first[question]}"

    return [
        Rule(
            TOO_LONG, f"at most {config.max_prompt_tokens} tokens (our choice)", too_long, "raise --max-prompt-tokens"
        ),
        Rule(REPEATED, "asked once, and not in the evaluation", repeated),
    ]


def difficulty_rules(rewards: dict[str, list[Reward]]) -> list[Rule[Exercise]]:
    """Drops prompts that every try solves, and those that no try solves if the tries do not even differ."""
    remedy = "raise --tries, or train stage 1 for longer"

    def always(exercise: Exercise) -> str | None:
        tries = rewards[exercise.id]
        return f"{len(tries)} of {len(tries)} tries are right" if all(one.right for one in tries) else None

    def never(exercise: Exercise) -> str | None:
        tries = rewards[exercise.id]
        differ = len({one.total for one in tries}) > 1
        return None if differ or tries[0].right else f"each of {len(tries)} tries earns {tries[0].total:.2f}"

    return [
        Rule(ALWAYS, "not every try is right (our choice)", always, remedy),
        Rule(NEVER, "a try is right, or one earns more than another (our choice)", never, remedy),
    ]


def main(config: Config) -> Dataset:
    """Curate and return the Dataset."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    made_by = f"python -m nemotron.recipes.nano2.stage1_sft --scale {config.scale}"
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

        # The prompts, and the exercises of the evaluation.
        raw, unreadable = raw_prompts(config)
        first_unreadable = report_unreadable(unreadable)
        exercises = exam_exercises(config.exercises_per_family, config.seed)
        held_out = of_every_difficulty(
            instructions.generate_exercises, config.held_out_instructions, config.seed, "evaluation",
            config.max_difficulty,
        )  # fmt: skip
        progress.print(f"{len(raw):,} raw prompts, {len(unreadable):,} unreadable")
        prompts = {
            one.id: verify.prompt_of(
                one, thinking=falls_into_share(config.thinking_share, "thinking", config.seed, one.id)
            )
            for one in raw
        }
        filters: dict[str, FilterReport] = {}
        kept = apply_to_list(raw, first_rules(config, prompts, [*exercises, *held_out]), filters)

        # The fine-tuned model tries each of them.
        model = load_for_inference(base.checkpoint_path, device=config.device)
        sampling = Sampling(config.max_new_tokens, verify.chat.stop_ids, config.temperature)
        tried = [prompts[one.id] for one in kept]
        replies = draw_replies(model, tried, config.tries, sampling, ("try", config.seed))
        earned = verify(tried, replies)
        rewards = {one.id: earned[index * config.tries : (index + 1) * config.tries] for index, one in enumerate(kept)}
        kept = apply_to_list(kept, difficulty_rules(rewards), filters)
        kept.sort(key=lambda one: digest_of("order", config.seed, one.id))

        rows: list[dict[str, Any]] = [
            {
                **exercise_to_row(one),
                "thinking": prompts[one.id].thinking,
                "tokens": prompts[one.id].tokens,
                "mean_reward": sum(reward.total for reward in rewards[one.id]) / config.tries,
                "solved": sum(reward.right for reward in rewards[one.id]) / config.tries,
            }
            for one in kept
        ]
        text = dict.fromkeys(exercise_to_row(exercises[0]), pa.string())
        columns = {"thinking": pa.bool_(), "tokens": TOKENS, "mean_reward": pa.float64(), "solved": pa.float64()}
        write_rows(work / "prompts.parquet", rows, **text, **columns)
        for name, members in (("exercises", exercises), ("held_out", held_out)):
            write_rows(work / f"{name}.parquet", map(exercise_to_row, members), **text)
        dataset = Dataset(
            path=work,
            num_prompts=len(kept),
            base_checkpoint_path=base.path,
            tokenizer_path=work / "tokenizer",
            prompts_path=work / "prompts.parquet",
            exercises_path=work / "exercises.parquet",
            held_out_path=work / "held_out.parquet",
            filters=filters,
            unreadable=first_unreadable,
            num_unreadable=len(unreadable),
            attribution=attribution_of(kept),
            mean_reward=sum(row["mean_reward"] for row in rows) / len(rows),
        )

        # What a run must reproduce, in the order in which it happens.
        ladder = Ladder()
        ladder.add_config(config)
        ladder.add("inputs", weight_fingerprint(model))
        ladder.add("conversations", sha256=sha256_of(json.dumps(exercise_to_row(one)) for one in raw))
        for name, members in (("exercises", exercises), ("held_out", held_out)):
            ladder.add("exercises", {name: sha256_of(json.dumps(exercise_to_row(one)) for one in members)})
        recorded = {name: report.recorded() for name, report in filters.items()}
        ladder.add("filters", {name: recorded[name] for name in (TOO_LONG, REPEATED)})
        tokens = (str(token) for reply in replies for token in [*reply.tokens, -1])
        ladder.add("tries", tokens=sha256_of(tokens), logprobs=sum(sum(reply.logprobs) for reply in replies))
        ladder.add("rewards", {id: [reward.total for reward in found] for id, found in rewards.items()})
        ladder.add("prompts", {name: recorded[name] for name in (ALWAYS, NEVER)})
        ladder.add("prompts", order=sha256_of(one.id for one in kept), mean_reward=dataset.mean_reward)
        dataset.save(config, ladder)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"dataset": main(config)})
