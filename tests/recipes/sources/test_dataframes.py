"""Daft is imported with its telemetry off, unless the user has set it."""

import os
import subprocess
import sys

import pytest

NAMES = ("DO_NOT_TRACK", "DAFT_ANALYTICS_ENABLED")


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, ["1", "0"]), ({"DO_NOT_TRACK": "0", "DAFT_ANALYTICS_ENABLED": "1"}, ["0", "1"])],
)
def test_telemetry_is_off_before_daft_is_imported(given: dict[str, str], expected: list[str]) -> None:
    program = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'daft': print(*map(os.environ.get, {NAMES}))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import nemotron.recipes.sources.dataframes"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert result.stdout.split() == expected
