"""How soon a search finds a good setting, replayed in tables of finished LoRA runs.

    python -m benchmarks.search                                the public tables, leave one model out
    python -m benchmarks.search --tables FILE.csv              tables of yours, with the rule as it is shipped
    python -m benchmarks.search --seeds 100 --json search.json

Every strategy is asked for settings one after the other and told the loss of the nearest run of the table; a run that
diverged counts as tried and failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from benchmarks.search_tables import PUBLIC_TABLES, RANK, RATE, LossTable, best_rate, read_tables
from qlora_ray.formats import format_table
from qlora_ray.search.first_points import find_first_points
from qlora_ray.search.recommended import SIZE_CLASSES, Settings, SizeClass, recommend
from qlora_ray.search.samplers import make_sampler

# Trials of a replay, as the quickstart has.
NUM_TRIALS = 12
CLOSE = 0.005
# Of a class that fewer models are known of, the rates of all models are taken.
MIN_MODELS = 3
# A width at which the rule has the rate of bases from 1 B on; tables do not say theirs.
WIDTH = 2048
UNKNOWN_PARAMETERS = 8e9

SettingsOf = Callable[[LossTable], Settings]


@dataclass(frozen=True)
class Strategy:
    """A way to search.

    Attributes:
        sampler: What proposes settings, by its name in a config.
        begins: Whether the recommended points come first, as `search.recommended_first` has it.
    """

    name: str
    sampler: str
    begins: bool


STRATEGIES = (
    Strategy("random", "random", begins=False),
    Strategy("tpe", "tpe", begins=False),
    Strategy("recommended, then random", "random", begins=True),
    Strategy("recommended, then tpe", "tpe", begins=True),
)
OURS = STRATEGIES[-1].name


def shipped_settings(table: LossTable) -> Settings:
    """What `plan --recommend` says for a model of this size."""
    return recommend(num_parameters=int(table.num_parameters or UNKNOWN_PARAMETERS), hidden_size=WIDTH).settings


def settings_without(tables: Sequence[LossTable]) -> SettingsOf:
    """The same, with each rate that rests on these tables made again from those of the other models."""

    def find(table: LossTable) -> Settings:
        others = [other for other in tables if other.model != table.model]
        same_class = [other for other in others if _class_of(other) == _class_of(table)]
        calibration = same_class if len(same_class) >= MIN_MODELS else others
        rate = statistics.median(map(best_rate, calibration))
        return replace(shipped_settings(table), learning_rate=rate)

    return find


def _class_of(table: LossTable) -> SizeClass:
    num_parameters = table.num_parameters or UNKNOWN_PARAMETERS
    return next(known for known in SIZE_CLASSES if num_parameters <= known.most_parameters)


def replay(table: LossTable, strategy: Strategy, settings: Settings, *, seed: int) -> list[float]:
    """Searches a table once.

    Args:
        table: Answers with losses.
        strategy: Asks.
        settings: What is recommended for the model.
        seed: Of the sampler.

    Returns:
        The lowest regret after each trial; infinite until one has not diverged.
    """
    space, config = table.make_space(strategy.sampler)
    search = config.search.model_copy(update={"seed": seed})
    study = optuna.create_study(sampler=make_sampler(search, space))
    if strategy.begins:
        for point in find_first_points(space, config, settings):
            study.enqueue_trial(space.encode(point))
    lowest, regrets = float("inf"), []
    for _ in range(NUM_TRIALS):
        trial = study.ask(space.distributions())
        loss = table.look_up(trial.params[RATE], trial.params[RANK])
        if loss is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, loss)
            lowest = min(lowest, table.regret(loss))
        regrets.append(lowest)
    return regrets


def describe_table(table: LossTable, settings: Settings, runs: Iterable[list[float]]) -> dict[str, Any]:
    """A table's entry of the JSON: medians over the seeds. Draws are None where none of the trials was close."""
    runs = list(runs)
    space, config = table.make_space("tpe")
    (first, *_) = find_first_points(space, config, settings)
    loss = table.look_up(first[RATE], first[RANK])
    draws = statistics.median(count_draws(run) for run in runs)
    return {
        "model": table.model,
        "draws_to_half_percent": None if draws > NUM_TRIALS else draws,
        "regret_after_3": statistics.median(run[2] for run in runs),
        "regret_default_point": None if loss is None else table.regret(loss),
    }


def count_draws(run: Sequence[float]) -> float:
    """Trials until one is within half a percent of the best; infinite: none is."""
    return next((float(index) for index, regret in enumerate(run, start=1) if regret <= CLOSE), float("inf"))


def main(argv: list[str] | None = None) -> int:
    """Prints the strategies side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--tables", type=Path, metavar="FILE.csv", help="columns model, learning_rate, lora_rank, test_nll"
    )
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tables = read_tables(arguments.tables or PUBLIC_TABLES)
    settings_of = settings_without(tables) if arguments.tables is None else shipped_settings
    rows = [["strategy", "draws to 0.5 %", "tables within 3", "regret after 3", "regret after 12", "worst"]]
    ours: list[dict[str, Any]] = []
    for strategy in STRATEGIES:
        runs = {
            table.model: [replay(table, strategy, settings_of(table), seed=seed) for seed in range(arguments.seeds)]
            for table in tables
        }
        described = [describe_table(table, settings_of(table), runs[table.model]) for table in tables]
        rows.append([strategy.name, *_summarize(described, runs)])
        if strategy.name == OURS:
            ours = described
    default = [entry["regret_default_point"] for entry in ours if entry["regret_default_point"] is not None]
    sys.stdout.write(f"{len(tables)} tables, {arguments.seeds} seeds, {NUM_TRIALS} trials\n\n{format_table(rows)}\n\n")
    sys.stdout.write(f"recommended point alone: regret {_percent(statistics.median(default))} in the median, ")
    sys.stdout.write(f"{_percent(max(default))} in the worst table; {len(tables) - len(default)} diverged\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({"tables": ours, "curves": []}, indent=1) + "\n", encoding="utf-8")
    return 0


def _summarize(described: list[dict[str, Any]], runs: dict[str, list[list[float]]]) -> list[str]:
    every = [run for of_table in runs.values() for run in of_table]
    draws = [min(count_draws(run), NUM_TRIALS + 1) for run in every]
    within = sum(
        entry["draws_to_half_percent"] is not None and entry["draws_to_half_percent"] <= 3 for entry in described
    )
    return [
        f"{statistics.mean(draws):.1f}",
        f"{within} of {len(described)}",
        _percent(statistics.median(entry["regret_after_3"] for entry in described)),
        _percent(statistics.median(run[-1] for run in every)),
        _percent(max(run[-1] for run in every)),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


if __name__ == "__main__":
    sys.exit(main())
