"""The evaluations of the earlier stages on the models of compression: the same exercises, measures and numbers."""

import pytest

from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage2_rlvr import data_curation as instructions_data
from nemotron.recipes.nano2.stage5_compress import earlier
from nemotron.recipes.nano2.stage5_compress.evaluation import Config
from nemotron.recipes.nano2.stage5_compress.report import EARLIER
from nemotron.recipes.nemotron_h.checkpoint import load_for_inference
from nemotron.recipes.scoring.rewards import Verifier
from nemotron.recipes.sources.exercises import instructions
from nemotron.recipes.sources.exercises.exercise import of_every_difficulty

MODELS = ("teacher", "pruned", "scratch", "distilled")


def test_every_model_has_every_measure(stage5):
    for measure in EARLIER:
        values = [stage5.results.metrics[f"{measure}/{model}"] for model in MODELS]
        assert all(value >= 0 for value in values)
        if measure not in ("strict_prompt", "success/all"):  # which tiny models hardly ever reach
            assert len(set(values)) > 1, measure


def test_bits_per_byte_order_the_models_as_their_loss_on_text_does(stage5):
    metrics = stage5.results.metrics
    by_bits = sorted(MODELS, key=lambda model: metrics[f"bits_per_byte/{model}"])
    assert by_bits == sorted(MODELS, key=lambda model: metrics[f"loss/pretraining/{model}"])


def test_the_same_model_twice_gets_the_same_numbers_and_words(stage5):
    """What is drawn depends on the prompt and not on the model or on its place."""
    model = load_for_inference(stage5.checkpoint.checkpoint_path, device="cpu")
    models = {"teacher": model, "distilled": model}
    found = earlier.earlier_evaluations(models, stage5.dataset, stage5.checkpoint.checkpoint_path, Config())
    for name, value in found.metrics.items():
        if name.endswith("/teacher"):
            other = name.removesuffix("teacher") + "distilled"
            assert found.metrics[other] == value == pytest.approx(stage5.results.metrics[other]), name
    assert len(set(found.digests.values())) == len(found.digests) // 2


def test_the_instructions_are_the_first_of_those_that_stage_2_holds_out(stage5, monkeypatch):
    asked = []
    real = Verifier.prompt_of

    def prompt_of(self, exercise, *, thinking):
        asked.append(exercise.id)
        return real(self, exercise, thinking=thinking)

    monkeypatch.setattr(Verifier, "prompt_of", prompt_of)
    earlier.instruction_metrics({}, Verifier(CHAT, stage5.dataset.tokenizer_path), Config(held_out=4))
    given = instructions_data.Config()
    held_out = of_every_difficulty(
        instructions.generate_exercises, given.held_out_instructions, given.seed, "evaluation", given.max_difficulty
    )
    assert asked == [one.id for one in held_out[:4]] * 2  # with and without thinking
