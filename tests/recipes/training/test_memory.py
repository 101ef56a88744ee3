"""The memory that a plan prints for each device, and which cards have it."""

from types import SimpleNamespace

import pytest

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage0_pretrain.__main__ import Config as Stage0Config
from nemotron.recipes.training.memory import CARDS, Pass, fewest_devices, memory_lines, memory_of_pass, whole_weights

TINY, MEDIUM, FULL = MODELS["tiny"], MODELS["medium"], MODELS["full"]
AGAIN = SimpleNamespace(dtype="bfloat16", activation_checkpointing=True)
KEPT = SimpleNamespace(dtype="bfloat16", activation_checkpointing=False)


def test_medium_fits_a_card_of_24_gb_if_layers_are_computed_again():
    """With its default rows of a forward pass, in both kinds of phases."""
    for one in (Pass(256, 8, 2048), Pass(32, 1, 16384)):
        assert fewest_devices(MEDIUM, AGAIN, one, CARDS["RTX 4090, 24 GB"] * 10**9) == 1
        assert fewest_devices(MEDIUM, KEPT, one, CARDS["RTX 4090, 24 GB"] * 10**9) != 1


def test_full_needs_cards_that_hold_its_weights_once():
    """46 GiB in float32, before they are sharded."""
    one = Pass(768, 1, 8192)
    assert fewest_devices(FULL, AGAIN, one, CARDS["L40S, 48 GB"] * 10**9) is None
    most = CARDS["A100 or H100, 80 GB"] * 10**9
    fewest = fewest_devices(FULL, AGAIN, one, most)
    assert fewest is not None
    assert sum(memory_of_pass(FULL, AGAIN, one, fewest).values()) <= most
    assert sum(memory_of_pass(FULL, AGAIN, one, fewest - 1).values()) > most
    assert whole_weights(FULL, "bfloat16") <= most


def test_a_row_of_524288_tokens_fits_no_card():
    long = Pass(12, 1, 524_288)
    assert [fewest_devices(FULL, AGAIN, long, size * 10**9) for size in CARDS.values()] == [None] * len(CARDS)


def test_a_device_has_no_more_rows_than_its_share_of_the_batch():
    assert [Pass(10, 4, 8).rows(devices) for devices in (1, 2, 3, 5, 10)] == [4, 4, 4, 2, 1]


def test_the_page_has_a_column_for_each_kind_of_pass_and_a_line_for_each_card():
    passes = [Pass(8, 8, 128), Pass(8, 8, 128), Pass(2, 1, 512)]
    lines = memory_lines(TINY, SimpleNamespace(dtype="float64", activation_checkpointing=False), passes, 2)
    assert lines[0] == "  memory of a training step on each of 2 devices, with FSDP2, layers kept for the backward pass"
    assert lines[1].split() == ["rows", "x", "tokens", "4", "x", "128", "1", "x", "512"]
    for part in ("weights", "gradients", "optimizer moments", "activations", "logits", "together"):
        assert sum(line.strip().startswith(part) for line in lines) == 1
    assert [line.split("  ")[2] for line in lines[-len(CARDS) :]] == list(CARDS)
    assert {line.split()[-1] for line in lines[-len(CARDS) :]} == {"1"}


def test_other_models_are_shared_by_the_devices():
    one = Pass(8, 8, 128)
    alone = memory_of_pass(TINY, KEPT, one, 2)
    beside = memory_of_pass(TINY, KEPT, one, 2, [TINY])
    assert beside.pop("other models") == whole_weights(TINY, "float32") // 2
    assert beside == alone


def test_more_devices_than_rows_in_the_largest_batch_are_refused():
    with pytest.raises(ValueError, match=r"^devices=9, and the largest batch has 8 rows, so .* at most 8, or"):
        memory_lines(TINY, KEPT, [Pass(8, 8, 128), Pass(2, 1, 512)], 9)


def test_devices_below_one_are_refused():
    with pytest.raises(ValueError, match=r"^devices=0: Input should be greater than 0$"):
        Stage0Config(plan=True, devices=0)


def test_devices_without_a_plan_are_refused():
    with pytest.raises(ValueError, match=r"^devices=8 has an effect with --plan only; to train on several"):
        Stage0Config(devices=8)
