"""CUDA graphs: the kernels of a decoding step, recorded once and then started by one call.

In: a function that reads one more token of every row. Out: the same function, with the shapes of its tensors rounded up
to a few, so that each can be recorded.

A decoding step is several hundred small kernels. Started one by one they take longer to start than to run. A graph
fixes which kernels run, on which addresses and with which shapes; so a step works on the same tensors every time, on 1,
2, 4, 8, ... rows and as many positions. A row too many reads token 0 in a slot that nobody uses.

Left out: graphs of prompts, whose lengths differ; graphs of training steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MIN_POSITIONS = 256
"""Fewest positions of a graph, our choice: below, reading them takes no longer than starting the kernel."""


def rounded_up(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()


class Recorded:
    """A graph, and the tensor into which it writes."""

    def __init__(self, step: Callable[[Tensor, int], Tensor], ids: Tensor, positions: int) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # NCCL has threads that ask the device
            self.logits = step(ids, positions)

    def replay(self) -> Tensor:
        """Do the step again, on what is in its tensors now."""
        self.graph.replay()
        return self.logits


class StepGraphs:
    """A decoding step with few different shapes, each recorded when it is needed for the second time.

    Args:
        step: reads (rows,) token ids in the first slots, with at most so many positions, and gives (rows, v) logits. It
            may change tensors in place, and must keep them where they are.
        num_slots: most rows.
        recorder: makes a graph of a step. None: every step runs kernel by kernel, as on a processor.
    """

    def __init__(
        self,
        step: Callable[[Tensor, int], Tensor],
        num_slots: int,
        device: torch.device,
        recorder: Callable[[Callable[[Tensor, int], Tensor], Tensor, int], Recorded] | None = Recorded,
    ) -> None:
        self.step, self.num_slots, self.recorder = step, num_slots, recorder
        self.ids = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.graphs: dict[tuple[int, int], Recorded | None] = {}

    def shape_for(self, rows: int, positions: int) -> tuple[int, int]:
        """Rows and positions of the step that serves so many."""
        return min(rounded_up(rows), self.num_slots), max(MIN_POSITIONS, rounded_up(positions))

    def forget(self) -> None:
        """Record again: the tensors that the step works on are elsewhere now."""
        self.graphs.clear()

    def __call__(self, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """(b,) token ids to (b, v) logits, which the next call overwrites."""
        rows, positions = shape
        self.ids[: len(ids)] = ids
        self.ids[len(ids) : rows] = 0
        if self.recorder is not None and shape in self.graphs:
            # Recording runs nothing; so the first step of a shape runs plainly, which also loads its kernels.
            recorded = self.graphs[shape] or self.recorder(self.step, self.ids[:rows], positions)
            self.graphs[shape] = recorded
            return recorded.replay()[: len(ids)]
        self.graphs[shape] = None
        return self.step(self.ids[:rows], positions)[: len(ids)]
