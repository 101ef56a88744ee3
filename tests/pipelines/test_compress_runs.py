"""Whole runs of stage 5 on a random teacher and few rows: the blend, the search, resuming, refusing, comparing."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from nemotron.recipes.chat.program import Config as ChatConfig
from nemotron.recipes.chat.program import load_chat
from nemotron.recipes.curation.rows import planned_phase, write_rows
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Dataset as PretrainingDataset
from nemotron.recipes.nano2.stage1_sft.data_curation import Dataset as FineTuningDataset
from nemotron.recipes.nano2.stage5_compress import control, data_curation, evaluation, search, training
from nemotron.recipes.nano2.stage5_compress.final import FinalStages
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_tensors
from nemotron.recipes.nemotron_h.pruning import choose, measure_importance, prune
from nemotron.recipes.training.batches import collate
from nemotron.recipes.training.distill import batch_kl_sum
from nemotron.recipes.training.run import Checkpoint, Run

VOCABULARY = 400
ROW = {"tokens": pa.list_(pa.int32()), "in_loss": pa.list_(pa.bool_()), "segments": pa.list_(pa.int32())}
FEW = {
    "calibration_samples": 4,
    "lengths": (16, 32),
    "sequences": (12, 4),
    "validation_rows": 2,
    "exercises_per_family": 1,
}
GRID = {
    "budget_bytes": 400_000,
    "depths": (4, 5),
    "hidden_sizes": (48, 64),
    "intermediate_sizes": (192, 256),
    "mamba_heads": (6, 8),
    "num_candidates": 2,
    "candidate_steps": 2,
    "batch_sequences": 4,
}
PARTS = {"batch_sequences": (4, 2), "micro_batch_sequences": (4, 2), "checkpoint_every_steps": 2, "warmup_steps": 1}


class Stopped(Exception):
    pass


def numbers(generator, count):
    return torch.randint(20, VOCABULARY, (count,), generator=generator).tolist()


def conversations(generator, rows):
    """Rows of two conversations each."""
    for _ in range(rows):
        yield {"tokens": numbers(generator, 20), "in_loss": [False] * 5 + [True] * 15, "segments": [0] * 9 + [1] * 11}


def earlier_stages(path):
    """The Datasets of pretraining and of fine-tuning, with few rows of random tokens."""
    generator = torch.Generator().manual_seed(0)
    for name in ("pretraining", "fine_tuning"):
        (path / name / "tokenizer").mkdir(parents=True)
        (path / name / "tokenizer" / "file").write_text("")
        for other in ("problems", "recall", "documents", "exercises", "samples"):
            (path / name / other).write_text("")
    phases = [planned_phase(f"phase{n}", 6, 10) for n in (1, 2, 3)]
    for phase in phases:
        rows = [{"category": ("code", "math", "code")[n % 3], "tokens": numbers(generator, 11)} for n in range(6)]
        write_rows(*phase.paths(path / "pretraining"), rows, category=pa.string(), tokens=ROW["tokens"])
    held_out = [{"category": name, "tokens": numbers(generator, 11)} for name in ("code", "math") for _ in range(3)]
    for name in ("validation", "long"):
        write_rows(path / "pretraining" / name, held_out, category=pa.string(), tokens=ROW["tokens"])
    directory = path / "pretraining"
    pretraining = PretrainingDataset(
        path=directory, num_examples=18, num_documents=1, vocab_size=VOCABULARY, sequence_length=10,
        long_context_length=10, tokenizer_path=directory / "tokenizer", phases=phases,
        validation_path=directory / "validation", long_validation_path=directory / "long",
        problems_path=directory / "problems", recall_path=directory / "recall",
        documents_path=directory / "documents", quality_groups={}, filters={}, unreadable=[], num_unreadable=0,
        scorers=[], attribution=[], blend={}, absent_categories=[],
    ).save()  # fmt: skip
    directory = path / "fine_tuning"
    parts = [planned_phase(name, 8, 20) for name in ("everything", "tools", "long_context")]
    for part in parts:
        write_rows(*part.paths(directory), conversations(generator, 8), **ROW)
    held_out = [
        {"family": family, "tokens": numbers(generator, 12), "in_loss": [False] * 6 + [True] * 6, "segments": [0] * 12}
        for family in ("math", "safety")
        for _ in range(3)
    ]
    write_rows(directory / "validation", held_out, **ROW, family=pa.string())
    return pretraining, directory, parts


@pytest.fixture(scope="module")
def teacher(random_base_model, tmp_path_factory):
    """A model of random weights with the chat template, and the Datasets that it was made from."""
    path = tmp_path_factory.mktemp("earlier")
    (path / "teacher").mkdir()
    base = random_base_model(path / "teacher", CHAT.template)
    pretraining, directory, parts = earlier_stages(path)
    shutil.rmtree(directory / "tokenizer")
    shutil.copytree(base.checkpoint_path, directory / "tokenizer")
    fine_tuning = FineTuningDataset(
        path=directory, num_examples=24, num_conversations=48, base_checkpoint_path=pretraining.path,
        sequence_length=20, long_context_length=20, tokenizer_path=directory / "tokenizer", phases=parts,
        validation_path=directory / "validation", exercises_path=directory / "exercises",
        samples_path=directory / "samples", filters={}, unreadable=[], num_unreadable=0, num_emptied_traces=0,
        num_cut_traces=0, attribution=[],
    ).save()  # fmt: skip
    return base.model_copy(update={"dataset_path": fine_tuning.path}).save()


def curated(teacher, tmp_path, **changes):
    given = FEW | {"base_checkpoint_path": teacher.path, "output_dir": tmp_path / "data_curation"}
    return data_curation.Config(**(given | changes))


@pytest.fixture(scope="module")
def dataset(teacher, tmp_path_factory):
    return data_curation.main(curated(teacher, tmp_path_factory.mktemp("curated")))


def searched(dataset, tmp_path, **changes):
    return search.Config(**(GRID | changes), dataset_path=dataset.path, output_dir=tmp_path / "search")


@pytest.fixture(scope="module")
def pruned(dataset, tmp_path_factory):
    return search.main(searched(dataset, tmp_path_factory.mktemp("searched")))


def configured(pruned, tmp_path, **changes):
    given = PARTS | {"learning_rate": 5e-4} | changes  # a random teacher and its student are near each other
    return training.Config(**given, checkpoint_path=pruned.path, output_dir=tmp_path / "training")


@pytest.fixture(scope="module")
def distilled(pruned, tmp_path_factory):
    return training.main(configured(pruned, tmp_path_factory.mktemp("distilled"), validate_every_steps=2))


@pytest.fixture(scope="module")
def scratch(distilled, tmp_path_factory):
    directory = tmp_path_factory.mktemp("control") / "control"
    return control.main(control.Config(**PARTS, checkpoint_path=distilled.path, output_dir=directory))


def rows(path):
    return pq.read_table(path).to_pylist()


def logits_of(path, tokens):
    with torch.no_grad():
        return load_checkpoint(path)(tokens)


# --- the data ---


def test_the_rungs_of_curation_follow_the_order_of_events(dataset):
    ladder = json.loads((dataset.path / "ladder.json").read_text())
    assert list(dict.fromkeys(entry["rung"] for entry in ladder)) == ["config", "blend", "token ids", "exercises"]


def test_every_file_has_the_shares_of_the_blend_at_every_point(dataset):
    for phase in dataset.phases:
        sources = [row["source"] for row in rows(*phase.paths(dataset.path))]
        assert len(sources) == phase.num_sequences
        for number in range(2, len(sources) + 1):
            assert abs(sources[:number].count("sft") - 0.7 * number) <= 1


def test_conversations_lie_end_to_end_and_are_read_on_from_file_to_file(teacher, dataset):
    """Calibration and the first part read one stream; a row begins with the last token of the one before."""
    fine_tuning = teacher.dataset_path
    stream = [token for row in rows(fine_tuning / "everything" / "00000.parquet") for token in row["tokens"]]
    files = [dataset.calibration_path, dataset.path / "length_16"]
    read = [row["tokens"] for file in files for row in rows(file) if row["source"] == "sft"]
    assert [len(row) for row in read] == [17] * len(read)
    places = np.arange(16 * len(read) + 1) % len(stream)
    assert [token for row in read for token in row[:-1]] == [stream[place] for place in places[:-1]]


def test_rows_longer_than_those_of_fine_tuning_are_of_its_long_part(teacher, dataset):
    long = [token for row in rows(teacher.dataset_path / "long_context") for token in row["tokens"]]
    first = next(row for row in rows(dataset.path / "length_32") if row["source"] == "sft")
    assert first["tokens"] == long[:33]


def test_no_token_is_predicted_from_another_conversation(dataset):
    for row in rows(dataset.path / "length_16"):
        starts = [i for i in range(1, 17) if row["segments"][i] != row["segments"][i - 1]]
        assert [i for i, counts in enumerate(row["in_loss"]) if not counts] == starts
        assert bool(starts) == (row["source"] == "sft")


def test_the_text_is_that_of_the_last_phases_by_category(teacher, dataset):
    pretraining = PretrainingDataset.load(dataset.pretraining_path)
    of_category = {"code": [], "math": []}
    for name in ("phase2", "phase3"):
        for row in rows(pretraining.path / name):
            of_category[row["category"]] += row["tokens"][:-1]
    read = [row["tokens"] for row in rows(dataset.calibration_path) if row["source"] == "pretraining"]
    assert read[0] == of_category["code"][:17]


def test_held_out_rows_count_what_the_earlier_stages_counted(dataset):
    found = rows(dataset.validation_path)
    assert [row["source"] for row in found] == ["sft"] * 4 + ["pretraining"] * 4
    assert found[0]["in_loss"] == [False] * 6 + [True] * 6
    assert found[-1]["in_loss"] == [False] + [True] * 10


# --- the search ---


def test_the_rungs_of_the_search_follow_the_order_of_events(pruned):
    ladder = json.loads((pruned.path / "ladder.json").read_text())
    assert list(dict.fromkeys(entry["rung"] for entry in ladder)) == [
        "config", "inputs", "importance", "candidates", "curve", "validation", "final weights", "headline",
    ]  # fmt: skip


def test_the_table_has_every_shape_and_the_chosen_one_is_the_best_that_was_tried(pruned):
    table = rows(pruned.tables_path / "candidates.parquet")
    assert len(table) == 2 * 2 * 2 * 2
    assert [row["total_bytes"] for row in table] == sorted((row["total_bytes"] for row in table), reverse=True)
    tried = [row for row in table if row["distilled_kl"] is not None]
    assert tried == [row for row in table if row["fits"]][:2]
    assert all(row["distilled_kl"] != row["pruned_kl"] for row in tried)  # the candidate learned, and not the teacher
    (chosen,) = (row for row in table if row["chosen"])
    assert chosen["distilled_kl"] == min(row["distilled_kl"] for row in tried)
    assert chosen["total_bytes"] == pruned.metrics["pruned_bytes"] <= pruned.metrics["budget_bytes"]
    assert chosen["num_parameters"] == pruned.num_parameters


def test_the_pruned_model_is_sliced_out_of_the_teacher_by_importance(dataset, pruned):
    teacher = load_checkpoint(dataset.base().checkpoint_path)
    calibration = [torch.tensor([row["tokens"][:-1] for row in rows(dataset.calibration_path)])]
    importance = measure_importance(teacher, calibration, num_layers=4, num_attention_layers=1)
    found = load_checkpoint(pruned.checkpoint_path)
    kept = choose(importance, teacher.config, search.Shape.of(found.config))
    for name, tensor in prune(teacher, kept).state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name


def test_transformers_loads_the_pruned_model_and_gives_the_same_logits(pruned):
    tokens = torch.randint(20, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    twin = AutoModelForCausalLM.from_pretrained(pruned.checkpoint_path, dtype=torch.float64)
    with torch.no_grad():
        theirs = twin(tokens).logits
    # transformers computes the scan and the logits in float32.
    torch.testing.assert_close(logits_of(pruned.checkpoint_path, tokens), theirs.double(), rtol=1e-4, atol=1e-5)


def test_the_candidates_are_distilled_on_the_same_batches(pruned):
    curve = rows(pruned.curve_path)
    by_name = {}
    for row in curve:
        by_name.setdefault(row["phase"], []).append(row["batch"])
    assert len(by_name) == 2
    assert len({tuple(batches) for batches in by_name.values()}) == 1


def test_micro_batches_and_chunks_do_not_change_the_search(dataset, pruned, tmp_path):
    changes = {"calibration_batch": 3, "micro_batch_sequences": 3, "chunk_tokens": 7}
    other = search.main(searched(dataset, tmp_path, **changes))
    for ours, theirs in zip(rows(other.curve_path), rows(pruned.curve_path), strict=True):
        assert ours["batch"] == theirs["batch"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)
    for name, tensor in load_tensors(other.checkpoint_path / "model.safetensors").items():
        assert torch.equal(tensor, load_tensors(pruned.checkpoint_path / "model.safetensors")[name])


def distillations_counted(monkeypatch):
    """A list that grows with every short distillation."""
    calls, real = [], search.short_distillation
    monkeypatch.setattr(search, "short_distillation", lambda *given: calls.append(1) or real(*given))
    return calls


@pytest.mark.parametrize("resume", [True, False])
def test_a_stopped_search_repeats_no_candidate_that_was_finished(dataset, pruned, tmp_path, monkeypatch, resume):
    config, real = searched(dataset, tmp_path), search.held_out_divergences
    with monkeypatch.context() as patch:
        calls = []

        def stop(*given, **named):
            calls.append(1)
            if len(calls) == 4:  # the second candidate, after its distillation
                raise Stopped
            return real(*given, **named)

        patch.setattr(search, "held_out_divergences", stop)
        with pytest.raises(Stopped):
            search.main(config)
    distilled = distillations_counted(monkeypatch)
    assert search.main(replace(config, resume=resume)).digest == pruned.digest
    assert len(distilled) == 1
    assert search.main(replace(config, resume=True)).digest == pruned.digest  # finished: nothing is left to do
    assert len(distilled) == 1


def test_a_killed_search_resumes_to_the_same_bits(dataset, tmp_path, monkeypatch):
    """Killed as soon as its first candidate is on disk."""
    config = searched(dataset, tmp_path, num_candidates=4)
    flags = [f"--{name.replace('_', '-')}" for name in GRID]
    values = [" ".join(map(str, value)) if isinstance(value, tuple) else str(value)
              for value in (GRID | {"num_candidates": 4}).values()]  # fmt: skip
    given = [word for pair in zip(flags, values, strict=True) for word in " ".join(pair).split()]
    command = [sys.executable, "-m", "nemotron.recipes.nano2.stage5_compress.search", *given,
               "--dataset-path", str(dataset.path), "--output-dir", str(config.output_dir)]  # fmt: skip
    unfinished = tmp_path / "search.incomplete" / "finished_parts"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not list(unfinished.glob("*.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -9
    assert not config.output_dir.exists()
    done = len(list(unfinished.glob("*.json")))
    distilled = distillations_counted(monkeypatch)
    resumed = search.main(replace(config, resume=True))
    assert len(distilled) == 4 - done < 4
    undisturbed = search.main(searched(dataset, tmp_path / "other", num_candidates=4))
    assert resumed.digest == undisturbed.digest


def test_a_search_does_not_resume_with_another_grid(dataset, tmp_path, monkeypatch):
    config = searched(dataset, tmp_path, flag_prefix="prune.")  # as in the command of the stage
    with monkeypatch.context() as patch:
        patch.setattr(search, "plot_importance", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            search.main(config)
    sentence = r"search\.incomplete was begun with candidate_steps=2, not 1; use the same, or drop --prune\.resume to"
    with pytest.raises(ValueError, match=sentence):
        search.main(replace(config, candidate_steps=1, resume=True))


# --- distillation and control ---


def test_the_parts_have_rows_that_grow_longer(dataset, distilled):
    curve = rows(distilled.curve_path)
    assert [row["phase"] for row in curve] == ["length_16"] * 3 + ["length_32"] * 2
    assert sum(row["tokens"] for row in curve) == sum(
        sum(row["in_loss"][1:]) for phase in dataset.phases for row in rows(*phase.paths(dataset.path))
    )


def test_distillation_brings_the_student_nearer_to_the_teacher(pruned, distilled, dataset):
    before, after = (
        evaluation.held_out_divergences(
            load_checkpoint(one.checkpoint_path), load_checkpoint(dataset.base().checkpoint_path),
            dataset.validation_path, dataset.shares(), chunk_tokens=64, dtype="float64", device="cpu",
        )["all"]
        for one in (pruned, distilled)
    )  # fmt: skip
    assert 0 < after < before


def test_micro_batches_and_chunks_do_not_change_distillation(pruned, distilled, tmp_path):
    changes = {"micro_batch_sequences": (3, 1), "chunk_tokens": 5, "validate_every_steps": 2}
    other = training.main(configured(pruned, tmp_path, **changes))
    for ours, theirs in zip(rows(other.curve_path), rows(distilled.curve_path), strict=True):
        assert ours["batch"] == theirs["batch"]
        for name in ("loss", "grad_norm", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-8), name


def test_the_control_reads_the_batches_of_distillation_and_has_its_shape(distilled, scratch):
    ours, theirs = rows(scratch.curve_path), rows(distilled.curve_path)
    assert [row["batch"] for row in ours] == [row["batch"] for row in theirs]
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    assert scratch.num_parameters == distilled.num_parameters
    assert scratch.dataset_path == distilled.path
    assert abs(ours[0]["loss"] - np.log(VOCABULARY)) < 0.5  # it knows nothing yet


def stop_after_a_state(monkeypatch, step):
    real = Run.keep_state

    def keep(run):
        real(run)
        if run.step == step:
            raise Stopped

    monkeypatch.setattr(Run, "keep_state", keep)


@pytest.mark.parametrize("step", [2, 4])
def test_a_stopped_distillation_resumes_to_the_same_bits(pruned, distilled, tmp_path, monkeypatch, step):
    config = configured(pruned, tmp_path, validate_every_steps=2)
    with monkeypatch.context() as patch:
        stop_after_a_state(patch, step)
        with pytest.raises(Stopped):
            training.main(config)
    with pytest.raises(ValueError, match=r"holds an unfinished run at step-0000\d+; add --resume"):
        training.main(config)
    assert training.main(replace(config, resume=True)).digest == distilled.digest


def test_a_stopped_control_resumes_to_the_same_bits(distilled, scratch, tmp_path, monkeypatch):
    config = control.Config(**PARTS, checkpoint_path=distilled.path, output_dir=tmp_path / "control")
    with monkeypatch.context() as patch:
        stop_after_a_state(patch, 2)
        with pytest.raises(Stopped):
            control.main(config)
    assert control.main(replace(config, resume=True)).digest == scratch.digest


def test_a_student_that_is_not_a_checkpoint_is_refused_before_any_work(teacher, dataset, tmp_path):
    with pytest.raises(ValueError, match=r"type='dataset', written by .*, expected 'checkpoint'; give the pa"):
        data_curation.main(curated(teacher, tmp_path, student_path=dataset.path))
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_there_already_is_distilled_into(teacher, distilled, dataset, tmp_path):
    """As in the final stages: the Dataset names the student, and its teacher is the same."""
    again = data_curation.main(curated(teacher, tmp_path, student_path=distilled.path))
    given = {"dataset_path": again.path, "output_dir": tmp_path / "training", "learning_rate": 1e-4}
    made = training.main(training.Config(**(PARTS | given)))
    assert made.dataset_path == again.path
    ladder = json.loads((made.path / "ladder.json").read_text())
    before = json.loads((distilled.path / "ladder.json").read_text())
    weights = [
        [entry["value"] for entry in one if entry["rung"] == rung]
        for one, rung in ((before, "final weights"), (ladder, "initial weights"))
    ]
    assert weights[0] == weights[1]
    (first, *_) = rows(made.curve_path)
    batch = collate(pq.read_table(*again.phases[0].paths(again.path)).slice(0, 4))
    student, base = (load_checkpoint(one.checkpoint_path) for one in (distilled, dataset.base()))
    with torch.no_grad():
        kl = batch_kl_sum(student, base, batch, temperature=1.0, chunk_tokens=64).item()
    assert first["loss"] == pytest.approx(kl / batch.num_in_loss, rel=1e-10)


def test_a_dataset_without_a_student_is_refused(dataset, tmp_path):
    config = training.Config(dataset_path=dataset.path, output_dir=tmp_path / "training")
    with pytest.raises(ValueError, match=r"names no model to distill into; give the pruned Checkpoint with --checkpoi"):
        training.main(config)


def test_a_finished_distillation_is_not_repeated(pruned, distilled, capsys):
    config = configured(pruned, distilled.path.parent, validate_every_steps=2, resume=True)
    assert training.main(config).digest == distilled.digest
    assert "is finished; nothing to resume" in capsys.readouterr().err


def test_the_chat_loads_the_distilled_model(distilled):
    talk = load_chat(CHAT, ChatConfig(distilled.path, max_new_tokens=3, temperature=0.0))
    assert "".join(text for text, _ in talk.reply("Hi")).strip() is not None


# --- evaluation ---


def evaluated(given, tmp_path, **changes):
    return evaluation.main(
        evaluation.Config(**({"max_new_tokens": 4, "speed_tokens": 2, "constant_replies": 3} | changes),
                          checkpoint_path=given.path, output_dir=tmp_path / "evaluation")
    )  # fmt: skip


def test_the_results_compare_all_models_and_have_the_same_bytes_again(dataset, pruned, distilled, scratch, tmp_path):
    results = [
        evaluated(scratch, tmp_path / str(size), batch_replies=size, batch_tokens=64 * size, chunk_tokens=size)
        for size in (128, 3)
    ]
    for name in ("table_path", "plot_path", "recovery_plot_path"):
        assert getattr(results[0], name).read_bytes() == getattr(results[1], name).read_bytes()
    metrics = results[0].metrics
    assert results[0].checkpoint_path == distilled.path
    for model in ("teacher", "pruned", "scratch", "distilled"):
        assert f"exact_match/all/{model}" in metrics
    assert metrics["num_parameters/teacher"] > metrics["num_parameters/distilled"] == distilled.num_parameters
    parts = ("weights", "keys and values", "scan states", "convolution windows")
    assert sum(metrics[f"memory_bytes/{part}/pruned"] for part in parts) == pruned.metrics["pruned_bytes"]
    gap, whole = (metrics[f"kl/all/{name}"] for name in ("distilled", "pruned"))
    assert metrics["recovered_kl"] == pytest.approx(1 - gap / whole)


def test_the_merge_of_the_final_stages_is_compared_too(scratch, distilled, tmp_path):
    """Here it is the distilled model itself, so both have the same numbers."""
    last = FinalStages(path=tmp_path / "final", given_path=scratch.path, checkpoint_path=distilled.path).save()
    results = evaluated(last, tmp_path)
    assert (results.given_path, results.checkpoint_path) == (last.path, distilled.path)
    both = {name: value for name, value in results.metrics.items() if name.endswith("/final")}
    assert len(both) > 20
    for name, value in both.items():
        if not name.startswith("difference"):
            assert value == results.metrics[name.removesuffix("final") + "distilled"], name


def test_without_a_control_the_distilled_model_is_evaluated(distilled, tmp_path, capsys):
    results = evaluated(distilled, tmp_path)
    assert results.checkpoint_path == distilled.path
    assert "exact_match/all/distilled" in results.metrics
    assert not [name for name in results.metrics if "scratch" in name]
    said = capsys.readouterr().err
    for name in ("teacher", "pruned", "distilled"):
        assert f"{name}: " in said
    assert "tokens/s decoded" in said
    assert "tokens/s" not in results.table_path.read_text()


# --- what is refused ---


def test_a_missing_model_is_refused_with_the_command_that_makes_it(tmp_path):
    command = r"make one with python -m nemotron\.recipes\.nano2\.stage4_rlhf --scale small, or name one"
    with pytest.raises(ValueError, match=command):
        data_curation.main(data_curation.Config(scale="small", base_checkpoint_path=tmp_path / "no"))


def test_a_model_without_the_earlier_datasets_is_refused(random_base_model, tmp_path):
    sentence = r"was not made from anything that nemotron\.recipes\.nano2\.stage1_sft\.data_curation wrote, or its dir"
    with pytest.raises(ValueError, match=sentence):
        data_curation.main(curated(random_base_model(tmp_path, CHAT.template), tmp_path))


def other_tokenizer(path, model):
    """Give a copy of a checkpoint another tokenizer."""
    save_tokenizer(train_tokenizer([Path(__file__).read_text()], 390), path)
    shutil.copy(path / "tokenizer.json", model)


def test_a_teacher_that_reads_other_tokens_than_the_data_is_refused(teacher, tmp_path):
    copy = Checkpoint.load(path=shutil.copytree(teacher.path, tmp_path / "teacher"))
    other_tokenizer(tmp_path / "tokenizer", copy.checkpoint_path)
    other = copy.model_copy(update={"dataset_path": teacher.dataset_path}).save()
    with pytest.raises(ValueError, match=r"differs from .*, so the data has the token ids of another model; curate"):
        data_curation.main(curated(other, tmp_path))


def test_a_student_with_another_tokenizer_is_refused(pruned, tmp_path):
    copy = Checkpoint.load(path=shutil.copytree(pruned.path, tmp_path / "search"))
    other_tokenizer(tmp_path / "tokenizer", copy.checkpoint_path)
    other = copy.model_copy(update={"dataset_path": pruned.dataset_path}).save()
    sentence = r"^the teacher .* and the student .* have different tokenizers; distill only into a model that reads"
    with pytest.raises(ValueError, match=sentence):
        training.main(configured(other, tmp_path))
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"budget_bytes": 10_000}, r"^budget_bytes=10,000 is below the .* bytes of the smallest candidate; raise"),
        ({"budget_bytes": 10**9}, r"^budget_bytes=1,000,000,000 is not below the .* bytes of the teacher"),
        ({"mamba_heads": (7,)}, r"^n_groups=2 does not divide mamba_num_heads=7; every group loses as many heads"),
        ({"hidden_sizes": (64, 72)}, r"^hidden_size=72 must be from 1 to 64, which the model has"),
        ({"candidate_steps": 4}, r"^candidate_steps=4 with batch_sequences=4 read 16 rows, and length_16 has 12; give"),
        ({"depths": (6,)}, r"^num_layers=6 must be from 1 to 5, which the model has"),
        ({"attention_layers": 2}, r"^num_attention_layers=2 must be from 1 to 1, which the model has"),
    ],
)
def test_a_search_that_has_no_answer_is_refused_before_anything_is_measured(
    dataset, tmp_path, monkeypatch, changes, sentence
):
    monkeypatch.setattr(search, "measure_importance", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(ValueError, match=sentence):
        search.main(searched(dataset, tmp_path, **changes))
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize("name", ["batch_sequences", "micro_batch_sequences"])
def test_batches_for_another_number_of_lengths_are_refused(pruned, tmp_path, name):
    with pytest.raises(ValueError, match=rf"^{name}=\(4, 2, 1\) and the data has 2 lengths of rows; give one number"):
        training.main(configured(pruned, tmp_path, **{name: (4, 2, 1)}))


def test_a_warmup_longer_than_the_run_is_refused(pruned, tmp_path):
    with pytest.raises(ValueError, match=r"^warmup_steps=5, and the dataset has rows for 5 steps; give fewer warmup"):
        training.main(configured(pruned, tmp_path, warmup_steps=5))


def test_a_model_of_another_scale_is_refused(distilled, tmp_path):
    config = evaluation.Config(scale="small", checkpoint_path=distilled.path, output_dir=tmp_path / "evaluation")
    with pytest.raises(ValueError, match=r"scale=small, but .* was trained at tiny; use --scale tiny"):
        evaluation.main(config)
