"""`import nemotron` must stay fast, because every step imports it, even to print --help."""

import subprocess
import sys


def test_import_nemotron_loads_no_heavy_library():
    program = "import nemotron, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "daft", "pyarrow", "matplotlib", "numpy", "transformers", "tokenizers", "rich", "tyro", "sympy"}
    assert not heavy & set(loaded)
    assert {"nemotron", "pydantic"} <= set(loaded)
