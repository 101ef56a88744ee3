"""Peak memory of forward and backward pass, with and without activation checkpointing and losses by chunks.

The layers have the sizes of medium; there are nine of them, and every weight is the same number, because only memory is
measured: the bytes of all tensors that are there at the same time.

Run: python benchmarks/step_memory.py
"""

from dataclasses import dataclass, replace

import torch
from pydantic import PositiveInt

from nemotron.command_line import run_program
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h import losses
from nemotron.recipes.nemotron_h.losses import token_losses
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.nemotron_h.plan import LiveBytes


@dataclass
class Config:
    """Compare the peak memory of four ways to compute the same gradients."""

    pattern: str = "M-M-M*-M-"
    length: PositiveInt = 2048
    """Tokens of the row."""
    chunk: PositiveInt = 256
    """Tokens whose logits are there at a time, in the second and fourth way."""


def main(config: Config) -> None:
    """Measure and print."""
    shape = replace(MODELS["medium"], hybrid_override_pattern=config.pattern)
    tokens = torch.arange(config.length + 1)[None] % shape.vocab_size
    for again in (False, True):
        for chunk in (config.length, config.chunk):
            losses.LOGITS_AT_A_TIME = chunk * shape.vocab_size
            with LiveBytes() as live:
                model = NemotronH(shape)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.fill_(0.01)
                model.backbone.activation_checkpointing = again
                hidden = model.backbone(tokens[:, :-1]).flatten(0, 1)
                token_losses(model.lm_head, hidden, tokens[0, 1:]).sum().backward()
            weights = 2 * sum(parameter.nbytes for parameter in model.parameters())
            layers = "layers computed again" if again else "layers kept"
            held = f"{live.peak / 2**30:.2f} GiB, of which weights and gradients {weights / 2**30:.2f}"
            print(f"{layers}, logits of {chunk:,} tokens at a time: {held}", flush=True)


if __name__ == "__main__":
    run_program(Config, main)
