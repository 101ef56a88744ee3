"""Rollouts in several processes: one per core, with one thread each, all on the same weights.

In: a model on the processor, and a number of processes. Out: `Workers.generate`, which gives what `generate` gives.
The weights lie in shared memory: an optimizer that changes them in place changes them for the workers too. Threads that
share an operation wait for each other at its end; processes do not, so they lose less beside other programs.

    with Workers(model, 2) as workers:
        replies = workers.generate(prompts, sampling, seeds)

Left out: streaming, several machines, GPUs.
"""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import Self

import torch
import torch.multiprocessing  # teaches the standard module to pass tensors in shared memory

from nemotron.recipes.nemotron_h.generate import Continuation, Sampling, check_prompts, generate
from nemotron.recipes.nemotron_h.model import NemotronH

_shared: list[NemotronH] = []  # in a worker: the model


class Workers:
    """Processes that continue prompts on the weights of `model`, until the `with` block ends.

    Args:
        model: on the processor; its weights move to shared memory.
        number: of processes.
    Raises:
        ValueError: if number is below 1, the model is not on the processor, or torchrun has started several processes.
    """

    def __init__(self, model: NemotronH, number: int) -> None:
        device = model.lm_head.weight.device
        if number < 1:
            raise ValueError(f"number={number} of processes must be at least 1")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise ValueError(
                f"rollout_processes={number}, but torchrun has started several processes, each of which writes its "
                f"part of the replies; give --rollout-processes 0"
            )
        if device.type != "cpu":
            raise ValueError(f"the model is on {device}, and processes share the weights of a model on cpu only")
        self.number = number
        self.context = model.config.max_position_embeddings
        context = torch.multiprocessing.get_context("spawn")  # a forked process would hang in torch's threads
        self.pool = ProcessPoolExecutor(number, context, initializer=_start, initargs=(model.share_memory(),))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self.pool.shutdown(cancel_futures=True)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Continuation]:
        """Continue every prompt to its end; arguments and errors are those of `nemotron_h.generate.generate`.

        Raises:
            ChildProcessError: if a process ended, for example because memory ran out.
        """
        check_prompts(prompts, seeds, context=self.context)
        # Rows with the same prompt go to the same process, which reads it once.
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        parts: list[list[int]] = [[] for _ in range(self.number)]
        for row, prompt in enumerate(prompts):
            parts[numbers[tuple(prompt)] % self.number].append(row)
        work = [([prompts[row] for row in part], sampling, [seeds[row] for row in part]) for part in parts]
        try:
            found = list(self.pool.map(_continue, *zip(*work, strict=True)))
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process that writes replies ended, perhaps because memory ran out; give fewer rollout_processes, "
                "and resume the run"
            ) from None
        continuations: dict[int, Continuation] = {}
        for part, written in zip(parts, found, strict=True):
            continuations |= zip(part, written, strict=True)
        return [continuations[row] for row in range(len(prompts))]


def _start(model: NemotronH) -> None:
    """In a new worker: keep the model, use one thread, and end when the parent does, even if it is killed."""
    torch.set_num_threads(1)
    _shared.append(model)
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _continue(prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Continuation]:
    """In a worker: continue these prompts."""
    return generate(_shared[0], prompts, sampling, seeds)
