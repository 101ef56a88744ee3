"""What one GPU does with this code: a table for the README that is marked with the card's name.

In: a machine with a GPU. Out: the table on stdout and in a file. Where there is no GPU, one sentence says so.

    goldens       the first stages at tiny, in float64, on the GPU: the processor's recorded numbers, within the policy
    training      a training step of medium in bfloat16, beside transformers' NemotronH with the kernels it finds
    memory        the peak of that step against the plan
    long context  a step of one row of 16,384 tokens, one document and many
    decoding      1, 32 and 256 prompts side by side, beside `transformers.generate`
    kill, resume  stage 0's training killed and resumed, against the same training without a pause

No part begins after eight minutes (`--minutes`); one that is left out has a line. The duration is not measured yet.
A part that fails has a line too, and so has a golden that differs; the exit code is then 1.
transformers is part of the test extra: pip install -e ".[test]" -c constraints.txt
Run: nox -s gpu
     python benchmarks/gpu.py --try-out        # every part on the processor, very small
"""

import gc
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module, util
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt

from nemotron.command_line import check_peer, run_program
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.attention import document_lengths
from nemotron.recipes.nemotron_h.device import autocast, device_memory_bytes, weight_dtype
from nemotron.recipes.nemotron_h.generate import Sampling, generate
from nemotron.recipes.nemotron_h.losses import chunk_tokens, token_losses
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, at_least_float32, initialize, parameter_groups
from nemotron.recipes.nemotron_h.plan import LiveBytes, floating_point_operations_per_token, memory_of_step
from nemotron.strict import one_sentence
from nemotron.testing.stage import reproduction

STAGES = ("stage0_pretrain", "stage1_sft", "stage2_rlvr", "stage3_dpo", "stage4_rlhf", "stage5_compress")
KERNELS = ("mamba_ssm", "causal_conv1d", "flash_attn")
"""Packages with fused kernels that transformers uses if they are installed."""


@dataclass
class Config:
    """Measure what one GPU does with this code."""

    try_out: bool = False
    """Run every part on the processor, as small as it goes, to see that they work."""
    device: str = "cuda"
    scale: Literal["tiny", "small", "medium"] = "medium"
    """Shape of the model that is trained and that decodes."""
    dtype: Literal["float64", "float32", "bfloat16"] = "bfloat16"
    rows: PositiveInt = 8
    """Rows of a training step."""
    length: PositiveInt = 2048
    """Tokens of a row."""
    long_length: PositiveInt = 16384
    """Tokens of the row of the long-context step."""
    steps: PositiveInt = 8
    """Training steps that are timed, after two that are not."""
    prompts: tuple[PositiveInt, ...] = (1, 32, 256)
    """Prompts that are continued side by side."""
    prompt_tokens: PositiveInt = 128
    new_tokens: PositiveInt = 128
    stages: Annotated[int, Field(ge=1, le=6)] = 2
    """Stages of tiny that are compared with their goldens, from the first on; at most 6."""
    minutes: PositiveFloat = 8.0
    """No part begins after this time."""
    output: Path = Path("outputs/gpu/table.md")
    """File of the table."""


TRY_OUT = {
    "device": "cpu", "scale": "tiny", "dtype": "float64", "rows": 2, "length": 64, "long_length": 512, "steps": 2,
    "prompts": (1, 3), "prompt_tokens": 8, "new_tokens": 8, "stages": 1,
}  # fmt: skip
AGREEMENT = {"float64": 1e-5, "float32": 1e-3, "bfloat16": 0.05}
"""By how much the losses of the two models may differ; else their times are not comparable. transformers scans in
float32, whatever the weights are."""

FAILED, EQUAL = "failed: ", "equal: "
"""What a part that failed begins with, and what is said of a golden: "equal: yes" or why not."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    part: str
    what: str
    ours: str
    beside: str = ""
    """The same of transformers, of the plan or of the processor."""


def synchronized(device: str) -> float:
    """The time, after the device has done all that it was asked to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def name_of(device: str) -> str:
    """The card, or how many threads of the processor."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {device_memory_bytes(device) / 2**30:.0f} GiB"
    return f"the processor, {torch.get_num_threads()} threads"


@contextmanager
def peak_bytes(device: str) -> Any:
    """A function that says the most bytes of all tensors since the block began; none may exist before it."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
    else:
        with LiveBytes() as live:
            yield lambda: live.peak


# Training -------------------------------------------------------------------------------------------------------------


def training_model(shape: ModelConfig, config: Config, *, again: bool = True) -> NemotronH:
    """A model with random weights, whose layers are computed again in the backward pass."""
    model = NemotronH(shape, device=config.device, dtype=weight_dtype(config.dtype))
    initialize(model, 0)
    model.backbone.activation_checkpointing = again
    return model


def transformers_twin(model: NemotronH, config: Config) -> torch.nn.Module:
    """transformers' NemotronH with the same weights."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    shape = {name: value for name, value in vars(model.config).items() if name != "initializer_range"}
    twin = NemotronHForCausalLM(NemotronHConfig(**shape)).to(config.device, model.lm_head.weight.dtype)
    twin.load_state_dict({name.replace("backbone", "model"): tensor for name, tensor in model.state_dict().items()})
    for layer in twin.model.layers:
        if hasattr(layer.mixer, "time_step_limit"):
            layer.mixer.time_step_limit = (0.0, math.inf)  # the published rule, see checkpoint.py
    twin.generation_config.eos_token_id = None  # neither side stops early
    return twin


def our_loss(model: NemotronH, tokens: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
    """Mean loss of (b, t + 1) tokens."""
    hidden = model.backbone(tokens[:, :-1], segments)
    return token_losses(model.lm_head, hidden.flatten(0, 1), tokens[:, 1:].flatten()).mean()


def their_loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The same of transformers' model."""
    logits = model(tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(at_least_float32(logits).flatten(0, 1), tokens[:, 1:].flatten())


def step_seconds(
    loss_of: Callable[..., torch.Tensor], model: Any, config: Config, *batch: Any, micro_batches: int = 1
) -> tuple[float, float]:
    """Median seconds of a training step on a batch, and the loss of the first one.

    Args:
        micro_batches: how often the batch is learned in a step. With 2, gradients exist while the second one is
            learned, which is the peak of memory that the plan describes.
    """
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4)
    seconds, losses = [], []
    for _ in range(config.steps + 2):
        start = synchronized(config.device)
        optimizer.zero_grad()
        for _ in range(micro_batches):
            with autocast(config.dtype, config.device):
                loss = loss_of(model, *batch)
            (loss / micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(synchronized(config.device) - start)
    return statistics.median(seconds[2:] or seconds), losses[0]


def product_speed(config: Config) -> float:
    """Floating-point operations per second of a large matrix product: the peak that a step can have a share of."""
    size = 8192 if torch.device(config.device).type == "cuda" else 512
    a = torch.ones(size, size, dtype=getattr(torch, config.dtype), device=config.device)
    best = math.inf
    for _ in range(5):
        start = synchronized(config.device)
        torch.mm(a, a)
        best = min(best, synchronized(config.device) - start)
    return 2 * size**3 / best


def random_tokens(config: Config, rows: int, length: int) -> torch.Tensor:
    """(rows, length) token ids on the device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(13, MODELS[config.scale].vocab_size, (rows, length), generator=generator).to(config.device)


def training(config: Config) -> list[Row]:
    """Tokens per second and share of the peak of a training step, ours and transformers'; its memory and the plan's."""
    shape, tokens = MODELS[config.scale], random_tokens(config, config.rows, config.length + 1)
    operations = floating_point_operations_per_token(shape, config.length)
    peak, number = product_speed(config), config.rows * config.length

    def speed(seconds: float) -> str:
        share = operations * number / seconds / peak
        return f"{number / seconds:,.0f} tokens per second, {share:.0%} of a matrix product's speed"

    rows = []
    for again in (True, False):
        name = f"{config.rows} x {config.length:,} tokens, {'with' if again else 'without'} activation checkpointing"
        plan = memory_of_step(
            shape, config.dtype, config.rows, config.length, activation_checkpointing=again,
            loss_chunk=chunk_tokens(shape.vocab_size),
        )  # fmt: skip
        planned = sum(plan.values())
        if planned > 0.9 * device_memory_bytes(config.device):
            rows.append(Row("training", name, f"left out: the plan says {planned / 2**30:.1f} GiB"))
            continue
        with peak_bytes(config.device) as peak_now:
            model = training_model(shape, config, again=again)
            _, first = step_seconds(our_loss, model, replace(config, steps=0), tokens, micro_batches=2)
            measured = peak_now()
        ours, _ = step_seconds(our_loss, model, config, tokens)
        beside = ""
        if again:
            twin = transformers_twin(training_model(shape, config), config).train()
            twin.activation_checkpointing_enable()
            theirs, other = step_seconds(their_loss, twin, config, tokens)
            if abs(first - other) > AGREEMENT[config.dtype]:
                raise SystemExit(f"the losses differ, so the times are not comparable: {first} and {other}")
            found = [name for name in KERNELS if util.find_spec(name)]
            beside = f"transformers: {speed(theirs)}; kernels: {', '.join(found) or 'none'}"
            beside += f"; ours is {theirs / ours:.1f} times as fast"
            del twin
        rows.append(Row("training", name, speed(ours), beside))
        memory = f"{measured / 2**30:.2f} GiB"
        rows.append(Row("memory", name, memory, f"plan: {planned / 2**30:.2f} GiB ({measured / planned - 1:+.0%})"))
        del model
    return rows


def long_context(config: Config) -> list[Row]:
    """A step of one long row: one document, and documents of 256 tokens."""
    shape, tokens = MODELS[config.scale], random_tokens(config, 1, config.long_length + 1)
    rows = []
    for documents in (1, max(2, config.long_length // 256)):
        segments = None
        if documents > 1:
            places = torch.arange(config.long_length, device=config.device)
            segments = (places * documents // config.long_length)[None]
            assert len(document_lengths(segments)) == documents
        with peak_bytes(config.device) as peak_now:
            model = training_model(shape, config)
            step_seconds(our_loss, model, replace(config, steps=0), tokens, segments, micro_batches=2)
            measured = peak_now()
        seconds, _ = step_seconds(our_loss, model, config, tokens, segments)
        name = f"1 x {config.long_length:,} tokens, {documents} document{'s' * (documents > 1)}"
        speed = f"{config.long_length / seconds:,.0f} tokens per second, {measured / 2**30:.2f} GiB"
        rows.append(Row("long context", name, speed))
    return rows


# Decoding -------------------------------------------------------------------------------------------------------------


def decoding(config: Config) -> list[Row]:
    """Tokens per second of greedy decoding, ours and transformers'."""
    shape = MODELS[config.scale]
    dtype = torch.float32 if config.dtype == "bfloat16" else weight_dtype(config.dtype)
    products = torch.bfloat16 if config.dtype == "bfloat16" else None
    model = NemotronH(shape, device=config.device, dtype=dtype)
    initialize(model, 0)
    twin = transformers_twin(model, config).to(products or dtype).eval()
    rows = []
    for number in config.prompts:
        prompts = random_tokens(config, number, config.prompt_tokens)
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(2):  # the first is a warm-up
            start = synchronized(config.device)
            sampling = Sampling(max_new_tokens=config.new_tokens)
            found = generate(model, prompts.tolist(), sampling, [0] * number, num_slots=number, products=products)
            middle = synchronized(config.device)
            with torch.no_grad():
                twin.generate(prompts, max_new_tokens=config.new_tokens, do_sample=False)
            seconds["ours"].append(middle - start)
            seconds["theirs"].append(synchronized(config.device) - middle)
        assert all(len(one.tokens) == config.new_tokens for one in found)
        ours, theirs = (number * config.new_tokens / each[-1] for each in seconds.values())
        beside = f"transformers.generate: {theirs:,.0f}; ours is {ours / theirs:.1f} times as fast"
        rows.append(Row("decoding", f"{number} prompts side by side", f"{ours:,.0f} tokens per second", beside))
    return rows


# The recipe at tiny ---------------------------------------------------------------------------------------------------


def on_device(config: Any, device: str) -> Any:
    """A stage's Config with every step on the device."""
    changes: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            changes[item.name] = on_device(value, device)
        elif item.name == "device":
            changes["device"] = device
    return replace(config, **changes)


def goldens(config: Config, directory: Path) -> list[Row]:
    """The first stages at tiny on the device, compared with the recorded numbers of the processor."""
    rows: list[Row] = []
    base: dict[str, Path] = {}
    for name in STAGES[: config.stages]:
        stage = import_module(f"nemotron.recipes.nano2.{name}.__main__")
        start = time.perf_counter()
        of_stage = on_device(stage.Config(scale="tiny", output_dir=directory / name, **base), config.device)
        artifacts = stage.main(of_stage)
        base = {"base_checkpoint_path": artifacts["checkpoint"].path}
        verdict = reproduction(f"nano2/{name}", directory / name).partition(": ")[2]
        rows.append(Row("goldens", f"{name}, float64, {time.perf_counter() - start:.0f} s", f"{EQUAL}{verdict}"))
    return rows


def kill_and_resume(config: Config, directory: Path) -> list[Row]:
    """Stage 0's training killed after a state and resumed: the largest difference from the run without a pause."""
    stage = directory / STAGES[0]
    if not stage.is_dir():
        stage = directory / "made_again"
        whole = import_module(f"nemotron.recipes.nano2.{STAGES[0]}.__main__")
        whole.main(on_device(whole.Config(scale="tiny", output_dir=stage), config.device))
    output = directory / "killed"
    command = [sys.executable, "-m", "nemotron.recipes.nano2.stage0_pretrain.training", "--scale", "tiny"]
    command += ["--dataset-path", str(stage / "data_curation"), "--output-dir", str(output), "--device", config.device]
    command += ["--checkpoint-every-steps", "10"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(directory.glob("*killed*/training_state/step-*/state.json")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    end = "ended before it was killed" if (output / "curve.parquet").exists() else "killed after a state"
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    curves = [pq.read_table(path / "curve.parquet")["loss"].to_pylist() for path in (output, stage / "training")]
    difference = max(abs(found / expected - 1) for found, expected in zip(*curves, strict=True))
    what = f"stage 0's training at tiny, {end}"
    return [Row("kill, resume", what, f"largest relative difference of the loss {difference:.0e}")]


# The table ------------------------------------------------------------------------------------------------------------


def table_of(rows: list[Row], card: str) -> str:
    """The rows as Markdown, under the name of the card."""
    versions = f"torch {torch.__version__}"
    lines = [f"Measured on {card}, {versions}, by `nox -s gpu`.", "", "| part | what | measured | beside it |"]
    lines += ["|---|---|---|---|"]
    lines += [f"| {row.part} | {row.what} | {row.ours} | {row.beside} |" for row in rows]
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    """Measure part by part and write the table."""
    config = replace(config, **TRY_OUT) if config.try_out else config
    if torch.device(config.device).type == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured; --try-out runs every part on the processor, very small.")
        return
    check_peer("transformers", 'pip install -e ".[test]" -c constraints.txt')
    start = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        parts: dict[str, Callable[[], list[Row]]] = {
            "training": lambda: training(config),
            "long context": lambda: long_context(config),
            "decoding": lambda: decoding(config),
            "goldens": lambda: goldens(config, directory),
            "kill, resume": lambda: kill_and_resume(config, directory),
        }
        for part, measure in parts.items():
            if time.monotonic() - start > 60 * config.minutes:
                rows.append(Row(part, f"left out: {config.minutes:g} minutes were over", ""))
                continue
            print(f"{part} ...", file=sys.stderr, flush=True)
            try:
                rows += measure()
            except (Exception, SystemExit) as error:  # the other parts still count
                rows.append(Row(part, f"{FAILED}{one_sentence(error)}", ""))
            gc.collect()
    table = table_of(rows, name_of(config.device))
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(table, encoding="utf-8", newline="\n")
    print(table)
    print(f"written to {config.output} after {time.monotonic() - start:.0f} s", file=sys.stderr)
    differs = [row for row in rows if row.ours.startswith(EQUAL) and not row.ours.startswith(f"{EQUAL}yes")]
    if differs or any(row.what.startswith(FAILED) for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(Config, main)
