"""The Nemotron-H architecture."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one Nemotron-H model; the fields are spelled as in the published config.json."""

    vocab_size: int
    hidden_size: int
    hybrid_override_pattern: str
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mamba_num_heads: int
    mamba_head_dim: int
    n_groups: int
    ssm_state_size: int
    conv_kernel: int = 4
    chunk_size: int = 128
    layer_norm_epsilon: float = 1e-5
    initializer_range: float | None = None
    max_position_embeddings: int = 131072


PUBLISHED_12B = ModelConfig(
    vocab_size=131072,
    hidden_size=5120,
    hybrid_override_pattern="M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
    intermediate_size=20480,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    mamba_num_heads=128,
    mamba_head_dim=80,
    n_groups=8,
    ssm_state_size=128,
)
