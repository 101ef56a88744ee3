"""What a reward model gives to a reply, with the rubric that it should have learned beside it.

In: prompts, the replies of a policy, a reward model. Out: a `Reward` for each reply. Its total is the score of the
reward model, which any number can be; its parts are those of the rubric (sources/rubric.py), which no step learns from.
The reward model reads what the user reads: the conversation without a flag, and the reply without its thought. A reply
of the wrong form (it does not end its turn, it thinks although it should not or does not although it should) is scored
as the empty reply: what was cut cannot be judged, and nothing is earned by it.

A rubric that fails or takes too long (guard.py) gives parts of 0 and a fault that says so; the score stays.

Left out: length penalties, and a mean of several reward models.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.chat.template import format_of
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.nemotron_h.scorer import Scorer, scores_of
from nemotron.recipes.scoring.chance import Chance
from nemotron.recipes.scoring.exercises import answer_of, prompt_ids, written_text
from nemotron.recipes.scoring.guard import VERIFIER_SECONDS, Guard
from nemotron.recipes.scoring.rewards import Prompt, Reward
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.rubric import WEIGHTS, rubric_parts, rubric_total
from nemotron.terminal import print_line

RUBRIC = "rubric"  # the weighted mean of the parts, beside them
SCORED_AT_A_TIME = 32  # our choice: replies that a reward model reads side by side


def read_ids(exercise: Exercise, answer: str, tokenizer: Tokenizer, chat: ChatFormat) -> list[int]:
    """The tokens that a reward model reads: the conversation without thinking, the answer, and its end of turn."""
    reply = {"role": "assistant", "content": chat.reply_prefixes[False] + answer}
    return chat.encode(tokenizer, [*chat.with_flag(exercise.messages, thinking=False), reply], exercise.tools).ids


def judged_answer(
    prompt: Prompt, continuation: Continuation, tokenizer: Tokenizer, chat: ChatFormat
) -> tuple[float, str]:
    """Form, as in `Reward`, and the answer that is judged: empty unless the form is right."""
    reply = chat.parse_reply(tokenizer.decode(continuation.tokens, skip_special_tokens=False), thinking=prompt.thinking)
    form = ((continuation.finish == "stop") + (reply.obeys and not reply.errors)) / 2
    return form, answer_of(written_text(continuation, tokenizer), chat) if form == 1 else ""


def by_rubric(exercise: Exercise, form: float, answer: str, guard: Guard) -> Reward:
    """What the rubric gives to an answer; the total is its weighted mean, and 0 if the rubric fails.

    Args:
        guard: asks the rubric.
    """
    nothing = dict.fromkeys(WEIGHTS, 0.0)
    parts, fault = guard(exercise, lambda: rubric_parts(exercise, answer), nothing)
    total = rubric_total(parts)
    return Reward(total, form, {**parts, RUBRIC: total}, all(part == 1 for part in parts.values()), answer, fault=fault)


def best_graded(exercises: Sequence[Exercise], answers: Sequence[str]) -> Chance:
    """The answer that earns the most of the rubric if it is given to every exercise; of equal ones, the first."""
    guard = Guard()
    earned = [sum(by_rubric(one, 1.0, answer, guard).total for one in exercises) / len(exercises) for answer in answers]
    return Chance(answers[earned.index(max(earned))], max(earned))


class Judge:
    """Judges the replies to prompts.

    Args:
        format: of the chat.
        tokenizer_path: directory of the tokenizer, which may bring its own chat template.
        scorer: the reward model; None: the total of a reward is that of the rubric.
        batch_rows: replies that are scored side by side.
        seconds: that the rubric may take for one reply.
    """

    def __init__(
        self,
        format: ChatFormat,
        tokenizer_path: Path,
        scorer: Scorer | None = None,
        batch_rows: int = SCORED_AT_A_TIME,
        seconds: float = VERIFIER_SECONDS,
    ) -> None:
        self.tokenizer = load_chat_tokenizer(format, tokenizer_path)
        self.chat = format_of(format, tokenizer_path)
        self.scorer, self.batch_rows, self.seconds = scorer, batch_rows, seconds

    def __call__(self, prompts: Sequence[Prompt], replies: Sequence[Continuation]) -> list[Reward]:
        """The reward of each reply; every prompt has its share of the replies, next to each other.

        Raises:
            ValueError: if the score of a reply is not finite.
        """
        asked = [prompt for prompt in prompts for _ in range(len(replies) // len(prompts))]
        found = [
            (prompt.exercise, *judged_answer(prompt, reply, self.tokenizer, self.chat))
            for prompt, reply in zip(asked, replies, strict=True)
        ]
        guard = Guard(self.seconds)
        rewards = [by_rubric(*one, guard) for one in found]
        for prompt, reward in zip(asked, rewards, strict=True):
            if reward.fault:
                print_line(f"the rubric failed on a reply to {prompt.exercise.id}: {reward.fault}")
        if self.scorer is None:
            return rewards
        rows = [self.read_ids(exercise, answer) for exercise, _, answer in found]
        scores = scores_of(self.scorer, rows, batch_rows=self.batch_rows).tolist()
        for (exercise, _, answer), score in zip(found, scores, strict=True):
            if not math.isfinite(score):
                raise ValueError(
                    f"the reward model gives the reply {answer[:60]!r} to the prompt {exercise.id} the score {score}; "
                    f"train the reward model again with a lower learning_rate"
                )
        return [replace(reward, total=score) for reward, score in zip(rewards, scores, strict=True)]

    def read_ids(self, exercise: Exercise, answer: str) -> list[int]:
        """The tokens that the reward model reads, with the tokenizer and format of this judge."""
        return read_ids(exercise, answer, self.tokenizer, self.chat)

    def prompt_of(self, exercise: Exercise, *, thinking: bool) -> Prompt:
        """The exercise as a policy is asked it."""
        return Prompt(exercise, thinking, tuple(prompt_ids(exercise, self.tokenizer, self.chat, thinking=thinking)))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a reply, with its special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)
