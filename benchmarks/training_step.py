"""Speed of one training step of a 6 M parameter model in float32: our code and transformers' NemotronH.

Both start from the same weights and take the same batches in alternating steps, so that a busy machine slows both. A
step is forward pass, loss, backward pass and AdamW. Also printed: the step's share of the machine's peak for matrix
products. The peak is measured between the steps, and the operations are counted as in `--plan`.

transformers is part of the test extra: pip install -e ".[test]" -c constraints.txt
Run: python benchmarks/training_step.py
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt

from nemotron.command_line import check_peer, run_program
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize
from nemotron.recipes.nemotron_h.plan import count_parameters, floating_point_operations_per_token

SHAPE = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    hybrid_override_pattern="M-M-M*-M-",
    intermediate_size=1024,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    mamba_num_heads=16,
    mamba_head_dim=32,
    n_groups=2,
    ssm_state_size=32,
    chunk_size=64,
)


@dataclass
class Config:
    """Compare one training step of our code and of transformers."""

    batch_sequences: PositiveInt = 16
    sequence_length: PositiveInt = 256
    dtype: Literal["float32", "float64"] = "float32"
    rounds: Annotated[int, Field(ge=2)] = 7
    """Steps of each; the first is a warm-up and does not count."""


def transformers_model(model: NemotronH) -> torch.nn.Module:
    """transformers' NemotronH with the same weights, without fused kernels."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    shape = {name: value for name, value in vars(model.config).items() if name != "initializer_range"}
    twin = NemotronHForCausalLM(NemotronHConfig(**shape)).to(model.lm_head.weight.dtype)
    twin.load_state_dict({name.replace("backbone", "model"): tensor for name, tensor in model.state_dict().items()})
    for layer in twin.model.layers:
        if hasattr(layer.mixer, "time_step_limit"):
            layer.mixer.time_step_limit = (0.0, math.inf)  # the published rule, see checkpoint.py
    return twin.train()


def step_seconds(
    forward: Callable[[torch.Tensor], torch.Tensor], optimizer: torch.optim.Optimizer, tokens: torch.Tensor
) -> tuple[float, float]:
    """Take one step on tokens (b, t + 1); return its seconds and loss."""
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = F.cross_entropy(forward(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    return time.perf_counter() - start, loss.item()


def matrix_product_operations_per_second(dtype: torch.dtype, size: int = 2048) -> float:
    """Speed of one product of two square matrices."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    start = time.perf_counter()
    torch.mm(a, b)
    return 2 * size**3 / (time.perf_counter() - start)


def main(config: Config) -> None:
    """Measure both and print the result."""
    check_peer("transformers", 'pip install -e ".[test]" -c constraints.txt')
    batch, length, dtype = config.batch_sequences, config.sequence_length, getattr(torch, config.dtype)
    ours = NemotronH(SHAPE, dtype=dtype)
    initialize(ours, 0)
    theirs = transformers_model(ours)
    forwards = {"ours": ours, "transformers": lambda tokens: theirs(tokens, use_cache=False).logits}
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), lr=1e-4)
        for name, model in (("ours", ours), ("transformers", theirs))
    }

    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in forwards}
    peaks = []
    for round_number in range(config.rounds):
        tokens = torch.randint(SHAPE.vocab_size, (batch, length + 1), generator=generator)
        losses = {}
        for name, forward in forwards.items():
            taken, losses[name] = step_seconds(forward, optimizers[name], tokens)
            if round_number > 0:
                seconds[name].append(taken)
        peaks.append(matrix_product_operations_per_second(dtype))
        if abs(losses["ours"] - losses["transformers"]) > 1e-3:
            raise SystemExit(f"the losses differ by more than 1e-3, so the times are not comparable: {losses}")

    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    operations = batch * length * floating_point_operations_per_token(SHAPE, length)
    peak = max(peaks)
    print(f"shape              {count_parameters(SHAPE):,} parameters, {config.dtype}")
    print(f"batch              {batch} sequences of {length} tokens")
    print(f"machine            {torch.get_num_threads()} threads on {os.cpu_count()} cores")
    print(f"matrix products    {peak / 1e9:,.0f} billion operations per second, the best of {config.rounds}")
    for name, median in medians.items():
        print(
            f"{name:<18} {1e3 * median:,.0f} ms per step, {batch * length / median:,.0f} tokens per second, "
            f"{operations / median / peak:.0%} of the matrix-product peak"
        )
    print(f"ratio              {medians['transformers'] / medians['ours']:.2f} times as fast as transformers")


if __name__ == "__main__":
    run_program(Config, main)
