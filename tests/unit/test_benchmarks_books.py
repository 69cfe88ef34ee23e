"""The benchmark of the driver's books runs whole sweeps, and its figures have the size that they claim."""

from __future__ import annotations

import pytest

from benchmarks import books


def test_each_window_of_trials_has_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "WINDOW", 10)
    costs = books.measure_books(30, sampler="random", scheduler="none")
    assert len(costs) == 3 and all(0 < cost < 1000 for cost in costs)


def test_a_row_says_how_the_last_trials_stand_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {10: [4.0], 30: [4.0, 5.0, 6.0]}
    monkeypatch.setattr(books, "WINDOW", 10)
    monkeypatch.setattr(books, "measure_books", lambda count, **choices: costs[count])
    row = books.describe_books(30, sampler="random")
    assert (row["first_100_ms"], row["last_100_ms"], row["mean_ms"]) == (4.0, 6.0, 5.0)
    assert (row["last_over_first"], row["mean_over_first"], row["sampler"]) == (1.5, 1.25, "random")
