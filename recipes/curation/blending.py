"""The training order of the categories' sequences.

In: the weight of each category and the number of sequences. Out: the category of each sequence.
Source: Megatron-LM's blended dataset (build_blending_indices): the next sequence comes from the category that is
furthest behind its weight. No random numbers are needed, and every prefix of the order has the blend of the whole.
"""

from collections.abc import Mapping

from pydantic import BaseModel


class BlendShare(BaseModel):
    """What one category contributes to one phase."""

    weight: float
    num_sequences: int
    epochs: float | None
    """How often the category's tokens are read in this phase; None for sequences that are made for this phase."""


def blend_order(weights: Mapping[str, float], num_sequences: int) -> list[str]:
    """The category of each sequence; ties go to the first category by name.

    Args:
        weights: category -> weight; the weights sum to 1.
    """
    categories = sorted(weights)
    taken = dict.fromkeys(categories, 0)
    order = []
    for index in range(num_sequences):
        category = max(categories, key=lambda name: weights[name] * max(index, 1) - taken[name])
        taken[category] += 1
        order.append(category)
    return order
