"""Ask the fine-tuned model exercises that it has not seen, with thinking, without, and with a budget for it.

In: the Checkpoint of training.py, and through it its Dataset and stage 0's Checkpoint, which is asked as well.
Out: Results: metrics, a readable table, a plot, sample conversations, and every reply.
Source: the published evaluation (arXiv 2508.14444, table 8) runs benchmarks that a small model cannot answer. What
stands here has their form: an answer counts if a verifier accepts it. Published: temperature 0.6 and top-p 0.95 with
thinking, greedy without, and the budget's rule.
Run: python -m nemotron.recipes.nano2.stage1_sft.evaluation --scale tiny --checkpoint-path <directory>

Left out: the published benchmarks. The Checkpoint is a Hugging Face directory with a chat template, so
lm-evaluation-harness runs on it.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from rich.console import Console
from rich.markdown import Markdown
from tokenizers import Tokenizer

from nemotron import Artifact, Scale, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process
from nemotron.recipes.nano2.chat import (
    CLOSE,
    NO_THINK,
    REPLY_PREFIXES,
    STOP_TOKENS,
    THINK,
    Reply,
    encode_chat,
    load_chat_tokenizer,
    parse_reply,
    with_flag,
)
from nemotron.recipes.nano2.sizes import SIZES, resolved
from nemotron.recipes.nano2.stage0_pretrain.data_curation import sha256_of
from nemotron.recipes.nano2.stage0_pretrain.evaluation import refuse_other_scale
from nemotron.recipes.nano2.stage0_pretrain.training import Checkpoint as BaseCheckpoint
from nemotron.recipes.nano2.stage1_sft.data_curation import LONG_CONTEXT, TOOL_CALLING, Dataset, exercise_of
from nemotron.recipes.nano2.stage1_sft.report import plot_results, results_table, samples_page
from nemotron.recipes.nano2.stage1_sft.training import Checkpoint
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.nemotron_h.fingerprint import weight_fingerprint
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling, ThinkingBudget, generate
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.sources.exercises import FAMILIES, Exercise
from nemotron.recipes.sources.exercises.tool_calling import checked_call, parse_tool_calls
from nemotron.recipes.training.device import device_memory_bytes

Mode = Literal["base", "think", "no_think", "budget"]
MODES: tuple[Mode, ...] = ("base", "think", "no_think", "budget")
"""The base model with thinking, and the fine-tuned one with it, without it, and with it within a budget."""


@dataclass
class Config:
    """Evaluate a fine-tuned checkpoint. A number left out is the one in sizes.py for the scale."""

    scale: Scale = "tiny"
    """Scale of the checkpoint: tiny, small, medium or full; picks device, arithmetic and output directory."""
    seed: int = 1234
    """Seed of what is drawn where the temperature is above 0."""
    output_dir: Path | None = None
    """Where the Results go; outputs/nano2/<scale>/stage1_sft/evaluation if left out."""
    checkpoint_path: Path | None = None
    """Directory of the Checkpoint; read from the pipe if left out."""
    batch_replies: int = 64
    """Replies that are written side by side; changes memory and speed, not the replies; their
    log-probabilities may differ in the last digits."""
    max_new_tokens: int | None = None
    """Of one reply."""
    thinking_budget: int | None = None
    """Tokens of thought in the mode that has a budget."""
    grace_tokens: int | None = None
    """Tokens beyond the budget after which a thought is closed by force; published: 500."""
    temperature: float = 0.6  # published, with thinking
    """Of replies with thinking, 0 for greedy ones; those without are always greedy."""
    top_p: float = 0.95  # published, with thinking
    """Share of the probability that replies with thinking are drawn from."""
    device: str | None = None
    """Where to evaluate: cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        for name in ("batch_replies", "max_new_tokens", "thinking_budget"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be greater than 0")
        if self.grace_tokens is not None and self.grace_tokens < 0:
            raise ValueError(f"grace_tokens={self.grace_tokens} must not be negative")
        Sampling(max_new_tokens=1, temperature=self.temperature, top_p=self.top_p)  # refuses what is out of range


class Results(Artifact):
    """What the model answers, every number with what it has to be compared with."""

    checkpoint_path: Path
    """The Checkpoint that was evaluated."""
    table_path: Path
    """Markdown: the metrics as a person reads them."""
    plot_path: Path
    samples_path: Path
    """Markdown: a conversation of every family, with and without thinking."""
    replies_path: Path
    """Parquet, a row a reply: mode, id, family, reply, right, errors."""


@dataclass(frozen=True)
class Answered:
    """One exercise and what the model made of it."""

    exercise: Exercise
    text: str
    """All that it wrote, special tokens included."""
    answer: str
    """What stands after the thought."""
    reply: Reply
    continuation: Continuation
    num_thought: int
    """Tokens of thought, without the tag that closes it."""
    right: bool

    @property
    def obeyed(self) -> bool:
        """Whether it thought, or did not, as it was asked to, and came to an end."""
        return self.reply.obeys and self.continuation.finish == "stop"


def ask(
    model: NemotronH, tokenizer: Tokenizer, exercises: Sequence[Exercise], mode: Mode, config: Config
) -> list[Answered]:
    """The model's replies to the exercises in one mode; `config` is resolved."""
    assert config.max_new_tokens and config.thinking_budget and config.grace_tokens is not None
    thinking = mode != "no_think"
    flag = THINK if thinking else NO_THINK
    budget = ThinkingBudget(config.thinking_budget, tokenizer, config.grace_tokens) if mode == "budget" else None
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        stop_ids=STOP_TOKENS,
        temperature=config.temperature if thinking else 0.0,
        top_p=config.top_p if thinking else 1.0,
        budget=budget,
    )
    answered = []
    for start in range(0, len(exercises), config.batch_replies):
        chosen = exercises[start : start + config.batch_replies]
        prompts = [
            encode_chat(tokenizer, with_flag(e.messages, flag), e.tools, add_generation_prompt=True).ids for e in chosen
        ]
        seeds = [config.seed + start + index for index in range(len(chosen))]
        continuations = generate(model, prompts, sampling, seeds)
        answered += [judged(e, c, tokenizer, mode) for e, c in zip(chosen, continuations, strict=True)]
        right = sum(one.right for one in answered)
        print(f"asked ({mode}): {len(answered)}/{len(exercises)}, {right} right", file=sys.stderr, flush=True)
    return answered


def judged(exercise: Exercise, continuation: Continuation, tokenizer: Tokenizer, mode: Mode) -> Answered:
    """One reply: taken apart, and right if the family's verifier accepts what stands after the thought.

    The base model knows nothing of the format, so its format is not asked for: it is right if the verifier accepts
    any line of what it wrote, or all of it.
    """
    check_answer = FAMILIES[exercise.family].check_answer
    thinking = mode != "no_think"
    text = tokenizer.decode(continuation.tokens, skip_special_tokens=False)
    reply = parse_reply(text, thinking=thinking)
    ended = continuation.tokens[:-1] if continuation.finish == "stop" else continuation.tokens
    written = tokenizer.decode(ended, skip_special_tokens=False)
    answer = written.rpartition(CLOSE)[2].strip()
    right = not reply.errors and check_answer(exercise, answer)
    if mode == "base":
        right = any(check_answer(exercise, part.strip()) for part in (written, *written.splitlines()))
    num_thought = thought_length(continuation, tokenizer) if thinking else 0
    return Answered(exercise, text, answer, reply, continuation, num_thought, right)


def thought_length(continuation: Continuation, tokenizer: Tokenizer) -> int:
    """Tokens before the tag that closes the thought, however the text falls into tokens; all if nothing closes it."""
    if any(continuation.forced):
        return continuation.forced.index(True)
    tokens = continuation.tokens
    thought, close, _ = tokenizer.decode(tokens, skip_special_tokens=False).partition(CLOSE)
    if not close:
        return len(tokens)
    ends = range(len(tokens) + 1)
    return next(n for n in ends if len(tokenizer.decode(tokens[:n], skip_special_tokens=False)) >= len(thought))


def calls_are_valid(one: Answered) -> bool:
    """Whether a reply calls tools, every one of them with its name and arguments as the exercise defines them."""
    try:
        calls = parse_tool_calls(one.answer)
        for call in calls:
            checked_call(one.exercise.tools, call)
    except ValueError:
        return False
    return True


def metrics_of(answered: dict[Mode, list[Answered]], config: Config) -> dict[str, float]:
    """Shares between 0 and 1; `all` is the mean over the families but long context, which stands apart."""
    assert config.thinking_budget and config.grace_tokens is not None
    metrics: dict[str, float] = {}

    def share(replies: list[Answered], holds: list[bool]) -> float:
        return sum(holds) / len(replies)

    for mode, replies in answered.items():
        by_family: dict[str, list[Answered]] = {}
        for one in replies:
            by_family.setdefault(one.exercise.family, []).append(one)
        for family, members in by_family.items():
            metrics[f"exact_match/{family}/{mode}"] = share(members, [one.right for one in members])
        short = [metrics[f"exact_match/{family}/{mode}"] for family in by_family if family != LONG_CONTEXT]
        metrics[f"exact_match/all/{mode}"] = sum(short) / len(short)
        metrics[f"obeyed/{mode}"] = share(replies, [one.obeyed for one in replies])
        metrics[f"format_errors/{mode}"] = share(replies, [bool(one.reply.errors) for one in replies])
        metrics[f"stopped/{mode}"] = share(replies, [one.continuation.finish == "stop" for one in replies])
        calls = [one for one in by_family[TOOL_CALLING] if "<TOOLCALL>" in one.exercise.answer]
        if calls:
            metrics[f"valid_tool_calls/{mode}"] = share(calls, [calls_are_valid(one) for one in calls])
        metrics[f"thought_tokens/{mode}"] = sum(one.num_thought for one in replies) / len(replies)
    most = config.thinking_budget + config.grace_tokens
    metrics["within_budget"] = share(answered["budget"], [one.num_thought <= most for one in answered["budget"]])
    metrics["num_closed_by_budget"] = sum(any(one.continuation.forced) for one in answered["budget"])
    metrics["num_exercises"] = len(answered["think"])
    return metrics


HEADLINE = ("exact_match/all/think", "obeyed/think", "obeyed/no_think")  # what a line of golden/CHANGES.md shows


def main(config: Config) -> Results:
    """Evaluate and return the Results."""
    config = resolved(config, "stage1_sft", "evaluation")
    assert config.output_dir and config.device
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    checkpoint = Checkpoint.load(path=config.checkpoint_path)
    refuse_other_scale(config.scale, checkpoint)
    dataset = Dataset.load(path=checkpoint.dataset_path)
    base = BaseCheckpoint.load(path=dataset.base_checkpoint_path)

    with working_directory(config.output_dir, Results) as work:
        tokenizer = load_chat_tokenizer(checkpoint.checkpoint_path)
        exercises = [exercise_of(row) for row in pq.read_table(dataset.exercises_path).to_pylist()]
        dtype = torch.float64 if SIZES[config.scale].dtype == "float64" else torch.float32
        answered: dict[Mode, list[Answered]] = {}
        for mode in MODES:
            path = base.checkpoint_path if mode == "base" else checkpoint.checkpoint_path
            model = load_checkpoint(path, device=config.device, dtype=dtype)
            answered[mode] = ask(model, tokenizer, exercises, mode, config)
        metrics = metrics_of(answered, config)

        # What a run must reproduce, in the order in which it happens.
        names = ("scale", "max_new_tokens", "thinking_budget", "grace_tokens", "temperature", "top_p")
        ladder: list[tuple[str, str, Any]] = [("config", name, getattr(config, name)) for name in names]
        ladder += [("inputs", name, value) for name, value in weight_fingerprint(model).items()]
        ladder.append(("exercises", "sha256", sha256_of(exercise.id for exercise in exercises)))
        for mode, replies in answered.items():
            tokens = (str(token) for one in replies for token in [*one.continuation.tokens, -1])
            ladder.append(("replies", mode, sha256_of(tokens)))
            logprobs = sum(sum(one.continuation.logprobs) for one in replies)
            ladder.append(("log-probabilities", mode, logprobs))
        ladder += [("metrics", name, int(v) if name.startswith("num_") else v) for name, v in metrics.items()]
        ladder += [("headline", name, metrics[name]) for name in HEADLINE]
        entries = [{"rung": rung, "name": name, "step": 0, "value": value} for rung, name, value in ladder]
        (work / "ladder.json").write_text(json.dumps(entries, indent=1))

        table = results_table(checkpoint, metrics, list(FAMILIES))
        (work / "results.md").write_text(table, encoding="utf-8")
        plot_results(metrics, list(FAMILIES), work / "results.svg")
        samples = [
            (mode, one.exercise, f"{REPLY_PREFIXES[mode != 'no_think']}{one.text}", one.right)
            for family in FAMILIES
            for mode in ("think", "no_think", "budget")
            for one in [one for one in answered[mode] if one.exercise.family == family][:1]
        ]
        (work / "samples.md").write_text(samples_page(samples), encoding="utf-8")
        rows = [
            {"mode": mode, "id": one.exercise.id, "family": one.exercise.family, "reply": one.text,
             "right": one.right, "errors": list(one.reply.errors)}
            for mode, replies in answered.items()
            for one in replies
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), work / "replies.parquet")
        Results(
            path=work,
            checkpoint_path=checkpoint.path,
            table_path=work / "results.md",
            plot_path=work / "results.svg",
            samples_path=work / "samples.md",
            replies_path=work / "replies.parquet",
            metrics=metrics,
        ).save(config)
    Console(stderr=True).print(Markdown(table))
    return Results.load(config.output_dir)


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        print_complete({"results": main(config)})
