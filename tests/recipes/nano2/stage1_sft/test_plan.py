"""The plan of fine-tuning: the memory of its two lengths of rows."""

from nemotron.recipes.nano2.stage1_sft import plan
from nemotron.recipes.nano2.stage1_sft.__main__ import Config


def test_the_plan_of_fine_tuning_has_its_two_lengths():
    config = Config(scale="tiny", plan=True, devices=2)
    page = plan.page(config)
    assert page.startswith("Fine-tuning at scale tiny\n")
    for length in (config.data.sequence_length, config.data.long_context_length):
        assert f"1 x {length:,}" in page
