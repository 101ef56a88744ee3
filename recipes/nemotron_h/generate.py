"""Text from a trained model: batches of prompts, token by token, each row as if it were alone.

In: a model and the token ids of the prompts. Out: for each prompt the tokens that follow, with their log-probabilities.
The layers carry their states from token to token (`DecodingState`), so a token costs the same work however many came
before, but for the attention over them. Prompts of unequal length are padded on the right, where no state sees it.
Thinking can be given a budget, as published for Nemotron Nano 2 (arXiv 2508.14444; facts of the model card).

    state = DecodingState(model, 1)
    with torch.no_grad():                           # or the state keeps the graph of every token
        logits = model(prompt_ids, state=state)     # reads the prompt
        logits = model(next_id, state=state)        # reads one token more

Left out: beam search, penalties, and sharing the states of a common beginning of several prompts.

Letters:   b  prompt of the batch   t  position   v  vocabulary
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nemotron.recipes.nemotron_h.model import DecodingState, NemotronH, purpose_generator

END_OF_THINKING = "</think>"
GREEDY_BELOW = 1e-300  # our choice; divided by a much lower temperature even the largest log-probability overflows


@dataclass(frozen=True)
class ThinkingBudget:
    """When to stop the model's thinking: at the first line end once the budget is used up, by force after the grace.

    So a trace has at most tokens + grace_tokens tokens. Only the closing tag is put there: how the blank line after it
    falls into tokens depends on the answer, which the model goes on to write.

    Raises:
        ValueError: if the budget is not positive or the grace negative.
    """

    tokens: int
    """How many tokens the model may think."""
    tokenizer: Tokenizer
    grace_tokens: int = 500  # published
    """How many more it may take to end the line."""

    def __post_init__(self) -> None:
        if self.tokens <= 0:
            raise ValueError(f"a thinking budget of {self.tokens} tokens; give at least 1, or switch thinking off")
        if self.grace_tokens < 0:
            raise ValueError(f"grace_tokens={self.grace_tokens} must not be negative")

    def closed(self, thought: list[int]) -> bool:
        """Whether the model has just ended its thinking: the tag may be split into any tokens."""
        tail = self.tokenizer.decode(thought[-len(END_OF_THINKING) - 1 :], skip_special_tokens=False)
        return END_OF_THINKING in tail

    def closing(self, thought: list[int]) -> list[int]:
        """The tokens to close an open thought with now; none while the model may go on."""
        if len(thought) < self.tokens:
            return []
        if "\n" in self.tokenizer.decode(thought[-1:]):
            return self.tokenizer.encode(END_OF_THINKING, add_special_tokens=False).ids
        if len(thought) >= self.tokens + self.grace_tokens:
            return self.tokenizer.encode(f"\n{END_OF_THINKING}", add_special_tokens=False).ids
        return []


@dataclass(frozen=True)
class Sampling:
    """How to continue.

    Raises:
        ValueError: if a number is out of its range.
    """

    max_new_tokens: int
    """After so many, or at the end of the model's context, a row ends without a stop token."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a row."""
    temperature: float = 0.0
    """Divides the logits; 0, or less than GREEDY_BELOW, takes the most likely token every time."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this probability together; 1 is all."""
    budget: ThinkingBudget | None = None
    """Of all rows, which begin inside of a thought; None: they may think as long as they like, or not at all."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must not be negative")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must not be negative; 0 takes the most likely token")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1; 1 draws from all tokens")


@dataclass(frozen=True)
class NewToken:
    """One step of one row."""

    row: int
    """Index of the prompt."""
    id: int
    logprob: float
    """Natural logarithm of the probability that the model gives it, before temperature and top-p."""
    forced: bool
    """Whether the thinking budget put it there, not the model."""


@dataclass
class Continuation:
    """What follows one prompt."""

    tokens: list[int] = field(default_factory=list)
    """The stop token is the last one if there was one."""
    logprobs: list[float] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"


def generate(
    model: NemotronH, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
) -> list[Continuation]:
    """The continuation of every prompt; arguments and errors as for `stream`."""
    continuations = [Continuation() for _ in prompts]
    for step in stream(model, prompts, sampling, seeds):
        for token in step:
            continuation = continuations[token.row]
            continuation.tokens.append(token.id)
            continuation.logprobs.append(token.logprob)
            continuation.forced.append(token.forced)
            if token.id in sampling.stop_ids:
                continuation.finish = "stop"
    return continuations


def stream(
    model: NemotronH, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
) -> Iterator[list[NewToken]]:
    """Continue the prompts, one token of every unfinished row at a time.

    Args:
        prompts: token ids, at least one each, of any lengths.
        seeds: one a prompt; what is drawn for a prompt depends on its own seed and on no other row.

    Yields:
        The new token of every row that was not finished.

    Raises:
        ValueError: if a prompt is empty or leaves no room in the model's context, or there is not one seed a prompt.
    """
    context = model.config.max_position_embeddings
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {row} is empty; give at least one token, for example the document separator")
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens and the model's context {context}; shorten it, so that there "
                f"is room for an answer"
            )
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one a prompt")
    if not prompts or sampling.max_new_tokens == 0:
        return
    budget, stop_ids = sampling.budget, sampling.stop_ids
    device = model.lm_head.weight.device
    generators = [purpose_generator(seed, "sampled tokens") for seed in seeds]
    rows = list(range(len(prompts)))  # those that are not finished, in the order of the state's rows
    written: list[list[int]] = [[] for _ in prompts]
    to_force: list[list[int]] = [[] for _ in prompts]
    thinking = [budget is not None] * len(prompts)
    state = DecodingState(model, len(prompts))

    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    with torch.no_grad():
        hidden = model.backbone(ids.to(device), state=state, num_new=lengths.to(device))
        logits = model.lm_head(hidden[torch.arange(len(prompts)), lengths - 1])  # (b, v) after each prompt's last token
        while True:
            logprobs = torch.log_softmax(logits.to("cpu", torch.float64), dim=-1)
            drawn = draw_tokens(logprobs, [generators[row] for row in rows], sampling)
            step = []
            for index, row in enumerate(rows):
                forced = bool(to_force[row])
                token = to_force[row].pop(0) if forced else drawn[index]
                step.append(NewToken(row, token, logprobs[index, token].item(), forced))
                written[row].append(token)
                if budget is not None and thinking[row]:
                    thinking[row] = not budget.closed(written[row])
                    if thinking[row] and not to_force[row]:
                        to_force[row] = budget.closing(written[row])
            yield step

            going_on = [
                index
                for index, token in enumerate(step)
                if token.id not in stop_ids
                and len(written[token.row]) < min(sampling.max_new_tokens, context - len(prompts[token.row]))
            ]
            if not going_on:
                return
            if len(going_on) < len(rows):
                state.keep(torch.tensor(going_on, device=device))
                rows = [rows[index] for index in going_on]
            ids = torch.tensor([[step[index].id] for index in going_on], device=device)
            logits = model(ids, state=state)[:, -1]


def draw_tokens(logprobs: Tensor, generators: Sequence[torch.Generator], sampling: Sampling) -> list[int]:
    """A token for every row of (b, v) float64 log-probabilities, each drawn with the row's own generator.

    By hand in float64: the first token at which the cumulative probability passes a uniform number.
    """
    if sampling.temperature < GREEDY_BELOW:
        return logprobs.argmax(dim=-1).tolist()
    probabilities = torch.softmax(logprobs / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        likelier = ordered.cumsum(dim=-1) - ordered  # probability of the tokens that are likelier than each
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered * (likelier < sampling.top_p))
    cumulative = probabilities.cumsum(dim=-1)
    uniform = torch.cat([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
    return drawn[:, 0].clamp(max=logprobs.shape[-1] - 1).tolist()
