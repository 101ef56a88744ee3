"""A plugin with its own fixture `golden`."""

import pytest


@pytest.fixture
def golden():
    return 42


class Stage:
    stage = "not a stage of a recipe"

    def __call__(self):
        return 1


stage0 = pytest.fixture(Stage().__call__, name="stage0")
