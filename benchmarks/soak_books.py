"""What a soak may not lose: the trials that have ended, their values, and the winner."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from qlora_ray.runs import SweepPaths, read_events, read_json

# Trials that share a pack have their rows pooled, by who happens to be there: sums are rounded in another order.
RELATIVE_TOLERANCE = 1e-4
ENDED = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class EndedTrial:
    """A trial that has ended.

    Attributes:
        params: Its parameters, as one text.
        state: How it ended.
        reports: Its value at each report.
        text: Its record as it is on the disk.
    """

    params: str
    state: str
    reports: Mapping[str, float]
    text: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a sweep has come to.

    Attributes:
        trials: Those that have ended, by their number.
        winner: The winner's number, once there is one.
    """

    trials: Mapping[str, EndedTrial]
    winner: str | None = None


@dataclass
class Losses:
    """What is wrong, a sentence for each.

    Attributes:
        lost: Trials that had ended and are gone, or that the undisturbed sweep has.
        changed: Trials whose record or values have changed, or differ from those of the undisturbed sweep.
        repeated: Trials that ran again though they had ended.
        winners: Winners that differ.
        files: What should not be in the folder, or cannot be read.
        processes: Processes that outlived their sweep.
        endings: Ends without the words or the exit code that are promised, and sweeps that could not be resumed.
    """

    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    winners: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    endings: list[str] = field(default_factory=list)

    def add(self, other: Losses) -> None:
        """Takes in what another one has."""
        for one in fields(self):
            getattr(self, one.name).extend(getattr(other, one.name))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is wrong."""
        return not any(getattr(self, one.name) for one in fields(self))


def read_outcome(paths: SweepPaths) -> Outcome:
    """What a sweep's folder says now; also of one whose driver was killed."""
    trials = {}
    for path in sorted(paths.trials.glob("*/record.json")):
        record = read_json(path)
        if record["state"] in ENDED:
            params = json.dumps(record["params"], sort_keys=True)
            trials[record["trial"]] = EndedTrial(params, record["state"], record["reports"], path.read_text())
    return Outcome(trials, read_json(paths.summary)["winner"] if paths.summary.exists() else None)


def compare_moments(before: Outcome, now: Outcome) -> Losses:
    """A sweep against itself at an earlier moment: what had ended stays as it was."""
    losses = Losses()
    for number, trial in before.trials.items():
        if number not in now.trials:
            losses.lost.append(f"trial {number} had ended ({trial.state}) and is gone")
        elif now.trials[number] != trial:
            losses.changed.append(f"the record of trial {number} has changed after its end")
    return losses


def compare_with_undisturbed(found: Outcome, undisturbed: Outcome) -> Losses:
    """A complete sweep against one of the same seed that nothing has disturbed; numbers of trials may differ."""
    losses = Losses()
    by_params: dict[str, EndedTrial] = {}
    for number, trial in found.trials.items():
        if trial.params in by_params:
            losses.repeated.append(f"trial {number} ran again: {trial.params}")
        by_params[trial.params] = trial
    expected = {trial.params: trial for trial in undisturbed.trials.values()}
    losses.lost += [f"no trial has {params}" for params in expected.keys() - by_params.keys()]
    losses.repeated += [f"the undisturbed sweep has no {params}" for params in by_params.keys() - expected.keys()]
    for params in expected.keys() & by_params.keys():
        one, other = by_params[params], expected[params]
        if one.state != other.state or not _is_alike(one.reports, other.reports):
            losses.changed.append(
                f"{params}: {one.state} {dict(one.reports)}, undisturbed {other.state} {dict(other.reports)}"
            )
    winner, other_winner = _winner_params(found), _winner_params(undisturbed)
    if winner != other_winner:
        losses.winners.append(f"the winner is {winner}, undisturbed {other_winner}")
    return losses


def check_folder(paths: SweepPaths) -> Losses:
    """A complete sweep's folder: its summary, what it says of its end, and what should not be there."""
    from qlora_ray.runs.whole import is_temporary

    losses = Losses()
    summary: dict[str, Any] = read_json(paths.summary)
    if summary["status"] != "complete":
        losses.endings.append(f"its summary says {summary['status']}")
    for name in ("trial_opened", "trial_complete"):
        trials = [event["trial"] for event in read_events(paths.events) if event["event"] == name]
        losses.repeated += [f"{name} twice: {trial}" for trial in sorted(set(trials)) if trials.count(trial) > 1]
    losses.files += [str(path) for path in paths.root.rglob("*") if is_temporary(path)]
    losses.files += [str(path) for path in paths.trials.glob("*/state")]
    for path in paths.root.rglob("*.jsonl"):
        if any(not _is_json(line) for line in path.read_text().splitlines()):
            losses.files.append(f"{path}: a line is no JSON")
    return losses


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _is_alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(
        math.isclose(value, other[index], rel_tol=RELATIVE_TOLERANCE) for index, value in one.items()
    )


def _winner_params(outcome: Outcome) -> str | None:
    winner = outcome.trials.get(outcome.winner or "")
    return winner.params if winner else None
