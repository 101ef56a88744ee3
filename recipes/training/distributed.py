"""Several processes, each with one device, that train one model together: torchrun starts them, FSDP2 shards the model.

In: the environment that torchrun sets, and what a training loop has: model, batch, loss, gradients. Out: the same
numbers as with one process, up to rounding. With one process, nothing is shared or gathered.

    with training_process(config) as config:            # joins the others; an error of one ends all
        shard(model)                                    # each rank keeps its share of every weight, gradient and moment
        for micro_batch in rank_rows(batch, rows):    # the rows of this rank; equally many passes on every rank
            (loss_sum(model, micro_batch) / batch.num_in_loss).backward()    # divided by the tokens of all ranks
        loss = summed(loss)                             # gradients are added up over the ranks, and so is the loss
        grad_norm = clip_gradients(model, max_norm)     # of all gradients on all ranks

A rank is the number of a process. The first one writes, prints and reports to the tracker; the others are silent, and
what their loops write goes to a temporary directory. All read the same files. Gradients are sums, not means, so that
a loss that is divided by the tokens of the whole step is right on any number of ranks.
Run: torchrun --nproc-per-node 2 -m nemotron.recipes.nano2.stage0_pretrain.training --dataset-path <directory>

Left out: tensor, context and pipeline parallelism; a run that goes on with fewer processes after one was lost, other
than by --resume; torch.distributed.checkpoint. A state is gathered on the first rank, 12 bytes a parameter in the
memory of its processor, so that it is the same safetensors files for any number of processes.
"""

import json
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout

from nemotron.directory import final_place, working_name
from nemotron.pipe import is_out_of_memory, step_process
from nemotron.process import launched, process
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.strict import one_sentence, short
from nemotron.terminal import print_line, silent

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from nemotron.recipes.training.batches import Batch

AnyConfig = TypeVar("AnyConfig", bound=Any)
Terms = TypeVar("Terms", bound=Any)
AnySequence = TypeVar("AnySequence", bound=Sequence[Any])
AnyModel = TypeVar("AnyModel", bound=Any)
Rows = TypeVar("Rows", "Batch", Tensor)

PATIENCE = 4 * default_pg_timeout  # two hours
"""How long a rank waits for another one, which may write a large state meanwhile. A process that ends is noticed at
once, by its closed connections or by torchrun."""
GRACE_SECONDS = 5.0
"""Time that a rank has to end by itself after torchrun has asked it to."""


def world() -> tuple[int, int]:
    """The rank of this process, and how many there are: 0 and 1 unless `training_process` has joined several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return world()[0] == 0


# Beginning and end ----------------------------------------------------------------------------------------------------


@contextmanager
def training_process(config: AnyConfig) -> Iterator[AnyConfig]:
    """Run a training step as a program, as `step_process` does, in as many processes as torchrun has started.

    Gives the config with the device of this process: with --device cuda, rank 3 of a machine takes cuda:3.
    A rank that fails says why, in one sentence, and the others end without another one.
    """
    rank, size = launched()
    with step_process(several=True):
        if size == 1:
            yield config
            return
        with _process_group(rank, size, config) as own_config, _silent_unless(rank == 0):
            _check_config(config)
            check_same("config", {name: str(value) for name, value in vars(config).items() if name != "device"})
            yield own_config
            wait_for_all()
            dist.destroy_process_group()


def _check_config(config: Any) -> None:
    """Raise ValueError for what several processes cannot do: use an old torch, compile, read from the one pipe."""
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(f"torch {torch.__version__} is too old for several processes; 2.13 is tested")
    if getattr(config, "compile", False):
        raise ValueError("--compile is for one process; leave it out, or start without torchrun")
    for item in fields(config):
        if item.metadata.get("input") and getattr(config, item.name) is None:
            flag = item.name.replace("_", "-")
            raise ValueError(f"several processes cannot read the line of one pipe; give --{flag}")


@contextmanager
def _process_group(rank: int, size: int, config: AnyConfig) -> Iterator[AnyConfig]:
    """The process group of all ranks; of what goes wrong inside, the first rank that notices speaks for all."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE={size}, but {missing[0]} is not set; start the processes with torchrun")
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
    except dist.DistError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConnectionError(
            f"rank {rank} cannot join the others at {place} ({short(one_sentence(error))}); start all with torchrun"
        ) from None

    def is_first_to_fail() -> bool:
        try:
            return store.add("failed", 1) == 1
        except RuntimeError:  # the store is gone, with the process that had it
            return True

    try:
        with _ends_when_told():
            config = _on_own_device(config)
            backend = "cpu:gloo,cuda:nccl" if config.device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
            yield config
    except KeyboardInterrupt as error:
        if not is_first_to_fail():
            raise SystemExit(143 if str(error) else 130) from None
        raise
    except (ValueError, OSError):
        if not is_first_to_fail():
            raise SystemExit(2) from None
        raise
    except (RuntimeError, MemoryError) as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if not lost and not is_out_of_memory(error):
            is_first_to_fail()
            raise
        if not is_first_to_fail():
            raise SystemExit(2) from None
        if not lost:
            raise
        raise ConnectionError(
            f"rank {rank} lost its connection to another process of this run, which ended without a message, perhaps "
            f"because memory ran out; start the command again with --resume"
        ) from None
    except Exception:  # a bug, which keeps its traceback
        is_first_to_fail()
        raise


def _on_own_device(config: AnyConfig) -> AnyConfig:
    """The config with the device of this process.

    Raises:
        ValueError: if the config names one CUDA device for all, or the machine has too few.
    """
    local_rank = int(os.environ["LOCAL_RANK"])
    if not config.device.startswith("cuda"):
        return config
    if config.device != "cuda":
        raise ValueError(f"device={config.device} is one device for several processes; give --device cuda")
    if (count := torch.cuda.device_count()) == 0:
        raise ValueError("this machine has no CUDA device; give --device cpu")
    if local_rank >= count:
        raise ValueError(
            f"process {local_rank + 1} finds no CUDA device, because this machine has {count}; start at most {count} "
            f"with --nproc-per-node, or give --device cpu"
        )
    torch.cuda.set_device(local_rank)
    return replace(config, device=f"cuda:{local_rank}")


@contextmanager
def _silent_unless(first: bool) -> Iterator[None]:
    """Drop what this process prints, unless it is the first one."""
    if first:
        yield
        return
    with silent() as nowhere:
        real_stdout, process.stdout = process.stdout, nowhere.fileno()
        try:
            yield
        finally:
            process.stdout = real_stdout


@contextmanager
def _ends_when_told() -> Iterator[None]:
    """End this process if torchrun is gone, or told it to while Python waits for another rank and cannot obey."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    reader.settimeout(1.0)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    has_ended, parent = threading.Event(), os.getppid()

    def watch() -> None:
        with reader:
            while not has_ended.is_set():
                try:
                    is_told = signal.SIGTERM in reader.recv(1)
                except TimeoutError:
                    is_told = os.getppid() != parent
                    if is_told:
                        os.kill(os.getpid(), signal.SIGTERM)
                if is_told and not has_ended.wait(GRACE_SECONDS):
                    os._exit(143)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        has_ended.set()
        signal.set_wakeup_fd(before)
        writer.close()


# Messages between ranks -----------------------------------------------------------------------------------------------


def gathered(value: Any) -> list[Any]:
    """The JSON value of every rank, by rank."""
    _, size = world()
    if size == 1:
        return [value]
    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([len(content)]))
    longest = int(max(lengths))
    padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(padded, torch.cat([content, content.new_zeros(longest - len(content))]))
    texts = [one[: int(length)].numpy().tobytes() for one, length in zip(padded, lengths, strict=True)]
    return [json.loads(text) for text in texts]


def from_first(make: Callable[[], Any]) -> Any:
    """What the first rank makes, a JSON value, on every rank; the others do not make it."""
    return gathered(make() if is_first() else None)[0]


def check_same(what: str, value: Mapping[str, Any]) -> None:
    """Raise ValueError if a rank has another value than the first one; it names the first field that differs."""
    first, *others = gathered(value)
    for rank, found in enumerate(others, start=1):
        for name in first:
            if found[name] != first[name]:
                raise ValueError(
                    f"{what} of rank {rank} has {name}={short(found[name])}, and that of rank 0 {short(first[name])}; "
                    f"give all processes the same command and the same files"
                )


def check_shared(work: Path, output_dir: Path) -> None:
    """Raise ValueError if a rank does not see the working directory in which the first rank writes.

    Args:
        work: the working directory; on other ranks, a temporary one.
        output_dir: where the run's artifact goes.
    """
    if world()[1] == 1:
        return
    with NamedTemporaryFile(dir=work) as file:  # a new name, which cannot be there from an earlier run
        name = gathered(Path(file.name).name)[0]
        seen = gathered((working_name(final_place(output_dir)) / name).exists())
    if False in seen:
        raise ValueError(
            f"output_dir={short(str(output_dir))} of rank {seen.index(False)} is not the directory that rank 0 writes; "
            f"name one that all machines see"
        )


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if world()[1] > 1:
        dist.barrier()


def summed(value: float) -> float:
    """The sum of a number over the ranks."""
    if world()[1] == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item()


def joined(values: Tensor) -> Tensor:
    """The values of all ranks, one rank's after the other's: (n, ...) of each rank to (n of all ranks, ...)."""
    _, size = world()
    if size == 1:
        return values
    lengths = gathered(len(values))
    padded = values.detach().new_zeros(max(lengths), *values.shape[1:])
    padded[: len(values)] = values.detach()
    found = [torch.zeros_like(padded) for _ in range(size)]
    dist.all_gather(found, padded)
    return torch.cat([one[:length] for one, length in zip(found, lengths, strict=True)])


def terms_of_all(terms: list[Terms]) -> list[Terms]:
    """What an objective computed in all forward passes of this rank, to that of all ranks: NamedTuples of tensors."""
    if world()[1] == 1 or not terms:
        return terms
    return [type(terms[0])(*(joined(torch.cat(values)) for values in zip(*terms, strict=True)))]


def filled(values: Tensor) -> Tensor:
    """A tensor of which each rank has computed a part, and has zeros elsewhere, with the parts of all ranks."""
    if world()[1] > 1:
        dist.all_reduce(values)
    return values


# Rows -----------------------------------------------------------------------------------------------------------------


def check_rows(rows: Mapping[str, int]) -> None:
    """Raise ValueError if there are more ranks than rows in the largest batch, so that some would never have one.

    Args:
        rows: name of a phase of training -> rows of its largest batch.
    """
    _, size = world()
    if size > (most := max(rows.values())):
        raise ValueError(
            f"{size} processes, but the largest batch has {most} rows, so some processes would never have one; start "
            f"at most {most} with --nproc-per-node, or use larger batches"
        )
    for name, number in rows.items():
        if size > number:
            print_line(f"{name}: {size - number} of {size} processes get no row, because a batch has {number}")


def rank_rows(batch: Rows, at_most: int) -> list[Rows]:
    """The rows of this rank, in pieces of at most `at_most` rows: what one forward pass takes.

    Every rank makes as many passes, because the ranks gather weights and add up gradients together. A rank that has
    fewer rows than others gets pieces without rows at the end, which add nothing.
    """
    rank, size = world()
    pieces = list(batch.split(max(1, min(at_most, math.ceil(len(batch) / size)))))
    nothing = [batch[:0]]
    return (pieces + nothing * (-len(pieces) % size))[rank::size]


def rank_share(rows: AnySequence) -> AnySequence:
    """The part of this rank: consecutive rows, about as many as each other rank has; those of all ranks are all."""
    rank, size = world()
    return rows[len(rows) * rank // size : len(rows) * (rank + 1) // size]  # type: ignore[return-value]


# Weights and gradients ------------------------------------------------------------------------------------------------


def shard(model: AnyModel) -> AnyModel:
    """Keep of every weight the share of this rank; a layer gathers its weights when its forward pass begins.

    Args:
        model: with `backbone.layers` and `lm_head`. It is changed in place, so make the optimizer after this, and load
            the next model after this, so that one at a time is whole.
    Returns:
        The same model.
    """
    if world()[1] > 1:
        _shard(model)
    return model


def _shard(model: Any) -> None:
    # Here, because one process, which shards nothing, need not wait for this import.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    backbone, size = model.backbone, world()[1]
    mesh = init_device_mesh(backbone.norm_f.weight.device.type, (size,))
    for layer in backbone.layers:
        fully_shard(layer, mesh=mesh)
    # Embeddings, final norm and output matrix are one group of the backbone: whole from the beginning of its forward
    # pass to the end of the backward pass, however often a loss uses the output matrix in between.
    backbone.lm_head = model.lm_head
    fully_shard(backbone, mesh=mesh)
    del backbone.lm_head
    for module in backbone.modules():
        if isinstance(module, FSDPModule):
            # FSDP takes the mean over ranks by default. Losses here are divided by the tokens of all ranks: add up.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other one


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Scale all gradients down to a norm of `max_norm` if they are above it, and return what their norm was.

    The norm is that of the gradients on all ranks together.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return whole(norm).item()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shares of all ranks; every rank has to call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def is_sharded(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether a tensor is only the share of this rank."""
    if world()[1] == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole_on_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the shares of all ranks, on the first rank and in the memory of its processor; none elsewhere.

    One after the other, so a device holds one whole tensor at a time.
    """
    if world()[1] == 1:
        return dict(tensors)
    found = ((name, whole(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu() for name, tensor in found if is_first()}


def share_of_first(tensor: Tensor | None, like: Tensor) -> Tensor:
    """This rank's share of a tensor that the first rank has, with the shape and the shares of `like`."""
    if world()[1] == 1:
        assert tensor is not None
        return tensor
    sent = torch.empty(like.shape, dtype=like.dtype, device=like.device) if tensor is None else tensor.to(like.device)
    dist.broadcast(sent, 0)
    if not is_sharded(like):
        return sent
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(sent, like.device_mesh, like.placements, src_data_rank=None)


def whole_model(model: AnyModel) -> AnyModel:
    """A copy of a language model with all weights, on the device of each rank; with one process, the model itself."""
    if world()[1] == 1:
        return model
    return _copy_with(model, {name: whole(tensor) for name, tensor in model.state_dict().items()})


def model_on_first(model: AnyModel) -> AnyModel | None:
    """As `whole_model`, but in the memory of the first rank's processor, and None elsewhere."""
    if world()[1] == 1:
        return model
    tensors = whole_on_first(model.state_dict())
    return _copy_with(model, tensors) if is_first() else None


def _copy_with(model: AnyModel, tensors: Mapping[str, Tensor]) -> AnyModel:
    language_model = NemotronH(model.config, device="meta")
    copy: Any = language_model if type(model) is NemotronH else type(model)(language_model)  # else a Scorer
    copy.load_state_dict(tensors, assign=True)
    return copy
