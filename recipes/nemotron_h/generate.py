"""Text generation: a batch of prompts is continued token by token, and no row affects another.

In: a model and the token ids of the prompts. Out: for each prompt the tokens that follow, with their log-probabilities.
`Decoder` computes the logits; here tokens are drawn from them, and rows end. A row that ends makes room for the next
one. A prompt that several rows share is read once.
Thinking can have a budget, by the rule published for serving Nemotron Nano 2 (arXiv 2508.14444). The client on the
model card has a simpler rule, which is not built here: it cuts the thought at the budget, in the middle of a line.

    sampling = Sampling(max_new_tokens=8, temperature=1.0)
    first, second = generate(model, [[1, 2, 3]] * 2, sampling, seeds=[0, 1])

Left out: beam search, penalties.

Letters:   b  row: a prompt and its continuation   t  position   v  token of the vocabulary
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from nemotron.config import published
from nemotron.recipes.nemotron_h.decoder import Decoder
from nemotron.recipes.nemotron_h.model import NemotronH, purpose_generator

# Our choice. Dividing by a much lower temperature overflows even the largest log-probability.
GREEDY_BELOW = 1e-300
NUM_SLOTS = 128  # the fastest of 64, 128 and 256 in benchmarks/rollouts.py, on 2 cores
# Our choice: how many of the likeliest tokens are sorted for top_p, and how many if those do not suffice. At tiny, 128
# always do: with temperature 0.6 and top_p 0.95, 17 are needed on average before fine-tuning and 3 after it.
SORTED_TOKENS = (128, 1_024)
LOOK_AHEAD = 1_024  # our choice: waiting rows whose prompts may be read along with those of the next rows


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
    logprobs_at_temperature: bool = False
    """Whether log-probabilities are those at the temperature, from which tokens are drawn if top_p is 1; reinforcement
    learning compares them with the learner's. Else they are the model's own."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must not be negative")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must not be negative; 0 takes the most likely token")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1; 1 draws from all tokens")
        if self.logprobs_at_temperature and self.temperature < GREEDY_BELOW:
            raise ValueError(
                f"temperature={self.temperature} has no log-probabilities; give a temperature above 0, or leave out "
                f"logprobs_at_temperature"
            )


@dataclass(frozen=True)
class NewToken:
    """One new token of one row."""

    row: int
    """Index of the prompt."""
    id: int
    logprob: float
    """Natural logarithm of the model's probability for it, before temperature and top-p; after the temperature with
    `Sampling.logprobs_at_temperature`."""
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
    model: NemotronH,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    num_slots: int = NUM_SLOTS,
    products: torch.dtype | None = None,
) -> list[Continuation]:
    """Continue every prompt to its end; arguments and errors are those of `stream`."""
    continuations = [Continuation() for _ in prompts]
    for step in stream(model, prompts, sampling, seeds, num_slots=num_slots, products=products):
        for token in step:
            continuation = continuations[token.row]
            continuation.tokens.append(token.id)
            continuation.logprobs.append(token.logprob)
            continuation.forced.append(token.forced)
            if token.id in sampling.stop_ids:
                continuation.finish = "stop"
    return continuations


def stream(
    model: NemotronH,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    num_slots: int = NUM_SLOTS,
    products: torch.dtype | None = None,
) -> Iterator[list[NewToken]]:
    """Continue the prompts, one token of every unfinished row at a time.

    Args:
        prompts: token ids, at least one per prompt; lengths may differ.
        seeds: one per prompt. What is sampled for a prompt depends on its seed, not on the other rows.
        num_slots: rows that are continued at a time; the others wait. Changes memory and speed, not the result.
        products: type of the products with weight matrices, such as torch.bfloat16. None: the type of the weights.

    Yields:
        The new tokens, one per row that is being continued, in no particular order of rows.

    Raises:
        ValueError: if a prompt is empty or fills the model's context, if there is not one seed per prompt, or if
            num_slots is below 1.
    """
    if num_slots < 1:
        raise ValueError(f"num_slots={num_slots} must be at least 1")
    check_prompts(prompts, seeds, context=model.config.max_position_embeddings)
    if not prompts or sampling.max_new_tokens == 0:
        return
    budget, stop_ids = sampling.budget, sampling.stop_ids
    decoder = Decoder(model, min(num_slots, len(prompts)), products)
    written: list[list[int]] = [[] for _ in prompts]
    to_force: list[list[int]] = [[] for _ in prompts]
    thinking = [budget is not None] * len(prompts)
    context = model.config.max_position_embeddings
    limits = [min(sampling.max_new_tokens, context - len(prompt)) for prompt in prompts]
    draws = [uniform_numbers(seed) for seed in seeds]
    waiting = deque((row, tuple(prompt)) for row, prompt in enumerate(prompts))
    rows: list[int] = []  # the unfinished ones, in the order of the slots
    logits = torch.zeros(0, model.config.vocab_size)
    with torch.no_grad():
        while True:
            if free := min(decoder.num_slots - len(rows), len(waiting)):
                new = [waiting.popleft() for _ in range(free)]
                upcoming = [prompt for _, prompt in islice(waiting, LOOK_AHEAD)]
                first_logits = decoder.add([prompt for _, prompt in new], upcoming)
                logits = torch.cat([logits, first_logits]) if rows else first_logits
                rows += [row for row, _ in new]
            if not rows:
                return

            uniform = torch.tensor([next(draws[row]) for row in rows], dtype=torch.float64)
            drawn = sample_tokens(logits, uniform, sampling)
            forced = {index: to_force[row].pop(0) for index, row in enumerate(rows) if to_force[row]}
            for index, token in forced.items():
                drawn[index] = token
            scaled = logits / sampling.temperature if sampling.logprobs_at_temperature else logits
            logprobs = logprobs_of(scaled, drawn).tolist()
            tokens = drawn.tolist()
            yield [
                NewToken(row, token, logprob, index in forced)
                for index, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True))
            ]

            unfinished = []
            for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                written[row].append(token)
                if budget is not None and thinking[row]:
                    thinking[row] = not budget.is_closed(written[row])
                    if thinking[row] and not to_force[row]:
                        to_force[row] = budget.closing_tokens(written[row])
                if token not in stop_ids and len(written[row]) < limits[row]:
                    unfinished.append(index)
            if len(unfinished) < len(rows):
                kept = decoder.keep(unfinished)
                rows = [rows[index] for index in kept]
                drawn = drawn[kept]
            if rows:
                logits = decoder.step(drawn)


def check_prompts(prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, context: int) -> None:
    """Raise ValueError for a prompt that is empty or fills the context, or if there is not one seed per prompt."""
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


def uniform_numbers(seed: int) -> Iterator[float]:
    """The uniform numbers of one row, at least 0 and below 1, in float64."""
    generator = purpose_generator(seed, "sampled tokens")
    while True:
        yield from torch.rand(64, dtype=torch.float64, generator=generator).tolist()


def sample_tokens(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Sample one token per row of (b, v) logits, each with its own uniform number; (b,) token ids.

    Inverse transform sampling: the first token whose cumulative probability exceeds the uniform number. The sums are in
    float64. They are taken over blocks of tokens first and then within one block, which is much less work.

    Args:
        uniform: (b,) float64 numbers, at least 0 and below 1. Not used at temperature 0.
    """
    if sampling.temperature < GREEDY_BELOW:
        return logits.argmax(dim=-1)
    logits = logits - logits.amax(dim=-1, keepdim=True)  # so that the largest stays finite at every temperature
    if sampling.temperature != 1:
        logits = logits.to(torch.float64) / sampling.temperature
    weights = torch.exp(logits)  # probabilities before division by their sum
    if sampling.top_p < 1:
        weights = weights * in_nucleus(weights, sampling.top_p)
    b, v = weights.shape
    size = 2 ** math.ceil(math.log2(v) / 2)
    blocks = F.pad(weights, (0, -v % size)).view(b, -1, size)
    sums = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = uniform.to(weights.device)[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, target, right=True).clamp(max=sums.shape[-1] - 1)
    within = blocks.gather(1, block[..., None].expand(b, 1, size))[:, 0].cumsum(dim=-1, dtype=torch.float64)
    target = target - (sums.gather(1, block) - within[:, -1:])
    # Rounding must not lead past the last token of the block that has a weight.
    target = target.clamp(min=0).minimum(within[:, -1:] * (1 - 1e-15))
    return (block * size + torch.searchsorted(within, target, right=True))[:, 0].clamp(max=v - 1)


def in_nucleus(weights: Tensor, top_p: float) -> Tensor:
    """(b, v) whether a token is in the smallest set of most likely tokens with at least a share top_p of all weight.

    Only the likeliest tokens are sorted; more of them where those do not suffice. Of equal weights, the first count.

    Args:
        weights: (b, v) probabilities, or numbers proportional to them.
    """
    needed = top_p * weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
    v = weights.shape[-1]
    for size in (*SORTED_TOKENS, v):
        likeliest = weights.topk(min(size, v), dim=-1).values  # in descending order
        total = likeliest.to(torch.float64).cumsum(dim=-1)
        if (total[:, -1:] >= needed).all():
            break
    # A token is kept if those more likely than it have less weight together than is needed.
    number = (total - likeliest < needed).sum(dim=-1, keepdim=True)  # (b, 1)
    last = likeliest.gather(-1, number - 1)
    kept = weights >= last
    if (kept.sum(dim=-1, keepdim=True) > number).any():  # the last weight is that of several tokens
        equal = weights == last
        spare = (kept.sum(dim=-1, keepdim=True) - number).clamp(min=0)
        kept &= ~equal | (equal.cumsum(dim=-1) <= equal.sum(dim=-1, keepdim=True) - spare)
    return kept


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """(b,) natural logarithms of the probabilities of one token per row of (b, v) logits."""
    return logits.gather(1, tokens[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
