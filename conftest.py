"""Stage fixtures and settings of this repository's suite; what they do is in nemotron/testing/."""

from pathlib import Path

import hypothesis
import pytest

from nemotron.testing.stage import StageRun, run_stage

pytest_plugins = ["nemotron.testing.plugin"]

# The same examples on every machine, and no time limits: a slow machine is no bug.
# Others, for a search: pytest --hypothesis-profile random
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def stage0(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    """Stage 0 of Nano 2 at tiny scale, run once."""
    from nemotron.recipes.nano2.stage0_pretrain import data_curation, evaluation, training

    directory: Path = tmp_path_factory.mktemp("stage0_pretrain")
    return run_stage("nano2/stage0_pretrain", data_curation, training, evaluation, directory)
