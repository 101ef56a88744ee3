"""Memory of a model that writes text, and the search for pruned shapes that fit a budget of bytes.

In: a `ModelConfig`, or a grid of them. Out: bytes by part; for each shape, whether it fits and why not. Nothing is run.
Published (arXiv 2508.14444, section 4): Nano 2 9B was chosen so that 131,072 tokens fit on one A10G: a budget of
19.66 GiB for weights, the keys and values of attention, and the state of Mamba-2.
Run: python -c "from nemotron.recipes.nemotron_h.inference_memory import *; print(A10G_BUDGET, FULL_GRID)"

Left out: activations, the buffers of a serving engine and fragmentation, for which the budget has its 5 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product

from nemotron.config import published
from nemotron.recipes.nemotron_h.model import ATTENTION, MAMBA, MLP, PUBLISHED_9B, ModelConfig

GIB = 1 << 30
# Published: the memory of an A10G, less 5 %, less 1.3 GiB reserved for a vision encoder. Together 19.657 GiB.
A10G_BUDGET = round((22.06 * 0.95 - 1.3) * GIB)
# The context that must fit, at a batch of at least 1.
CONTEXT_TOKENS: int = published(131072, "section 4").value

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters by formula: `plan.count_parameters` builds the model, too slow for thousands of shapes."""
    d, h, inner, conv = config.hidden_size, config.mamba_num_heads, config.mamba_inner_size, config.mamba_conv_size
    q = config.num_attention_heads * config.head_dim
    k = config.num_key_value_heads * config.head_dim
    one_layer = {
        MAMBA: d * (inner + conv + h)  # in_proj
        + conv * (config.conv_kernel + 1)  # kernels and biases
        + 3 * h  # A_log, D, dt_bias
        + inner  # gated norm
        + inner * d,  # out_proj
        MLP: 2 * d * config.intermediate_size,
        ATTENTION: d * (q + 2 * k) + q * d,
    }
    pattern = config.hybrid_override_pattern
    layers = sum(pattern.count(letter) * (size + d) for letter, size in one_layer.items())  # d: the norm of each layer
    return 2 * config.vocab_size * d + layers + d


def inference_memory_bytes(
    config: ModelConfig, *, context_tokens: int, sequences: int = 1, dtype: str = "bfloat16"
) -> dict[str, int]:
    """Bytes that generation keeps, by part. Only the keys and values grow with the context.

    Args:
        context_tokens: tokens of each sequence, prompt and reply together.
        sequences: number of sequences that are written side by side.
        dtype: of the weights, the keys and values and the window of the convolution. The state of the scan has at least
            float32, as here in `DecodingState` and as NVIDIA serves the published models for its evaluations.
    """
    pattern, number = config.hybrid_override_pattern, BYTES[dtype]
    mamba, attention = pattern.count(MAMBA), pattern.count(ATTENTION)
    keys = config.num_key_value_heads * config.head_dim
    return {
        "weights": parameter_count(config) * number,
        "keys and values": sequences * context_tokens * attention * 2 * keys * number,
        "scan states": sequences * mamba * config.mamba_inner_size * config.ssm_state_size * max(number, 4),
        "convolution windows": sequences * mamba * config.mamba_conv_size * (config.conv_kernel - 1) * number,
    }


@dataclass(frozen=True)
class Grid:
    """Values of each field of a `ModelConfig` that the search combines."""

    hybrid_override_pattern: tuple[str, ...]
    hidden_size: tuple[int, ...]
    intermediate_size: tuple[int, ...]
    mamba_num_heads: tuple[int, ...]
    mamba_head_dim: tuple[int, ...]


# Published: 6 to 10 layers removed of 62, of which 52, 54 and 56 were compared and 56 was taken before the widths
# were searched; hidden size 4480 to 5120, MLP 13440 to 20480, Mamba heads 112 to 128. Only the pattern of 56 layers is
# published: for 54 and 52, ours, it ends one and two pairs of layers earlier, with all 4 of attention. The steps are
# not published. Ours: 128 channels, because 256, as in Model-Optimizer, does not divide 4480; 320 neurons, the largest
# step that meets 13440, 15680 and 20480; 8 heads, one for each group. The size of a Mamba head is published as
# unchanged.
FULL_GRID = Grid(
    hybrid_override_pattern=tuple(PUBLISHED_9B.hybrid_override_pattern[:depth] for depth in (52, 54, 56)),
    hidden_size=tuple(range(4480, 5121, 128)),
    intermediate_size=tuple(range(13440, 20481, 320)),
    mamba_num_heads=tuple(range(112, 129, 8)),
    mamba_head_dim=(80,),
)


@dataclass(frozen=True)
class Candidate:
    """One shape of the search, with what it needs."""

    config: ModelConfig
    num_bytes: dict[str, int]
    """`inference_memory_bytes` of it."""
    budget_bytes: int

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(self.num_bytes.values())

    @property
    def fits(self) -> bool:
        """Whether it needs no more than the budget."""
        return self.total_bytes <= self.budget_bytes

    @property
    def verdict(self) -> str:
        """Whether it fits, by how much, and what takes the memory."""
        parts = ", ".join(f"{name} {size / GIB:.4g}" for name, size in self.num_bytes.items())
        gap = abs(self.budget_bytes - self.total_bytes) / GIB
        total = f"{self.total_bytes / GIB:.4g} of {self.budget_bytes / GIB:.4g} GiB ({parts})"
        return f"fits with {gap:.3g} GiB left: {total}" if self.fits else f"is {gap:.3g} GiB over: {total}"


def candidates(
    teacher: ModelConfig,
    grid: Grid,
    *,
    budget_bytes: int,
    context_tokens: int,
    sequences: int = 1,
    dtype: str = "bfloat16",
) -> list[Candidate]:
    """Every shape of the grid, those that need most memory first: the top candidates are the first ones that fit.

    Raises:
        ValueError: if the budget is below the smallest shape, or the teacher fits it without pruning.
    """

    def candidate(config: ModelConfig) -> Candidate:
        needs = inference_memory_bytes(config, context_tokens=context_tokens, sequences=sequences, dtype=dtype)
        return Candidate(config, needs, budget_bytes)

    names = [field.name for field in fields(Grid)]
    shapes = product(*(getattr(grid, name) for name in names))
    found = [candidate(replace(teacher, **dict(zip(names, shape, strict=True)))) for shape in shapes]
    found.sort(key=lambda one: -one.total_bytes)  # stable: equal ones in the order of the grid
    whole, smallest = candidate(teacher), found[-1]
    budget = f"budget_bytes={budget_bytes:,}"
    if whole.fits:
        raise ValueError(
            f"{budget} is not below the {whole.total_bytes:,} bytes of the teacher, which fits as it is; "
            f"lower the budget, or raise the context or the sequences"
        )
    if not smallest.fits:
        raise ValueError(
            f"{budget} is below the {smallest.total_bytes:,} bytes of the smallest candidate; raise the budget, or "
            f"widen the search"
        )
    return found


def neighbors(grid: Grid, config: ModelConfig, found: Sequence[Candidate]) -> dict[str, Candidate]:
    """The candidates one step of the grid away from `config`: "hidden_size=4608" -> candidate.

    A pattern is named by its length or, if that is the same, by its Mamba-2 layers.

    Args:
        found: what `candidates` returned for this grid.
    Raises:
        ValueError: if `config` is not a shape of the grid.
    """
    by_shape = {_shape(one.config): one for one in found}
    near = {}
    for field in fields(Grid):
        values, value = getattr(grid, field.name), getattr(config, field.name)
        if value not in values:
            raise ValueError(f"{field.name}={value} is not in the grid; it has {', '.join(map(str, values))}")
    for field in fields(Grid):
        values = getattr(grid, field.name)
        place = values.index(getattr(config, field.name))
        for other in values[max(place - 1, 0) : place] + values[place + 1 : place + 2]:
            name = f"{field.name}={other}"
            if isinstance(other, str):
                same_length = len(other) == len(config.hybrid_override_pattern)
                name = f"mamba_layers={other.count(MAMBA)}" if same_length else f"num_layers={len(other)}"
            near[name] = by_shape[_shape(replace(config, **{field.name: other}))]
    return near


def _shape(config: ModelConfig) -> tuple[object, ...]:
    return tuple(getattr(config, field.name) for field in fields(Grid))
