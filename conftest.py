"""Stage fixtures and settings of this repository's suite; what they do is in nemotron/testing/."""

import hypothesis

from nemotron.testing.plugin import stage_fixture

collect_ignore = ["tests/nemotron/testing/neighbor"]  # another project, which test_plugin.py runs

# The same examples on every machine, and no time limits: a slow machine is not a bug.
# Others, for a search: pytest --hypothesis-profile random
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile("same")

stage0 = stage_fixture("nemotron.recipes.nano2.stage0_pretrain")
stage1 = stage_fixture("nemotron.recipes.nano2.stage1_sft", after="stage0")
stage2 = stage_fixture("nemotron.recipes.nano2.stage2_rlvr", after="stage1")
stage3 = stage_fixture("nemotron.recipes.nano2.stage3_dpo", after="stage2")
stage4 = stage_fixture("nemotron.recipes.nano2.stage4_rlhf", after="stage3")
stage5 = stage_fixture("nemotron.recipes.nano2.stage5_compress", after="stage4")
