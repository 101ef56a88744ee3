"""The shape of the model at each scale, its arithmetic and its device: what all stages of the recipe share.

Every other number is in the Config of the step that uses it. Origins: "published" means arXiv 2508.14444 (Nemotron
Nano 2), a model card, or NVIDIA's configurations of the same model in Megatron-LM and Megatron-Bridge. At full every
number has a mark; at the other scales one without a mark is our choice.
"""

from typing import Any

from nemotron import Scale
from nemotron.config import Marked, our_choice, published
from nemotron.recipes.nemotron_h.model import PUBLISHED_12B, ModelConfig

MODELS: dict[Scale, ModelConfig] = {
    # The smallest model with every kind of layer; at this scale every phase and filter still has an effect.
    "tiny": ModelConfig(
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
    # What two processor cores train in minutes, and what beats a 5-gram model by 5 % on docstrings.
    "small": ModelConfig(
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
    # About 300 M parameters for one GPU.
    "medium": ModelConfig(
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
    "full": PUBLISHED_12B,  # the origin of each number: FULL_SHAPE
}

MEGATRON = "NVIDIA's Megatron configurations of the 12B"
SHAPE = f"section 2.1 and {MEGATRON}"
FULL_SHAPE: dict[str, Marked] = {
    "vocab_size": published(PUBLISHED_12B.vocab_size, "model card"),
    "hidden_size": published(PUBLISHED_12B.hidden_size, SHAPE),
    "hybrid_override_pattern": published(PUBLISHED_12B.hybrid_override_pattern, MEGATRON),
    "intermediate_size": published(PUBLISHED_12B.intermediate_size, SHAPE),
    "num_attention_heads": published(PUBLISHED_12B.num_attention_heads, SHAPE),
    "num_key_value_heads": published(PUBLISHED_12B.num_key_value_heads, SHAPE),
    "head_dim": published(PUBLISHED_12B.head_dim, SHAPE),
    "mamba_num_heads": published(PUBLISHED_12B.mamba_num_heads, SHAPE),
    "mamba_head_dim": published(PUBLISHED_12B.mamba_head_dim, f"{MEGATRON}; the paper's text says 64"),
    "n_groups": published(PUBLISHED_12B.n_groups, SHAPE),
    "ssm_state_size": published(PUBLISHED_12B.ssm_state_size, SHAPE),
    "conv_kernel": published(PUBLISHED_12B.conv_kernel, MEGATRON),
    "chunk_size": published(PUBLISHED_12B.chunk_size, "NVIDIA's Megatron-LM"),
    "layer_norm_epsilon": published(PUBLISHED_12B.layer_norm_epsilon, "NVIDIA's code in transformers and Megatron-LM"),
    "initializer_range": our_choice(
        PUBLISHED_12B.initializer_range, "sqrt(0.8 / hidden_size), which is the 0.0125 of NVIDIA's Megatron-LM"
    ),
    "max_position_embeddings": published(PUBLISHED_12B.max_position_embeddings, MEGATRON),
}

# float64 at tiny, so that the numbers are the same on every machine.
DTYPES: dict[Scale, Any] = {
    "tiny": "float64",
    "small": "bfloat16",
    "medium": "bfloat16",
    "full": our_choice("bfloat16", "the published FP8, section 2.4, is not built here"),
}
DEVICES: dict[Scale, Any] = {"tiny": "cpu", "small": "cpu", "medium": "cuda", "full": our_choice("cuda")}
# Whether layers are computed again in the backward pass: where memory is short, on a GPU.
CHECKPOINTING: dict[Scale, Any] = {"tiny": False, "small": False, "medium": True, "full": our_choice(True)}
# Sequences per optimizer step of pretraining: curation makes phases of whole batches, and training reads them.
BATCH_SEQUENCES: dict[Scale, Any] = {"tiny": 8, "small": 8, "medium": 256, "full": published(768, "section 2.5")}
VOCAB_SIZES: dict[Scale, Any] = {
    "tiny": MODELS["tiny"].vocab_size,
    "small": MODELS["small"].vocab_size,
    "medium": MODELS["medium"].vocab_size,
    "full": FULL_SHAPE["vocab_size"],
}
