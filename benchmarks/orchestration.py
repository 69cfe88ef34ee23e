"""What the orchestration costs: five figures, each with what it was and what it must not exceed.

    python -m benchmarks.orchestration --json FILE
    python -m benchmarks.orchestration --against ../older --json FILE    # with the command's start, against a checkout

Executors are fakes whose training costs nothing, and costs are CPU seconds, so that other work on the machine matters
little. The start of the command is a wall time, taken in turns with that of another checkout on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ray.console import Console
from qlora_ray.formats import format_table

# Trials of the long sweep, whose cost per trial is held against that of a short one.
NUM_TRIALS = 5_000


@dataclass(frozen=True)
class Target:
    """One figure.

    Attributes:
        what: What is measured.
        before: What it was before trials were coroutines, as docs/measured.md has it.
        at_most: What it must not exceed.
        unit: Of all three.
        measure: Returns all that was measured, with the figure under `figure`.
    """

    what: str
    before: float
    at_most: float
    unit: str
    measure: Callable[[], Mapping[str, Any]]


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--against", type=Path, help="another checkout, with its .venv, for the start of the command")
    parser.add_argument("--quick", action="store_true", help="a long sweep of 1,000 trials in place of 5,000")
    parser.add_argument("--only", action="append", help="the named figures only: " + ", ".join(NAMES))
    options = parser.parse_args(argv)
    console = Console(sys.stdout)
    targets = _make_targets(num_trials=1_000 if options.quick else NUM_TRIALS, against=options.against)
    found: dict[str, Any] = {}
    for name, target in targets.items():
        if options.only and name not in options.only:
            continue
        found[name] = {"before": target.before, "at_most": target.at_most, "unit": target.unit, **target.measure()}
        console.event(f"{name}: {found[name]['figure']} {target.unit} (at most {target.at_most})")
    rows = [["what", "before", "now", "at most"]]
    rows += [
        [targets[name].what, f"{row['before']} {row['unit']}", f"{row['figure']} {row['unit']}", str(row["at_most"])]
        for name, row in found.items()
    ]
    console.line(format_table(rows, right=(1, 2, 3)))
    if options.json:
        machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "load_average": os.getloadavg()[0]}
        options.json.write_text(json.dumps({"machine": machine, "figures": found}, indent=2) + "\n", encoding="utf-8")
    return 0


NAMES = ("trial_cpu", "other_processes", "growth", "pool_decision", "first_report")


def _make_targets(*, num_trials: int, against: Path | None) -> dict[str, Target]:
    targets = {
        "trial_cpu": Target(
            "CPU of all processes per short trial of 4 reports, 4 slots", 710, 100, "ms", _measure_trial_cpu
        ),
        "other_processes": Target(
            "processes beside driver, pool, executors and Ray's own, 48 slots", 38, 4, "", _measure_processes
        ),
        "growth": Target(
            f"driver CPU per trial, the last 100 of {num_trials:,} trials over a sweep of 100",
            33,
            1.5,
            "x",
            lambda: _measure_growth(num_trials),
        ),
        "pool_decision": Target(
            "pool, 512 executors and 2,048 slots: end and grant one lease", 0.55, 0.1, "ms", _measure_decision
        ),
    }
    if against is not None:
        targets["first_report"] = Target(
            "command to first report, quickstart", 1.0, 0.7, "x", lambda: _measure_start(against)
        )
    return targets


def _measure_trial_cpu() -> dict[str, Any]:
    from benchmarks.light_trials import measure_light_trials

    row = measure_light_trials(num_slots=4, num_trials=100)
    return {"figure": row["cpu_ms_per_trial"], **row}


def _measure_processes() -> dict[str, Any]:
    from benchmarks.light_trials import measure_light_trials

    row = measure_light_trials(num_slots=48, num_trials=144, repetitions=1)
    return {"figure": row["other_processes"], **row}


def _measure_growth(num_trials: int) -> dict[str, Any]:
    from benchmarks.books import describe_books

    row = describe_books(num_trials, sampler="tpe", scheduler="asha")
    return {"figure": row["last_over_first"], **row}


def _measure_decision() -> dict[str, Any]:
    from benchmarks.pool_decisions import measure_decision_s

    return {"figure": round(measure_decision_s() * 1e3, 4)}


def _measure_start(against: Path) -> dict[str, Any]:
    from benchmarks.first_report import compare_starts

    return compare_starts(against)


if __name__ == "__main__":
    sys.exit(main())
