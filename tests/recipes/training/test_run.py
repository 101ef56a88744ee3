"""The paperwork of a run, tried with a loop that makes its own data and holds a second model: a small GRPO."""

import copy
import json
import os
import re
import shutil
from dataclasses import asdict
from itertools import chain, repeat
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import Artifact
from nemotron.config import ScaledConfig, at_every_scale, switch
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config
from nemotron.recipes.nemotron_h.generate import Sampling, generate
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize, parameter_groups
from nemotron.recipes.training.batches import Batch
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.progress import TrainingProgress
from nemotron.recipes.training.run import Checkpoint, is_done, training_run
from nemotron.recipes.training.state import complete_states, identity_of, read_training_state

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=16, hybrid_override_pattern="M-*", intermediate_size=32, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, mamba_num_heads=2, mamba_head_dim=8, n_groups=1, ssm_state_size=8, chunk_size=8,
    max_position_embeddings=64,
)  # fmt: skip
PROMPTS = [[20, 30, 40], [50, 60]]
GROUP = 4
TOTAL_STEPS = 4
BATCH = Batch(torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2))


@dataclass
class Config(ScaledConfig):
    """Of the loop below."""

    output_dir: Path = Path("run")
    """A place."""
    learning_rate: float = 0.01
    """Constant."""
    checkpoint_every_steps: PositiveInt = at_every_scale(1, recorded=False)
    """Steps between two states."""
    activation_checkpointing: bool = False
    """Off."""
    resume: bool = switch()
    """Continue."""


class Prompts(Artifact):
    """What the loop reads."""

    tokenizer_path: Path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts")
    save_tokenizer(train_tokenizer(["some text to learn merges from"] * 5, vocab_size=300), path / "tokenizer")
    return Prompts(path=path, tokenizer_path=path / "tokenizer").save()


def log_probabilities(model, tokens):
    """(b, t) of the tokens after the first."""
    return torch.log_softmax(model(tokens[:, :-1]), -1).gather(-1, tokens[:, 1:, None])[..., 0]


def grpo(config, prompts, interrupt_at=None, meanwhile=lambda run: None):
    """Reward replies for small token ids: rollouts, group advantages, ratio, KL to a frozen reference, one step."""
    policy = NemotronH(SHAPE, dtype=torch.float64)
    initialize(policy, config.seed)
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(policy, 0.0), lr=config.learning_rate)
    if is_done(config, prompts):
        return Checkpoint.load(config.output_dir)
    with training_run(config, policy, optimizer, prompts, TOTAL_STEPS) as run:
        while run.step < TOTAL_STEPS:
            asked = [prompt for prompt in PROMPTS for _ in range(GROUP)]
            seeds = [1000 * run.step + index for index in range(len(asked))]
            replies = generate(policy, asked, Sampling(max_new_tokens=6, temperature=1.0), seeds)
            rewards = torch.tensor([-sum(reply.tokens) / 1000 for reply in replies], dtype=torch.float64)
            groups = rewards.view(len(PROMPTS), GROUP)
            others = (groups.sum(1, keepdim=True) - groups) / (GROUP - 1)
            advantages = (groups - others).flatten()

            rows = [prompt + reply.tokens for prompt, reply in zip(asked, replies, strict=True)]
            width = max(map(len, rows))
            tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            in_loss = torch.tensor(
                [
                    [len(prompt) <= place < len(row) for place in range(width)]
                    for prompt, row in zip(asked, rows, strict=True)
                ]
            )
            batch = Batch(tokens, in_loss, torch.zeros_like(tokens))
            counts = in_loss[:, 1:]
            new = log_probabilities(policy, tokens)
            old, fixed = new.detach(), log_probabilities(reference, tokens)
            kl = torch.exp(fixed - new) - (fixed - new) - 1
            objective = torch.exp(new - old) * advantages[:, None] - 0.1 * kl
            loss = -(objective * counts).sum() / batch.num_in_loss
            optimizer.zero_grad()
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0).item()
            run.check_finite(loss=loss.item(), grad_norm=grad_norm)
            optimizer.step()
            mean_kl = (kl * counts).sum().item() / batch.num_in_loss
            numbers = {"loss": loss.item(), "grad_norm": grad_norm, "reward": rewards.mean().item(), "kl": mean_kl}
            run.note("rollouts", batch, **numbers)
            if run.step == TOTAL_STEPS:
                run.note_validation({"prompts": loss.item()})
            meanwhile(run)
            run.keep_state()
            if run.step == interrupt_at:
                raise KeyboardInterrupt
        run.save(prompts.tokenizer_path, {"num_prompts": len(PROMPTS)})
    return Checkpoint.load(config.output_dir)


@pytest.fixture(scope="module")
def trained(prompts, tmp_path_factory):
    return grpo(Config(output_dir=tmp_path_factory.mktemp("grpo") / "training"), prompts)


@pytest.mark.parametrize("scale", ["tiny", "small"])
def test_a_loop_computes_with_the_threads_of_its_scale(prompts, tmp_path, monkeypatch, scale):
    for name in [name for name in os.environ if name.startswith(("OMP_", "GOMP_", "MKL_NUM", "KMP_"))]:
        monkeypatch.delenv(name)
    before, found = torch.get_num_threads(), set()
    torch.set_num_threads(psutil.cpu_count())
    config = Config(scale=scale, output_dir=tmp_path / "training")
    try:
        grpo(config, prompts, meanwhile=lambda run: found.add(torch.get_num_threads()))
        assert torch.get_num_threads() == psutil.cpu_count()
    finally:
        torch.set_num_threads(before)
    assert found == {1 if scale == "tiny" else psutil.cpu_count()}


def test_what_the_loop_notes_is_in_curve_ladder_and_plot(trained):
    rows = pq.read_table(trained.curve_path).to_pylist()
    assert list(rows[0]) == ["step", "phase", "batch", "tokens", "loss", "grad_norm", "reward", "kl"]
    ladder = json.loads((trained.path / "ladder.json").read_text())
    curve = {(entry["name"], entry["step"]): entry["value"] for entry in ladder if entry["rung"] == "curve"}
    assert curve["reward", 3] == rows[3]["reward"]
    assert curve["kl", 3] == rows[3]["kl"] > 0 == rows[0]["kl"]  # the policy begins as the reference
    assert [entry["name"] for entry in ladder if entry["rung"] == "first step"] == ["reward", "kl"]
    assert all(label in trained.plot_path.read_text() for label in ("reward", "kl"))


def test_a_stage_adds_a_field_to_the_checkpoint_by_a_subclass(prompts, tmp_path):
    class Rewarded(Checkpoint):
        num_prompts: int

    model = NemotronH(SHAPE, dtype=torch.float64)
    initialize(model, 1)
    config, optimizer = Config(output_dir=tmp_path / "training"), torch.optim.AdamW(model.parameters())
    with training_run(config, model, optimizer, prompts, 1, checkpoint_class=Rewarded) as run:
        model.lm_head.weight.grad = torch.zeros_like(model.lm_head.weight)
        optimizer.step()
        run.note("phase", BATCH, loss=0.0)
        run.note_validation({"text": 0.0})
        run.keep_state()
        run.save(prompts.tokenizer_path, {}, num_prompts=2)
    assert Rewarded.load(tmp_path / "training").num_prompts == 2


def test_rungs_follow_the_order_of_events(trained):
    ladder = json.loads((trained.path / "ladder.json").read_text())
    assert list(dict.fromkeys(entry["rung"] for entry in ladder)) == [
        "config", "inputs", "batch order", "parameters", "initial weights", "loss", "grad_norm", "first step",
        "weights after step 1", "curve", "final weights", "validation",
    ]  # fmt: skip


def test_every_field_of_the_model_is_in_the_config_rung(trained):
    """Also those that change little, such as the epsilon of the norms."""
    ladder = json.loads((trained.path / "ladder.json").read_text())
    recorded = {entry["name"]: entry["value"] for entry in ladder if entry["rung"] == "config"}
    shape = asdict(load_config(trained.checkpoint_path)) | {"initializer_range": None}  # saved as what None means
    assert {f"model/{name}": value for name, value in shape.items()}.items() <= recorded.items()


@pytest.mark.parametrize("interrupt_at", [1, 3])
def test_a_loop_that_makes_its_own_data_resumes_to_the_same_bits(prompts, trained, tmp_path, interrupt_at):
    config = Config(output_dir=tmp_path / "training")
    with pytest.raises(KeyboardInterrupt):
        grpo(config, prompts, interrupt_at)
    resumed = grpo(Config(output_dir=tmp_path / "training", resume=True), prompts)
    assert resumed.digest == trained.digest


def strays(work):
    """What a killed run may leave in its working directory."""
    (work / "model").mkdir(exist_ok=True)
    (work / "model" / ".tmpAbc").write_text("cut short")
    (work / "notes.txt").write_text("stray")
    (work / "training_state" / "step-00000009.partial").mkdir()
    (work / "training_state" / "step-00000009.partial" / "model.safetensors").write_text("cut short")
    (next(work.glob("training_state/step-0000000?")) / ".nfs01").write_text("stray")


def test_what_a_killed_run_left_is_not_sealed_into_the_checkpoint(prompts, trained, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        grpo(Config(output_dir=tmp_path / "training"), prompts, interrupt_at=3)
    strays(tmp_path / "training.incomplete")
    resumed = grpo(Config(output_dir=tmp_path / "training", resume=True), prompts)
    assert resumed.digest == trained.digest
    assert list(resumed.files) == list(trained.files)
    assert "deleted what an unfinished run left" in capsys.readouterr().err


def test_what_was_written_and_not_moved_is_written_again(prompts, trained, tmp_path):
    """Killed between save() and the swap."""
    shutil.copytree(trained.path, tmp_path / "training.incomplete")
    resumed = grpo(Config(output_dir=tmp_path / "training", resume=True), prompts)
    assert resumed.digest == trained.digest


def test_a_run_that_was_killed_between_the_renames_of_its_swap_is_finished(prompts, trained, tmp_path, capsys):
    shutil.copytree(trained.path, tmp_path / "training.incomplete")
    shutil.copytree(trained.path, tmp_path / "training.incomplete.replaced")
    assert grpo(Config(output_dir=tmp_path / "training", resume=True), prompts).digest == trained.digest
    assert "is finished; nothing to resume" in capsys.readouterr().err


def test_a_checkpoint_holds_the_last_state_only(trained):
    assert [path.name for path in (trained.path / "training_state").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("load_again", [False, True])
def test_a_dataset_that_another_run_replaces_is_not_recorded(prompts, tmp_path, every, load_again):
    dataset = Prompts.load(shutil.copytree(prompts.path, tmp_path / "prompts"))
    save_tokenizer(train_tokenizer(["other text to learn merges from"] * 5, 300), tmp_path / "other" / "tokenizer")
    Prompts(path=tmp_path / "other", tokenizer_path=tmp_path / "other" / "tokenizer").save()

    def replace(run):
        if run.step == 2:
            shutil.rmtree(dataset.path)
            (tmp_path / "other").rename(dataset.path)
            if load_again:
                Prompts.load(dataset.path)

    config = Config(output_dir=tmp_path / "training", checkpoint_every_steps=every)
    with pytest.raises(ValueError, match=r"the prompts had digest .* when it was loaded, and now has"):
        grpo(config, dataset, meanwhile=replace)
    assert not (tmp_path / "training").exists()
    kept = [path.name for path in tmp_path.glob("training.incomplete/training_state/*")]
    assert kept == (["step-00000001"] if every == 1 else [])


def test_a_finished_run_is_not_run_again(prompts, trained, capsys):
    assert grpo(Config(output_dir=trained.path, resume=True), prompts, interrupt_at=1).digest == trained.digest
    assert "is finished; nothing to resume" in capsys.readouterr().err


def test_an_unfinished_run_is_refused_without_resume(prompts, tmp_path):
    config = Config(output_dir=tmp_path / "training", flag_prefix="train.")  # as in the command of a stage
    with pytest.raises(KeyboardInterrupt):
        grpo(config, prompts, interrupt_at=1)
    with pytest.raises(ValueError, match=r"holds an unfinished run at step-00000001; add --train\.resume"):
        grpo(config, prompts)


def test_a_finished_run_of_another_dataset_is_refused_with_a_flag_of_the_command(trained, tmp_path):
    config = Config(output_dir=trained.path, resume=True, flag_prefix="train.")
    with pytest.raises(ValueError, match=r"was trained on a dataset with digest .*, or drop --train\.resume to start"):
        is_done(config, trained)  # not what it was trained on


def test_a_loss_that_is_not_finite_ends_the_run_before_the_weights_change(prompts, tmp_path):
    config = Config(output_dir=tmp_path / "training", learning_rate=1e300)
    with pytest.raises(ValueError, match=r"step \d: loss=\S+ and grad_norm=\S+; delete .* and start over"):
        grpo(config, prompts)


@pytest.mark.parametrize(
    ("noted", "sentence"),
    [
        (
            [{"loss": 1.0, "kl": 0.0}, {"loss": 1.0}],
            "step 1 notes loss; note the same names at every step, here loss, kl",
        ),
        ([{"reward": 1.0}], "step 0 notes reward; .* with loss"),
        ([{"loss": 1.0, "tokens": 3}], "without step, phase, batch and tokens"),
        ([{"loss": 1.0, "kl": float("nan")}], "step 0: loss=1.0 and kl=nan; delete"),
        ([{"loss": 1.0}], "is at step 1 of 4; save it after the last step"),
        ([], "step 0: text=nan; delete"),
    ],
)
def test_what_could_not_be_compared_is_refused_when_it_is_noted(prompts, tmp_path, noted, sentence):
    model = NemotronH(SHAPE, dtype=torch.float64)
    initialize(model, 1)
    config, optimizer = Config(output_dir=tmp_path / "training"), torch.optim.AdamW(model.parameters())

    def loop():
        with training_run(config, model, optimizer, prompts, TOTAL_STEPS) as run:
            for numbers in noted:
                run.note("phase", BATCH, **numbers)
            if not noted:
                run.note_validation({"text": float("nan")})
            run.save(prompts.tokenizer_path, {})

    with pytest.raises(ValueError, match=sentence):
        loop()


@pytest.mark.parametrize(("every", "due"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (9, [4])])
def test_something_is_due_at_its_interval_and_after_the_last_step(prompts, tmp_path, every, due):
    found = []

    def loop(config):
        model = NemotronH(SHAPE, dtype=torch.float64)
        initialize(model, 1)
        optimizer = torch.optim.AdamW(model.parameters())
        with training_run(config, model, optimizer, prompts, TOTAL_STEPS) as run:
            while run.step < TOTAL_STEPS:
                model.lm_head.weight.grad = torch.zeros_like(model.lm_head.weight)
                optimizer.step()
                run.note("phase", BATCH, loss=0.0)
                found.extend([run.step] if run.is_due(every) else [])
                run.keep_state()
            run.save(prompts.tokenizer_path, {})

    loop(Config(output_dir=tmp_path / "training"))
    assert found == due


@pytest.mark.parametrize("every", [1, 3, 9])
def test_the_state_of_a_checkpoint_is_that_after_the_last_step(prompts, tmp_path, every):
    """Whoever trains on starts from the weights of the checkpoint, and from moments and a record that go with them."""
    config = Config(output_dir=tmp_path / "training", checkpoint_every_steps=every)
    checkpoint = grpo(config, prompts)
    last = complete_states(checkpoint.path)[-1]
    assert last.parent == checkpoint.training_state_path
    assert last.name == f"step-{TOTAL_STEPS:08d}"

    model = NemotronH(SHAPE, dtype=torch.float64)
    initialize(model, config.seed + 1)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=config.learning_rate)
    record = read_training_state(checkpoint.path, identity_of(config, prompts), model, optimizer)
    assert record.curve == pq.read_table(checkpoint.curve_path).to_pylist()
    assert {float(moments["step"]) for moments in optimizer.state_dict()["state"].values()} == {TOTAL_STEPS}
    assert weight_fingerprint(model) == weight_fingerprint(load_checkpoint(checkpoint.checkpoint_path))


# --- tables ---


def noting(config, prompts, interrupt_at=None, note=lambda run: None):
    """A loop that learns nothing and writes tables down."""
    model = NemotronH(SHAPE, dtype=torch.float64)
    initialize(model, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    with training_run(config, model, optimizer, prompts, TOTAL_STEPS) as run:
        while run.step < TOTAL_STEPS:
            run.lap("rollouts", tokens=100)
            run.lap("rewards")
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            run.note_rows("rewards", [{"verifier": name, "replies": 3, "mean": run.step / 4} for name in ("a", "b")])
            if run.step in (0, TOTAL_STEPS - 1):
                run.note_rows("rollouts", [{"text": f"reply {run.step}", "right": run.step > 0}])
            note(run)
            run.note("rollouts", BATCH, loss=0.5)
            run.keep_state()
            if run.step == interrupt_at:
                raise KeyboardInterrupt
        run.note_validation({"prompts": 0.5})
        run.save(prompts.tokenizer_path, {})
    return Checkpoint.load(config.output_dir)


@pytest.fixture(scope="module")
def noted(prompts, tmp_path_factory):
    return noting(Config(output_dir=tmp_path_factory.mktemp("noting") / "training"), prompts)


def test_rows_that_a_loop_notes_become_a_table_with_their_step(noted, trained):
    assert sorted(path.name for path in noted.tables_path.iterdir()) == ["rewards.parquet", "rollouts.parquet"]
    assert pq.read_table(noted.tables_path / "rewards.parquet").to_pylist() == [
        {"step": step, "verifier": name, "replies": 3, "mean": step / 4} for step in range(4) for name in ("a", "b")
    ]
    assert pq.read_table(noted.tables_path / "rollouts.parquet").to_pylist() == [
        {"step": 0, "text": "reply 0", "right": False}, {"step": 3, "text": "reply 3", "right": True},
    ]  # fmt: skip
    assert trained.tables_path is None
    assert not (trained.path / "tables").exists()


def test_tables_of_the_first_step_come_before_its_loss_and_the_others_after_the_curve(noted):
    ladder = json.loads((noted.path / "ladder.json").read_text())
    order = [
        (entry["rung"], entry["step"])
        for entry in ladder
        if entry["rung"] in ("initial weights", "rewards", "rollouts", "loss", "curve", "final weights")
    ]
    assert list(dict.fromkeys(order)) == [
        ("initial weights", 0), ("rewards", 0), ("rollouts", 0), ("loss", 0),
        ("curve", 0), ("curve", 1), ("curve", 2), ("curve", 3),
        ("rewards", 1), ("rewards", 2), ("rewards", 3), ("rollouts", 3), ("final weights", 4),
    ]  # fmt: skip
    (first,) = (entry for entry in ladder if entry["rung"] == "rewards" and entry["step"] == 2)
    assert first["value"] == [["a", 3, 0.5], ["b", 3, 0.5]]


@pytest.mark.parametrize(("every", "interrupt_at"), [(1, 1), (1, 3), (2, 3), (9, 2)])
def test_tables_survive_an_interrupt(prompts, noted, tmp_path, every, interrupt_at):
    """Rows of steps that are done again are there once."""
    options = {"output_dir": tmp_path / "training", "checkpoint_every_steps": every}
    with pytest.raises(KeyboardInterrupt):
        noting(Config(**options), prompts, interrupt_at)
    resumed = noting(Config(**options, resume=True), prompts)
    for name in ("rewards", "rollouts"):
        found, expected = (pq.read_table(one.tables_path / f"{name}.parquet") for one in (resumed, noted))
        assert found.equals(expected)
    assert (resumed.path / "ladder.json").read_bytes() == (noted.path / "ladder.json").read_bytes()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"verifier": "c", "mean": 0.5}],
            "step 0 notes verifier, mean in the table rewards; .* here verifier, replies, mean",
        ),
        ([{"verifier": "c", "replies": 3, "mean": 0.5, "step": 7}], "note the same columns in every row"),
        ([{"replies": 3, "verifier": "c", "mean": 0.5}], "note the same columns in every row"),
        ([{"verifier": "c", "replies": 3, "mean": float("nan")}], "step 0: mean=nan; delete"),
    ],
)
def test_a_row_that_would_lose_something_is_refused_when_it_is_noted(prompts, tmp_path, rows, sentence):
    config = Config(output_dir=tmp_path / "training")
    with pytest.raises(ValueError, match=sentence):
        noting(config, prompts, note=lambda run: run.note_rows("rewards", rows))


def test_a_table_that_the_ladder_does_not_know_is_refused_when_it_is_noted(prompts, tmp_path):
    config = Config(output_dir=tmp_path / "training")
    with pytest.raises(ValueError, match=r"step 0 notes the table answers; name it after a rung of nemotron\.ladder"):
        noting(config, prompts, note=lambda run: run.note_rows("answers", [{"text": "a"}]))


def test_the_share_of_time_of_each_part_is_printed_at_the_end(prompts, tmp_path, capsys):
    noting(Config(output_dir=tmp_path / "training"), prompts)
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("share of "))
    found = re.fullmatch(r"share of [\d,]+ s: rollouts (\d+)% at [\d,]+ tokens/s, rewards (\d+)%", said)
    assert abs(int(found[1]) + int(found[2]) - 100) <= 1


def test_a_lap_is_the_time_since_the_last_one(monkeypatch, capsys):
    times = chain([0.0, 10.0, 13.0, 14.0], repeat(17.0))
    monkeypatch.setattr("nemotron.recipes.training.progress.time.perf_counter", lambda: next(times))
    progress = TrainingProgress("training", 2, 0)
    with progress:
        progress.lap("rollouts", 60)
        progress.lap("learning", 0)
        progress.lap("rollouts", 60)
    assert capsys.readouterr().err.splitlines() == ["share of 7 s: rollouts 86% at 20 tokens/s, learning 14%"]


def test_the_speed_of_each_part_of_a_step_is_shown_and_of_that_step_alone(monkeypatch, capsys):
    times = chain([0.0, 0.0, 2.0, 3.0, 7.0, 8.0, 9.0, 12.0], repeat(13.0))
    monkeypatch.setattr("nemotron.recipes.training.progress.time.perf_counter", lambda: next(times))
    with TrainingProgress("training", 2, 0) as progress:
        for part, tokens in (("rollouts", 60), ("rewards", 0), ("learning", 40)):
            progress.lap(part, tokens)
        first = progress.update(1, tokens=40, loss=0.5)
        progress.lap("record and state", 0)
        progress.lap("rollouts", 60)
        second = progress.update(2, tokens=10, loss=0.5)
    assert first == {"tokens_per_second": 5, "rollouts_tokens_per_second": 30, "learning_tokens_per_second": 10}
    assert second == {"tokens_per_second": 2, "rollouts_tokens_per_second": 20}
    said = capsys.readouterr().err
    assert "training 1/2  loss 0.5  rollouts 30 tokens/s  learning 10 tokens/s  5 tokens/s" in said


def test_speeds_are_tracked_at_every_step_and_in_no_artifact(prompts, tmp_path, monkeypatch):
    tracked = {}
    monkeypatch.setattr("nemotron.recipes.training.run.log_curve", lambda config, rows: tracked.update(rows))
    checkpoint = noting(Config(output_dir=tmp_path / "training"), prompts)
    for step in range(1, TOTAL_STEPS):
        assert tracked[step]["rollouts_tokens_per_second"] > 0
    assert not [name for name in pq.read_table(checkpoint.curve_path).column_names if "second" in name]


def test_a_checkpoint_of_another_scale_is_refused(trained):
    trained.check_scale("tiny")
    with pytest.raises(ValueError, match=r"scale=small, but .* was trained at tiny; use --scale tiny"):
        trained.check_scale("small")
