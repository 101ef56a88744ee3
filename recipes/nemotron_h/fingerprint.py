"""A few numbers that stand for a tensor in the ladder: they move when one element does, and stay when a last bit does.

A digest of the bytes would differ between processors that agree to fifteen digits; a norm and a projection do not.
"""

import torch


def tensor_fingerprint(tensor: torch.Tensor) -> list[float]:
    """The norm of a tensor and its projection on one fixed direction, both computed in float64.

    The direction is a unit vector with elements proportional to cos(1), cos(2), ...; no generator is behind it.
    """
    flat = tensor.detach().cpu().to(torch.float64).flatten()
    direction = torch.cos(torch.arange(1, len(flat) + 1, dtype=torch.float64))
    return [flat.norm().item(), (flat @ direction / direction.norm()).item()]


def weight_fingerprint(model: torch.nn.Module) -> dict[str, list[float]]:
    """Name of every parameter -> its norm and projection, in the order of the model."""
    return {name: tensor_fingerprint(parameter) for name, parameter in model.named_parameters()}
