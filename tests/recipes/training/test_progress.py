"""Speeds that are measured side by side."""

from nemotron.recipes.training import progress


def test_the_speed_is_the_median_of_the_rounds_that_count(monkeypatch):
    """Of the fast task 100 tokens in 1, 2 and 4 s, after a first round that is slow; of the slow one in 5 s each."""
    seconds = iter([50.0, 5.0, 1.0, 5.0, 2.0, 5.0, 4.0, 5.0])
    now = 0.0
    order = []

    def work(name):
        nonlocal now
        now += next(seconds)
        order.append(name)
        return 100

    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    speeds = progress.side_by_side({"fast": lambda: work("fast"), "slow": lambda: work("slow")}, rounds=3)
    assert speeds == {"fast": 50.0, "slow": 20.0}
    assert order == ["fast", "slow"] * 4
