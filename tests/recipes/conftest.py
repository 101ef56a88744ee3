"""Peak memory by following every tensor, on one device or on what seem to be eight."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from nemotron.recipes.nemotron_h.plan import LiveBytes


class Followed(LiveBytes):
    """Sees also how FSDP2 empties and fills storages."""

    def __enter__(self) -> "Followed":
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> None:
            self._resize(storage, size)
            if id(storage) in self._emptied or id(storage) in self._sizes:
                self._emptied.add(id(storage))
                self._add(id(storage), size)

        self._emptied: set[int] = set()
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        return super().__enter__()  # type: ignore[return-value]

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # comes again as tensors of this device
        return super().__torch_dispatch__(function, types, args, kwargs)


@pytest.fixture
def live() -> Followed:
    """Follows what is done inside of it."""
    return Followed()


@pytest.fixture
def eight_devices() -> Iterator[DeviceMesh]:
    """A process group that sends nothing: this process thinks it is the first of eight."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield init_device_mesh("cpu", (8,))
    dist.destroy_process_group()
