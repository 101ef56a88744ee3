"""The numbers of each scale, every one with its origin.

What goes in: a scale name. What comes out: a `Size`, the model's shape and the sizes of each stage.
Steps take every number they do not get on the command line from here; `--plan` prints what a scale means.

Origins: "published" stands for arXiv 2508.14444 (Nemotron Nano 2) or the released model's configuration; "proxy" names
another model that NVIDIA described; everything else is our choice for a model of that size and says so.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from nemotron import Scale
from nemotron.recipes.nemotron_h.model import PUBLISHED_12B, ModelConfig


@dataclass(frozen=True)
class Pretrain:
    """Sizes of stage 0. Lengths and batches are counted in tokens and sequences, schedules in optimizer steps."""

    raw_documents: int | None
    """Declared size of the raw corpus before `apply_scale`; None means every row of the sources."""
    package_share: float
    """Share of an offline corpus that is text of packages; the rest are generated problems."""
    sequence_length: int
    batch_sequences: int
    micro_batch_sequences: int
    num_steps: int
    """Optimizer steps of phases 1 to 3 together."""
    warmup_steps: int
    learning_rate: float
    min_learning_rate: float
    long_context_length: int
    long_context_batch_sequences: int
    long_context_micro_batch_sequences: int
    long_context_steps: int
    long_context_learning_rate: float
    checkpoint_every_steps: int
    validate_every_steps: int
    validation_sequences: int
    """Validation sequences per category in each measurement during training; evaluation takes all of them."""


@dataclass(frozen=True)
class SFT:
    """Sizes of stage 1. How much data it has decides how many steps it takes: every conversation is read once."""

    raw_conversations: int | None
    """Declared number of raw conversations before `apply_scale`; None means every one of the sources."""
    difficulty: int
    """Of the generated exercises, 1 to 4."""
    sequence_length: int
    long_context_length: int
    batch_sequences: int
    """Rows per optimizer step; of packed ones, so about as many tokens as they are long."""
    micro_batch_sequences: int
    unpacked_batch_sequences: int
    """Rows per optimizer step where a row is one conversation."""
    learning_rate: float
    min_learning_rate: float
    warmup_steps: int
    trace_tokens_min: int
    trace_tokens_max: int
    """A truncated trace keeps so many tokens, drawn between the two."""
    exercises_per_family: int
    """Evaluation exercises."""
    max_new_tokens: int
    """Of a reply in evaluation."""
    thinking_budget: int
    """Tokens of thought that the evaluation of the budget allows."""
    grace_tokens: int
    checkpoint_every_steps: int
    validate_every_steps: int
    validation_sequences: int
    """Validation conversations per family in each measurement during training."""


@dataclass(frozen=True)
class HeldOut:
    """Sizes of what is evaluated on; our choice throughout."""

    module_share: float
    """Share of the modules that no training sequence comes from."""
    sequences: int
    """Validation sequences of each category, at most."""
    long_sequences: int
    """Long validation sequences, at most."""
    problems: int
    """Multiple-choice problems."""
    recall_rows: int
    """Recall rows of each distance."""


@dataclass(frozen=True)
class Size:
    """One scale: the model, its arithmetic, and the sizes of every stage."""

    model: ModelConfig
    dtype: str
    device: str
    held_out: HeldOut
    pretrain: Pretrain
    sft: SFT


# Same at every scale. Published: AdamW betas 0.9/0.95, weight decay 0.1; decay over the last 3.6T of 20T tokens; phases
# switch at 60 % and 90 % of the tokens. Epsilon and clipping stand in NVIDIA's configurations, not in the paper.
SIZES: dict[Scale, Size] = {
    # Our choice throughout: the smallest model with every kind of layer, where every phase and filter does something.
    "tiny": Size(
        model=ModelConfig(
            vocab_size=512,
            hidden_size=64,
            hybrid_override_pattern="M-M*-",
            intermediate_size=256,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            mamba_num_heads=8,
            mamba_head_dim=16,
            n_groups=2,
            ssm_state_size=16,
            chunk_size=32,
            max_position_embeddings=512,
        ),
        dtype="float64",
        device="cpu",
        held_out=HeldOut(module_share=0.1, sequences=128, long_sequences=8, problems=100, recall_rows=8),
        pretrain=Pretrain(
            raw_documents=150_000,
            package_share=0.6,
            sequence_length=128,
            batch_sequences=8,
            micro_batch_sequences=8,  # the long-context phase accumulates over two
            num_steps=100,
            warmup_steps=5,
            learning_rate=4e-3,
            min_learning_rate=4e-5,
            long_context_length=512,
            long_context_batch_sequences=2,
            long_context_micro_batch_sequences=1,
            long_context_steps=5,
            long_context_learning_rate=4e-4,
            checkpoint_every_steps=35,
            validate_every_steps=50,
            validation_sequences=8,
        ),
        sft=SFT(
            raw_conversations=48_000,
            difficulty=1,
            sequence_length=352,  # tool calling takes up to 330
            long_context_length=511,
            batch_sequences=4,
            micro_batch_sequences=2,
            unpacked_batch_sequences=8,
            learning_rate=3e-3,
            min_learning_rate=3e-5,
            warmup_steps=5,
            trace_tokens_min=2,
            trace_tokens_max=8,
            exercises_per_family=4,
            max_new_tokens=64,
            thinking_budget=8,
            grace_tokens=8,
            checkpoint_every_steps=30,
            validate_every_steps=30,
            validation_sequences=2,
        ),
    ),
    # Our choice throughout: what two processor cores train in minutes and beats a 5-gram by 5 % on docstrings. They are
    # read about four times; longer training on less text falls back, for the model learns it by heart.
    "small": Size(
        model=ModelConfig(
            vocab_size=2048,
            hidden_size=256,
            hybrid_override_pattern="M-M*-M-",
            intermediate_size=1024,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=32,
            mamba_num_heads=8,
            mamba_head_dim=64,
            n_groups=1,
            ssm_state_size=32,
            chunk_size=32,
            max_position_embeddings=1024,
        ),
        dtype="bfloat16",
        device="cpu",
        held_out=HeldOut(module_share=0.1, sequences=256, long_sequences=16, problems=300, recall_rows=25),
        pretrain=Pretrain(
            raw_documents=150_000,
            package_share=0.35,
            sequence_length=256,
            batch_sequences=8,
            micro_batch_sequences=8,
            num_steps=1300,
            warmup_steps=30,
            learning_rate=2e-3,
            min_learning_rate=2e-5,
            long_context_length=1024,
            long_context_batch_sequences=2,
            long_context_micro_batch_sequences=2,
            long_context_steps=30,
            long_context_learning_rate=2e-4,
            checkpoint_every_steps=400,
            validate_every_steps=250,
            validation_sequences=32,
        ),
        sft=SFT(
            raw_conversations=230_000,
            difficulty=1,
            sequence_length=256,
            long_context_length=1023,
            batch_sequences=10,
            micro_batch_sequences=10,
            unpacked_batch_sequences=20,
            learning_rate=2e-3,
            min_learning_rate=1e-5,
            warmup_steps=30,
            trace_tokens_min=4,
            trace_tokens_max=16,
            exercises_per_family=50,
            max_new_tokens=128,
            thinking_budget=12,
            grace_tokens=12,
            checkpoint_every_steps=300,
            validate_every_steps=200,
            validation_sequences=8,
        ),
    ),
    # Our choice throughout, about 300 M parameters: 20 tokens a parameter, one GPU.
    "medium": Size(
        model=ModelConfig(
            vocab_size=32768,
            hidden_size=1024,
            hybrid_override_pattern="M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-",
            intermediate_size=4096,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=128,
            mamba_num_heads=32,
            mamba_head_dim=64,
            n_groups=4,
            ssm_state_size=128,
            max_position_embeddings=16384,
        ),
        dtype="bfloat16",
        device="cuda",
        held_out=HeldOut(module_share=0.01, sequences=1024, long_sequences=64, problems=1000, recall_rows=100),
        pretrain=Pretrain(
            raw_documents=20_000_000,
            package_share=0.6,
            sequence_length=2048,
            batch_sequences=256,
            micro_batch_sequences=8,
            num_steps=11_444,
            warmup_steps=200,
            learning_rate=1e-3,
            min_learning_rate=1e-5,
            long_context_length=16384,
            long_context_batch_sequences=32,
            long_context_micro_batch_sequences=1,
            long_context_steps=50,
            long_context_learning_rate=1e-5,
            checkpoint_every_steps=500,
            validate_every_steps=500,
            validation_sequences=256,
        ),
        sft=SFT(
            raw_conversations=2_000_000,
            difficulty=2,
            sequence_length=16_383,
            long_context_length=16_383,
            batch_sequences=16,
            micro_batch_sequences=1,
            unpacked_batch_sequences=128,
            learning_rate=5e-5,  # proxy: Nemotron 3 Nano
            min_learning_rate=5e-7,
            warmup_steps=100,
            trace_tokens_min=1000,  # published
            trace_tokens_max=2000,  # published
            exercises_per_family=200,
            max_new_tokens=4096,
            thinking_budget=1024,
            grace_tokens=500,  # published
            checkpoint_every_steps=500,
            validate_every_steps=500,
            validation_sequences=32,
        ),
    ),
    "full": Size(
        model=PUBLISHED_12B,  # published: table 1 and the released configuration
        dtype="bfloat16",  # the paper trains in FP8 (section 2.4); this code does not, the plan says so
        device="cuda",
        held_out=HeldOut(module_share=0.001, sequences=4096, long_sequences=64, problems=1000, recall_rows=100),
        pretrain=Pretrain(
            raw_documents=None,
            package_share=0.6,
            sequence_length=8192,  # published
            # Published: 768 sequences. The paper also prints 6,029,312 tokens a batch, which is 736 * 8192; 768 * 8192
            # is 6,291,456, the number that its long-context phase matches, so that one is used.
            batch_sequences=768,
            micro_batch_sequences=1,  # our choice
            num_steps=20_000_000_000_000 // (768 * 8192),  # published: 20T tokens
            warmup_steps=8_400_000_000
            // (768 * 8192),  # proxy: 8.4B tokens, Nemotron 3 Nano; the paper's value is unknown
            learning_rate=4.5e-4,  # published
            min_learning_rate=4.5e-6,  # published
            long_context_length=524_288,  # published
            long_context_batch_sequences=12,  # published
            long_context_micro_batch_sequences=1,  # our choice
            long_context_steps=18_900_000_000 // (12 * 524_288),  # published: 18.9B tokens
            long_context_learning_rate=4.5e-6,  # published: constant
            checkpoint_every_steps=1000,  # our choice
            validate_every_steps=1000,  # our choice
            validation_sequences=1024,
        ),
        sft=SFT(
            raw_conversations=None,  # published: about 80B tokens
            difficulty=4,
            sequence_length=131_072,  # published: samples concatenated to about 128k tokens
            long_context_length=262_144,  # our choice; Nemotron-H concatenated conversations up to 512k (proxy)
            batch_sequences=64,  # proxy: Nemotron 3 Nano, of 256k tokens; the paper's value is unknown
            micro_batch_sequences=1,
            unpacked_batch_sequences=2048,
            learning_rate=5e-5,  # proxy: Nemotron 3 Nano
            min_learning_rate=5e-7,
            warmup_steps=800,  # proxy: Nemotron 3 Nano
            trace_tokens_min=1000,  # published
            trace_tokens_max=2000,  # published
            exercises_per_family=500,
            max_new_tokens=32_768,  # published for evaluation, by NeMo-Skills
            thinking_budget=4096,
            grace_tokens=500,  # published
            checkpoint_every_steps=1000,
            validate_every_steps=1000,
            validation_sequences=32,
        ),
    ),
}


StepConfig = TypeVar("StepConfig")


def resolved(config: StepConfig, stage: str, step: str) -> StepConfig:
    """The step's config with every None that this module has a number for replaced by that number.

    Args:
        config: a step's Config; `config.scale` picks the Size.
        stage: folder of the stage, "stage0_pretrain"; part of the default output directory.
        step: "data_curation", "training" or "evaluation".
    """
    scale: Scale = config.scale  # type: ignore[attr-defined]
    if scale not in SIZES:
        raise ValueError(f"scale={scale!r} is unknown; use tiny, small, medium or full")
    size = SIZES[scale]
    numbers: dict[str, Any] = {
        "output_dir": Path("outputs") / "nano2" / scale / stage / step,
        "vocab_size": size.model.vocab_size,
        "dtype": size.dtype,
        "device": size.device,
        **asdict(size.pretrain if stage == "stage0_pretrain" else size.sft),
    }
    missing = {
        field.name: numbers[field.name]
        for field in fields(config)  # type: ignore[arg-type]
        if field.name in numbers and getattr(config, field.name) is None
    }
    return replace(config, **missing)  # type: ignore[type-var]


def phase_steps(num_steps: int) -> dict[str, int]:
    """Optimizer steps of each phase: the switches fall at 60 % and 90 % of the steps (published), rounded down."""
    first = num_steps * 60 // 100
    second = num_steps * 90 // 100
    return {"phase1": first, "phase2": second - first, "phase3": num_steps - second}
