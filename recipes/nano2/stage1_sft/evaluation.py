"""Ask the fine-tuned model exercises that it has not seen, with thinking, without, and with a budget for it.

In: the Checkpoint of training.py, and through it its Dataset and stage 0's Checkpoint, whose model is asked too.
Out: Results: metrics, a readable table, a plot, sample conversations, and every reply. Each family has the share of
right replies, and the loss of the right reply, which shows progress before the first reply is right.
Source: the published evaluation (arXiv 2508.14444, table 8) runs benchmarks that a small model cannot answer. The
exercises here are scored alike: an answer counts if a verifier accepts it. Published: temperature 0.6 and top-p 0.95
with thinking, greedy without, and the budget's rule.
Run: python -m nemotron.recipes.nano2.stage1_sft.evaluation --scale tiny --checkpoint-path <directory>

The published benchmarks run with --harness lm-eval --tasks <names> (recipes/nano2/harness).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from tokenizers import Tokenizer

from nemotron import Artifact, print_complete
from nemotron.artifact import working_directory
from nemotron.config import (
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
from nemotron.recipes.chat.template import format_of, template_of
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.curation.digests import sha256_of
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.harness import HarnessConfig, run_harness
from nemotron.recipes.nano2.models import DEVICES
from nemotron.recipes.nano2.stage1_sft.data_curation import LONG_CONTEXT_CATEGORY, Dataset
from nemotron.recipes.nano2.stage1_sft.report import plot_results, results_table, samples_page
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_for_inference
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.generate import Sampling, ThinkingBudget
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.scoring.chance import chance_levels, chance_metrics
from nemotron.recipes.scoring.exam import reply_digest
from nemotron.recipes.scoring.exercises import Answered, Mode, ask, reply_metrics, share, write_replies
from nemotron.recipes.scoring.likelihood import group_losses, score_rows
from nemotron.recipes.sources.exercises.exercise import exercise_from_row
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.run import Checkpoint, base_checkpoint
from nemotron.terminal import print_markdown


@dataclass
class Config(HarnessConfig):
    """Evaluate a fine-tuned checkpoint."""

    seed: int = 1234
    """Seed of what is drawn where the temperature is above 0."""
    output_dir: Path = output_below("nano2", "stage1_sft", "evaluation")
    """Where the Results go."""
    checkpoint_path: Path | None = input_path()
    """Directory of the Checkpoint; read from the pipe if left out."""
    batch_replies: PositiveInt = at_every_scale(our_choice(64), recorded=False)
    """Replies that are written side by side; changes memory and speed, not the replies; their
    log-probabilities may differ in the last digits."""
    batch_tokens: PositiveInt = by_scale(tiny=2048, small=2048, medium=65_536, full=our_choice(65_536), recorded=False)
    """Tokens in one forward pass over the right replies; does not change the result."""
    max_new_tokens: PositiveInt = by_scale(
        tiny=64, small=128, medium=4096, full=proxy(32_768, "Nemotron Nano 9B v2 in NVIDIA's NeMo-Skills")
    )
    """Tokens of one reply, at most."""
    thinking_budget: PositiveInt = by_scale(tiny=8, small=12, medium=1024, full=our_choice(4096))
    """Tokens of thought in the mode that has a budget."""
    grace_tokens: NonNegativeInt = by_scale(
        tiny=8, small=12, medium=published(500, "budget control"), full=published(500, "budget control")
    )
    """Tokens beyond the budget after which a thought is closed by force."""
    temperature: float = at_every_scale(published(0.6, "with thinking, model card of the 9B"))
    """Temperature of replies with thinking, 0 for greedy; replies without thinking are always greedy."""
    top_p: float = at_every_scale(published(0.95, "with thinking, model card of the 9B"))
    """Share of the probability that replies with thinking are drawn from."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to evaluate: cpu, cuda, cuda:1, ..."""

    def check(self) -> None:
        super().check()
        Sampling(max_new_tokens=1, temperature=self.temperature, top_p=self.top_p)  # refuses what is out of range


class Results(Artifact):
    """What the model answers, each number beside what to compare it with."""

    checkpoint_path: Path
    """The Checkpoint that was evaluated."""
    table_path: Path
    """Markdown: the metrics as a person reads them."""
    plot_path: Path
    samples_path: Path
    """Markdown: a conversation of every family, with and without thinking."""
    replies_path: Path
    """Parquet, one row per reply: mode, id, family, reply, right, errors."""


# What a line of golden/CHANGES.md shows.
HEADLINE = ("exact_match/all/think", "reply_loss/all/tuned", "obeyed/think", "obeyed/no_think")


def modes_of(config: Config, tokenizer: Tokenizer, *, base_can_chat: bool = False) -> list[Mode]:
    """The base model with thinking; the fine-tuned model with thinking, without, and with a thinking budget."""
    drawn = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
    budget = ThinkingBudget(config.thinking_budget, tokenizer, CHAT.close_think, config.grace_tokens)
    return [
        Mode("base", drawn, knows_format=base_can_chat),
        Mode("think", drawn),
        Mode("no_think", Sampling(max_new_tokens=config.max_new_tokens), thinking=False),
        Mode("budget", replace(drawn, budget=budget)),
    ]


def main(config: Config) -> Results:
    """Evaluate and return the Results."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    checkpoint = Checkpoint.load(path=config.checkpoint_path, made_by="nemotron.recipes.nano2.stage1_sft.training")
    checkpoint.check_scale(config.scale)
    dataset = Dataset.load(path=checkpoint.dataset_path, given=checkpoint)
    base = base_checkpoint(dataset.base_checkpoint_path)

    with working_directory(config.output_dir, Results) as work, threads_of(config.scale):
        harness = run_harness(config, checkpoint.checkpoint_path, work)
        # Ask every exercise in every mode, in the precision of the weights, also where training computed in bfloat16.
        tokenizer = load_chat_tokenizer(CHAT, checkpoint.checkpoint_path)
        chat = format_of(CHAT, checkpoint.checkpoint_path)
        exercises = [exercise_from_row(row) for row in pq.read_table(dataset.exercises_path).to_pylist()]
        tuned = load_checkpoint(checkpoint.checkpoint_path, device=config.device)
        base_can_chat = template_of(base.checkpoint_path) is not None  # a published model may be fine-tuned already
        modes = modes_of(config, tokenizer, base_can_chat=base_can_chat)
        models = {"base": load_for_inference(base.checkpoint_path, device=config.device), "tuned": tuned}
        answered: dict[str, list[Answered]] = {}
        for mode in modes:
            model = models["base" if mode.name == "base" else "tuned"]
            answered[mode.name] = ask(
                model, tokenizer, chat, exercises, mode, seed=config.seed, batch_replies=config.batch_replies
            )
        # A thought may use its budget and then the grace to end its line; more would be a mistake of the decoding.
        metrics = reply_metrics(answered)
        limit = config.thinking_budget + config.grace_tokens
        metrics["within_budget"] = share([one.num_thought <= limit for one in answered["budget"]])
        metrics["num_closed_by_budget"] = sum(any(one.continuation.forced) for one in answered["budget"])
        metrics["num_exercises"] = len(exercises)
        # What the same verifiers give to replies that ignore the question: the level that every result is read against.
        chance = chance_levels(exercises, num_answers=dataset.num_conversations, seed=config.seed)
        metrics |= chance_metrics(chance, exercises)
        # How likely each model finds the right reply with its thought, token by token: it falls long before a whole
        # reply is right, and nothing is drawn.
        right = pq.read_table(dataset.validation_path).to_pydict()
        for name, model in models.items():
            score = partial(score_rows, model, batch_tokens=config.batch_tokens, device=config.device)
            losses = group_losses(score, right["tokens"], right["in_loss"], right["family"])
            metrics |= {f"reply_loss/{family}/{name}": loss for family, loss in losses.items()}
            short = [loss for family, loss in losses.items() if family != LONG_CONTEXT_CATEGORY]
            metrics[f"reply_loss/all/{name}"] = sum(short) / len(short)

        # What a run must reproduce, in the order in which it happens.
        ladder = Ladder()
        ladder.add_config(config)
        ladder.add("inputs", weight_fingerprint(tuned))
        ladder.add("exercises", sha256=sha256_of(exercise.id for exercise in exercises))
        for name, replies in answered.items():
            ladder.add("replies", {name: reply_digest(replies)})
            ladder.add("log-probabilities", {name: sum(sum(one.continuation.logprobs) for one in replies)})
        ladder.add("metrics", {name: int(v) if name.startswith("num_") else v for name, v in metrics.items()})
        ladder.add("headline", {name: metrics[name] for name in HEADLINE})

        table = results_table(checkpoint, metrics, list(FAMILIES), chance)
        (work / "results.md").write_text(table, encoding="utf-8", newline="\n")
        plot_results(metrics, list(FAMILIES), work / "results.svg")
        samples = []
        for family in FAMILIES:
            for mode in modes[1:]:
                one = next(one for one in answered[mode.name] if one.exercise.family == family)
                text = f"{CHAT.reply_prefixes[mode.thinking]}{one.text}"
                samples.append((mode.name, one.exercise, text, one.right))
        (work / "samples.md").write_text(samples_page(samples), encoding="utf-8", newline="\n")
        write_replies(answered, work / "replies.parquet")
        Results(
            path=work,
            checkpoint_path=checkpoint.path,
            table_path=work / "results.md",
            plot_path=work / "results.svg",
            samples_path=work / "samples.md",
            replies_path=work / "replies.parquet",
            metrics=metrics | harness,
        ).save(config, ladder)
    print_markdown(table)
    return Results.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"results": main(config)})
