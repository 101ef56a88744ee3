"""Speed of rollouts as reinforcement learning makes them: several replies to each prompt, of very unequal lengths.

Ours and `transformers.generate` start from the same weights and answer the same prompts, with the same stop tokens and
the same limit, in alternating rounds, so that a busy machine slows both. With random weights every token is about
equally likely, so a share of all tokens as stop tokens gives replies of the wanted mean length. Only the tokens up to a
reply's stop token count; transformers goes on with the whole batch until the longest reply has ended.

transformers is part of the test extra: pip install -e ".[test]" -c constraints.txt
Run: python benchmarks/rollouts.py
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt

from nemotron.command_line import check_peer, run_program
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.checkpoint import save_checkpoint
from nemotron.recipes.nemotron_h.generate import NUM_SLOTS, Sampling, generate
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.nemotron_h.workers import Workers


@dataclass
class Config:
    """Compare the speed of rollouts of our code and of transformers."""

    prompts: PositiveInt = 32
    samples: PositiveInt = 8
    """Replies to each prompt."""
    prompt_tokens: PositiveInt = 64
    mean_tokens: PositiveInt = 50
    """Mean length of a reply, before the limit."""
    max_tokens: PositiveInt = 128
    """Longest reply."""
    num_slots: PositiveInt = NUM_SLOTS
    """Replies that ours continues at a time. transformers continues all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    processes: NonNegativeInt = 0
    """Processes that write ours, each with one thread, in float32; 0 writes them in this process."""
    rounds: PositiveInt = 3
    """Measurements of each, after one that does not count."""


def transformers_model(model: NemotronH, dtype: torch.dtype, stop_ids: list[int]) -> Any:
    """transformers' NemotronH with the same weights."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        save_tokenizer(train_tokenizer(["text"], 300), path / "tokenizer")
        save_checkpoint(model, path / "tokenizer", path / "model")
        twin = AutoModelForCausalLM.from_pretrained(path / "model", dtype=dtype)
    twin.generation_config.eos_token_id, twin.generation_config.pad_token_id = stop_ids, 0
    return twin


def num_useful(replies: torch.Tensor, stop_ids: list[int]) -> int:
    """Tokens of (b, t) replies up to the first stop token of each."""
    stops = torch.isin(replies, torch.tensor(stop_ids))
    return int((stops.cumsum(1) - stops.long() == 0).sum())


def main(config: Config) -> None:
    """Measure both and print the result."""
    check_peer("transformers", 'pip install -e ".[test]" -c constraints.txt')
    model = NemotronH(MODELS["small"])
    initialize(model, 0)
    size = model.config.vocab_size
    stop_ids = list(range(13, 13 + round(size / config.mean_tokens)))
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(13, size, (config.prompts, config.prompt_tokens), generator=generator)
    prompts = prompts.repeat_interleave(config.samples, 0)
    dtype = getattr(torch, config.dtype)
    twin = transformers_model(model, dtype, stop_ids)
    sampling = Sampling(max_new_tokens=config.max_tokens, temperature=1.0, stop_ids=tuple(stop_ids))
    workers = Workers(model, config.processes) if config.processes else None
    speeds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for round_number in range(config.rounds + 1):
        seeds = range(round_number * len(prompts), (round_number + 1) * len(prompts))
        start = time.perf_counter()
        if workers:
            replies = workers.generate(prompts.tolist(), sampling, seeds)
        else:
            replies = generate(model, prompts.tolist(), sampling, seeds, num_slots=config.num_slots, products=dtype)
        middle = time.perf_counter()
        torch.manual_seed(round_number)
        with torch.no_grad():
            theirs = twin.generate(
                prompts, max_new_tokens=config.max_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
            )[:, config.prompt_tokens :]
        end = time.perf_counter()
        if round_number:
            speeds["ours"].append(sum(len(reply.tokens) for reply in replies) / (middle - start))
            speeds["transformers"].append(num_useful(theirs, stop_ids) / (end - middle))
    if workers:
        workers.close()
    medians = {name: statistics.median(taken) for name, taken in speeds.items()}
    lengths = [len(reply.tokens) for reply in replies]
    ours = f"{config.processes} processes of one thread" if config.processes else "one process"
    print(f"machine        {torch.get_num_threads()} threads on {os.cpu_count()} cores, {config.dtype}; ours: {ours}")
    print(
        f"rollouts       {config.prompts} prompts of {config.prompt_tokens} tokens, {config.samples} replies each of "
        f"{min(lengths)} to {max(lengths)} tokens, mean {statistics.mean(lengths):.0f}; {config.num_slots} slots"
    )
    for name, median in medians.items():
        print(f"{name:<14} {median:,.0f} useful tokens per second")
    print(f"ratio          {medians['ours'] / medians['transformers']:.2f} times as fast as transformers")


if __name__ == "__main__":
    run_program(Config, main)
