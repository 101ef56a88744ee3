"""Text from a trained model.

In: a model and the tokens of a prompt. Out: the tokens that follow.
Left out: the state that would save recomputing the whole sequence for every token.
"""

import torch

from nemotron.recipes.nemotron_h.model import NemotronH, purpose_generator


@torch.no_grad()
def sample_tokens(model: NemotronH, prompt_ids: list[int], num_tokens: int, seed: int, temperature: float) -> list[int]:
    """The `num_tokens` tokens that the model draws after the prompt.

    Args:
        prompt_ids: at least one token id.
        temperature: divides the logits; 0 takes the most likely token every time.
    Raises:
        ValueError: if the prompt is empty or the temperature negative.
    """
    if not prompt_ids:
        raise ValueError("prompt_ids is empty; give at least one token, for example the id of the document separator")
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature} must not be negative; 0 takes the most likely token")
    generator = purpose_generator(seed, "sampled tokens")
    device = model.lm_head.weight.device
    tokens = list(prompt_ids)
    for _ in range(num_tokens):
        logits = model(torch.tensor([tokens], device=device))[0, -1].to("cpu", torch.float64)
        if temperature == 0:
            tokens.append(int(logits.argmax()))
            continue
        # Drawn by hand in float64: the first token at which the cumulative probability passes a uniform number.
        cumulative = torch.softmax(logits / temperature, dim=0).cumsum(0)
        uniform = torch.rand(1, dtype=torch.float64, generator=generator)
        tokens.append(min(int(torch.searchsorted(cumulative, uniform, right=True)), len(logits) - 1))
    return tokens[len(prompt_ids) :]
