"""`--plan --scale full`: the published numbers of the 12B model, counted over its three million steps."""

import pytest

from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.recipes.nano2.stage0_pretrain.plan import plan_text, pretraining_plan


def test_full_plan_is_the_published_run():
    plan = pretraining_plan(data_curation.Config(scale="full"), training.Config(scale="full"))
    assert plan.num_parameters == 12_310_001_152
    # Each phase is rounded to whole batches: together to a multiple of ten, because phases are tenths of the whole.
    assert plan.num_tokens == pytest.approx(20e12 + 18.9e9, abs=5 * training.TOKENS_PER_STEP)
    page = plan_text(plan)
    assert "12,310,001,152" in page
    assert "FP8" in page
    assert "524,288" in page
