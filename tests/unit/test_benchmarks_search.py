"""The replayed search: tables as they were published, and figures that others found in them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks.search import STRATEGIES, count_draws, main, replay, settings_without, shipped_settings
from benchmarks.search_tables import LossTable, best_rate, read_tables

TABLES = {table.model: table for table in read_tables()}
LLAMA = TABLES["meta-llama/Llama-3.1-8B"]
RANDOM, _, _, OURS = STRATEGIES


def test_the_public_tables_are_as_published() -> None:
    # sft_sweep.md at 9dfcc3a2: 21 models; the best run of Llama 3.1 8B is at 3e-4 and rank 128.
    assert len(TABLES) == 21
    assert best_rate(LLAMA) == 3e-4 and min(LLAMA.losses.values()) == LLAMA.losses[3e-4, 128] == 0.5834
    assert sum(len(table.losses) for table in TABLES.values()) == 291


def test_a_setting_has_the_loss_of_the_nearest_run_by_ratio() -> None:
    table = LossTable("m-8B", {(1e-4, 4): 1.0, (1e-3, 4): 2.0, (1e-4, 64): 3.0})
    # The middle of 1e-4 and 1e-3 is 3.16e-4, of 4 and 64 it is 16.
    assert [table.look_up(rate, 8) for rate in (1e-5, 3.1e-4, 3.2e-4, 1.0)] == [1.0, 1.0, 2.0, 2.0]
    assert (table.look_up(1e-4, 15), table.look_up(1e-4, 17)) == (1.0, 3.0)
    assert table.look_up(1e-3, 64) is None
    assert table.regret(1.5) == 0.5


@pytest.mark.parametrize(
    ("model", "size"),
    [("Qwen/Qwen3-30B-A3B-Base", 30e9), ("meta-llama/Llama-3.2-3B", 3e9), ("moonshotai/Kimi-K2.6", None)],
)
def test_a_models_size_is_read_off_its_name(model: str, size: float | None) -> None:
    assert TABLES[model].num_parameters == size


def test_random_search_needs_as_many_draws_as_counted_by_hypergeometric_chance() -> None:
    # Independent draws of a grid point: the mean wait for one of the close points, each as likely as its cell is wide.
    table = LossTable("m", {(10.0**-rate, rank): 1.0 + rate for rate in (2, 3, 4) for rank in (1, 2)})
    # A rate below 10^-2.5 (log-uniform over two decades): a quarter.
    draws = [count_draws(replay(table, RANDOM, shipped_settings(table), seed=seed)) for seed in range(200)]
    within = statistics.mean(count <= 12 for count in draws)
    first = statistics.mean(count == 1 for count in draws)
    assert first == pytest.approx(0.25, abs=0.08) and within == pytest.approx(1 - 0.75**12, abs=0.05)


def test_the_recommended_points_are_tried_first_whatever_the_seed() -> None:
    regrets = [replay(LLAMA, OURS, shipped_settings(LLAMA), seed=seed) for seed in range(3)]
    # 3e-4 at rank 64: the best of that rank.
    assert {run[0] for run in regrets} == {LLAMA.regret(LLAMA.losses[3e-4, 64])}
    assert all(run[2] <= 0.005 for run in regrets)


def test_a_models_own_table_does_not_calibrate_its_rate() -> None:
    others = [LossTable(f"m{number}-8B", {(1e-4, 4): 1.0, (1e-3, 4): 2.0}) for number in range(3)]
    own = LossTable("own-8B", {(1e-4, 4): 2.0, (1e-3, 4): 1.0})
    settings_of = settings_without([*others, own])
    assert settings_of(own).learning_rate == 1e-4
    assert settings_of(others[0]).learning_rate == pytest.approx(statistics.median([1e-4, 1e-4, 1e-3]))
    assert settings_of(own).r == shipped_settings(own).r


def test_the_command_writes_a_row_for_each_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = tmp_path / "mine.csv"
    rows = ["model,learning_rate,lora_rank,test_nll", "a-8B,3e-4,8,0.5", "a-8B,3e-3,8,0.9", "b-1T,1e-5,8,1.0"]
    tables.write_text("\n".join(rows) + "\n")
    assert main(["--tables", str(tables), "--seeds", "2", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert [entry["model"] for entry in found["tables"]] == ["a-8B", "b-1T"]
    assert found["tables"][0] == {
        "model": "a-8B",
        "draws_to_half_percent": 1.0,
        "regret_after_3": 0.0,
        "regret_default_point": 0.0,
    }
    assert "2 tables, 2 seeds, 12 trials" in capsys.readouterr().out


def test_a_file_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("model,lr\nm,1\n")
    with pytest.raises(ValueError, match="columns are missing: learning_rate, lora_rank, test_nll"):
        read_tables(tmp_path / "t.csv")
