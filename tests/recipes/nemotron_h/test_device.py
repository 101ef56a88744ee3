"""What a device can hold, and the precision that a model has on it."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nemotron.recipes.nemotron_h import device
from nemotron.recipes.nemotron_h.device import autocast, check_devices, check_fits, device_memory_bytes, weight_dtype
from nemotron.recipes.nemotron_h.plan import PUBLISHED_12B, count_parameters

MEMORY = 1_000_000
"""Bytes that `small_machine` has."""


@pytest.fixture
def small_machine(monkeypatch):
    monkeypatch.setattr(device, "device_memory_bytes", lambda name: MEMORY)


def shape_of(num_parameters, monkeypatch):
    """A shape that counts as this many parameters."""
    monkeypatch.setattr(device, "count_parameters", lambda shape: num_parameters)
    return PUBLISHED_12B


@pytest.mark.parametrize(("dtype", "bytes_per_number"), [("float64", 8), ("float32", 4), ("bfloat16", 4)])
def test_weights_gradients_and_two_moments_must_fit(small_machine, monkeypatch, dtype, bytes_per_number):
    most = MEMORY // (4 * bytes_per_number)
    check_fits(shape_of(most, monkeypatch), dtype=dtype, device="cpu")
    with pytest.raises(ValueError, match="for weights, gradients and moments"):
        check_fits(shape_of(most + 1, monkeypatch), dtype=dtype, device="cpu")


def test_a_model_too_large_for_the_device_is_refused_with_both_sizes(monkeypatch):
    monkeypatch.setattr(device, "device_memory_bytes", lambda name: 8 * 2**30)
    assert 4 * 4 * count_parameters(PUBLISHED_12B) / 2**30 == pytest.approx(183.4, abs=0.1)
    with pytest.raises(
        ValueError,
        match=r"^training needs 183 GiB for weights, gradients and moments, and cpu has 8 GiB; use a smaller --scale$",
    ):
        check_fits(PUBLISHED_12B, dtype="bfloat16", device="cpu")


@pytest.mark.parametrize(("processes", "gib", "fits"), [(1, 80, False), (2, 80, False), (4, 80, True), (8, 40, False)])
def test_a_process_on_a_gpu_holds_its_share_and_the_weights_once(monkeypatch, processes, gib, fits):
    """The 12B has 183 GiB; 46 of them are the weights, which each process has whole before they are sharded."""
    monkeypatch.setattr(device, "device_memory_bytes", lambda name: gib * 2**30)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    if fits:
        check_fits(PUBLISHED_12B, dtype="bfloat16", device="cuda:0")
        return
    needed = 92 if processes == 2 else 46 if processes == 8 else 183
    with pytest.raises(ValueError, match=f"training needs {needed} GiB"):
        check_fits(PUBLISHED_12B, dtype="bfloat16", device="cuda:0")


def test_processes_on_a_processor_share_its_memory(monkeypatch):
    monkeypatch.setattr(device, "device_memory_bytes", lambda name: 80 * 2**30)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="training needs 183 GiB"):
        check_fits(PUBLISHED_12B, dtype="bfloat16", device="cpu")


TRAIN, EVALUATE = SimpleNamespace(dtype="float32", device="cpu"), SimpleNamespace(device="cpu")
SMALL = replace(PUBLISHED_12B, hidden_size=8, hybrid_override_pattern="-", intermediate_size=8, vocab_size=8)


def test_training_and_evaluation_on_the_processor_are_accepted():
    check_devices(SMALL, TRAIN, EVALUATE)


def test_training_that_does_not_fit_is_refused_for_the_whole_stage(small_machine):
    with pytest.raises(ValueError, match="training needs 183 GiB"):
        check_devices(PUBLISHED_12B, TRAIN, EVALUATE)


@pytest.mark.parametrize("step", ["training", "evaluation"])
def test_a_device_that_is_not_there_is_refused_for_both_steps(step):
    absent = SimpleNamespace(dtype="float32", device="cuda:99")
    configs = (absent, EVALUATE) if step == "training" else (TRAIN, absent)
    with pytest.raises(ValueError, match=r"^device=cuda:99: this machine has \d+ CUDA devices; use --device cpu or"):
        check_devices(SMALL, *configs)


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
