"""A reward model: the backbone of a language model, and one number at the last token of a text.

In: a language model, or the directory of a reward model. Out: `Scorer`, which gives every row of token ids a score.
The head reads the hidden vector after the final norm, as the output matrix does, at the last token that is not padding:
only there has the model read the whole text.

    scorer = Scorer(load_checkpoint(path), seed=0)
    scores = scorer.score(tokens, lengths)

Left out: scores of several attributes; a bias of the head, which no comparison of two scores would see.

Letters:   b row   t position   d hidden vector
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_tensors, save_checkpoint, save_tensors
from nemotron.recipes.nemotron_h.model import Linear, NemotronH, at_least_float32, purpose_generator

HEAD_FILE = "score_head.safetensors"
HEAD = "weight"


class Scorer(NemotronH):
    """A language model's backbone, which it shares with `model`, under a head of one row in place of its output matrix.

    Args:
        seed: of the head: normal with the standard deviation of the backbone's matrices.
    """

    def __init__(self, model: NemotronH, seed: int = 0) -> None:
        super().__init__(model.config, device="meta")  # no memory: both parts are replaced
        like = model.lm_head.weight
        self.backbone = model.backbone
        self.lm_head = Linear(self.config.hidden_size, 1, device=like.device, dtype=like.dtype)
        drawn = torch.empty(self.lm_head.weight.shape, dtype=torch.float64)
        drawn.normal_(0, self.config.initial_std, generator=purpose_generator(seed, "initial weights/score head"))
        with torch.no_grad():
            self.lm_head.weight.copy_(drawn)

    def score(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(b,) scores, in float32 or float64.

        Args:
            tokens: (b, t) token ids, padded on the right, where nothing that is read sees the padding.
            lengths: (b,) tokens of each row without its padding, at least 1.
        """
        hidden = self.backbone(tokens)  # (b, t, d), after the final norm
        last = hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1]  # (b, d)
        with torch.autocast(last.device.type, enabled=False):  # bfloat16 has 8 bits: 5.04 would be 5.03125
            return F.linear(at_least_float32(last), at_least_float32(self.lm_head.weight))[:, 0]


def padded(rows: Sequence[Sequence[int]], device: str = "cpu") -> tuple[Tensor, Tensor]:
    """(b, t) token ids padded on the right with 0, and (b,) the lengths of the rows.

    Raises:
        ValueError: if a row is empty.
    """
    for index, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"row {index} is empty; a score is read at the last token, so give at least one")
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    tokens = torch.zeros(len(rows), max(map(len, rows), default=1), dtype=torch.int64)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    return tokens.to(device), lengths.to(device)


@torch.no_grad()
def scores_of(scorer: Scorer, rows: Sequence[Sequence[int]], *, batch_rows: int) -> Tensor:
    """(b,) scores in float64 on the CPU, in the order of the rows; equal rows have equal scores, to the last bit.

    Args:
        batch_rows: rows of one forward pass, of similar length; changes memory and speed, and a score only by rounding.
    """
    device = str(scorer.lm_head.weight.device)
    # Each text once: in another batch the same text may round differently, and GRPO would divide that by itself.
    texts = sorted(dict.fromkeys(map(tuple, rows)), key=len)
    scores: dict[tuple[int, ...], float] = {}
    for start in range(0, len(texts), batch_rows):
        chosen = texts[start : start + batch_rows]
        scores |= zip(chosen, scorer.score(*padded(chosen, device)).tolist(), strict=True)
    return torch.tensor([scores[tuple(row)] for row in rows], dtype=torch.float64)


def save_scorer(scorer: Scorer, language_model: NemotronH, tokenizer_path: Path, directory: Path) -> None:
    """Write a directory that `load_scorer` reads; without the file of the head it is a checkpoint of a language model.

    Args:
        language_model: gives its output matrix, which the reward model does not use; its backbone is replaced.
    """
    language_model.backbone = scorer.backbone
    save_checkpoint(language_model, tokenizer_path, directory)
    save_tensors({HEAD: scorer.lm_head.weight.detach()}, directory / HEAD_FILE)


def load_scorer(directory: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Scorer:
    """The reward model in a directory that `save_scorer` wrote.

    Raises:
        ValueError: if it has no head, or one that does not fit or is not finite.
    """
    if not (directory / HEAD_FILE).is_file():
        raise ValueError(f"{directory} has no {HEAD_FILE}, so it is not a reward model; train one, or name another")
    scorer = Scorer(load_checkpoint(directory, device=device, dtype=dtype))
    found = load_tensors(directory / HEAD_FILE)
    shape = scorer.lm_head.weight.shape
    if found.keys() != {HEAD} or found[HEAD].shape != shape or not found[HEAD].isfinite().all():
        raise ValueError(f"{directory / HEAD_FILE} is not a finite head of shape {tuple(shape)}; train it again")
    with torch.no_grad():
        scorer.lm_head.weight.copy_(found[HEAD])
    return scorer
