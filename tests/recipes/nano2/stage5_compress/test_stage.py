"""Stage 5, run once at tiny scale on the model before it: it reproduces its golden, and it does its job."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.nano2.stage5_compress.search import Config as SearchConfig
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.nemotron_h.model import Mamba2Mixer
from nemotron.recipes.nemotron_h.pruning import Shape
from nemotron.recipes.training.batches import collate
from nemotron.recipes.training.distill import batch_kl_sum, held_out_losses

CONFIG = SearchConfig(scale="tiny")


def rows(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def pruned(stage5):
    return stage5.artifacts["pruned"]


@pytest.fixture(scope="module")
def models(stage5, pruned):
    checkpoints = {"teacher": stage5.dataset.base(), "pruned": pruned, "distilled": stage5.checkpoint,
                   "scratch": stage5.artifacts["control"]}  # fmt: skip
    return {name: load_checkpoint(one.checkpoint_path) for name, one in checkpoints.items()}


def test_the_stage_reproduces_its_golden(stage5, golden):
    assert golden(name="nano2/stage5_compress") == stage5.document


def test_the_steps_are_silent_on_stdout(stage5):
    assert stage5.stdout == ""


def test_the_artifacts_lead_from_the_control_to_the_earlier_stages(stage5, stage0, stage1, stage4, pruned):
    assert stage5.artifacts["control"].dataset_path == stage5.checkpoint.path
    assert stage5.checkpoint.dataset_path == pruned.path
    assert pruned.dataset_path == stage5.dataset.path
    assert stage5.dataset.base().digest == stage4.checkpoint.digest
    assert stage5.dataset.fine_tuning_path == stage1.dataset.path
    assert stage5.dataset.pretraining_path == stage0.dataset.path


def test_every_file_of_an_artifact_is_recorded(stage5):
    for artifact in stage5.artifacts.values():
        path = Path(artifact.path)
        found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"metadata.json"}
        assert found == set(artifact.files)


# --- the data ---


def test_the_blend_has_both_sources_in_every_part(stage5):
    assert list(stage5.dataset.blend) == ["calibration", "length_128", "length_256", "length_512"]
    for share in stage5.dataset.blend.values():
        total = sum(source.num_sequences for source in share.values())
        assert share["sft"].num_sequences == pytest.approx(0.7 * total, abs=1)
        assert share["pretraining"].num_sequences > 0


def test_nothing_that_is_held_out_is_trained_on(stage5):
    """A conversation of the validation is in no row; its text is of other modules, as curation of stage 0 ensures."""
    streams = [row["tokens"] for phase in stage5.dataset.phases for row in rows(*phase.paths(stage5.dataset.path))]
    joined = ["," + ",".join(map(str, tokens)) + "," for tokens in streams]
    for row in rows(stage5.dataset.validation_path):
        text = "," + ",".join(map(str, row["tokens"][:100])) + ","
        assert not [one for one in joined if text in one]


# --- pruning ---


def test_the_pruned_model_fits_the_budget_and_the_teacher_does_not(pruned):
    metrics = pruned.metrics
    assert metrics["pruned_bytes"] <= metrics["budget_bytes"] == CONFIG.budget_bytes < metrics["teacher_bytes"]


def test_the_groups_of_mamba_stay_and_every_head_keeps_its_size(models):
    ours, theirs = models["pruned"].config, models["teacher"].config
    assert (ours.n_groups, ours.mamba_head_dim, ours.ssm_state_size) == (
        theirs.n_groups,
        theirs.mamba_head_dim,
        theirs.ssm_state_size,
    )
    for layer in models["pruned"].backbone.layers:
        if isinstance(layer.mixer, Mamba2Mixer):
            assert layer.mixer.A_log.shape == (ours.mamba_num_heads,)


def test_the_first_candidates_that_fit_are_distilled_and_the_best_is_chosen(pruned, models):
    table = rows(pruned.tables_path / "candidates.parquet")
    tried = [row for row in table if row["fits"]][: CONFIG.num_candidates]
    assert [row["step"] for row in table if row["distilled_kl"] is not None] == [row["step"] for row in tried]
    assert all(row["distilled_kl"] < row["pruned_kl"] for row in tried)
    best = min(tried, key=lambda row: row["distilled_kl"])
    assert best["chosen"]
    shape = Shape.of(models["pruned"].config)
    assert (shape.hidden_size, shape.intermediate_size) == (best["hidden_size"], best["intermediate_size"])


# --- distillation ---


def test_the_teacher_stays_and_the_student_learns(stage5, stage4, models):
    assert torch.equal(
        models["teacher"].lm_head.weight, load_checkpoint(stage4.checkpoint.checkpoint_path).lm_head.weight
    )
    assert not torch.equal(models["pruned"].lm_head.weight, models["distilled"].lm_head.weight)


def test_the_loss_of_the_first_step_is_the_divergence_of_the_pruned_model(stage5, models):
    """Computed again from the rows, with the logits whole."""
    (first, *_) = rows(stage5.checkpoint.curve_path)
    table = pq.read_table(*stage5.dataset.phases[0].paths(stage5.dataset.path)).slice(0, 4)
    batch = collate(table)
    assert batch.digest == first["batch"]
    counts = batch.in_loss[:, 1:]
    with torch.no_grad():
        log_q, log_p = (
            models[name](batch.tokens[:, :-1], batch.segments[:, :-1])[counts].log_softmax(-1)
            for name in ("pruned", "teacher")
        )
        again = batch_kl_sum(models["pruned"], models["teacher"], batch, temperature=1.0, chunk_tokens=17)
    expected = (log_p.exp() * (log_p - log_q)).sum().item() / batch.num_in_loss
    assert first["loss"] == pytest.approx(expected, rel=1e-10)
    assert again.item() / batch.num_in_loss == pytest.approx(expected, rel=1e-10)


def test_the_validation_at_the_end_is_that_of_the_saved_model(stage5, models):
    losses = held_out_losses(models["distilled"], stage5.dataset.validation_path, stage5.dataset.shares(),
                             batch_tokens=500, dtype="float64", device="cpu")  # fmt: skip
    for source in ("sft", "pretraining"):
        assert stage5.checkpoint.metrics[f"validation_loss/{source}"] == pytest.approx(losses[source], rel=1e-10)
        assert stage5.results.metrics[f"loss/{source}/distilled"] == pytest.approx(losses[source], rel=1e-10)
    assert stage5.checkpoint.metrics["validation_loss/kl"] == pytest.approx(stage5.results.metrics["kl/all/distilled"])


# --- the results ---


def test_distillation_brings_back_part_of_what_pruning_lost(stage5):
    metrics = stage5.results.metrics
    assert metrics["loss/sft/teacher"] < metrics["loss/sft/distilled"] < metrics["loss/sft/pruned"]
    assert metrics["kl/all/distilled"] < metrics["kl/all/pruned"]
    assert metrics["recovered"] > 0.3
    assert metrics["recovered_kl"] > 0.4


def test_a_teacher_is_worth_more_than_the_same_tokens_without_one(stage5):
    metrics = stage5.results.metrics
    assert metrics["loss/sft/distilled"] < metrics["loss/sft/scratch"]
    assert metrics["better_than_scratch"] > 0.5
    assert metrics["better_than_scratch_kl"] > 0.5


def test_the_distilled_model_is_smaller_and_needs_less_memory(stage5):
    metrics = stage5.results.metrics
    assert metrics["num_parameters/distilled"] < 0.8 * metrics["num_parameters/teacher"]
    parts = [name.split("/")[1] for name in metrics if name.startswith("memory_bytes/") and name.endswith("/teacher")]
    ours, theirs = (sum(metrics[f"memory_bytes/{part}/{name}"] for part in parts) for name in ("distilled", "teacher"))
    assert ours < theirs


def test_no_measure_is_a_column_of_zeros(stage5):
    """Exact match is 0 at this size; the nats of right replies take its place."""
    metrics = stage5.results.metrics
    for measure in ("loss/sft", "loss/pretraining", "nats/math", "nats/safety"):
        values = {metrics[f"{measure}/{model}"] for model in ("teacher", "pruned", "scratch", "distilled")}
        assert len(values) == 4, measure
        assert 0 not in values, measure
