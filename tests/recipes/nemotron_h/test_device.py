"""What a device can hold, and the precision that a model has on it."""

import os
from types import SimpleNamespace

import pytest
import torch

from nemotron.recipes.nemotron_h import device
from nemotron.recipes.nemotron_h.device import autocast, device_memory_bytes, weight_dtype


@pytest.mark.parametrize("name", ["toaster", "mps", "cuda:x", ""])
def test_an_unknown_device_is_refused_with_those_that_are_supported(name):
    with pytest.raises(ValueError, match=f"^device={name} is not supported; use cpu, cuda or cuda:<number>$"):
        device_memory_bytes(name)


def test_the_memory_of_the_processor_is_that_of_the_machine(monkeypatch):
    monkeypatch.setattr(device.psutil, "virtual_memory", lambda: SimpleNamespace(total=4_096_000, available=1))
    assert device_memory_bytes("cpu") == 4_096_000


def test_psutil_and_the_operating_system_agree_on_the_memory():
    if hasattr(os, "sysconf"):  # not on Windows
        assert device_memory_bytes("cpu") == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_weights_stay_in_float32_with_bfloat16():
    dtypes = {name: weight_dtype(name) for name in ("float64", "float32", "bfloat16")}
    assert dtypes == {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.float32}


@pytest.mark.parametrize(("dtype", "product"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_only_bfloat16_changes_the_precision_of_matrix_products(dtype, product):
    matrix = torch.eye(2)
    with autocast(dtype, "cpu"):
        assert (matrix @ matrix).dtype == product


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_float32_products_on_a_gpu_are_shortened_beside_bfloat16_only():
    found = []
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        for dtype, name in (("bfloat16", "cpu"), ("bfloat16", "cuda:1"), ("float64", "cpu"), ("float32", "cuda")):
            autocast(dtype, name)
            found.append(torch.backends.cuda.matmul.allow_tf32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert found == [False, True, True, False]
