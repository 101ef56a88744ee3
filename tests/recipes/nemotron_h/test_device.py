"""What a device can hold, and the precision that a model has on it."""

import os
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h import device
from nemotron.recipes.nemotron_h.device import (
    autocast,
    check_devices,
    check_fits,
    device_memory_bytes,
    in_gib,
    more_than_needed,
    weight_dtype,
)
from nemotron.recipes.nemotron_h.plan import PUBLISHED_12B, count_parameters, memory_of_step

MEDIUM = replace(MODELS["medium"], hybrid_override_pattern="M-*")


def train(device="cpu", dtype="float32", again=False):
    return SimpleNamespace(dtype=dtype, device=device, activation_checkpointing=again, micro_batch_sequences=8)


@pytest.fixture
def gibibytes(monkeypatch):
    """Sets the memory of every device."""
    return lambda number: monkeypatch.setattr(device, "device_memory_bytes", lambda name: int(number * 2**30))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_step_fits_if_the_plan_says_so(gibibytes, dtype):
    needed = sum(memory_of_step(MEDIUM, dtype, 8, 512, loss_chunk=4096).values())
    gibibytes(needed / 2**30)
    check_fits(MEDIUM, train(dtype=dtype), [(8, 512)])
    gibibytes((needed - 1) / 2**30)
    with pytest.raises(ValueError, match=rf"^training needs {in_gib(needed)} GiB \(weights "):
        check_fits(MEDIUM, train(dtype=dtype), [(1, 1), (8, 512), (2, 512)])


def test_a_model_too_large_for_the_device_is_refused_with_all_sizes(gibibytes):
    gibibytes(80)
    assert 4 * 4 * count_parameters(PUBLISHED_12B) / 2**30 == pytest.approx(183.4, abs=0.1)
    with pytest.raises(
        ValueError,
        match=r"^training needs 2\d\d GiB \(weights 46, .*gradients 46, .*moments 92, .*\), and cpu has 80 GiB; "
        r"use \d+ such devices with torchrun and --activation-checkpointing, or a smaller --scale$",
    ):
        check_fits(PUBLISHED_12B, train(dtype="bfloat16"))


def sizes_in(sentence):
    """Bytes of each of the things that the sentence says would fit: checkpointing, rows, devices."""
    rows = re.search(r"(\d+) instead of 8 rows per forward pass \(a smaller --micro-batch-sequences\)", sentence)
    devices = re.search(r"(\d+) such devices with torchrun", sentence)
    return ("use --activation-checkpointing" in sentence, rows and int(rows[1]), devices and int(devices[1]))


@pytest.mark.parametrize(("scale", "dtype"), [("tiny", "float64"), ("small", "bfloat16"), ("medium", "bfloat16")])
def test_more_than_needed_is_more_than_the_plan_says(scale, dtype):
    shape = MODELS[scale]
    planned = memory_of_step(shape, dtype, 4, 512)
    assert 1.2 * sum(planned.values()) < more_than_needed(shape, 4 * 512, 0)
    assert more_than_needed(shape, 4 * 512, 1000) == more_than_needed(shape, 4 * 512, 0) + 8 * 1000


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("just_fits", [(True, 4, 1), (True, 8, 2), (True, 1, 1), (False, 4, 1), (True, 1, 8)])
def test_what_the_sentence_says_would_fit_fits_and_the_next_larger_does_not(gibibytes, just_fits, again):
    def needed(again, rows, devices):
        return sum(
            memory_of_step(
                MEDIUM, "bfloat16", rows, 8192, loss_chunk=4096, activation_checkpointing=again, devices=devices
            ).values()
        )

    def fits(again, rows, devices):
        return needed(again, rows, devices) <= present

    present = needed(*just_fits)
    gibibytes(present / 2**30)
    with pytest.raises(ValueError, match="training needs") as refused:
        check_fits(MEDIUM, train(dtype="bfloat16", again=again), [(8, 8192)])
    checkpointing, rows, devices = sizes_in(str(refused.value))
    assert checkpointing == (not again and fits(True, 8, 1))
    assert rows == next((rows for rows in (4, 2, 1) if fits(True, rows, 1)), None)
    assert devices == next((count for count in (2, 4, 8, 16, 32, 64) if fits(True, 8, count)), None)


def test_models_that_do_not_learn_need_their_weights(gibibytes):
    needed = sum(memory_of_step(MEDIUM, "float32", 1, 1, loss_chunk=4096).values()) / 2**30
    weights = 4 * count_parameters(MEDIUM) / 2**30
    gibibytes(needed + 1.5 * weights)
    check_fits(MEDIUM, train(), beside=[MEDIUM])
    with pytest.raises(ValueError, match=rf"other models {in_gib(2 * weights * 2**30)}\), and cpu"):
        check_fits(MEDIUM, train(), beside=[MEDIUM, MEDIUM])


def test_processes_of_one_machine_share_its_memory(gibibytes, monkeypatch):
    needed = sum(memory_of_step(MEDIUM, "float32", 1, 1, loss_chunk=4096).values()) / 2**30
    gibibytes(2.5 * needed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_fits(MEDIUM, train())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="training needs"):
        check_fits(MEDIUM, train())


def test_each_process_has_all_weights_once_before_they_are_sharded(gibibytes, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 64)
    gibibytes(44)  # its share of everything fits, all 46 GiB of weights do not
    with pytest.raises(ValueError, match=r"\(weights before they are sharded 46\), and cpu has 44 GiB"):
        check_fits(PUBLISHED_12B, train(dtype="bfloat16", again=True))


@pytest.mark.parametrize(("size", "shown"), [(2**29, "0.5"), (10 * 2**30, "10"), (1234 * 2**30, "1,234")])
def test_sizes_are_shown_in_gibibytes(size, shown):
    assert in_gib(size) == shown


TRAIN, EVALUATE = train(), SimpleNamespace(device="cpu")
SMALL = replace(PUBLISHED_12B, hidden_size=8, hybrid_override_pattern="-", intermediate_size=8, vocab_size=8)


def test_training_and_evaluation_on_the_processor_are_accepted():
    check_devices(SMALL, TRAIN, EVALUATE)


def test_training_that_does_not_fit_is_refused_for_the_whole_stage(gibibytes):
    gibibytes(8)
    with pytest.raises(ValueError, match=r"training needs 18\d GiB"):
        check_devices(PUBLISHED_12B, TRAIN, EVALUATE)


@pytest.mark.parametrize("step", ["training", "evaluation"])
def test_a_device_that_is_not_there_is_refused_for_both_steps(step):
    absent = train("cuda:99")
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
