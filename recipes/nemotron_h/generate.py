"""Text generation: a batch of prompts is continued token by token, and no row affects another.

In: a model and the token ids of the prompts. Out: for each prompt the tokens that follow, with their log-probabilities.
The layers keep a state from token to token (`DecodingState`). The cost of a token therefore does not depend on how many
came before it, except for the attention over them. Prompts of unequal length are padded on the right; `num_new` keeps
the padding out of the states.
Thinking can have a budget, by the rule published for serving Nemotron Nano 2 (arXiv 2508.14444). The client on the
model card has a simpler rule, which is not built here: it cuts the thought at the budget, in the middle of a line.

    state = DecodingState(model, 1)
    with torch.no_grad():                           # or the state keeps the graph of every token
        logits = model(prompt_ids, state=state)     # reads the prompt
        logits = model(next_id, state=state)        # reads one more token

Left out: beam search, penalties, and sharing states between prompts that begin alike.

Letters:   b  row: a prompt and its continuation   t  position   v  token of the vocabulary
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nemotron.config import published
from nemotron.recipes.nemotron_h.model import DecodingState, NemotronH, purpose_generator

# Our choice. Dividing by a much lower temperature overflows even the largest log-probability.
GREEDY_BELOW = 1e-300


@dataclass(frozen=True)
class ThinkingBudget:
    """Limit on the tokens of a thinking trace.

    Once the budget is used up, the trace is closed at the next line end, or after `grace_tokens` more tokens, so it has
    at most tokens + grace_tokens tokens. Only the closing tag is inserted. The model itself writes the blank line after
    it, because how that is split into tokens depends on the answer that follows.

    Raises:
        ValueError: if tokens is below 1 or grace_tokens is negative.
    """

    tokens: int
    """Tokens that the model may think."""
    tokenizer: Tokenizer
    close_think: str
    """Tag that closes the trace, as the chat format has it."""
    grace_tokens: int = published(500, "Nemotron Nano 2, budget control").value
    """Additional tokens to finish the line."""

    def __post_init__(self) -> None:
        if self.tokens <= 0:
            raise ValueError(
                f"tokens={self.tokens} must be at least 1; give a larger thinking budget, or switch thinking off"
            )
        if self.grace_tokens < 0:
            raise ValueError(f"grace_tokens={self.grace_tokens} must not be negative; 0 closes the trace at the budget")

    def is_closed(self, thought: list[int]) -> bool:
        """Whether the last tokens of the trace contain the closing tag, however it is split into tokens."""
        tail = self.tokenizer.decode(thought[-len(self.close_think) - 1 :], skip_special_tokens=False)
        return self.close_think in tail

    def closing_tokens(self, thought: list[int]) -> list[int]:
        """Tokens to force next in order to close the trace; empty while the model may go on."""
        if len(thought) < self.tokens:
            return []
        if "\n" in self.tokenizer.decode(thought[-1:]):
            return self.tokenizer.encode(self.close_think, add_special_tokens=False).ids
        if len(thought) >= self.tokens + self.grace_tokens:
            return self.tokenizer.encode(f"\n{self.close_think}", add_special_tokens=False).ids
        return []


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token, and when to stop.

    Raises:
        ValueError: if a value is out of range.
    """

    max_new_tokens: int
    """A row ends after this many tokens, or at the end of the model's context, even without a stop token."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a row."""
    temperature: float = 0.0
    """Divides the logits. At 0, or below GREEDY_BELOW, the most likely token is taken every time."""
    top_p: float = 1.0
    """Sample from the smallest set of most likely tokens with at least this total probability; 1 means all tokens."""
    budget: ThinkingBudget | None = None
    """Applies to every row; the prompts must then end inside a thinking trace. None: no limit."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must not be negative")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must not be negative; 0 takes the most likely token")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1; 1 draws from all tokens")


@dataclass(frozen=True)
class NewToken:
    """One new token of one row."""

    row: int
    """Index of the prompt."""
    id: int
    logprob: float
    """Natural logarithm of the model's probability for it, before temperature and top-p."""
    forced: bool
    """True if the thinking budget inserted it, False if the model chose it."""


@dataclass
class Continuation:
    """The tokens generated for one prompt."""

    tokens: list[int] = field(default_factory=list)
    """Includes the stop token, if there was one."""
    logprobs: list[float] = field(default_factory=list)
    """One per token, as in `NewToken`."""
    forced: list[bool] = field(default_factory=list)
    """One per token, as in `NewToken`."""
    finish: Literal["stop", "length"] = "length"
    """Whether a stop token or a length limit ended it."""


def generate(
    model: NemotronH, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
) -> list[Continuation]:
    """Continue every prompt to its end; arguments and errors are those of `stream`."""
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
        prompts: token ids, at least one per prompt; lengths may differ.
        seeds: one per prompt. What is sampled for a prompt depends on its seed, not on the other rows.

    Yields:
        The new tokens, one per unfinished row.

    Raises:
        ValueError: if a prompt is empty or fills the model's context, or if there is not one seed per prompt.
    """
    context = model.config.max_position_embeddings
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {row} is empty; give at least one token, such as the document separator")
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens and max_position_embeddings={context}; shorten it to make room "
                f"for an answer"
            )
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one per prompt")
    if not prompts or sampling.max_new_tokens == 0:
        return
    budget, stop_ids = sampling.budget, sampling.stop_ids
    device = model.lm_head.weight.device
    generators = [purpose_generator(seed, "sampled tokens") for seed in seeds]
    rows = list(range(len(prompts)))  # the unfinished ones, in the order of the rows of `state`
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
            sampled = sample_tokens(logprobs, [generators[row] for row in rows], sampling)
            step = []
            for index, row in enumerate(rows):
                forced = bool(to_force[row])
                token = to_force[row].pop(0) if forced else sampled[index]
                step.append(NewToken(row, token, logprobs[index, token].item(), forced))
                written[row].append(token)
                if budget is not None and thinking[row]:
                    thinking[row] = not budget.is_closed(written[row])
                    if thinking[row] and not to_force[row]:
                        to_force[row] = budget.closing_tokens(written[row])
            yield step

            unfinished = [
                index
                for index, token in enumerate(step)
                if token.id not in stop_ids
                and len(written[token.row]) < min(sampling.max_new_tokens, context - len(prompts[token.row]))
            ]
            if not unfinished:
                return
            if len(unfinished) < len(rows):
                state.keep(torch.tensor(unfinished, device=device))
                rows = [rows[index] for index in unfinished]
            ids = torch.tensor([[step[index].id] for index in unfinished], device=device)
            logits = model(ids, state=state)[:, -1]


def sample_tokens(logprobs: Tensor, generators: Sequence[torch.Generator], sampling: Sampling) -> list[int]:
    """Sample one token per row of (b, v) float64 log-probabilities, each with the generator of its row.

    Inverse transform sampling in float64: the first token whose cumulative probability exceeds a uniform number.
    """
    if sampling.temperature < GREEDY_BELOW:
        return logprobs.argmax(dim=-1).tolist()
    probabilities = torch.softmax(logprobs / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        likelier = ordered.cumsum(dim=-1) - ordered  # total probability of the tokens more likely than each
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered * (likelier < sampling.top_p))
    cumulative = probabilities.cumsum(dim=-1)
    uniform = torch.cat([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
    return drawn[:, 0].clamp(max=logprobs.shape[-1] - 1).tolist()
