"""`--plan --scale full`: the published numbers of the 12B model, counted over its three million steps."""

import pytest

from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.recipes.nano2.stage0_pretrain.plan import plan_text, pretraining_plan


def test_full_plan_is_the_published_run():
    plan = pretraining_plan(data_curation.Config(scale="full"), training.Config(scale="full"))
    assert plan.num_parameters == 12_310_001_152
    assert plan.num_tokens == pytest.approx(20e12 + 18.9e9, rel=1e-6)
    page = plan_text(plan)
    assert "12,310,001,152" in page
    assert "FP8" in page
    assert "524,288" in page
