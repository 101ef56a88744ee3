"""Give a chat model exercises and judge its replies. The exam after a stage (exam.py) is made of this.

In: a model, its tokenizer and chat format, and exercises with verifiers. Out: the replies, each taken apart and judged,
and shares of them as metrics.
An answer is right if the reply has no format error and the verifier of the exercise's family accepts what follows the
thought. Whether the reply also ends, and thinks as asked, is counted apart, as `obeyed`. A verifier that fails makes no
answer right; it is named and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.chat.reply import Reply
from nemotron.recipes.curation.conversations import conversation_of
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling, generate
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.scoring.guard import Guard
from nemotron.recipes.scoring.likelihood import group_losses, score_rows
from nemotron.recipes.sources.exercises import long_context, tool_calling
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.families import VERIFIERS
from nemotron.recipes.sources.exercises.tool_calling import check_call, parse_tool_calls
from nemotron.terminal import print_line

REPLIES_PER_LINE = 256  # our choice: replies between two lines of progress


@dataclass(frozen=True)
class Mode:
    """One way of asking the exercises."""

    name: str
    sampling: Sampling
    """How replies are drawn, with the thinking budget if there is one."""
    thinking: bool = True
    knows_format: bool = True
    """False for a base model: its answer is right if the verifier accepts any line of its output, or all of it."""


@dataclass(frozen=True)
class Answered:
    """One exercise and the model's reply."""

    exercise: Exercise
    text: str
    """The whole reply, special tokens included."""
    answer: str
    """What follows the thought."""
    reply: Reply
    continuation: Continuation
    num_thought: int
    """Tokens of thought, without the tag that closes it."""
    right: bool
    fault: str = ""
    """What went wrong in the verifier, if something did."""

    @property
    def obeyed(self) -> bool:
        """Whether the model thought, or did not, as the prompt asked, and ended its turn."""
        return self.reply.obeys and self.continuation.finish == "stop"


def ask(
    model: NemotronH,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    exercises: Sequence[Exercise],
    mode: Mode,
    *,
    seed: int,
    batch_replies: int,
) -> list[Answered]:
    """The model's replies to the exercises, in their order.

    Args:
        seed: sampling seed of the first exercise; each further exercise has the next integer.
        batch_replies: replies that are written side by side; changes memory and speed, not the replies.
    """
    answered: list[Answered] = []
    for start in range(0, len(exercises), REPLIES_PER_LINE):
        chosen = exercises[start : start + REPLIES_PER_LINE]
        prompts = [prompt_ids(exercise, tokenizer, chat, thinking=mode.thinking) for exercise in chosen]
        seeds = [seed + start + index for index in range(len(chosen))]
        sampling = replace(mode.sampling, stop_ids=chat.stop_ids)
        continuations = generate(model, prompts, sampling, seeds, num_slots=batch_replies)
        answered += [judge(e, c, tokenizer, chat, mode) for e, c in zip(chosen, continuations, strict=True)]
        for one in answered[start:]:
            if one.fault:
                print_line(f"the verifier of {one.exercise.family} failed on {one.exercise.id}: {one.fault}")
        right = sum(one.right for one in answered)
        print_line(f"asked ({mode.name}): {len(answered)}/{len(exercises)}, {right} right")
    return answered


def prompt_ids(exercise: Exercise, tokenizer: Tokenizer, chat: ChatFormat, *, thinking: bool) -> list[int]:
    """The tokens of an exercise up to where the reply begins."""
    messages = chat.with_flag(exercise.messages, thinking=thinking)
    return chat.encode(tokenizer, messages, exercise.tools, add_generation_prompt=True).ids


def written_text(continuation: Continuation, tokenizer: Tokenizer) -> str:
    """What the model wrote, without the token that ended its turn."""
    ended = continuation.tokens[:-1] if continuation.finish == "stop" else continuation.tokens
    return tokenizer.decode(ended, skip_special_tokens=False)


def answer_of(written: str, chat: ChatFormat) -> str:
    """What follows the thought."""
    return written.rpartition(chat.close_think)[2].strip()


def take_apart(
    continuation: Continuation, tokenizer: Tokenizer, chat: ChatFormat, *, thinking: bool
) -> tuple[str, Reply, str]:
    """A reply's whole text, special tokens included; what the chat format finds in it; and its answer."""
    text = tokenizer.decode(continuation.tokens, skip_special_tokens=False)
    return text, chat.parse_reply(text, thinking=thinking), answer_of(written_text(continuation, tokenizer), chat)


def judge(
    exercise: Exercise, continuation: Continuation, tokenizer: Tokenizer, chat: ChatFormat, mode: Mode
) -> Answered:
    """One reply, taken apart and judged."""
    check_answer = VERIFIERS[exercise.family].check_answer
    text, reply, answer = take_apart(continuation, tokenizer, chat, thinking=mode.thinking)
    readings = [answer] if not reply.errors else []
    if not mode.knows_format:
        written = written_text(continuation, tokenizer)
        readings = [written.strip(), *map(str.strip, written.splitlines())]
    right, fault = Guard()(exercise, lambda: any(check_answer(exercise, reading) for reading in readings), False)
    num_thought = thought_length(continuation, tokenizer, chat.close_think) if mode.thinking else 0
    return Answered(exercise, text, answer, reply, continuation, num_thought, right, fault)


def thought_length(continuation: Continuation, tokenizer: Tokenizer, close_think: str) -> int:
    """Tokens before the tag that closes the thought, however the tag is split into tokens; all if nothing closes it."""
    if any(continuation.forced):
        return continuation.forced.index(True)
    tokens = continuation.tokens
    thought, close, _ = tokenizer.decode(tokens, skip_special_tokens=False).partition(close_think)
    if not close:
        return len(tokens)
    ends = range(len(tokens) + 1)
    return next(n for n in ends if len(tokenizer.decode(tokens[:n], skip_special_tokens=False)) >= len(thought))


def calls_are_valid(one: Answered) -> bool:
    """Whether a reply calls tools, each with its name and arguments as the exercise defines them."""
    try:
        calls = parse_tool_calls(one.answer)
        for call in calls:
            check_call(one.exercise.tools, call)
    except ValueError:
        return False
    return True


def share(holds: Sequence[bool]) -> float:
    """Share of True."""
    return sum(holds) / len(holds)


def reply_metrics(answered: Mapping[str, Sequence[Answered]]) -> dict[str, float]:
    """By mode: shares from 0 to 1, and mean thought tokens; `all` is the mean over all families but long context."""
    metrics: dict[str, float] = {}
    for mode, replies in answered.items():
        by_family: dict[str, list[Answered]] = {}
        for one in replies:
            by_family.setdefault(one.exercise.family, []).append(one)
        for family, members in by_family.items():
            metrics[f"exact_match/{family}/{mode}"] = share([one.right for one in members])
        short = [metrics[f"exact_match/{family}/{mode}"] for family in by_family if family != long_context.FAMILY]
        metrics[f"exact_match/all/{mode}"] = sum(short) / len(short)
        metrics[f"obeyed/{mode}"] = share([one.obeyed for one in replies])
        metrics[f"format_errors/{mode}"] = share([bool(one.reply.errors) for one in replies])
        metrics[f"stopped/{mode}"] = share([one.continuation.finish == "stop" for one in replies])
        calls = [one for one in by_family.get(tool_calling.FAMILY, []) if "<TOOLCALL>" in one.exercise.answer]
        if calls:
            metrics[f"valid_tool_calls/{mode}"] = share([calls_are_valid(one) for one in calls])
        metrics[f"thought_tokens/{mode}"] = sum(one.num_thought for one in replies) / len(replies)
    return metrics | fault_metrics({mode: [one.fault for one in replies] for mode, replies in answered.items()})


def fault_metrics(faults: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Share of the replies whose verifier failed, by what wrote them; no metric if none did, which is the rule.

    Args:
        faults: name -> of each reply what went wrong, empty if nothing did.
    """
    if not any(map(any, faults.values())):
        return {}
    return {f"verifier_faults/{name}": sum(map(bool, found)) / len(found) for name, found in faults.items()}


def write_replies(answered: Mapping[str, Sequence[Answered]], path: Path) -> None:
    """Write Parquet with a row for each reply: mode, id, family, reply, right, errors.

    Args:
        answered: by mode, or by model and mode as "policy/think".
    """
    rows: list[dict[str, Any]] = [
        {"mode": name, "id": one.exercise.id, "family": one.exercise.family, "reply": one.text, "right": one.right,
         "errors": list(one.reply.errors)}
        for name, replies in answered.items()
        for one in replies
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)


def right_reply_losses(
    model: NemotronH, exercises: Sequence[Exercise], tokenizer: Tokenizer, chat: ChatFormat, batch_tokens: int
) -> dict[str, float]:
    """Family -> nats per token of its right replies, thought included: it moves long before a reply is right.

    Args:
        batch_tokens: most tokens in one forward pass; changes memory, not the result.
    """
    encoded = [chat.encode(tokenizer, conversation_of(one).messages, one.tools) for one in exercises]
    score = partial(score_rows, model, batch_tokens=batch_tokens, device=model.lm_head.weight.device)
    families = [one.family for one in exercises]
    return group_losses(score, [row.ids for row in encoded], [row.in_loss for row in encoded], families)
