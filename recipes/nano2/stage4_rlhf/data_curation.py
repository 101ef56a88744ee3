"""Curate preferences for a reward model, and the prompts on which a policy learns from it.

In: the Checkpoint of the stage before; generated conversations with a rubric, or your own preferences (--sources). Out:
a Dataset: pairs of a better and a worse reply in training order, held-out pairs, prompts in training order; prompts and
exercises for the choice of a merge, and others for evaluation; for every filter what it dropped and why.
Source: arXiv 2508.14444, section 3. Published: reinforcement learning on the English contexts of HelpSteer3. A rubric
(../../sources/rubric.py) stands in for the people who compared the replies of HelpSteer3; some of its labels are turned
around, so that the reward model has something to be unsure of.
Run: python -m nemotron.recipes.nano2.stage4_rlhf.data_curation --scale tiny --base-checkpoint-path <directory>

Left out: HelpSteer3 itself, which is read by --sources; preferences among more than two replies. No license is
filtered; the attribution list counts those that your rows state.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

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
    published,
)
from nemotron.ladder import Ladder
from nemotron.pipe import step_process
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer, save_chat_tokenizer
from nemotron.recipes.curation.conversations import asked
from nemotron.recipes.curation.digests import digest_of, falls_into_share, sha256_of
from nemotron.recipes.curation.licence import Attribution, attribution_of
from nemotron.recipes.curation.preferences import label_of, preference_rules
from nemotron.recipes.curation.rows import TOKENS, write_rows
from nemotron.recipes.curation.rules import DroppedItem, FilterReport, apply_to_list, progress, report_unreadable
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import DEVICES
from nemotron.recipes.nemotron_h.checkpoint import load_for_inference
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.scoring.guard import Guard
from nemotron.recipes.scoring.judge import Judge, by_rubric, judged_answer
from nemotron.recipes.sources import Unreadable, preferences
from nemotron.recipes.sources.exercises import algebra, code_output, conversation, science
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_to_row, of_every_difficulty
from nemotron.recipes.sources.exercises.families import exam_exercises
from nemotron.recipes.sources.listing import find_files, sources_field
from nemotron.recipes.sources.preferences import Preference, read_preferences
from nemotron.recipes.sources.problems.problem import seeded_random, split_of
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.rollouts import draw_replies
from nemotron.recipes.training.run import Base, base_checkpoint

REASONING = (algebra, code_output, science)
"""The families in which a merge must keep what the reasoning-strong model can do; each reasons in every exercise."""


@dataclass
class Config(ScaledConfig):
    """Curate preferences and prompts."""

    seed: int = 1234
    """Picks the conversations, the replies, the labels that are turned around, and the order."""
    output_dir: Path = output_below("nano2", "stage4_rlhf", "data_curation")
    """Where the Dataset goes."""
    base_checkpoint_path: Path | None = input_path()
    """Directory of the Checkpoint of the stage before, or of a published model; read from the pipe if left out."""

    # The pairs.
    sources: tuple[str, ...] = sources_field()
    """Files, directories, globs or URIs (.jsonl, .jsonl.gz, .parquet) with the columns of nvidia/HelpSteer3. Their
    pairs and contexts take the place of the generated ones; those of a tenth of the contexts are held out."""
    raw_pairs: PositiveInt | Literal["all"] = by_scale(
        tiny=8_000, small=30_000, medium=40_000, full=our_choice(40_000, "about the size of HelpSteer3")
    )
    """Number of pairs before any filter, of which the scale takes its share; "all" reads every one of the sources."""
    sampled_share: Fraction = by_scale(tiny=0.25, small=0.5, medium=0.5, full=our_choice(0.5))
    """Share of the replies in generated pairs that the policy wrote; the others have a quality that was drawn."""
    noise_share: Fraction = at_every_scale(our_choice(0.1, "so that no pair is certain"))
    """Share of the generated pairs whose label is turned around, held-out pairs included."""
    max_pair_tokens: PositiveInt = by_scale(tiny=160, small=192, medium=4096, full=our_choice(8192))
    """Pairs with a longer reply, its context included, are dropped."""

    # The prompts of reinforcement learning.
    raw_prompts: PositiveInt = by_scale(tiny=3_200, small=6_400, medium=16_000, full=our_choice(16_000))
    """Number of prompts of which the scale takes its share; of sources, at most as many as they have contexts."""
    max_difficulty: Literal[1, 2, 3, 4] = by_scale(tiny=1, small=1, medium=3, full=our_choice(4))
    """The generated conversations have difficulties from 1 to this, in equal numbers."""
    thinking_share: Fraction = at_every_scale(
        published(0.5, "section 3: with and without thinking; that it is a half is our reading")
    )
    """Share of the prompts that ask for thinking: every second one, so that each step has as many."""
    max_new_tokens: PositiveInt = by_scale(tiny=32, small=64, medium=4096, full=our_choice(8192))
    """Tokens of one reply that the policy writes, at most."""
    temperature: PositiveFloat = at_every_scale(our_choice(1.0))
    """Temperature of the replies."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to write them: cpu, cuda, cuda:1, ..."""

    # What is held out.
    held_out_pairs: PositiveInt = by_scale(tiny=40, small=400, medium=1000, full=our_choice(1000))
    """Generated pairs for the evaluation of the reward model."""
    held_out_prompts: PositiveInt = by_scale(tiny=12, small=200, medium=500, full=our_choice(500))
    """Conversations for the evaluation of the policy."""
    validation_prompts: PositiveInt = by_scale(tiny=5, small=60, medium=250, full=our_choice(250))
    """Conversations for the choice of a merge; none of them is in the evaluation."""
    validation_exercises: PositiveInt = by_scale(tiny=3, small=30, medium=100, full=our_choice(100))
    """Exercises of each family that needs reasoning, for the choice of a merge; those with a task of the evaluation are
    left out."""
    exercises_per_family: PositiveInt = by_scale(tiny=5, small=50, medium=200, full=our_choice(500))
    """Evaluation exercises of each family."""

    def check(self) -> None:
        generated = ("sampled_share", "noise_share", "max_new_tokens", "temperature", "held_out_pairs")
        self.check_left_out(*generated, when=self.sources, because="with --sources: their pairs are as they are")


class Dataset(Artifact):
    """Pairs and prompts in training order, and what is held out."""

    num_pairs: int = Field(gt=0)
    num_prompts: int = Field(gt=0)
    base_checkpoint_path: Path
    """The policy at the start, and the reference; its backbone is where the reward model starts from."""
    tokenizer_path: Path
    """Its tokenizer, with the chat template."""
    pairs_path: Path
    """Parquet, in training order: id, context (JSON), chosen and rejected (texts), strength (1 to 3), noisy (whether
    the label was turned around), chosen_tokens and rejected_tokens (ids of context and reply)."""
    held_out_pairs_path: Path
    """The same columns; no task of theirs is trained on."""
    prompts_path: Path
    """Parquet, in training order: the fields of `Exercise`, thinking, tokens (ids)."""
    validation_path: Path
    """Conversations and exercises for the choice of a merge, the fields of `Exercise`."""
    held_out_path: Path
    """Conversations for evaluation."""
    exercises_path: Path
    """Evaluation exercises of every family."""
    filters: dict[str, FilterReport]
    """In the order in which they were applied."""
    unreadable: list[DroppedItem]
    """The first of the rows that a source could not read."""
    num_unreadable: int
    attribution: list[Attribution]
    noise_share: float
    """Of the training pairs: how many labels are turned around."""

    def counts(self) -> dict[str, int | float]:
        """What a step that reads this Dataset records in its ladder as inputs."""
        return {"num_pairs": self.num_pairs, "num_prompts": self.num_prompts, "noise_share": self.noise_share}

    def base(self) -> Base:
        """The Checkpoint of the stage before.

        Raises:
            ValueError: if it is not the one that the pairs were made with, or has another tokenizer.
        """
        return base_checkpoint(self.base_checkpoint_path, self.tokenizer_path)


def check_sources(config: Config) -> None:
    """Raise ValueError or FileNotFoundError if all pairs are wanted and no sources are named, or one is not there."""
    if config.raw_pairs == "all" and not config.sources:
        raise ValueError("raw_pairs=all needs --sources, because conversations have no end; name files with your pairs")
    for source in config.sources:
        find_files(source, preferences.FAMILY)


def conversations(number: int, config: Config, split: Literal["train", "evaluation"], first: int = 0) -> list[Exercise]:
    """Conversations of every difficulty in equal numbers, without the `first` ones; their ids say the difficulty."""
    generate = conversation.generate_exercises
    return of_every_difficulty(generate, number, config.seed, split, config.max_difficulty, first)


def without_tasks_of(exercises: Sequence[Exercise], used: Sequence[Exercise]) -> list[Exercise]:
    """Those whose task is none of the used ones: two difficulties, or two families, may have the same."""
    tasks = {one.canonical for one in used}
    return [one for one in exercises if one.canonical not in tasks]


def held_out_exercises(config: Config) -> tuple[list[Exercise], list[Exercise], list[Exercise]]:
    """Conversations for evaluation; conversations and exercises for the choice of a merge; the exam's exercises.

    A conversation and an exercise may ask the same. What the choice asks has no task of the other two.
    """
    # The first conversations of the evaluation split are for evaluation, the next for the choice.
    held_out = conversations(config.held_out_prompts, config, "evaluation")
    validation = conversations(config.validation_prompts, config, "evaluation", config.held_out_prompts)
    number = config.exercises_per_family
    exercises = exam_exercises(number, config.seed)
    for family in REASONING:  # fewer exercises are a prefix of more
        wanted = number + config.validation_exercises
        validation += family.generate_exercises(wanted, config.seed, split="evaluation", difficulty=1)[number:]
    validation = without_tasks_of(validation, [*held_out, *exercises])
    return held_out, validation, exercises


def sampled_answers(
    model: NemotronH, exercises: Sequence[Exercise], judge: Judge, config: Config
) -> tuple[dict[tuple[str, int], str], list[Continuation]]:
    """What the policy answers in its share of the places: id and number of the reply -> answer; and its replies.

    The first reply to a context is written with thinking, the second without.

    Raises:
        ValueError: if no reply has the right form, as when a policy emits only padding.
    """
    places = [
        (one, side)
        for one in exercises
        for side in (0, 1)
        if falls_into_share(config.sampled_share, "sampled", config.seed, one.id, side)
    ]
    prompts = [judge.prompt_of(exercise, thinking=side == 0) for exercise, side in places]
    sampling = Sampling(config.max_new_tokens, judge.chat.stop_ids, config.temperature)
    replies = draw_replies(model, prompts, 1, sampling, ("pair", config.seed))
    judged = [judged_answer(*one, judge.tokenizer, judge.chat) for one in zip(prompts, replies, strict=True)]
    if judged and not any(form == 1 for form, _ in judged):
        raise ValueError(
            f"none of {len(replies)} replies of the policy ends its turn in the right form, for example "
            f"{judge.decode(replies[0].tokens)[:60]!r}; train the stage before for longer, or raise --max-new-tokens"
        )
    answers = {(one.id, side): text for (one, side), (_, text) in zip(places, judged, strict=True)}
    return answers, replies


def generated_pairs(
    exercises: Sequence[Exercise], answers: dict[tuple[str, int], str], config: Config
) -> list[Preference]:
    """One pair for each context, labeled by the rubric: answers of the policy and, elsewhere, of a drawn quality."""
    pairs, guard = [], Guard()
    for exercise in exercises:
        texts = []
        for side in (0, 1):
            drawn = conversation.draw_reply(seeded_random("reply", config.seed, exercise.id, side), exercise)
            texts.append(answers.get((exercise.id, side), drawn))
        first, second = (by_rubric(exercise, 1.0, text, guard) for text in texts)
        fault = first.fault or second.fault
        label = 0 if fault else label_of(second.total - first.total)  # the filters count and name faults
        noisy = label != 0 and falls_into_share(config.noise_share, "noise", config.seed, exercise.id)
        label = -label if noisy else label
        pairs.append(Preference(exercise.id, exercise, (texts[0], texts[1]), label, noisy, fault=fault))
    return pairs


def pair_rows(pairs: Sequence[Preference], judge: Judge) -> list[dict[str, Any]]:
    """The rows of a file of pairs."""
    return [
        {
            "id": pair.id,
            "context": json.dumps(pair.exercise.messages),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "strength": abs(pair.label),
            "noisy": pair.noisy,
            "chosen_tokens": judge.read_ids(pair.exercise, pair.chosen),
            "rejected_tokens": judge.read_ids(pair.exercise, pair.rejected),
        }
        for pair in pairs
    ]


def main(config: Config) -> Dataset:
    """Curate and return the Dataset."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    check_sources(config)
    made_by = f"python -m nemotron.recipes.nano2.stage3_dpo --scale {config.scale}"
    base = base_checkpoint(config.base_checkpoint_path, made_by=made_by, scale=config.scale)
    load_chat_tokenizer(CHAT, base.checkpoint_path)  # refuses a base model, which cannot answer in the format
    with working_directory(config.output_dir, Dataset) as work, threads_of(config.scale):
        save_chat_tokenizer(CHAT, base.checkpoint_path, work / "tokenizer")
        judge = Judge(CHAT, work / "tokenizer")
        model = load_for_inference(base.checkpoint_path, device=config.device)

        held_out, validation, exercises = held_out_exercises(config)

        # The pairs, those of the user or generated ones; the policy writes some of the replies.
        unreadable: list[Unreadable] = []
        replies: list[Continuation] = []
        total = None if config.raw_pairs == "all" else apply_scale(config.raw_pairs, config.scale)
        if config.sources:
            raw, unreadable = read_preferences(config.sources, num_pairs=total)
            raw = [replace(pair, exercise=replace(pair.exercise, id=pair.id)) for pair in raw]
        else:
            asked_pairs = conversations(total or 0, config, "train")
            first = config.held_out_prompts + config.validation_prompts  # those before it are held out for other uses
            asked_pairs += conversations(config.held_out_pairs, config, "evaluation", first)
            answers, replies = sampled_answers(model, asked_pairs, judge, config)
            raw = generated_pairs(asked_pairs, answers, config)
        first_unreadable = report_unreadable(unreadable)
        progress.print(f"{len(raw):,} raw pairs, {len(unreadable):,} unreadable")
        lengths = {pair.id: max(len(judge.read_ids(pair.exercise, text)) for text in pair.responses) for pair in raw}
        filters: dict[str, FilterReport] = {}
        kept = apply_to_list(raw, preference_rules(lengths, config.max_pair_tokens), filters)
        kept.sort(key=lambda pair: digest_of("order", config.seed, pair.id))
        pairs = [pair for pair in kept if split_of(pair.exercise.canonical) == "train"]
        held_out_pairs = [pair for pair in kept if split_of(pair.exercise.canonical) == "evaluation"]
        if not pairs or not held_out_pairs:
            raise ValueError(
                f"of {len(kept)} pairs {len(pairs)} are for training and {len(held_out_pairs)} held out, by their "
                "contexts; give more pairs, so that there are some of both"
            )
        if all(pair.noisy for pair in held_out_pairs):
            raise ValueError(
                f"the labels of all {len(held_out_pairs)} held-out pairs are turned around, so nothing shows how often "
                "the reward model is right; lower --noise-share, or raise --held-out-pairs"
            )

        # The prompts of reinforcement learning; every second one asks for thinking.
        number = apply_scale(config.raw_prompts, config.scale)
        if config.sources:
            contexts = list({asked(pair.exercise.messages): pair.exercise for pair in pairs}.values())[:number]
        else:
            contexts = conversations(number, replace(config, seed=config.seed + 1), "train")
        contexts.sort(key=lambda one: digest_of("order", config.seed, one.id))
        share = config.thinking_share
        prompts = [
            judge.prompt_of(one, thinking=int((place + 1) * share) > int(place * share))
            for place, one in enumerate(contexts)
        ]

        rows = [{**exercise_to_row(p.exercise), "thinking": p.thinking, "tokens": p.tokens} for p in prompts]
        text = dict.fromkeys(exercise_to_row(exercises[0]), pa.string())
        write_rows(work / "prompts.parquet", rows, **text, thinking=pa.bool_(), tokens=TOKENS)
        columns = {**dict.fromkeys(("id", "context", "chosen", "rejected"), pa.string()), "strength": pa.int32()}
        for name, members in (("pairs", pairs), ("held_out_pairs", held_out_pairs)):
            write_rows(work / f"{name}.parquet", pair_rows(members, judge), **columns, noisy=pa.bool_(),
                       chosen_tokens=TOKENS, rejected_tokens=TOKENS)  # fmt: skip
        of_name = {"held_out": held_out, "validation": validation, "exercises": exercises}
        for name, asked_of in of_name.items():
            write_rows(work / f"{name}.parquet", map(exercise_to_row, asked_of), **text)
        dataset = Dataset(
            path=work,
            num_pairs=len(pairs),
            num_prompts=len(prompts),
            base_checkpoint_path=base.path,
            tokenizer_path=work / "tokenizer",
            pairs_path=work / "pairs.parquet",
            held_out_pairs_path=work / "held_out_pairs.parquet",
            prompts_path=work / "prompts.parquet",
            validation_path=work / "validation.parquet",
            held_out_path=work / "held_out.parquet",
            exercises_path=work / "exercises.parquet",
            filters=filters,
            unreadable=first_unreadable,
            num_unreadable=len(unreadable),
            attribution=attribution_of(pair.exercise for pair in pairs),
            noise_share=sum(pair.noisy for pair in pairs) / len(pairs),
        )

        # What a run must reproduce, in the order in which it happens.
        ladder = Ladder()
        ladder.add_config(config)
        ladder.add("inputs", weight_fingerprint(model))
        for name, asked_of in of_name.items():
            ladder.add("exercises", {name: sha256_of(json.dumps(exercise_to_row(one)) for one in asked_of)})
        tokens = (str(token) for reply in replies for token in [*reply.tokens, -1])
        ladder.add("tries", tokens=sha256_of(tokens), logprobs=sum(sum(reply.logprobs) for reply in replies))
        ladder.add("conversations", replies=sha256_of(text for pair in raw for text in (pair.id, *pair.responses)))
        ladder.add("rewards", labels=[pair.label for pair in raw], noisy=sum(pair.noisy for pair in raw))
        ladder.add("filters", {name: report.recorded() for name, report in filters.items()})
        for name, members in (("pairs", pairs), ("held_out_pairs", held_out_pairs)):
            ladder.add("prompts", {name: sha256_of(pair.id for pair in members)})
        ladder.add("prompts", prompts=sha256_of(f"{p.exercise.id} {p.thinking}" for p in prompts))
        dataset.save(config, ladder)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"dataset": main(config)})
