"""Stage 0 reproduces its golden, and has learned something."""


def test_stage0_reproduces_its_golden(stage0, golden):
    assert golden(name="letters/stage0_bigram") == stage0.document


def test_stage0_is_better_than_guessing(stage0):
    metrics = stage0.results.metrics
    assert metrics["bits_per_letter"] < 0.9 * metrics["uniform_bits_per_letter"]
