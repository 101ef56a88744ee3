"""Speed of rollouts, as reinforcement learning makes them: several replies to each prompt, of very unequal lengths.

Ours and `transformers.generate` start from the same weights and make the same number of tokens for the same prompts, in
alternating rounds, so that a busy machine slows both. The lengths of the replies are drawn beforehand. Ours stops each reply at
its length and starts the next one; transformers goes on with the whole batch until the longest reply is finished, and only
the tokens up to each reply's length count as useful.

transformers is part of the test extra: pip install -e ".[test]" -c constraints.txt
Run: python benchmarks/rollouts.py
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from tokenizers import Tokenizer

from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, save_checkpoint
from nemotron.recipes.nemotron_h.generate import Sampling, generate
from nemotron.recipes.nemotron_h.model import NemotronH, initialize


@dataclass
class Config:
    """Compare the speed of rollouts of our code and of transformers."""

    prompts: int = 32
    samples: int = 8
    """Replies to each prompt."""
    prompt_tokens: int = 64
    shortest: int = 8
    """Tokens of the shortest reply."""
    longest: int = 128
    """Tokens of the longest reply."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    num_slots: int = 64
    rounds: int = 3
    peer: bool = True
    """Measure transformers as well."""


def main(config: Config) -> None:
    """Measure and print the result."""
    generator = torch.Generator().manual_seed(0)
    num_replies = config.prompts * config.samples
    spread = torch.rand(num_replies, dtype=torch.float64, generator=generator) ** 2.2  # short replies are more frequent
    lengths = (config.shortest + (config.longest - config.shortest) * spread).round().long().tolist()
    model = NemotronH(MODELS["small"])
    initialize(model, 0)
    prompts = torch.randint(13, model.config.vocab_size, (config.prompts, config.prompt_tokens), generator=generator)
    repeated = prompts.repeat_interleave(config.samples, 0)
    products = torch.bfloat16 if config.dtype == "bfloat16" else None
    sampling = Sampling(max_new_tokens=lengths, temperature=1.0)
    seconds = {"ours": [], "transformers": []}
    if config.peer:
        from transformers import AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as directory:
            save_tokenizer(train_tokenizer(["text"], 300), Path(directory) / "tokenizer")
            save_checkpoint(model, Path(directory) / "tokenizer", Path(directory) / "model")
            theirs = AutoModelForCausalLM.from_pretrained(Path(directory) / "model", dtype=getattr(torch, config.dtype))
        theirs.generation_config.eos_token_id = None
    for round_number in range(config.rounds + 1):
        start = time.perf_counter()
        generate(model, repeated.tolist(), sampling, range(num_replies), num_slots=config.num_slots, products=products)
        middle = time.perf_counter()
        if round_number:
            seconds["ours"].append(middle - start)
        if config.peer:
            with torch.no_grad():
                theirs.generate(repeated, max_new_tokens=config.longest, do_sample=True)
            if round_number:
                seconds["transformers"].append(time.perf_counter() - middle)
    useful = sum(lengths)
    print(f"mean length {useful / num_replies:.1f}")
    for name, taken in seconds.items():
        if taken:
            print(f"{name:<14} {useful / statistics.median(taken):,.0f} useful tokens per second")


if __name__ == "__main__":
    main(tyro.cli(Config))
