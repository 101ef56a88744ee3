"""The shape of the model at each scale, its arithmetic and its device: what all stages of the recipe share.

Every other number is in the Config of the step that uses it. Origins: "published" means arXiv 2508.14444 (Nemotron
Nano 2) or the configuration of the released model; what has no mark is our choice.
"""

from typing import Any

from nemotron import Scale
from nemotron.config import published
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
    "full": PUBLISHED_12B,  # published: table 1 and the released configuration
}

# float64 at tiny, so that the numbers are the same on every machine. NVIDIA trained in FP8 (section 2.4), which is
# not built here.
DTYPES: dict[Scale, Any] = {"tiny": "float64", "small": "bfloat16", "medium": "bfloat16", "full": "bfloat16"}
DEVICES: dict[Scale, Any] = {"tiny": "cpu", "small": "cpu", "medium": "cuda", "full": "cuda"}
# Sequences per optimizer step of pretraining: curation makes phases of whole batches, and training reads them.
BATCH_SEQUENCES: dict[Scale, Any] = {"tiny": 8, "small": 8, "medium": 256, "full": published(768, "section 2.5")}
VOCAB_SIZES: dict[Scale, Any] = {
    "tiny": MODELS["tiny"].vocab_size,
    "small": MODELS["small"].vocab_size,
    "medium": MODELS["medium"].vocab_size,
    "full": published(MODELS["full"].vocab_size, "model card"),
}
