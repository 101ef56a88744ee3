"""The same tiny run elsewhere: other kernels, threads, hash seed, directory, locale, time zone."""

from nemotron.testing.alarms import Cell, run_in_cell, supported_kernels
from nemotron.testing.compare import Policy, compare, encode_golden
from nemotron.testing.stage import stage_document


def test_another_environment_gives_the_same_ids_and_the_same_losses(stage0, tmp_path):
    """A cell that differs in everything from this process; test_pipes.py has another, `nox -s alarms` runs them all."""
    kernels = supported_kernels()[: len(supported_kernels()) // 2 + 1][-1]
    run_in_cell(stage0.name, Cell(kernels, "2", "random", 0), tmp_path)
    comparison = compare(encode_golden(stage0.document, Policy()), stage_document(stage0.name, tmp_path / "run"))
    assert comparison.equal, "\n".join(comparison.lines())
