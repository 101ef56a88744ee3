"""What a training needs on each device: lines for `--plan`, and a check before any work is done.

In: a model's shape, the Config of a training step, what it does with the model. Out: memory by part, the fewest cards
with enough, or a ValueError whose sentence says what would fit. Nothing is run.
Run: python -m nemotron.recipes.nano2.stage2_rlvr --scale medium --plan --devices 8

A step of reinforcement learning does several things, one after the other: it writes replies, scores them, learns from
them. Each has a column, and the largest decides. Every prompt and reply counts as long as it may become.

Left out: the replies of a step as tensors, for the loss; the pool of each CUDA graph, with what a decoding step holds
for a while; the CUDA context and fragmentation, for which a card's
gigabytes are counted as 10^9 bytes, 3 to 7 % less than it reports.
"""

import math
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from nemotron.recipes.nemotron_h import device
from nemotron.recipes.nemotron_h.decoder import PROMPTS_AT_A_TIME
from nemotron.recipes.nemotron_h.generate import NUM_SLOTS
from nemotron.recipes.nemotron_h.graphs import MIN_POSITIONS, rounded_up
from nemotron.recipes.nemotron_h.inference_memory import inference_memory_bytes
from nemotron.recipes.nemotron_h.losses import chunk_tokens
from nemotron.recipes.nemotron_h.model import ATTENTION, ModelConfig
from nemotron.recipes.nemotron_h.plan import count_parameters, memory_of_reading, memory_of_step, number_bytes
from nemotron.recipes.training.distributed import world

# Gigabytes, from NVIDIA's data sheets. B200: 1,440 GB in a DGX with eight.
CARDS = {
    "RTX 4090, 24 GB": 24,
    "A100, 40 GB": 40,
    "L40S, 48 GB": 48,
    "A100 or H100, 80 GB": 80,
    "H200, 141 GB": 141,
    "B200, 180 GB": 180,
}


class Pass(NamedTuple):
    """Forward and backward passes over rows: learning from text, from pairs, or from scored replies."""

    batch_rows: int
    """Rows or pairs of an optimizer step, over all devices."""
    micro_batch_rows: int
    """Rows or pairs of a pass on one device, at most."""
    length: int
    """Tokens of a row."""
    pairs: bool = False
    """Whether rows come in pairs."""
    scores: bool = False
    """Whether a reward model learns."""
    documents: bool = False
    """Whether a row holds several documents."""

    def rows(self, devices: int) -> int:
        """Rows of a pass on each of so many devices."""
        return (1 + self.pairs) * min(self.micro_batch_rows, math.ceil(self.batch_rows / devices))

    def memory(self, shape: ModelConfig, train: Any, devices: int) -> dict[str, int]:
        """Bytes on each device, by part, without models that do not learn."""
        chunk = None if self.scores else chunk_tokens(shape.vocab_size)
        checkpointing = train.activation_checkpointing
        return memory_of_step(
            shape, train.dtype, self.rows(devices), self.length, activation_checkpointing=checkpointing,
            loss_chunk=chunk, devices=devices, scores=self.scores, documents=self.documents,
        )  # fmt: skip


class Learning(NamedTuple):
    """Forward and backward passes over prompts, each read once, and the replies to them."""

    batch_rows: int
    """Prompts of an optimizer step, over all devices."""
    micro_batch_rows: int
    """Prompts of a pass on one device, at most."""
    prompt_tokens: int
    replies: int
    """Replies to each prompt."""
    reply_tokens: int

    @property
    def length(self) -> int:
        """Tokens of a prompt with its reply."""
        return self.prompt_tokens + self.reply_tokens

    def rows(self, devices: int) -> int:
        """Replies of a pass on each of so many devices."""
        return self.replies * min(self.micro_batch_rows, math.ceil(self.batch_rows / devices))

    def memory(self, shape: ModelConfig, train: Any, devices: int) -> dict[str, int]:
        """Bytes on each device, by part, without models that do not learn."""
        rows, number = self.rows(devices), self.rows(devices) // self.replies
        prompts = Pass(number * devices, number, self.prompt_tokens).memory(shape, train, devices)
        replies = Pass(rows * devices, rows, self.reply_tokens).memory(shape, train, devices)
        # The states after the prompts, for each reply, and then after the replies, or gradients instead.
        states = state_bytes(shape, train.dtype, rows, 2 * self.prompt_tokens)
        both = replies | {
            "activations": replies["activations"] + prompts["activations"],
            "states": states + state_bytes(shape, train.dtype, rows, 2 * self.length),
        }
        # The backward pass comes to the prompts last.
        return max(both, prompts | {"states": states}, key=lambda parts: sum(parts.values()))


class Writing(NamedTuple):
    """Replies to prompts, which each device writes with a whole model."""

    batch_rows: int
    """Prompts, over all devices."""
    prompt_tokens: int
    replies: int
    """Replies to each prompt."""
    reply_tokens: int
    shared: bool = True
    """Whether all replies to a prompt begin alike; not so in a conversation of several turns."""

    @property
    def length(self) -> int:
        """Tokens of a prompt with its reply."""
        return self.prompt_tokens + self.reply_tokens

    def rows(self, devices: int) -> int:
        """Replies that each device writes side by side."""
        return min(NUM_SLOTS, self.replies * math.ceil(self.batch_rows / devices))

    def memory(self, shape: ModelConfig, train: Any, devices: int) -> dict[str, int]:
        """Bytes on each device, by part, without models that do not learn."""
        rows, number = self.rows(devices), number_bytes(train.dtype)
        prompts = math.ceil(self.batch_rows / devices)
        read = min(PROMPTS_AT_A_TIME, prompts) if self.shared else rows
        room = decoding_room(train.device, self.prompt_tokens, self.length - 1)
        slots = state_bytes(shape, train.dtype, rows, room)
        keys = slots - state_bytes(shape, train.dtype, rows, 0)
        reading = memory_of_reading(shape, wide(train.dtype), min(PROMPTS_AT_A_TIME, read) * self.prompt_tokens)
        # A layer's keys and values move where there is more room; logits, probabilities twice and in blocks.
        layers = max(1, shape.hybrid_override_pattern.count(ATTENTION))
        step = max(keys // (2 * layers), 4 * rows * shape.vocab_size * number)
        # The first prompts are read before there are keys.
        working = max(step, reading if prompts > read or not self.shared else reading - keys)
        matrices = (count_parameters(shape) - shape.vocab_size * shape.hidden_size) * number
        return persistent(count_parameters(shape), train.dtype, devices) | {
            **({"whole copy": whole_weights(shape, train.dtype)} if devices > 1 else {}),
            "weights for decoding": matrices,
            "states": slots + state_bytes(shape, train.dtype, read, 2 * self.prompt_tokens),
            "reading and drawing": working,
        }


class Scoring(NamedTuple):
    """Replies that a whole reward model reads with their prompts."""

    batch_rows: int
    """Prompts, over all devices."""
    prompt_tokens: int
    replies: int
    """Replies to each prompt."""
    reply_tokens: int
    at_a_time: int
    """Replies that are read side by side, at most."""
    copied: bool = False
    """Whether it is the model that learns, or a whole copy of it on several devices."""

    @property
    def length(self) -> int:
        """Tokens of a prompt with its reply."""
        return self.prompt_tokens + self.reply_tokens

    def rows(self, devices: int) -> int:
        """Replies that each device reads side by side."""
        return min(self.at_a_time, self.replies * math.ceil(self.batch_rows / devices))

    def memory(self, shape: ModelConfig, train: Any, devices: int) -> dict[str, int]:
        """Bytes on each device, by part, without models that do not learn."""
        dtype, number = train.dtype if self.copied else wide(train.dtype), number_bytes(train.dtype)
        learned = score_parameters(shape) if self.copied else count_parameters(shape)
        copy = learned if self.copied else 0
        return persistent(learned, train.dtype, devices) | {
            **({"whole copy": copy * number} if copy and devices > 1 else {}),
            **({"bfloat16 copies": 2 * copy} if copy and dtype == "bfloat16" else {}),
            "reading and drawing": memory_of_reading(shape, dtype, self.rows(devices) * self.length),
        }


Use = Pass | Learning | Writing | Scoring
"""What a training step does with the model, one after the other."""
Models = Sequence[ModelConfig]
"""Shapes of models."""


class Needs(NamedTuple):
    """What a training step holds and does."""

    uses: Sequence[Use]
    beside: Models = ()
    """Models that do not learn and are sharded."""
    scorers: Models = ()
    """Reward models, whole on each device."""


def wide(dtype: str) -> str:
    """The dtype of replies and scores: that of the weights."""
    return "float64" if dtype == "float64" else "float32"


def score_parameters(shape: ModelConfig) -> int:
    """Number of parameters of a reward model, which has a head of one row."""
    return count_parameters(shape) - (shape.vocab_size - 1) * shape.hidden_size


def persistent(parameters: int, dtype: str, devices: int) -> dict[str, int]:
    """What a device holds from the first optimizer step on."""
    share = -(-parameters // devices) * number_bytes(dtype)
    return {"weights": share, "gradients": share, "optimizer moments": 2 * share}


def state_bytes(shape: ModelConfig, dtype: str, rows: int, positions: int) -> int:
    """Keys, values, scan states and windows of so many rows with room for so many positions."""
    parts = inference_memory_bytes(shape, context_tokens=positions, sequences=rows, dtype=wide(dtype))
    return sum(parts.values()) - parts["weights"]


def decoding_room(device: str, prompt: int, used: int) -> int:
    """Positions for which a slot has room after `used` of them, the way `Decoder.reserve` makes it."""
    if torch.device(device).type == "cuda":
        return rounded_up(max(2 * prompt, used, MIN_POSITIONS))
    room = 4 * prompt
    while room < used:
        room = 2 * (room + 1)
    return room


def replies_needs(config: Any, prompt_tokens: int) -> list[Use]:
    """What a step does that writes replies to prompts and learns from them.

    Args:
        config: with prompts_per_step, replies_per_prompt, max_new_tokens, updates_per_step and micro_batch_prompts.
        prompt_tokens: of the longest prompt.
    """
    sizes = (prompt_tokens, config.replies_per_prompt, config.max_new_tokens)
    learned = math.ceil(config.prompts_per_step / config.updates_per_step)
    return [Writing(config.prompts_per_step, *sizes), Learning(learned, config.micro_batch_prompts, *sizes)]


def longest(path: Path, column: str = "tokens") -> int:
    """Most tokens of a row of a Parquet file."""
    return pc.max(pc.list_value_length(pq.read_table(path, columns=[column])[column])).as_py() or 1


def check_device_count(uses: Sequence[Use], devices: int) -> None:
    """Raise ValueError if there are more devices than rows in the largest batch."""
    most = most_devices(uses)
    if devices > most:
        raise ValueError(
            f"devices={devices}, and the largest batch has {most} rows, so some devices would never have one; give at "
            f"most {most}, or use larger batches"
        )


def most_devices(uses: Sequence[Use]) -> int:
    """As many devices as the largest batch has rows."""
    return max(use.batch_rows for use in uses)


def memory_of_use(
    shape: ModelConfig, train: Any, use: Use, devices: int, beside: Models = (), scorers: Models = ()
) -> dict[str, int]:
    """Most bytes on each device while a step does one thing with the model, by part.

    Args:
        shape: of the model that learns.
        train: Config of the step, with dtype, device and activation_checkpointing.
        beside, scorers: as in Needs.
    """
    parts, number = use.memory(shape, train, devices), number_bytes(train.dtype)
    if beside:
        parts["other models"] = sum(whole_weights(other, train.dtype) for other in beside) // devices
    if beside and devices > 1:  # embeddings and output matrix stay whole if no backward pass follows
        parts["other models"] += sum(2 * other.vocab_size * other.hidden_size for other in beside) * number
    if beside and isinstance(use, Learning):  # policy and reference read the replies before the updates
        tokens = use.rows(devices) * use.reply_tokens
        logits = 4 * number * min(chunk_tokens(shape.vocab_size), tokens) * shape.vocab_size
        copies = 2 * sum(map(count_parameters, beside)) if train.dtype == "bfloat16" else 0
        before = copies + max(logits, memory_of_reading(shape, train.dtype, tokens))
        learning = sum(parts[name] for name in ("activations", "states", "logits", "backward pass of a layer"))
        if before > learning:
            parts["log-probabilities before"] = before - learning
    if scorers:
        parts["reward model"] = sum(map(score_parameters, scorers)) * number
    return parts


def whole_weights(shape: ModelConfig, dtype: str) -> int:
    """Bytes of all weights, which each device holds once: before they are sharded."""
    return count_parameters(shape) * number_bytes(dtype)


def weights_at_start(shape: ModelConfig, train: Any, devices: int, beside: Models = (), scorers: Models = ()) -> int:
    """Most bytes while models are loaded: each is whole before it is sharded, beside those before it."""
    sizes = [whole_weights(model, train.dtype) for model in (shape, *beside, *scorers)]
    return max(sizes) + (sum(sizes) - max(sizes)) // devices


def fewest_devices(
    shape: ModelConfig, train: Any, use: Use, device_bytes: int, beside: Models = (), scorers: Models = ()
) -> int | None:
    """The fewest devices of this size that hold one thing of a step; None if as many as the batch has rows do not."""
    for devices in range(1, use.batch_rows + 1):
        needed = sum(memory_of_use(shape, train, use, devices, beside, scorers).values())
        if max(needed, weights_at_start(shape, train, devices, beside, scorers)) <= device_bytes:
            return devices
    return None


def memory_lines(
    shape: ModelConfig, train: Any, uses: Sequence[Use], beside: Models = (), scorers: Models = (), *, devices: int
) -> list[str]:
    """Memory of each device by part, and the fewest cards, with a column for each thing that a step does.

    Raises:
        ValueError: if there are more devices than rows in the largest batch.
    """
    check_device_count(uses, devices)
    kinds = list(dict.fromkeys(uses))
    needs = [memory_of_use(shape, train, use, devices, beside, scorers) for use in kinds]
    checkpointing = train.activation_checkpointing

    def line(name: str, cells: Sequence[str]) -> str:
        return f"    {name:<28}" + "".join(f"{cell:>20}" for cell in cells)

    def gib(sizes: Sequence[int | None]) -> list[str]:
        return ["-" if size is None else f"{size / 2**30:,.2f} GiB" for size in sizes]

    place = "on one device" if devices == 1 else f"on each of {devices} devices, with FSDP2"
    names = ["learning" if isinstance(use, Pass) else type(use).__name__.lower() for use in kinds]
    kept = "computed again" if checkpointing else "kept"
    lines = [
        f"  memory of a training step {place}, layers {kept} for the backward pass",
        *([line("", names)] if len(set(names)) > 1 else []),
        line("rows x tokens", [f"{use.rows(devices):,} x {use.length:,}" for use in kinds]),
        *(line(part, gib([parts.get(part) for parts in needs])) for part in dict.fromkeys(chain(*needs))),
        line("together", gib([sum(parts.values()) for parts in needs])),
    ]
    if devices > 1:
        start = weights_at_start(shape, train, devices, beside, scorers)
        lines.append(line("all weights, at the start", gib([start] * len(kinds))))
    lines += ["", "  fewest cards with enough memory"]
    for card, gigabytes in CARDS.items():
        found = [fewest_devices(shape, train, use, gigabytes * 10**9, beside, scorers) for use in kinds]
        lines.append(line(card, ["-" if number is None else f"{number:,}" for number in found]))
    return lines


# Before any work ------------------------------------------------------------------------------------------------------


def check_fits(shape: ModelConfig, config: Any, uses: Sequence[Use], beside: Models = (), scorers: Models = ()) -> None:
    """Raise ValueError if a training step needs more memory than the device has; the sentence says what would fit.

    The memory is that of the plan. In a run of several processes it is that of each of them.

    Args:
        shape: of the model that learns.
        config: of the step, with dtype, device and activation_checkpointing.
        uses: what the step does with the model; the largest decides.
        beside, scorers: as in Needs.
    """
    processes = world()[1]
    present = device.device_memory_bytes(config.device)
    if torch.device(config.device).type == "cpu":  # all processes of this machine share it
        present //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if more_than_needed(shape, uses, sum(map(count_parameters, (*beside, *scorers)))) <= present:
        return

    def parts_of(checkpointing: bool, most_rows: int, most_tokens: int, devices: int) -> dict[str, int]:
        train = SimpleNamespace(dtype=config.dtype, device=config.device, activation_checkpointing=checkpointing)
        limited = [within(use, most_rows, most_tokens) for use in uses]
        found = [memory_of_use(shape, train, use, devices, beside, scorers) for use in limited]
        parts = max(found, key=lambda parts: sum(parts.values()))
        start = weights_at_start(shape, train, devices, beside, scorers)
        return parts if sum(parts.values()) >= start else {"weights before they are sharded": start}

    def fits(*way: Any) -> bool:
        return sum(parts_of(*way).values()) <= present

    checkpointing = config.activation_checkpointing
    rows = max(use.micro_batch_rows for use in uses if isinstance(use, Pass | Learning))
    tokens = max([use.reply_tokens for use in uses if not isinstance(use, Pass)], default=0)
    if fits(checkpointing, rows, tokens, processes):
        return
    # What would fit: the same with layers computed again, then fewer rows, then more devices, then shorter replies.
    ways = ["--activation-checkpointing"] if not checkpointing and fits(True, rows, tokens, processes) else []
    beside_it = "" if checkpointing else " and --activation-checkpointing"
    if fewer := next((size for size in halves(rows) if fits(True, size, tokens, processes)), None):
        names = [name for name in vars(config) if "micro_batch" in name]
        unit = next((unit for unit in ("prompts", "pairs") if names[0].endswith(unit)), "rows")
        flags = " or ".join(f"--{name.replace('_', '-')}" for name in names)
        ways.append(f"{fewer} instead of {rows} {unit} per forward pass (a smaller {flags}){beside_it}")
    counts = (processes << doublings for doublings in range(1, most_devices(uses).bit_length()))
    counts = (count for count in counts if count <= most_devices(uses))
    if more := next((count for count in counts if fits(True, rows, tokens, count)), None):
        ways.append(f"{more} such devices with torchrun{beside_it}")
    if shorter := next((size for size in halves(tokens) if fits(True, rows, size, processes)), None):
        ways.append(f"--max-new-tokens {shorter}{beside_it}")
    parts = parts_of(checkpointing, rows, tokens, processes)
    listed = ", ".join(f"{name} {in_gib(size)}" for name, size in parts.items())
    raise ValueError(
        f"training needs {in_gib(sum(parts.values()))} GiB ({listed}), and {config.device} has {in_gib(present)} GiB; "
        f"use {', or '.join([*ways, 'a smaller --scale'])}"
    )


def within(use: Use, most_rows: int, most_tokens: int) -> Use:
    """The same with fewer rows of a pass and shorter replies."""
    if isinstance(use, Pass | Learning):
        use = use._replace(micro_batch_rows=min(use.micro_batch_rows, most_rows))
    return use if isinstance(use, Pass) else use._replace(reply_tokens=min(use.reply_tokens, most_tokens))


def halves(number: int) -> list[int]:
    """A half of it, a quarter, and so on, down to 1."""
    return [number >> halvings for halvings in range(1, number.bit_length())]


def more_than_needed(shape: ModelConfig, uses: Sequence[Use], others: int) -> int:
    """A rough number of bytes, above those of any training step: small models need not wait for the exact one.

    Args:
        others: parameters of the models beside the one that learns.
    """
    heads = shape.mamba_num_heads * (shape.chunk_size + shape.mamba_head_dim)
    widest = max(heads, shape.intermediate_size, 4 * shape.hidden_size, 2 * shape.mamba_conv_size)
    layer = 60 * widest  # numbers for each token; 5 times what is held, or more
    learned = max(use.rows(1) * use.length for use in uses if isinstance(use, Pass | Learning))
    read = max([PROMPTS_AT_A_TIME * use.length for use in uses if isinstance(use, Writing | Scoring)], default=0)
    rows, length = (max(found) for found in zip(*((use.rows(1), use.length) for use in uses), strict=True))
    kept = learned * (layer * len(shape.hybrid_override_pattern) + 4 * shape.vocab_size)
    numbers = 8 * count_parameters(shape) + others + kept + read * layer + 6 * rows * shape.vocab_size
    return 8 * numbers + 2 * state_bytes(shape, "float64", rows, 4 * length)


def in_gib(size: int) -> str:
    """Bytes in GiB, with a digit after the point below 10."""
    gib = size / 2**30
    return f"{gib:,.0f}" if gib >= 10 else f"{gib:.1f}"


def check_devices(*configs: Any) -> None:
    """Raise ValueError if a step of the stage names a device that is not there."""
    for config in configs:
        if hasattr(config, "device"):
            device.device_memory_bytes(config.device)
