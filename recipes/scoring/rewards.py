"""Rewards: what a verifier gives to a reply, in parts.

In: an exercise and the model's reply. Out: a `Reward` from 0 to 1. Its form, whether the reply ends, has no format
error and thinks or not as asked, is a tenth of it. The rest goes to replies of the right form: the mean of the parts
that the verifier gives. An instruction has a part for each constraint, so that replies to the same prompt differ long
before one is right; every other family has one part, whether the answer is right.

A verifier that fails or takes too long gives a reward of 0 that says so. The limit of time needs a POSIX system and the
main thread; elsewhere there is none.
"""

import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.chat.template import format_of
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.scoring.exercises import answer_of, prompt_ids, written_text
from nemotron.recipes.sources.exercises import ifeval, instructions
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.families import VERIFIERS
from nemotron.strict import one_sentence
from nemotron.terminal import print_line

VERIFIER_SECONDS = 10.0  # our choice: ours take a millisecond
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
    seconds: float = VERIFIER_SECONDS,
) -> Reward:
    """The reward of one reply.

    Args:
        thinking: whether the prompt asked for it.
        seconds: that the verifier may take.
    Raises:
        ValueError: if the verifier gives a number that is not finite, or outside of 0 to 1.
    """
    text = tokenizer.decode(continuation.tokens, skip_special_tokens=False)
    reply = chat.parse_reply(text, thinking=thinking)
    answer = answer_of(written_text(continuation, tokenizer), chat)
    try:
        with time_limit(seconds):
            parts = {name: float(value) for name, value in reward_parts(exercise, answer).items()}
    except Exception as error:  # whatever a verifier raises, training goes on
        return Reward(0.0, fault=f"{type(error).__name__}: {one_sentence(error)}")
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
    try:
        with time_limit(VERIFIER_SECONDS):
            readings = [reward_parts(exercise, text) for text in loosened(reward.answer)]
    except Exception:  # of a reading that nobody wrote: only the answer as it is counts
        return list(reward.parts.values())
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
        size = len(replies) // len(prompts)
        rewards = []
        for index, reply in enumerate(replies):
            prompt = prompts[index // size]
            reward = reward_of(
                prompt.exercise, reply, self.tokenizer, self.chat, thinking=prompt.thinking, seconds=self.seconds
            )
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


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside the block after so many seconds, where the system has alarms.

    A block that catches it and goes on is stopped again after as long, and raises it at its end.
    """
    late = TimeoutError(f"no result after {seconds:g} s")
    is_late = False

    def stop(number: int, frame: Any) -> None:
        nonlocal is_late
        is_late = True
        raise late

    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        if is_late:
            raise late
    else:
        yield
