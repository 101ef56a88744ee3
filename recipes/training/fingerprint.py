"""Two numbers that represent a tensor in ladder.json: they change with any element, but hardly with its last bit.

A digest of the bytes would not do: it differs between processors whose results agree to fifteen digits.
"""

import torch

from nemotron.recipes.training.distributed import is_first, whole


def tensor_fingerprint(tensor: torch.Tensor) -> list[float]:
    """The norm of a tensor and its projection on a fixed direction, both in float64.

    The direction is the unit vector proportional to cos(1), cos(2), ..., which needs no random generator.
    """
    flat = tensor.detach().cpu().to(torch.float64).flatten()
    direction = torch.cos(torch.arange(1, len(flat) + 1, dtype=torch.float64))
    return [flat.norm().item(), (flat @ direction / direction.norm()).item()]


def weight_fingerprint(model: torch.nn.Module) -> dict[str, list[float]]:
    """Map the name of every parameter to its norm and projection, in the order of the model.

    Of a model that is sharded, on the first rank; the others only give their shares.
    """
    found = ((name, whole(parameter.detach())) for name, parameter in model.named_parameters())
    return {name: tensor_fingerprint(parameter) for name, parameter in found if is_first()}
