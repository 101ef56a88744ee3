"""Generation speed of our code and of transformers: tokens per second with greedy decoding of equally long prompts.

Both load the same files and continue the same prompts in alternating rounds, so that a busy machine slows both. The
first round is a warm-up and does not count. Also printed: the memory of the states after the prompt and at the end.

transformers is part of the test extra: pip install -e ".[test]" -c constraints.txt
Run: python benchmarks/generation.py --checkpoint-path outputs/nano2/small/stage1_sft/training
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt

from nemotron.command_line import check_peer, run_program
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, save_checkpoint
from nemotron.recipes.nemotron_h.generate import Sampling, generate
from nemotron.recipes.nemotron_h.model import AttentionState, DecodingState, MambaState, NemotronH, initialize


@dataclass
class Config:
    """Compare the generation speed of our code and of transformers."""

    checkpoint_path: Path | None = None
    """Directory of a stage's Checkpoint. None: the small model with random weights."""
    batch: PositiveInt = 32
    """Number of prompts."""
    prompt_tokens: PositiveInt = 64
    new_tokens: PositiveInt = 128
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: Annotated[int, Field(ge=2)] = 6
    """Measurements of each; the first is a warm-up and does not count."""


def save_random_checkpoint(directory: Path) -> Path:
    """Write the small model with random weights; return its directory."""
    save_tokenizer(train_tokenizer(["text"], 300), directory / "tokenizer")
    model = NemotronH(MODELS["small"])
    initialize(model, 0)
    save_checkpoint(model, directory / "tokenizer", directory / "model")
    return directory / "model"


def main(config: Config) -> None:
    """Measure both and print the result."""
    check_peer("transformers", 'pip install -e ".[test]" -c constraints.txt')
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        path = config.checkpoint_path / "model" if config.checkpoint_path else save_random_checkpoint(Path(directory))
        dtype = getattr(torch, config.dtype)
        ours, theirs = load_checkpoint(path, dtype=dtype), AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    theirs.generation_config.eos_token_id = None  # neither side stops early
    generator = torch.Generator().manual_seed(0)
    size = ours.config.vocab_size
    prompts = torch.randint(13, size, (config.batch, config.prompt_tokens), generator=generator)
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for round_number in range(config.rounds):
        start = time.perf_counter()
        continuations = generate(ours, prompts.tolist(), Sampling(max_new_tokens=config.new_tokens), [0] * config.batch)
        middle = time.perf_counter()
        with torch.no_grad():
            twin = theirs.generate(prompts, max_new_tokens=config.new_tokens, do_sample=False)
        end = time.perf_counter()
        if round_number:
            seconds["ours"].append(middle - start)
            seconds["transformers"].append(end - middle)
    same = [
        row.tokens == other for row, other in zip(continuations, twin[:, config.prompt_tokens :].tolist(), strict=True)
    ]

    state = DecodingState(ours, config.batch)
    sizes = []
    with torch.no_grad():
        ours(prompts, state=state)
        for number in range(config.new_tokens):
            if number in (0, config.new_tokens - 1):
                sizes.append({kind: state.num_bytes(kind) / 2**20 for kind in (MambaState, AttentionState)})
            ours(prompts[:, :1], state=state)
    num_tokens = config.batch * config.new_tokens
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(f"machine        {torch.get_num_threads()} threads on {os.cpu_count()} cores, {config.dtype}")
    print(f"batch          {config.batch} prompts of {config.prompt_tokens} tokens, {config.new_tokens} new ones each")
    for name, median in medians.items():
        print(f"{name:<14} {num_tokens / median:,.0f} tokens per second")
    print(f"ratio          {medians['transformers'] / medians['ours']:.2f} times as fast as transformers")
    print(f"same replies   {sum(same)} of {config.batch}")
    for kind in (MambaState, AttentionState):
        print(f"{kind.__name__:<14} {sizes[0][kind]:.2f} MiB after the prompt, {sizes[1][kind]:.2f} MiB at the end")


if __name__ == "__main__":
    run_program(Config, main)
