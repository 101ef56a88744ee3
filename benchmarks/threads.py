"""Which OpenMP setting trains fast on an idle machine and beside a busy program?

A PyTorch operation that two threads share ends when the slower one ends. OpenMP's threads wait for it, and for the next
operation, in a loop that does nothing ("spinning"). Beside another program, spinning takes the place of the thread that
works. Each setting trains stage 0's model in its own process, on random tokens: idle, then beside one program that
counts without end. The settings take turns, and the medians are printed. "as the steps do" is what
recipes/nemotron_h/threads.py sets.

Run: python benchmarks/threads.py
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from nemotron.command_line import run_program

SETTINGS: dict[str, dict[str, str]] = {
    "as the steps do": {},
    "no setting": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}


@dataclass
class Config:
    """Compare settings of OpenMP at one scale."""

    scale: Literal["tiny", "small"] = "tiny"
    steps: PositiveInt = 20
    """Optimizer steps of one run, after two that do not count."""
    rounds: PositiveInt = 3
    """Runs of each setting, idle and beside a busy program."""
    child: bool = False
    """Train once in this process, with the setting of its environment, and print the median seconds of a step."""
    as_steps_do: bool = False
    """In the child: train with the threads that the steps take at this scale."""


def train(scale: Literal["tiny", "small"], steps: int) -> float:
    """Median seconds of an optimizer step of stage 0 at `scale`, on random tokens."""
    import torch

    from nemotron.recipes.nano2.models import MODELS
    from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
    from nemotron.recipes.nemotron_h.device import autocast, weight_dtype
    from nemotron.recipes.nemotron_h.model import NemotronH, initialize, parameter_groups

    config = training.Config(scale=scale)
    length = data_curation.Config(scale=scale).sequence_length
    model = NemotronH(MODELS[scale], dtype=weight_dtype(config.dtype))
    initialize(model, 0)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(0)
    shape = (config.batch_sequences, length + 1)
    seconds = []
    for _ in range(2 + steps):
        tokens = torch.randint(MODELS[scale].vocab_size, shape, generator=generator)
        start = time.perf_counter()
        optimizer.zero_grad()
        for piece in tokens.split(config.micro_batch_sequences):
            with autocast(config.dtype, "cpu"):
                loss = training.loss_sum(model.backbone, model.lm_head, piece) / tokens[:, 1:].numel()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


@contextmanager
def busy_program() -> Iterator[None]:
    """A program that counts without end, on one core."""
    counting = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        counting.kill()
        counting.wait()


def seconds_per_step(config: Config, name: str) -> float:
    """Train in another process with the setting of this name."""
    own = ("OMP_", "GOMP_", "MKL_NUM_THREADS", "KMP_BLOCKTIME")
    environment = {variable: value for variable, value in os.environ.items() if not variable.startswith(own)}
    command = [sys.executable, __file__, "--child", "--scale", config.scale, "--steps", str(config.steps)]
    if name == "as the steps do":
        command.append("--as-steps-do")
    done = subprocess.run(
        command, env=environment | SETTINGS[name], check=True, stdout=subprocess.PIPE, encoding="utf-8"
    )
    return float(done.stdout)


def main(config: Config) -> None:
    """Measure every setting and print the table."""
    if config.child:
        from nemotron.recipes.nemotron_h.threads import threads_of

        with threads_of(config.scale) if config.as_steps_do else nullcontext():
            print(train(config.scale, config.steps))
        return
    idle: dict[str, list[float]] = {name: [] for name in SETTINGS}
    busy: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(config.rounds):
        for name in SETTINGS:
            idle[name].append(seconds_per_step(config, name))
            with busy_program():
                busy[name].append(seconds_per_step(config, name))
    print(f"{config.scale}, {os.cpu_count()} cores: median milliseconds of a step over {config.rounds} runs")
    print(f"{'setting':<26}{'idle':>8}{'beside a busy program':>24}{'ratio':>8}")
    for name in SETTINGS:
        alone, beside = statistics.median(idle[name]), statistics.median(busy[name])
        print(f"{name:<26}{1e3 * alone:>8.0f}{1e3 * beside:>24.0f}{beside / alone:>8.1f}")


if __name__ == "__main__":
    run_program(Config, main)
