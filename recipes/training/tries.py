"""Tries: whole conversations of a policy with the tools of a task, judged by the database that they leave behind.

In: a policy, tasks of exercises/workplace.py. Out: `draw_tries` plays every task several times. A reply that calls
tools gets their answers as tool messages, in the chat template, and the policy is asked again, up to a number of turns.
A reply without a call ends the conversation, and so does one that breaks the format or never ends its turn.

A try keeps each turn as the policy read and wrote it: the ids of the prompt, and those of the reply. Between two turns
the conversation is rendered again, and the template leaves out earlier thoughts; so the turns of a try are separate
texts, and what the policy wrote is in none of them twice.

A verifier that raises or takes too long is named and counted; its try is not right, and nothing learns from it. One
that took too long is not asked about the task's other tries (recipes/scoring/guard.py).

Left out: several calls side by side, whose order would not matter; tools that take time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling, generate
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.scoring.chance import Chance, best_reply, earned_by
from nemotron.recipes.scoring.guard import Guard
from nemotron.recipes.scoring.pass_at_k import paired_difference
from nemotron.recipes.scoring.rewards import Prompt, Verifier
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.tool_calling import Database, parse_tool_calls
from nemotron.recipes.sources.exercises.workplace import KINDS, Ran, database_of, is_right, kind_of, run_calls
from nemotron.recipes.training.distributed import whole_model
from nemotron.terminal import print_line

LEVELS = ("broken", "well formed", "called", "right")
"""How far a try got. Broken: a reply is empty, never ends, has a format error, or thinks although it should not or the
other way around. Well formed: none of these. Called: also a call that did what it says. Right: so is the database."""


@dataclass(frozen=True)
class Turn:
    """One reply of the policy."""

    prompt: tuple[int, ...]
    """Ids of everything before the reply."""
    reply: Continuation
    ran: tuple[Ran, ...] = ()
    """Its calls, and what the tools answered."""


@dataclass
class Try:
    """One conversation, as far as it got."""

    prompt: Prompt
    number: int
    """Of this try among those of its task, from 0."""
    messages: list[dict[str, Any]]
    database: Database
    turns: list[Turn] = field(default_factory=list)
    is_broken: bool = False
    ended: bool = False
    """Whether the policy itself ended the conversation, by a reply without a call."""
    right: bool = False
    fault: str = ""
    """What went wrong in the verifier, if something did."""

    @property
    def ran(self) -> list[Ran]:
        """The calls of all turns."""
        return [ran for turn in self.turns for ran in turn.ran]

    @property
    def level(self) -> int:
        """Index into LEVELS."""
        if self.right:
            return 3
        called = any(not ran.failed for ran in self.ran)
        return 0 if self.is_broken else 1 + called

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """What the policy wrote, turn by turn."""
        return tuple(tuple(turn.reply.tokens) for turn in self.turns)


def draw_tries(
    model: NemotronH,
    verify: Verifier,
    prompts: Sequence[Prompt],
    num_tries: int,
    sampling: Sampling,
    purpose: tuple[str | int, ...],
    *,
    max_turns: int,
) -> list[Try]:
    """The tries of each task, those of a task next to each other.

    Args:
        purpose: seed, round and the like. What is drawn depends on it, the task's id, the number of the try and the
            turn.
        max_turns: replies of a conversation, at most; the calls of the last one are run too.
    """
    model, guard = whole_model(model), Guard(verify.seconds)
    tries = [
        Try(prompt, number, verify.chat.with_flag(prompt.exercise.messages, thinking=prompt.thinking),
            database_of(prompt.exercise))
        for prompt in prompts
        for number in range(num_tries)
    ]  # fmt: skip
    unfinished = tries
    for turn in range(max_turns):
        asked = [(one, prompt_of_turn(one, verify)) for one in unfinished]
        asked = [(one, ids) for one, ids in asked if len(ids) < model.config.max_position_embeddings]
        seeds = [int(digest_of(*purpose, one.prompt.exercise.id, one.number, turn)[:15], 16) for one, _ in asked]
        replies = generate(model, [ids for _, ids in asked], sampling, seeds)
        read = zip(asked, replies, strict=True)
        unfinished = [one for (one, ids), reply in read if goes_on(one, ids, reply, verify, guard)]
    for one in tries:
        judge(one, guard)
    if faults := sum(bool(one.fault) for one in tries):
        print_line(
            f"{faults:,} of {len(tries):,} tries could not be judged; they count as not right and are in no pair"
        )
    return tries


def prompt_of_turn(one: Try, verify: Verifier) -> tuple[int, ...]:
    """The ids of the conversation so far, up to where the next reply begins."""
    if not one.turns:
        return one.prompt.tokens
    tools = one.prompt.exercise.tools
    return tuple(verify.chat.encode(verify.tokenizer, one.messages, tools, add_generation_prompt=True).ids)


def goes_on(one: Try, ids: tuple[int, ...], reply: Continuation, verify: Verifier, guard: Guard) -> bool:
    """Add a reply to the conversation and run its calls; return whether the policy is to be asked again."""
    read = verify.chat.parse_reply(verify.decode(reply.tokens), thinking=one.prompt.thinking)
    one.is_broken = reply.finish != "stop" or bool(read.errors) or not read.obeys
    if one.is_broken or not read.tool_calls:
        one.ended = not one.is_broken and bool(read.content)
        one.is_broken = not one.ended
        one.turns.append(Turn(ids, reply))
        return False
    calls = [call["function"] for call in read.tool_calls]
    task = one.prompt.exercise
    unchanged: tuple[Database, list[Ran]] = (one.database, [])
    run = partial(run_calls, task.tools, one.database, calls)
    (one.database, ran), one.fault = guard(task, run, unchanged)
    if one.fault:
        one.turns.append(Turn(ids, reply))
        return False
    one.turns.append(Turn(ids, reply, tuple(ran)))
    one.messages.append({"role": "assistant", "content": read.content, "tool_calls": read.tool_calls})
    one.messages += [{"role": "tool", "content": made.answer} for made in ran]
    return True


def judge(one: Try, guard: Guard) -> None:
    """Say whether the conversation is right: nothing in it is broken, and the database is what was asked for."""
    task = one.prompt.exercise
    played = bool(one.turns) and not one.is_broken
    if not one.fault:
        one.right, one.fault = guard(task, lambda: played and is_right(task, one.database, one.ran), False)
    if one.fault:
        print_line(f"try {one.number} of {one.prompt.exercise.id} could not be judged: {one.fault}")


# What tries are worth -------------------------------------------------------------------------------------------------


def try_metrics(tries: Mapping[str, Sequence[Try]], num_tries: int) -> dict[str, float]:
    """Success by kind of task with standard errors over tasks, paired differences, and what the calls were like.

    Args:
        tries: model -> its tries at the same tasks; two models, in the order in which they were trained.
        num_tries: of each task.
    """
    metrics: dict[str, float] = {}
    before, after = tries
    kinds = [kind_of(one.prompt.exercise) for one in tries[before][::num_tries]]
    for kind in [*KINDS, "all"]:
        chosen = [index for index, found in enumerate(kinds) if kind in (found, "all")]
        if not chosen:
            continue
        shares = {
            model: [solved_share(found[index * num_tries : (index + 1) * num_tries]) for index in chosen]
            for model, found in tries.items()
        }
        for model, values in shares.items():
            change = paired_difference(values, [0.0] * len(values))
            metrics[f"success/{kind}/{model}"], metrics[f"success_error/{kind}/{model}"] = change
        change = paired_difference(shares[after], shares[before])
        metrics[f"success_difference/{kind}"], metrics[f"success_difference_error/{kind}"] = change
    for model, found in tries.items():
        ran = [call for one in found for call in one.ran]
        failed_first = [one for one in found if one.ran and one.ran[0].failed]
        metrics |= {
            f"valid_calls/{model}": sum(not call.failed for call in ran) / max(1, len(ran)),
            f"calls_per_try/{model}": len(ran) / len(found),
            f"replies_per_try/{model}": sum(len(one.turns) for one in found) / len(found),
            f"ended/{model}": sum(one.ended for one in found) / len(found),
            f"broken/{model}": sum(one.is_broken for one in found) / len(found),
            f"right_after_an_error/{model}": sum(one.right for one in failed_first) / max(1, len(failed_first)),
            f"mean_level/{model}": sum(one.level for one in found) / len(found),
        }
    return metrics


def solved_share(tries: Sequence[Try]) -> float:
    """Share of the tries that are right."""
    return sum(one.right for one in tries) / len(tries)


def best_constant_policy(tasks: Sequence[Exercise], replies: Iterable[str], max_turns: int) -> Chance:
    """The reply that is right most often if it is given at every turn, whatever the task; chosen as in chance.py."""
    listed = list(replies)
    played = partial(constant_is_right, max_turns=max_turns)
    return best_reply(listed, [earned_by(task, listed, played) for task in tasks])


def constant_is_right(task: Exercise, reply: str, max_turns: int) -> bool:
    """Whether a conversation in which the policy always says the same is right."""
    try:
        calls = parse_tool_calls(reply)
    except ValueError:
        calls = []
    database, made = database_of(task), []
    for _ in range(max_turns):
        database, ran = run_calls(task.tools, database, calls)
        made += ran
    return is_right(task, database, made)


def conversation_text(one: Try, decode: Callable[[Sequence[int]], str]) -> str:
    """What the policy wrote and what the tools answered, turn by turn."""
    lines = []
    for turn in one.turns:
        lines.append(decode(turn.reply.tokens).rstrip())
        lines += [f"tool: {ran.answer}" for ran in turn.ran]
    return "\n".join(lines)
