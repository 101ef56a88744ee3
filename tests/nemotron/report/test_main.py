"""The program `python -m nemotron.report`."""

import subprocess
import sys


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemotron.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


def test_it_prints_the_path_of_the_page_and_imports_no_torch(hostile_run):
    code = (
        "import sys; from nemotron.report.__main__ import main; sys.argv = ['report', sys.argv[1]]; main(); "
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, hostile_run], capture_output=True, encoding="utf-8", check=True)
    assert (done.stdout, done.stderr) == (f"{hostile_run / 'report.html'}\n", "False\n")
    assert (hostile_run / "report.md").is_file()


def test_a_mistake_is_one_sentence(tmp_path):
    done = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {tmp_path} holds no finished step; ")
    assert not list(tmp_path.iterdir())
