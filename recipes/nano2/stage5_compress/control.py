"""Train the pruned shape from random weights, on the tokens that distillation read: what a teacher is worth.

In: the distilled Checkpoint of training.py, and through it the Dataset. Out: a Checkpoint of the same shape, trained
with cross-entropy on the same rows in the same batches. Its dataset_path is the distilled Checkpoint.
It is a step by itself so that it can be resumed, and left out of a pipe: it costs almost what distillation costs, and
only the evaluation reads it.
Run: python -m nemotron.recipes.nano2.stage5_compress.control --scale tiny --checkpoint-path <directory>

Left out: more tokens for it than the distilled model had. NVIDIA pretrains on 20T tokens, and distills on 0.14T.

b batch   t position
"""

from pathlib import Path

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import Scale, print_complete
from nemotron.config import (
    BelowOne,
    Dtype,
    ScaledConfig,
    at_every_scale,
    by_scale,
    input_path,
    our_choice,
    output_below,
    parse_command_line,
    proxy,
    same_as,
    switch,
)
from nemotron.directory import read_metadata
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import CHECKPOINTING, DEVICES, DTYPES
from nemotron.recipes.nano2.stage5_compress.data_curation import Dataset
from nemotron.recipes.nano2.stage5_compress.training import learning_rate_at, training_parts
from nemotron.recipes.nemotron_h.checkpoint import load_config
from nemotron.recipes.nemotron_h.device import autocast, weight_dtype
from nemotron.recipes.nemotron_h.losses import token_losses
from nemotron.recipes.nemotron_h.model import NemotronH, initialize, parameter_groups
from nemotron.recipes.training.batches import Batch, batches
from nemotron.recipes.training.distributed import clip_gradients, rank_rows, shard, summed, training_process
from nemotron.recipes.training.memory import check_fits
from nemotron.recipes.training.run import Checkpoint, is_done, training_run


@dataclass
class Config(ScaledConfig):
    """Train the pruned shape from scratch."""

    seed: int = 1234
    """Seed of the initial weights."""
    output_dir: Path = output_below("nano2", "stage5_compress", "control")
    """Where the Checkpoint goes."""
    checkpoint_path: Path | None = input_path()
    """Directory of the distilled Checkpoint; read from the pipe if left out."""
    batch_sequences: tuple[PositiveInt, ...] = by_scale(
        tiny=(4, 2, 1), small=(16, 8, 4), medium=(64, 16, 8), full=same_as((1536, 512, 48), "distillation")
    )
    """Rows per optimizer step in each part."""
    micro_batch_sequences: tuple[PositiveInt, ...] = by_scale(
        tiny=(4, 2, 1), small=(16, 8, 4), medium=(4, 1, 1), full=our_choice((1, 1, 1))
    )
    """Rows per forward pass in each part; changes memory, not the result."""
    learning_rate: PositiveFloat = by_scale(tiny=4e-3, small=2e-3, medium=1e-3, full=same_as(4.5e-4, "pretraining"))
    """Peak learning rate, from which it falls linearly; that of pretraining, since the weights are random."""
    min_learning_rate: NonNegativeFloat = by_scale(
        tiny=4e-5, small=2e-5, medium=1e-5, full=same_as(4.5e-6, "pretraining")
    )
    """Learning rate of the last step."""
    warmup_steps: NonNegativeInt = by_scale(tiny=2, small=5, medium=60, full=same_as(60, "distillation"))
    """Steps over which the learning rate rises linearly from 0."""
    beta1: BelowOne = at_every_scale(same_as(0.9, "pretraining"))
    """AdamW: decay of the first moment."""
    beta2: BelowOne = at_every_scale(same_as(0.95, "pretraining"))
    """AdamW: decay of the second moment."""
    adam_eps: PositiveFloat = at_every_scale(proxy(1e-8, "NVIDIA's Megatron configurations"))
    """AdamW: term added to the denominator."""
    weight_decay: NonNegativeFloat = at_every_scale(same_as(0.1, "pretraining"))
    """AdamW: decay of matrices; norms, biases and the state-space vectors have none."""
    max_grad_norm: PositiveFloat = at_every_scale(proxy(1.0, "NVIDIA's Megatron configurations"))
    """If the norm of all gradients together is above this, they are scaled down to it."""
    dtype: Dtype = by_scale(**(DTYPES | {"small": "float32"}))
    """Arithmetic; bfloat16 keeps the weights in float32 and computes matrix products in bfloat16."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to train: cpu, cuda, cuda:1, ..."""
    activation_checkpointing: bool = by_scale(**CHECKPOINTING, recorded=False)
    """Compute layers again in the backward pass instead of keeping what is inside of them: less memory, same result."""
    checkpoint_every_steps: PositiveInt = by_scale(tiny=40, small=50, medium=200, full=our_choice(200), recorded=False)
    """Steps between two states from which a run can be resumed."""
    resume: bool = switch()
    """Continue an unfinished run in the same output directory from its last state."""

    def check(self) -> None:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}, from which "
                f"the learning rate falls; give a lower one"
            )


def made_checkpoints(path: Path | None, scale: Scale) -> tuple[Dataset, dict[str, Checkpoint]]:
    """The Dataset of compression, and name -> Checkpoint of what was made with it.

    Args:
        path: of the control or, if none was trained, of the distilled Checkpoint; None reads it from the pipe.
        scale: of the step, which must be that of the Checkpoint.
    """
    steps = "nemotron.recipes.nano2.stage5_compress.training or nemotron.recipes.nano2.stage5_compress.control"
    given = Checkpoint.load(path=path, made_by=steps)
    given.check_scale(scale)
    parent = Checkpoint.load(path=given.dataset_path, given=given)
    made = {"pruned": parent, "distilled": given}
    if read_metadata(parent.dataset_path).type == Checkpoint.type_name():
        pruned = Checkpoint.load(path=parent.dataset_path, given=given)
        made = {"pruned": pruned, "scratch": given, "distilled": parent}
    return Dataset.load(path=made["pruned"].dataset_path, given=given), made


def loss_sum(model: NemotronH, batch: Batch) -> torch.Tensor:
    """Cross-entropy in nats, summed over the tokens that count: those on which distillation compares."""
    counts = batch.in_loss[:, 1:]  # (b, t)
    hidden = model.backbone(batch.tokens[:, :-1], batch.segments[:, :-1])
    return token_losses(model.lm_head, hidden[counts], batch.tokens[:, 1:][counts]).sum()


def main(config: Config) -> Checkpoint:
    """Train on every row once and return the Checkpoint."""
    distilled = Checkpoint.load(
        path=config.checkpoint_path, scale=config.scale, made_by="nemotron.recipes.nano2.stage5_compress.training"
    )
    pruned = Checkpoint.load(path=distilled.dataset_path, given=distilled)
    dataset = Dataset.load(path=pruned.dataset_path, given=distilled)
    parts = training_parts(dataset.phases, config)
    total_steps = sum(part.num_steps for part in parts)
    shape = load_config(distilled.checkpoint_path)
    check_fits(shape, config, [part.forward_pass(documents=True) for part in parts])
    if is_done(config, distilled):
        return Checkpoint.load(config.output_dir)

    # The shape that the search chose, and nothing of the teacher.
    model = NemotronH(shape, device=config.device, dtype=weight_dtype(config.dtype))
    initialize(model, config.seed)
    shard(model)
    betas = (config.beta1, config.beta2)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), betas=betas, eps=config.adam_eps)
    with training_run(config, model, optimizer, distilled, total_steps) as run:
        for part, batch in batches(dataset.path, parts, first_step=run.step):
            # Loss and gradient: the token that follows, which says less than a teacher's distribution.
            optimizer.zero_grad()
            loss = 0.0
            for piece in rank_rows(batch.to(config.device), part.micro_batch_sequences):
                with autocast(config.dtype, config.device):
                    micro_loss = loss_sum(model, piece) / batch.num_in_loss
                micro_loss.backward()
                loss += micro_loss.item()
            loss = summed(loss)

            # Clipping, schedule, update.
            grad_norm = clip_gradients(model, config.max_grad_norm)
            run.check_finite(loss=loss, grad_norm=grad_norm)
            learning_rate = learning_rate_at(run.step, total_steps, config)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            run.note(part.name, batch, learning_rate=learning_rate, loss=loss, grad_norm=grad_norm)
            run.keep_state()
        run.save(dataset.tokenizer_path, dataset.counts(), CHAT.stop_ids)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with training_process(config) as config:
        print_complete({"checkpoint": main(config)})
