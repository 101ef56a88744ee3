"""`import nemotron` must stay fast, because every step imports it, even to print --help."""

import os
import subprocess
import sys
from pathlib import Path


def test_import_nemotron_loads_no_heavy_library():
    program = "import nemotron, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    loaded = loaded.stdout.split()
    heavy = {"torch", "daft", "pyarrow", "matplotlib", "numpy", "transformers", "tokenizers", "rich", "tyro", "sympy"}
    heavy |= {"wandb", "mlflow", "sqlalchemy", "lm_eval"}
    assert not heavy & set(loaded)
    assert {"nemotron", "pydantic"} <= set(loaded)


WITHOUT_POSIX = Path(__file__).parents[1] / "without_posix"
STEP = """
import os, sys
from pathlib import Path
from nemotron import Artifact
from nemotron.artifact import working_directory

class Dataset(Artifact):
    text_path: Path

for _ in range(2):
    with working_directory("dataset", Dataset) as work:
        (work / "text").write_text("text", encoding="utf-8")
        Dataset(path=work, text_path=work / "text").save()
print(hasattr(os, "sysconf"), "fcntl" in sys.modules, Dataset.load("dataset").text_path.name)
"""


def test_a_step_runs_without_fcntl_and_sysconf_and_says_once_that_nothing_is_locked(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(WITHOUT_POSIX), "PYTHONWARNINGS": "ignore:only soft file lock"}
    command = [sys.executable, "-c", STEP]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False", "text"]
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: the file system of ")
    assert "cannot lock directories (fcntl is unavailable); let no other process write to" in warning
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
