"""The evaluation steps of all stages, on the checkpoints of the runs at tiny scale."""

import importlib

import pytest
import torch

from nemotron.recipes.nemotron_h import threads


@pytest.mark.parametrize("stage", ["stage0", "stage1", "stage2", "stage4", "stage5"])
def test_evaluation_at_tiny_computes_with_one_thread(stage, request, tmp_path, monkeypatch):
    """As it must where the user chose nothing; tests/recipes/training/test_run.py has the same of training."""
    run = request.getfixturevalue(stage)
    evaluation = importlib.import_module(run.results.producer["step"])

    class Loaded(Exception):
        pass

    def note(*arguments, **keywords):
        raise Loaded(torch.get_num_threads())

    monkeypatch.setattr(threads, "chosen_by_user", lambda num_threads: False)
    loads = next(name for name in ("load_checkpoint", "load_for_inference") if hasattr(evaluation, name))
    monkeypatch.setattr(evaluation, loads, note)
    config = evaluation.Config(checkpoint_path=run.checkpoint.path, output_dir=tmp_path / "evaluation")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(Loaded, match=r"^1$"):
            evaluation.main(config)
    finally:
        torch.set_num_threads(before)
