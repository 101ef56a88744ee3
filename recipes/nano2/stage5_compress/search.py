"""Prune the teacher until it fits into memory: importance, candidates under a budget, the best of them by validation.

In: the Dataset of data_curation.py, and through it the teacher. Out: a Checkpoint, the pruned model that nothing has
trained yet: a valid Hugging Face directory; the tables importance and candidates; the curves of the candidates; plots.
Source: arXiv 2508.14444, section 4. Published: importance from forward passes on 1,024 samples; a budget of 19.66 GiB
for 131,072 tokens on an A10G; 6 to 10 of 62 layers removed, of which 6 were best; hidden sizes, MLP sizes and Mamba
heads between two ends; a short distillation of the top 3 candidates by memory, 19B tokens each.
Run: python -m nemotron.recipes.nano2.stage5_compress.search --scale tiny --dataset-path <directory>

Three acts, in the order of `main`: importance and slicing are in ../../nemotron_h/pruning.py, memory and the grid in
../../nemotron_h/inference_memory.py. What the short distillations learned is thrown away: the pruned model is sliced
out of the teacher again, and training.py starts from the teacher's own weights (our choice; not disclosed).
If the search is killed, the next one does not repeat the short distillations that were finished.
Left out: the published order, depth first and width after a long distillation: here both are one grid.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import print_complete
from nemotron.artifact import working_directory
from nemotron.config import (
    BelowOne,
    Dtype,
    ScaledConfig,
    at_every_scale,
    by_scale,
    flag_of,
    input_path,
    our_choice,
    output_below,
    parse_command_line,
    proxy,
    published,
    same_as,
    switch,
)
from nemotron.ladder import Ladder
from nemotron.pipe import step_process
from nemotron.recipes.curation.rows import Phase, read_rows
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import DEVICES, DTYPES
from nemotron.recipes.nano2.stage5_compress.data_curation import Dataset
from nemotron.recipes.nano2.stage5_compress.report import plot_candidates, plot_importance
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config, save_checkpoint
from nemotron.recipes.nemotron_h.device import autocast, device_memory_bytes, weight_dtype
from nemotron.recipes.nemotron_h.inference_memory import (
    A10G_BUDGET,
    CONTEXT_TOKENS,
    FULL_GRID,
    Candidate,
    Grid,
    candidates,
    inference_memory_bytes,
    parameter_count,
)
from nemotron.recipes.nemotron_h.model import ATTENTION, MAMBA, MLP, ModelConfig, NemotronH, parameter_groups
from nemotron.recipes.nemotron_h.pruning import (
    Importance,
    Scored,
    Shape,
    check_shape,
    choose,
    measure_importance,
    prune,
)
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.training.batches import collate
from nemotron.recipes.training.distill import batch_kl_sum, held_out_divergences
from nemotron.recipes.training.fingerprint import tensor_fingerprint, weight_fingerprint
from nemotron.recipes.training.finished_parts import FinishedParts
from nemotron.recipes.training.run import Checkpoint
from nemotron.recipes.training.state import identity_of
from nemotron.stage import find_current
from nemotron.terminal import print_line

ELASTIC = "Nemotron Elastic, distilled from the same 12B"


@dataclass
class Config(ScaledConfig):
    """Search for a shape that fits, and prune the teacher to it."""

    seed: int = 1234
    """Recorded, and not used: nothing in this step is random."""
    output_dir: Path = output_below("nano2", "stage5_compress", "search")
    """Where the Checkpoint goes."""
    dataset_path: Path | None = input_path()
    """Directory of the Dataset; read from the pipe if left out."""

    # The memory that the pruned model may need when it writes.
    budget_bytes: PositiveInt = by_scale(
        tiny=400_000,
        small=6_030_000,
        medium=500_000_000,
        full=published(A10G_BUDGET, "section 4, 19.66 GiB: an A10G less 5 % and 1.3 GiB for a vision encoder"),
    )
    """For weights, keys and values, and the state of Mamba-2, in bfloat16 with states in float32."""
    context_tokens: PositiveInt = by_scale(
        tiny=512, small=1024, medium=16_384, full=published(CONTEXT_TOKENS, "section 4")
    )
    """Tokens that a sequence may have, prompt and reply together."""
    sequences: PositiveInt = at_every_scale(published(1, "section 4, a batch of at least 1"))
    """Sequences that are written side by side."""

    # The grid.
    depths: tuple[PositiveInt, ...] = by_scale(
        tiny=(4, 5), small=(6, 7), medium=(26, 28, 30), full=published((52, 54, 56), "section 4, table 9")
    )
    """Layers that stay."""
    attention_layers: PositiveInt = by_scale(tiny=1, small=1, medium=3, full=published(4, "section 4"))
    """Attention layers among them."""
    hidden_sizes: tuple[PositiveInt, ...] = by_scale(
        tiny=(48, 56, 64),
        small=(224, 240, 256),
        medium=(832, 896, 960, 1024),
        full=published(FULL_GRID.hidden_size, "section 4; the step between the ends is our choice"),
    )
    """Channels of the residual stream."""
    intermediate_sizes: tuple[PositiveInt, ...] = by_scale(
        tiny=(160, 192, 224, 256),
        small=(384, 512, 640, 768, 1024),
        medium=(2560, 3072, 3584, 4096),
        full=published(FULL_GRID.intermediate_size, "section 4; the step between the ends is our choice"),
    )
    """Neurons of an MLP."""
    mamba_heads: tuple[PositiveInt, ...] = by_scale(
        tiny=(6, 8),
        small=(7, 8),
        medium=(28, 32),
        full=published(FULL_GRID.mamba_num_heads, "section 4; the step between the ends is our choice"),
    )
    """Mamba-2 heads; as many in every group."""
    rescale: bool = at_every_scale(our_choice(False, "the published recipe only trims, as far as we know"))
    """Scale what is left so that the norms divide by what they divided by before; see `prune`."""
    scored: Scored = by_scale(tiny="after", small="after", medium="after", full=published("before", "section 4"))
    """Where neurons and Mamba heads are scored: before their activation, or after it, as what reads them sees them."""
    calibration_batch: PositiveInt = by_scale(tiny=16, small=16, medium=8, full=our_choice(1), recorded=False)
    """Calibration rows of one forward pass; changes memory, not the result."""

    # The short distillation of the candidates that need most of the budget.
    num_candidates: PositiveInt = by_scale(tiny=2, small=3, medium=3, full=published(3, "section 4"))
    """Candidates that are distilled for a while and compared."""
    candidate_steps: PositiveInt = by_scale(tiny=3, small=12, medium=100, full=published(1510, "section 4, 19B tokens"))
    """Optimizer steps of each, on the first rows of distillation."""
    batch_sequences: PositiveInt = by_scale(tiny=4, small=16, medium=64, full=proxy(1536, ELASTIC))
    """Rows per optimizer step."""
    micro_batch_sequences: PositiveInt = by_scale(tiny=4, small=16, medium=4, full=our_choice(1), recorded=False)
    """Rows per forward pass; changes memory, not the result."""
    learning_rate: PositiveFloat = by_scale(tiny=2e-3, small=1e-3, medium=1e-4, full=proxy(9e-5, ELASTIC))
    """Learning rate after the warmup; it stays."""
    warmup_steps: NonNegativeInt = by_scale(tiny=1, small=3, medium=10, full=proxy(60, ELASTIC))
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
    temperature: PositiveFloat = at_every_scale(proxy(1.0, "Nemotron-H"))
    """Temperature of both softmaxes."""

    # Arithmetic and place.
    dtype: Dtype = by_scale(**(DTYPES | {"small": "float32"}))
    """Arithmetic of the short distillations; bfloat16 keeps the weights in float32 and computes matrix products in
    bfloat16. Importance is measured in the precision of the weights."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to compute: cpu, cuda, cuda:1, ..."""
    chunk_tokens: PositiveInt = at_every_scale(our_choice(1024), recorded=False)
    """Tokens whose logits are in memory at a time; changes memory, not the result."""
    resume: bool = switch()
    """Use the candidates that an unfinished search has finished, also if the code has changed since."""


def check_grid(teacher: ModelConfig, config: Config) -> None:
    """Raise ValueError if the teacher cannot be pruned to a shape of the grid; names the field and the value."""
    sizes = (config.depths, config.hidden_sizes, config.intermediate_sizes, config.mamba_heads)
    for depth, hidden, neurons, heads in product(*sizes):
        check_shape(teacher, Shape(depth, config.attention_layers, hidden, neurons, heads, teacher.mamba_head_dim))


def narrowest_shapes(teacher: ModelConfig, config: Config) -> list[Candidate]:
    """The narrowest shapes of the grid, whichever layers importance will remove, from most to least memory.

    Raises:
        ValueError: if the teacher fits the budget, or none of them does.
    """
    mamba, mlp = (teacher.hybrid_override_pattern.count(letter) for letter in (MAMBA, MLP))
    patterns = [  # one for each number of Mamba-2 layers that may stay; the order of layers takes no memory
        MAMBA * kept + MLP * (depth - config.attention_layers - kept) + ATTENTION * config.attention_layers
        for depth in config.depths
        for kept in range(min(1, mamba), mamba + 1)
        if min(1, mlp) <= depth - config.attention_layers - kept <= mlp
    ]
    hidden, neurons, heads = map(min, (config.hidden_sizes, config.intermediate_sizes, config.mamba_heads))
    return candidates(
        teacher,
        Grid(tuple(patterns), (hidden,), (neurons,), (heads,), (teacher.mamba_head_dim,)),
        budget_bytes=config.budget_bytes,
        context_tokens=config.context_tokens,
        sequences=config.sequences,
    )


def check_rows(first_part: Phase, config: Config) -> None:
    """Raise ValueError if the first part of distillation has not enough rows for the steps of a candidate."""
    if (needed := config.candidate_steps * config.batch_sequences) > first_part.num_sequences:
        raise ValueError(
            f"candidate_steps={config.candidate_steps} with batch_sequences={config.batch_sequences} read {needed:,} "
            f"rows, and {first_part.name} has {first_part.num_sequences:,}; give fewer steps, or more rows"
        )


def grid_of(importance: Importance, teacher: ModelConfig, config: Config) -> Grid:
    """The grid in terms of a model's configuration: a depth is the pattern that the removal of layers leaves."""
    patterns = []
    for depth in config.depths:
        shape = replace(Shape.of(teacher), num_layers=depth, num_attention_layers=config.attention_layers)
        layers = choose(importance, teacher, shape).layers
        patterns.append("".join(teacher.hybrid_override_pattern[layer] for layer in layers))
    # A Mamba-2 head keeps its channels (published).
    head_dim = (teacher.mamba_head_dim,)
    return Grid(tuple(patterns), config.hidden_sizes, config.intermediate_sizes, config.mamba_heads, head_dim)


def learning_rate_at(step: int, config: Config) -> float:
    """Learning rate of step `step`, counted from 0: linear warmup, then constant."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def short_distillation(
    student: NemotronH, teacher: NemotronH, dataset: Dataset, config: Config
) -> list[dict[str, Any]]:
    """Distill a candidate for a few steps, on the rows that every candidate reads; its curve, a row for each step."""
    parameters = parameter_groups(student, config.weight_decay)  # decay for matrices only
    optimizer = torch.optim.AdamW(parameters, betas=(config.beta1, config.beta2), eps=config.adam_eps)
    rows = read_rows(dataset.phases[0].paths(dataset.path), config.batch_sequences)
    curve = []
    for step, table in enumerate(islice(rows, config.candidate_steps)):
        batch = collate(table)
        optimizer.zero_grad()
        loss = 0.0
        for piece in batch.to(config.device).split(config.micro_batch_sequences):
            with autocast(config.dtype, config.device):
                kl = batch_kl_sum(
                    student, teacher, piece, temperature=config.temperature, chunk_tokens=config.chunk_tokens
                )
            (kl / batch.num_in_loss).backward()
            loss += kl.item() / batch.num_in_loss
        grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), config.max_grad_norm).item()
        if not math.isfinite(loss + grad_norm):
            raise ValueError(
                f"step {step} of a candidate: loss={loss} and grad_norm={grad_norm}; lower --learning-rate"
            )
        learning_rate = learning_rate_at(step, config)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        numbers = {"learning_rate": learning_rate, "loss": loss, "grad_norm": grad_norm}
        curve.append({"step": step, "batch": batch.digest, "tokens": batch.num_in_loss, **numbers})
    return curve


def held_out_kl(student: NemotronH, teacher: NemotronH, dataset: Dataset, config: Config) -> dict[str, float]:
    """Source -> the divergence from the teacher on held-out rows, and "all"."""
    return held_out_divergences(student, teacher, dataset.validation_path, dataset.shares(),
                                chunk_tokens=config.chunk_tokens, dtype=config.dtype,
                                device=config.device)  # fmt: skip


class Comparison(NamedTuple):
    """What the short distillations showed."""

    best: Candidate
    rows: list[dict[str, Any]]
    """Every shape of the grid: sizes, bytes, whether it fits; of those that were distilled, the divergence from the
    teacher before and after."""
    curve: list[dict[str, Any]]
    validation: list[dict[str, Any]]


def compare(
    found: Sequence[Candidate],
    teacher: NemotronH,
    importance: Importance,
    dataset: Dataset,
    config: Config,
    parts: FinishedParts,
) -> Comparison:
    """Prune and distill, for a while, the candidates that fit and need most of the budget; validation decides.

    The measure is the divergence from the teacher on held-out rows (our choice; published are means of benchmarks). The
    loss would not do: on text that fine-tuning made the teacher forget, a broken model may have a lower one.
    """
    rows = [candidate_row(candidate) for candidate in found]
    curve: list[dict[str, Any]] = []
    validation: list[dict[str, Any]] = []
    tried = [place for place, candidate in enumerate(found) if candidate.fits][: config.num_candidates]
    for place in tried:
        name = f"candidate {place}"
        sizes = ", ".join(str(rows[place][field]) for field in SIZES)
        part = parts.get(f"{name}: {sizes}")
        if part is None:
            kept = choose(importance, teacher.config, Shape.of(found[place].config))
            student = prune(teacher, kept, rescale=config.rescale)
            part = {"pruned": held_out_kl(student, teacher, dataset, config)}
            part["curve"] = short_distillation(student, teacher, dataset, config)
            part["distilled"] = held_out_kl(student, teacher, dataset, config)
            parts.add(f"{name}: {sizes}", part)
        curve += [{"phase": name, **row} for row in part["curve"]]
        for when, step in (("pruned", 0), ("distilled", config.candidate_steps)):
            rows[place][f"{when}_kl"] = part[when]["all"]
            validation += [
                {"step": step, "category": f"{name}, {key}", "loss": value} for key, value in part[when].items()
            ]
        print_line(f"{name}: {sizes}: KL {rows[place]['pruned_kl']:.4f} -> {rows[place]['distilled_kl']:.4f}")
    best = min(tried, key=lambda place: (rows[place]["distilled_kl"], place))
    rows[best]["chosen"] = True
    return Comparison(found[best], rows, curve, validation)


def candidate_row(candidate: Candidate) -> dict[str, Any]:
    """A candidate as a row of the table, before anything is known of its quality."""
    row: dict[str, Any] = {name: getattr(candidate.config, name) for name in SIZES}
    row |= {"num_parameters": parameter_count(candidate.config), **candidate.num_bytes}
    row |= {"total_bytes": candidate.total_bytes, "fits": candidate.fits, "verdict": candidate.verdict}
    return row | {"pruned_kl": None, "distilled_kl": None, "chosen": False}


def importance_rows(importance: Importance, pattern: str) -> list[dict[str, Any]]:
    """Every score as a row: kind, layer (-1: the residual stream), unit (-1: the layer itself), score."""
    scores_of: dict[str, dict[int, torch.Tensor]] = {
        "hidden": {-1: importance.hidden},
        "mlp": importance.mlp,
        "mamba": importance.mamba_heads,
    }
    rows = [
        {"kind": f"layer {pattern[layer]}", "layer": layer, "unit": -1, "score": score}
        for layer, score in enumerate(importance.layer_errors.tolist())
    ]
    return rows + [
        {"kind": kind, "layer": layer, "unit": unit, "score": score}
        for kind, of_layers in scores_of.items()
        for layer, scores in of_layers.items()
        for unit, score in enumerate(scores.tolist())
    ]


def search_ladder(
    config: Config, teacher: NemotronH, importance: Importance, compared: Comparison, pruned: NemotronH
) -> Ladder:
    """What a run must reproduce, in the order in which it happens."""
    ladder = Ladder()
    ladder.add_config(config)
    ladder.add("inputs", weight_fingerprint(teacher))
    removed = [list(one) for one in importance.layers]
    ladder.add("importance", removed=removed, layers=importance.layer_errors.tolist())
    ladder.add("importance", hidden=tensor_fingerprint(importance.hidden))
    for kind, of_layers in (("mlp", importance.mlp), ("mamba", importance.mamba)):
        for layer, scores in of_layers.items():
            ladder.add("importance", {f"{kind}/{layer}": tensor_fingerprint(scores)})
    for place, row in enumerate(compared.rows):
        ladder.add("candidates", {str(place): [*(row[name] for name in SIZES), row["total_bytes"], row["fits"]]})
    for row in compared.curve:
        numbers = {name: row[name] for name in ("batch", "learning_rate", "loss", "grad_norm")}
        ladder.add("curve", {row["phase"]: numbers}, at_step=row["step"])
    for row in compared.validation:
        ladder.add("validation", {row["category"]: row["loss"]}, at_step=row["step"])
    ladder.add("final weights", weight_fingerprint(pruned))
    ladder.add("headline", num_parameters=parameter_count(pruned.config))
    return ladder


SIZES = ("hybrid_override_pattern", "hidden_size", "intermediate_size", "mamba_num_heads")
"""The fields of a `ModelConfig` that the search changes."""


def main(config: Config) -> Checkpoint:
    """Prune the teacher to the best candidate and return the Checkpoint."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    dataset = Dataset.load(path=config.dataset_path, scale=config.scale)
    base = dataset.base()
    base.check_scale(config.scale)
    check_rows(dataset.phases[0], config)
    for check in (check_grid, narrowest_shapes):
        check(load_config(base.checkpoint_path), config)
    if config.resume and find_current(Checkpoint, replace(config, dataset_path=dataset.path))[0]:
        print_line(f"{config.output_dir} is finished; nothing to resume")
        return Checkpoint.load(config.output_dir)
    directory = working_directory(config.output_dir, Checkpoint, keep_on_failure=True)
    with directory as work, threads_of(config.scale):
        flag = flag_of(config, "resume")
        parts = FinishedParts(work, identity_of(config, dataset), resume=config.resume, flag=flag)
        teacher = load_checkpoint(base.checkpoint_path, device=config.device, dtype=weight_dtype(config.dtype))
        pattern = teacher.config.hybrid_override_pattern

        # Act 1, importance: forward passes over the calibration rows, each read as one text.
        tables = read_rows(dataset.calibration_path, config.calibration_batch, columns=["tokens"])
        importance = measure_importance(
            teacher,
            (collate(table).tokens[:, :-1] for table in tables),
            num_layers=min(config.depths),
            num_attention_layers=config.attention_layers,
            scored=config.scored,
        )
        print_line(f"layers removed, in order: {', '.join(f'{n} ({pattern[n]})' for n, _ in importance.layers)}")

        # Act 2, candidates: every shape of the grid with its memory, and a short distillation for the top ones.
        memory: dict[str, Any] = {"context_tokens": config.context_tokens, "sequences": config.sequences}
        grid = grid_of(importance, teacher.config, config)
        found = candidates(teacher.config, grid, budget_bytes=config.budget_bytes, **memory)
        print_line(f"{sum(one.fits for one in found):,} of {len(found):,} candidates fit")
        compared = compare(found, teacher, importance, dataset, config, parts)

        # Act 3, pruning: the best shape, sliced out of the teacher.
        kept = choose(importance, teacher.config, Shape.of(compared.best.config))
        pruned = prune(teacher, kept, rescale=config.rescale)
        save_checkpoint(pruned, dataset.tokenizer_path, work / "model", CHAT.stop_ids)

        # What a later step or a reader wants to see.
        (work / "tables").mkdir()
        for name, rows in (("importance", importance_rows(importance, pattern)), ("candidates", compared.rows)):
            numbered = [{"step": index, **row} for index, row in enumerate(rows)]
            pq.write_table(pa.Table.from_pylist(numbered), work / "tables" / f"{name}.parquet")
        pq.write_table(pa.Table.from_pylist(compared.curve), work / "curve.parquet")
        pq.write_table(pa.Table.from_pylist(compared.validation), work / "validation_curve.parquet")
        plot_importance(importance, pattern, work / "importance.svg")
        needs = sum(inference_memory_bytes(teacher.config, **memory).values())
        plot_candidates(compared.rows, config.budget_bytes, needs, work / "candidates.svg")
        parts.delete()
        Checkpoint(
            path=work,
            num_steps=len({row["step"] for row in compared.curve}),
            num_parameters=parameter_count(pruned.config),
            training_loss=compared.curve[-1]["loss"],
            checkpoint_path=work / "model",
            training_state_path=None,
            curve_path=work / "curve.parquet",
            validation_curve_path=work / "validation_curve.parquet",
            plot_path=work / "candidates.svg",
            tables_path=work / "tables",
            dataset_path=dataset.path,
            metrics={"budget_bytes": config.budget_bytes, "teacher_bytes": needs,
                     "pruned_bytes": compared.best.total_bytes, **memory},
        ).save(config, search_ladder(config, teacher, importance, compared, pruned))  # fmt: skip
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"checkpoint": main(config)})
