"""Rewards: what a verifier gives to a reply, in parts.

In: an exercise and the model's reply. Out: a `Reward` from 0 to 1. Its form, whether the reply ends, has no format
error and thinks or not as asked, is a tenth of it. The rest goes to replies of the right form: the mean of the parts
that the verifier gives. An instruction has a part for each constraint, so that replies to the same prompt differ long
before one is right; every other family has one part, whether the answer is right.

A verifier that fails or takes too long (guard.py) gives a reward of 0 that says so. One that took too long over a reply
is not asked about the prompt's other replies, which get the same.

An answer is `right` here only if its form is, too. In the exam (exercises.py) it is right if there is no format error,
whether or not the reply ends and thinks as asked; that is counted beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.chat.template import format_of
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.scoring.exercises import prompt_ids, take_apart
from nemotron.recipes.scoring.guard import VERIFIER_SECONDS, Guard
from nemotron.recipes.sources.exercises import ifeval, instructions
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.families import VERIFIERS
from nemotron.terminal import print_line

FORM_SHARE = 0.1  # our choice: enough for a signal, little for a reply that has nothing but its form


@dataclass(frozen=True)
class Prompt:
    """What a policy is asked, and how its reply is judged."""

    exercise: Exercise
    """The question and its verifier."""
    thinking: bool
    """Whether the prompt asks for a thought."""
    tokens: tuple[int, ...]
    """Ids of the whole prompt, up to where the reply begins."""


@dataclass(frozen=True)
class Reward:
    """What a reply earns."""

    total: float
    """From 0 to 1, see `total_reward`."""
    form: float = 0.0
    """A half if the reply ends its turn, and a half if its format has no error and it thinks, or does not, as asked."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Name of a constraint, or "right" -> from 0 to 1; all 0 unless the form is right."""
    right: bool = False
    """Whether every part is complete."""
    answer: str = ""
    """What was judged: the reply after its thought; empty unless the form is right."""
    fault: str = ""
    """What went wrong in the verifier, if something did."""


def reward_parts(exercise: Exercise, answer: str) -> dict[str, float]:
    """The parts that an answer earns: what follows the thought, without the end of turn."""
    if exercise.family == instructions.FAMILY:
        return instructions.satisfied_parts(exercise, answer)
    if exercise.family == ifeval.FAMILY:
        return {name: float(follows) for name, follows in ifeval.constraint_results(exercise, answer).items()}
    return {"right": float(VERIFIERS[exercise.family].check_answer(exercise, answer))}


def float_parts(exercise: Exercise, answer: str) -> dict[str, float]:
    """The parts that an answer earns, as floats, whatever numbers its verifier gives."""
    return {name: float(value) for name, value in reward_parts(exercise, answer).items()}


def total_reward(form: float, parts: Mapping[str, float]) -> float:
    """The reward of a reply with this form, whose parts are those of its answer.

    It is rounded, so that replies that deserve the same earn the same: 3 x 0.2 in floats is more than 0.6, and a group
    that differs by nothing else would have advantages of about 1, divided by its standard deviation.
    """
    return round(FORM_SHARE * form + (1 - FORM_SHARE) * sum(parts.values()) / len(parts), 12)


def loosened(answer: str) -> list[str]:
    """The answer as it is, and as IFEval's loose measure also judges it (arXiv 2311.07911).

    Without its first line, its last, and both, which may be a greeting or an explanation; each also without asterisks.
    A reading that is only white space is left out.
    """
    lines = answer.split("\n")
    cut = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = ["\n".join(kept).strip() for kept in cut]
    readings = [*texts, *(text.replace("*", "").strip() for text in texts)]
    return list(dict.fromkeys([answer, *filter(None, readings)]))


def reward_of(
    exercise: Exercise,
    continuation: Continuation,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    *,
    thinking: bool,
    guard: Guard,
) -> Reward:
    """The reward of one reply.

    Args:
        thinking: whether the prompt asked for it.
        guard: asks the verifier.
    Raises:
        ValueError: if the verifier gives a number that is not finite, or outside of 0 to 1.
    """
    _, reply, answer = take_apart(continuation, tokenizer, chat, thinking=thinking)
    nothing: dict[str, float] = {}
    parts, fault = guard(exercise, partial(float_parts, exercise, answer), nothing)
    if fault:
        return Reward(0.0, fault=fault)
    bad = {name: value for name, value in parts.items() if not (math.isfinite(value) and 0 <= value <= 1)}
    if bad or not parts:
        raise ValueError(
            f"the verifier of {exercise.family} gives the prompt {exercise.id} the parts {parts}; each must be "
            "a number from 0 to 1, so correct the verifier or drop the prompt"
        )
    form = ((continuation.finish == "stop") + (reply.obeys and not reply.errors)) / 2
    parts = {name: value if form == 1 else 0.0 for name, value in parts.items()}
    right = all(value == 1 for value in parts.values())
    return Reward(total_reward(form, parts), form, parts, right, answer if form == 1 else "")


def loosely(exercise: Exercise, reward: Reward) -> list[float]:
    """Each part as the most lenient reading of the answer earns it; nothing unless its form is right."""
    if not reward.answer:
        return list(reward.parts.values())
    texts = loosened(reward.answer)
    # A fault is that of a reading that nobody wrote: only the answer as it is counts.
    readings, _ = Guard()(exercise, lambda: [reward_parts(exercise, text) for text in texts], [reward.parts])
    return [max(parts[name] for parts in readings) for name in reward.parts]


class Verifier:
    """Judges the replies to prompts, and names what its rules could not judge.

    Args:
        format: of the chat.
        tokenizer_path: directory of the tokenizer, which may bring its own chat template.
        seconds: that judging one reply may take.
    """

    def __init__(self, format: ChatFormat, tokenizer_path: Path, seconds: float = VERIFIER_SECONDS) -> None:
        self.tokenizer = load_chat_tokenizer(format, tokenizer_path)
        self.chat = format_of(format, tokenizer_path)
        self.seconds = seconds

    def __call__(self, prompts: Sequence[Prompt], replies: Sequence[Continuation]) -> list[Reward]:
        """The reward of each reply; every prompt has its share of the replies, next to each other."""
        size, guard = len(replies) // len(prompts), Guard(self.seconds)
        rewards = []
        for index, reply in enumerate(replies):
            prompt = prompts[index // size]
            reward = reward_of(prompt.exercise, reply, self.tokenizer, self.chat, thinking=prompt.thinking, guard=guard)
            if reward.fault:
                print_line(f"the verifier of {prompt.exercise.family} failed on {prompt.exercise.id}: {reward.fault}")
            rewards.append(reward)
        return rewards

    def prompt_of(self, exercise: Exercise, *, thinking: bool) -> Prompt:
        """The exercise as a policy is asked it."""
        return Prompt(exercise, thinking, tuple(prompt_ids(exercise, self.tokenizer, self.chat, thinking=thinking)))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a reply, with its special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)
