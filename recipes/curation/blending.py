"""In which order the sequences of the categories are trained on.

In: the weight of each category and how many sequences are needed. Out: the category of each sequence.
Source: Megatron-LM's blended dataset (build_blending_indices): the next sequence comes from the category that lags most
behind its weight. No random number is needed, and every beginning of the order has the blend of the whole.
"""

from collections.abc import Mapping


def blend_order(weights: Mapping[str, float], num_sequences: int) -> list[str]:
    """The category of each of `num_sequences` sequences; a tie goes to the first category by name.

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
