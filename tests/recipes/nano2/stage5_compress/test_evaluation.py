"""What distillation brought back, on numbers small enough to check by eye."""

import pytest

from nemotron.recipes.nano2.stage5_compress import report
from nemotron.recipes.nano2.stage5_compress.evaluation import Config

METRICS = {"loss/sft/teacher": 2.0, "loss/sft/pruned": 4.0, "loss/sft/distilled": 2.5, "loss/sft/scratch": 3.0,
           "kl/all/pruned": 1.0, "kl/all/distilled": 0.25, "kl/all/scratch": 2.0}  # fmt: skip


def test_the_recovered_share_is_of_what_pruning_lost():
    assert report.recovery_metrics(METRICS) == {
        "recovered": 0.75,
        "recovered_kl": 0.75,
        "better_than_scratch": 0.5,
        "better_than_scratch_kl": 0.875,
    }


def test_without_a_control_there_is_no_comparison_with_one():
    metrics = {name: value for name, value in METRICS.items() if "scratch" not in name}
    assert report.recovery_metrics(metrics) == {"recovered": 0.75, "recovered_kl": 0.75}


@pytest.mark.parametrize(
    ("gap", "whole", "share"), [(0.0, 2.0, 1.0), (3.0, 2.0, -0.5), (1.0, 0.0, 0.0), (1.0, -1.0, 0.0)]
)
def test_a_share_of_nothing_is_nothing(gap, whole, share):
    assert report.share_of(gap, whole) == share


@pytest.mark.parametrize("name", ["batch_replies", "batch_tokens", "chunk_tokens", "speed_rounds", "max_new_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be greater than 0$"):
        Config(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5)])
def test_what_sampling_refuses_is_refused_before_any_work(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}"):
        Config(**{name: value})
