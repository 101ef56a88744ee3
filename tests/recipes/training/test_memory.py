"""The memory that a plan prints for each device, which cards have it, and what is refused before any work."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage0_pretrain.__main__ import Config as Stage0Config
from nemotron.recipes.nano2.stage2_rlvr import training as rlvr
from nemotron.recipes.nano2.stage3_dpo import training as dpo
from nemotron.recipes.nano2.stage4_rlhf import reward_model
from nemotron.recipes.nano2.stage4_rlhf import training as rlhf
from nemotron.recipes.nemotron_h import device
from nemotron.recipes.nemotron_h.device import weight_dtype
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling, generate
from nemotron.recipes.nemotron_h.model import PUBLISHED_12B, NemotronH, parameter_groups
from nemotron.recipes.nemotron_h.plan import count_parameters, memory_of_step
from nemotron.recipes.nemotron_h.scorer import Scorer, scores_of
from nemotron.recipes.scoring.rewards import Prompt
from nemotron.recipes.training.batches import Batch
from nemotron.recipes.training.distributed import clip_gradients, rank_share, shard, whole_model
from nemotron.recipes.training.memory import (
    CARDS,
    Learning,
    Pass,
    Scoring,
    Writing,
    check_devices,
    check_fits,
    decoding_room,
    fewest_devices,
    in_gib,
    memory_lines,
    memory_of_use,
    more_than_needed,
    whole_weights,
)
from nemotron.recipes.training.pairs import Pairs
from nemotron.recipes.training.rollouts import experience_of, with_logprobs

TINY, MEDIUM, FULL = MODELS["tiny"], MODELS["medium"], MODELS["full"]
AGAIN = SimpleNamespace(dtype="bfloat16", activation_checkpointing=True)
KEPT = SimpleNamespace(dtype="bfloat16", activation_checkpointing=False)


def test_medium_fits_a_card_of_24_gb_if_layers_are_computed_again():
    """With its default rows of a forward pass, in both kinds of phases."""
    for one in (Pass(256, 8, 2048), Pass(32, 1, 16384)):
        assert fewest_devices(MEDIUM, AGAIN, one, CARDS["RTX 4090, 24 GB"] * 10**9) == 1
        assert fewest_devices(MEDIUM, KEPT, one, CARDS["RTX 4090, 24 GB"] * 10**9) != 1


def test_full_needs_cards_that_hold_its_weights_once():
    """46 GiB in float32, before they are sharded."""
    one = Pass(768, 1, 8192)
    assert fewest_devices(FULL, AGAIN, one, CARDS["L40S, 48 GB"] * 10**9) is None
    most = CARDS["A100 or H100, 80 GB"] * 10**9
    fewest = fewest_devices(FULL, AGAIN, one, most)
    assert fewest is not None
    assert sum(memory_of_use(FULL, AGAIN, one, fewest).values()) <= most
    assert sum(memory_of_use(FULL, AGAIN, one, fewest - 1).values()) > most
    assert whole_weights(FULL, "bfloat16") <= most


def test_a_row_of_524288_tokens_fits_no_card():
    long = Pass(12, 1, 524_288)
    assert [fewest_devices(FULL, AGAIN, long, size * 10**9) for size in CARDS.values()] == [None] * len(CARDS)


def test_a_device_has_no_more_rows_than_its_share_of_the_batch():
    assert [Pass(10, 4, 8).rows(devices) for devices in (1, 2, 3, 5, 10)] == [4, 4, 4, 2, 1]


def test_the_page_has_a_column_for_each_kind_of_pass_and_a_line_for_each_card():
    passes = [Pass(8, 8, 128), Pass(8, 8, 128), Pass(2, 1, 512)]
    lines = memory_lines(TINY, SimpleNamespace(dtype="float64", activation_checkpointing=False), passes, devices=2)
    assert lines[0] == "  memory of a training step on each of 2 devices, with FSDP2, layers kept for the backward pass"
    assert lines[1].split() == ["rows", "x", "tokens", "4", "x", "128", "1", "x", "512"]
    for part in ("weights", "gradients", "optimizer moments", "activations", "logits", "together"):
        assert sum(line.strip().startswith(part) for line in lines) == 1
    assert [line.split("  ")[2] for line in lines[-len(CARDS) :]] == list(CARDS)
    assert {line.split()[-1] for line in lines[-len(CARDS) :]} == {"1"}


def test_other_models_are_shared_by_the_devices():
    one = Pass(8, 8, 128)
    alone = memory_of_use(TINY, KEPT, one, 2)
    beside = memory_of_use(TINY, KEPT, one, 2, [TINY])
    # embeddings and output matrix stay whole after a forward pass
    matrices = 2 * 4 * TINY.vocab_size * TINY.hidden_size
    assert beside.pop("other models") == whole_weights(TINY, "float32") // 2 + matrices
    assert beside == alone


def test_more_devices_than_rows_in_the_largest_batch_are_refused():
    with pytest.raises(ValueError, match=r"^devices=9, and the largest batch has 8 rows, so .* at most 8, or"):
        memory_lines(TINY, KEPT, [Pass(8, 8, 128), Pass(2, 1, 512)], devices=9)


def test_devices_below_one_are_refused():
    with pytest.raises(ValueError, match=r"^devices=0: Input should be greater than 0$"):
        Stage0Config(plan=True, devices=0)


def test_devices_without_a_plan_are_refused():
    with pytest.raises(ValueError, match=r"^devices=8 has an effect with --plan only; to train on several"):
        Stage0Config(devices=8)


# The arithmetic against every tensor of what a step does.

BASE = replace(
    MODELS["small"], hidden_size=64, vocab_size=512, intermediate_size=128, mamba_num_heads=4, mamba_head_dim=32,
    num_attention_heads=4, hybrid_override_pattern="M-*-",
)  # fmt: skip
WIDE = replace(BASE, hidden_size=256, intermediate_size=1024)
STATES = replace(BASE, ssm_state_size=128, hybrid_override_pattern="MM*")
CASES = {
    "weights": (WIDE, "bfloat16", True, Learning(8, 2, 32, 4, 32)),
    "layers kept": (BASE, "float32", False, Learning(8, 1, 64, 4, 64)),
    "layers again": (BASE, "float64", True, Learning(8, 2, 32, 4, 64)),
    "prompts": (BASE, "bfloat16", True, Learning(8, 2, 256, 2, 32)),
    "states": (STATES, "float32", True, Learning(8, 2, 32, 4, 64)),
}


def model_of(shape, dtype):
    model = NemotronH(shape, dtype=weight_dtype(dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    return model


def in_training(model, again):
    """The model with gradients, and its optimizer with moments."""
    model.backbone.activation_checkpointing = again
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def simulated_step(live, shape, dtype, again, sizes):
    """Most bytes at a time while the code of stage 4 does each thing of a step: learns, writes, scores."""
    peaks = {}
    with live:
        policy, reference = shard(model_of(shape, dtype)), shard(model_of(shape, dtype))
        scorer = Scorer(model_of(shape, dtype))
        optimizer = in_training(policy, again)
        config = rlvr.Config(micro_batch_prompts=sizes.micro_batch_rows, dtype=dtype)
        length = sizes.prompt_tokens
        prompts = [Prompt(None, False, tuple(range(first, first + length))) for first in range(sizes.batch_rows)]
        number = sizes.reply_tokens
        replies = [Continuation([1] * number, [0.0] * number, [False] * number)] * (len(prompts) * sizes.replies)
        live.restart()
        experience = experience_of(prompts, replies, torch.zeros(len(replies)), learn_from_cut=True)
        experience, _ = with_logprobs(experience, policy, reference, config)
        for chosen in experience.micro_batches(sizes.micro_batch_rows):
            terms = rlvr.token_terms(policy, experience.of_prompts(chosen), config)
            (terms.loss.sum() / experience.num_tokens).backward()
        peaks[Learning] = live.peak
        clip_gradients(policy, 1.0)
        optimizer.step()
        del experience, terms
        rows = [list(prompt.tokens) for prompt in rank_share(prompts) for _ in range(sizes.replies)]
        live.restart()
        sampling = Sampling(number, (), 1.0, logprobs_at_temperature=True)
        generate(whole_model(policy), rows, sampling, list(range(len(rows))))
        peaks[Writing] = live.peak
        live.restart()
        scores_of(scorer, [[*row, *[index] * number] for index, row in enumerate(rows)], batch_rows=32)
        peaks[Scoring] = live.peak
    return peaks


def check_step(live, case, devices):
    shape, dtype, again, sizes = CASES[case]
    found = simulated_step(live, shape, dtype, again, sizes)
    config = SimpleNamespace(dtype=dtype, device="cpu", activation_checkpointing=again)
    rest = (sizes.batch_rows, sizes.prompt_tokens, sizes.replies, sizes.reply_tokens)
    for one in (sizes, Writing(*rest), Scoring(*rest, 32)):
        planned = memory_of_use(shape, config, one, devices, [shape], [shape])
        assert sum(planned.values()) == pytest.approx(found[type(one)], rel=0.1), type(one)


@pytest.mark.parametrize("case", CASES)
def test_the_plan_of_a_step_with_replies_is_the_peak_of_its_simulation(live, case):
    check_step(live, case, 1)


@pytest.mark.parametrize("case", CASES)
def test_the_plan_of_a_step_with_replies_is_the_peak_of_its_simulation_on_eight_devices(live, eight_devices, case):
    check_step(live, case, 8)


def simulated_pairs(live, shape, dtype, again, sizes):
    """As `simulated_step`, for pairs: the code of stage 3, or that of the reward model."""
    with live:
        model = Scorer(model_of(shape, dtype)) if sizes.scores else model_of(shape, dtype)
        shard(model)
        optimizer = in_training(model, again)
        tokens = torch.arange(sizes.length + 1).expand(2 * sizes.batch_rows, -1) % 7
        places = torch.arange(sizes.length + 1).expand_as(tokens)
        pairs = Pairs(Batch(tokens, places > 0, places // 250), torch.zeros(len(tokens), dtype=torch.float64))
        live.restart()
        for _ in range(2):
            chosen = torch.arange(sizes.rows(1) // 2)
            if sizes.scores:
                texts = [[1] * sizes.length] * len(chosen)
                config = reward_model.Config(dtype=dtype)
                loss, _ = reward_model.pair_loss(model, texts, texts, config)
            else:
                loss = dpo.pair_terms(model, pairs.take(chosen), dpo.Config(dtype=dtype)).loss
            loss.sum().backward()
        del optimizer
        return live.peak


PAIRS = {
    "pairs": (BASE, "float32", True, Pass(8, 2, 640, pairs=True, documents=True)),
    "pairs kept": (WIDE, "bfloat16", False, Pass(8, 1, 256, pairs=True, documents=True)),
    "scores": (BASE, "float64", True, Pass(8, 2, 256, pairs=True, scores=True)),
    "scores kept": (WIDE, "bfloat16", False, Pass(8, 1, 256, pairs=True, scores=True)),
}


def check_pairs_plan(live, case, devices):
    shape, dtype, again, sizes = PAIRS[case]
    config = SimpleNamespace(dtype=dtype, device="cpu", activation_checkpointing=again)
    planned = memory_of_use(shape, config, sizes, devices)
    sizes = sizes._replace(micro_batch_rows=sizes.rows(devices) // 2)
    assert sum(planned.values()) == pytest.approx(simulated_pairs(live, shape, dtype, again, sizes), rel=0.1)


@pytest.mark.parametrize("case", PAIRS)
def test_the_plan_of_a_step_with_pairs_is_the_peak_of_its_simulation(live, case):
    check_pairs_plan(live, case, 1)


@pytest.mark.parametrize("case", PAIRS)
def test_the_plan_of_a_step_with_pairs_is_the_peak_of_its_simulation_on_eight_devices(live, eight_devices, case):
    check_pairs_plan(live, case, 8)


@pytest.mark.parametrize(("on", "prompt", "used", "room"), [
    ("cpu", 10, 12, 40), ("cpu", 10, 41, 82), ("cuda", 10, 12, 256), ("cuda", 300, 500, 1024),
])  # fmt: skip
def test_slots_have_the_room_that_the_decoder_makes(on, prompt, used, room):
    assert decoding_room(on, prompt, used) == room


# Before any work.


LAYERS = replace(MEDIUM, hybrid_override_pattern="M-*")
ONE = Pass(512, 1, 1)


def train(device="cpu", dtype="float32", again=False):
    return SimpleNamespace(dtype=dtype, device=device, activation_checkpointing=again, micro_batch_sequences=8)


@pytest.fixture
def gibibytes(monkeypatch):
    """Sets the memory of every device."""
    return lambda number: monkeypatch.setattr(device, "device_memory_bytes", lambda name: int(number * 2**30))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_step_fits_if_the_plan_says_so(gibibytes, dtype):
    needed = sum(memory_of_step(LAYERS, dtype, 8, 512, loss_chunk=4096).values())
    gibibytes(needed / 2**30)
    check_fits(LAYERS, train(dtype=dtype), [Pass(8, 8, 512)])
    gibibytes((needed - 1) / 2**30)
    with pytest.raises(ValueError, match=rf"^training needs {in_gib(needed)} GiB \(weights "):
        check_fits(LAYERS, train(dtype=dtype), [Pass(8, 1, 1), Pass(8, 8, 512), Pass(8, 2, 512)])


def test_a_model_too_large_for_the_device_is_refused_with_all_sizes(gibibytes):
    gibibytes(80)
    assert 4 * 4 * count_parameters(PUBLISHED_12B) / 2**30 == pytest.approx(183.4, abs=0.1)
    with pytest.raises(
        ValueError,
        match=r"^training needs 2\d\d GiB \(weights 46, .*gradients 46, .*moments 92, .*\), and cpu has 80 GiB; "
        r"use \d+ such devices with torchrun and --activation-checkpointing, or a smaller --scale$",
    ):
        check_fits(PUBLISHED_12B, train(dtype="bfloat16"), [Pass(64, 1, 1)])


def sizes_in(sentence):
    """Bytes of each of the things that the sentence says would fit: checkpointing, rows, devices."""
    rows = re.search(r"(\d+) instead of 8 rows per forward pass \(a smaller --micro-batch-sequences\)", sentence)
    devices = re.search(r"(\d+) such devices with torchrun", sentence)
    return ("use --activation-checkpointing" in sentence, rows and int(rows[1]), devices and int(devices[1]))


@pytest.mark.parametrize(("scale", "dtype"), [("tiny", "float64"), ("small", "bfloat16"), ("medium", "bfloat16")])
def test_more_than_needed_is_more_than_the_plan_says(scale, dtype):
    shape = MODELS[scale]
    config = SimpleNamespace(dtype=dtype, device="cpu", activation_checkpointing=False)
    for one in (Pass(4, 4, 512), Learning(4, 2, 64, 4, 64), Writing(8, 64, 4, 64), Scoring(8, 64, 4, 64, 32)):
        uses = [one] if isinstance(one, Pass | Learning) else [Pass(1, 1, 1), one]
        planned = sum(memory_of_use(shape, config, one, 1).values())
        assert 1.2 * planned < more_than_needed(shape, uses, 0)
        assert more_than_needed(shape, uses, 1000) == more_than_needed(shape, uses, 0) + 8 * 1000


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("just_fits", [(True, 4, 1), (True, 8, 2), (True, 1, 1), (False, 4, 1), (True, 1, 8)])
def test_what_the_sentence_says_would_fit_fits_and_the_next_larger_does_not(gibibytes, just_fits, again):
    def needed(again, rows, devices):
        return sum(
            memory_of_step(
                LAYERS, "bfloat16", rows, 8192, loss_chunk=4096, activation_checkpointing=again, devices=devices
            ).values()
        )

    def fits(again, rows, devices):
        return needed(again, rows, devices) <= present

    present = needed(*just_fits)
    gibibytes(present / 2**30)
    with pytest.raises(ValueError, match="training needs") as refused:
        check_fits(LAYERS, train(dtype="bfloat16", again=again), [Pass(512, 8, 8192)])
    checkpointing, rows, devices = sizes_in(str(refused.value))
    assert checkpointing == (not again and fits(True, 8, 1))
    assert rows == next((rows for rows in (4, 2, 1) if fits(True, rows, 1)), None)
    counts = [2**power for power in range(1, 10)]  # with fewer rows on each device from 128 on
    assert devices == next((count for count in counts if fits(True, min(8, 512 // count), count)), None)


def test_models_that_do_not_learn_need_their_weights(gibibytes):
    needed = sum(memory_of_step(LAYERS, "float32", 1, 1, loss_chunk=4096).values()) / 2**30
    weights = 4 * count_parameters(LAYERS) / 2**30
    gibibytes(needed + 1.5 * weights)
    check_fits(LAYERS, train(), [ONE], beside=[LAYERS])
    with pytest.raises(ValueError, match=rf"other models {in_gib(2 * weights * 2**30)}\), and cpu"):
        check_fits(LAYERS, train(), [ONE], beside=[LAYERS, LAYERS])


def test_processes_of_one_machine_share_its_memory(gibibytes, monkeypatch):
    needed = sum(memory_of_step(LAYERS, "float32", 1, 1, loss_chunk=4096).values()) / 2**30
    gibibytes(2.5 * needed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_fits(LAYERS, train(), [ONE])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="training needs"):
        check_fits(LAYERS, train(), [ONE])


def test_each_process_has_all_weights_once_before_they_are_sharded(gibibytes, monkeypatch):
    processes(monkeypatch, 64)
    gibibytes(44)  # its share of everything fits, all 46 GiB of weights do not
    with pytest.raises(ValueError, match=r"\(weights before they are sharded 46\), and cpu has 44 GiB"):
        check_fits(PUBLISHED_12B, train(dtype="bfloat16", again=True), [Pass(64, 1, 1)])


@pytest.mark.parametrize(("size", "shown"), [(2**29, "0.5"), (10 * 2**30, "10"), (1234 * 2**30, "1,234")])
def test_sizes_are_shown_in_gibibytes(size, shown):
    assert in_gib(size) == shown


def test_devices_that_are_there_are_accepted():
    check_devices(train(), SimpleNamespace(device="cpu"), SimpleNamespace())


@pytest.mark.parametrize("step", [0, 1])
def test_a_device_that_is_not_there_is_refused_for_every_step(step):
    configs = [SimpleNamespace(device="cpu"), SimpleNamespace(device="cpu")]
    configs[step].device = "cuda:99"
    with pytest.raises(ValueError, match=r"^device=cuda:99: this machine has \d+ CUDA devices; use --device cpu or"):
        check_devices(*configs)


def test_no_more_devices_are_suggested_than_the_batch_has_rows(gibibytes):
    gibibytes(80)
    for rows, said in ((64, "4 such devices with torchrun"), (3, "80 GiB; use a smaller --scale$")):
        with pytest.raises(ValueError, match=said):
            check_fits(PUBLISHED_12B, train(dtype="bfloat16", again=True), [Pass(rows, 1, 1)])


def processes(monkeypatch, number):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: number)


def test_each_of_several_processes_needs_the_copy_that_writes_and_the_whole_reward_model(gibibytes, monkeypatch):
    """The largest thing that a step of stage 4 does here is to write."""
    config = rlhf.Config(scale="tiny", max_new_tokens=8)
    uses, beside, scorers = config.needs(LAYERS, 8)
    writing = memory_of_use(LAYERS, config, uses[0], 8, beside, scorers)
    assert writing["whole copy"] == whole_weights(LAYERS, "float64")
    head = 8 * (LAYERS.vocab_size - 1) * LAYERS.hidden_size
    assert writing["reward model"] == whole_weights(LAYERS, "float64") - head
    needed = [sum(memory_of_use(LAYERS, config, one, 8, beside, scorers).values()) for one in uses]
    assert sum(writing.values()) == max(needed)
    processes(monkeypatch, 8)
    gibibytes(sum(writing.values()) / 2**30)
    check_fits(LAYERS, config, uses, beside, scorers)
    gibibytes((sum(writing.values()) - 1) / 2**30)
    with pytest.raises(ValueError, match=r"whole copy 0\.\d, .*reward model 0\.\d"):
        check_fits(LAYERS, config, uses, beside, scorers)


def test_shorter_replies_are_suggested_where_they_fit(gibibytes):
    config = rlvr.Config(scale="medium", device="cpu")
    gibibytes(15)
    with pytest.raises(ValueError, match=r"use --max-new-tokens \d+, or a smaller --scale$") as refused:
        check_fits(MEDIUM, config, *config.needs(MEDIUM, 512))
    found = int(re.search(r"--max-new-tokens (\d+)", str(refused.value))[1])
    shorter, longer = (replace(config, max_new_tokens=number) for number in (found, 2 * found))
    check_fits(MEDIUM, shorter, *shorter.needs(MEDIUM, 512))
    with pytest.raises(ValueError, match="training needs"):
        check_fits(MEDIUM, longer, *longer.needs(MEDIUM, 512))
