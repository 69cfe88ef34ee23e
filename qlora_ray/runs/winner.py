"""Which trial of a sweep is meant: its winner, or one by its number."""

from __future__ import annotations

from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.paths import ADAPTER_CONFIG

BEST = "best"
SCORES = "scores.json"


def find_trial(paths: SweepPaths, asked: str | None) -> tuple[str, bool]:
    """Returns a trial's id, and whether it is the winner.

    Args:
        paths: The sweep.
        asked: A trial's number as the user writes it; None or `best` for the winner.

    Raises:
        RunError: If the sweep has no winner, or no complete trial of that number.
    """
    winner = _find_winner(paths)
    if asked is None or asked == BEST:
        if winner is None:
            raise _no_winner(paths)
        return winner, True
    if winner is not None and _is_same(asked, winner):
        return winner, True
    return _find_complete(paths, asked), False


def _find_winner(paths: SweepPaths) -> str | None:
    """The winner as its own folder says, which is whole or not there; None if there is none."""
    if not (paths.best / "adapter" / ADAPTER_CONFIG).is_file():
        return None
    scores = read_json(paths.best / SCORES) if (paths.best / SCORES).is_file() else None
    winner = scores.get("trial") if isinstance(scores, dict) else _read_summary(paths).get("winner")
    return None if winner is None else str(winner)


def _no_winner(paths: SweepPaths) -> RunError:
    complete = _complete_trials(paths)
    advice = f"Name a complete trial: --trial {complete[0]}." if complete else "Run the sweep to its end first."
    summary = _read_summary(paths)
    if not summary:
        return RunError(f"{paths.root}: must have ended with a winner, got a sweep that has not ended. {advice}")
    why = summary.get("first_failure") or summary.get("status", "no winner")
    return RunError(f"{paths.root}: must have a winner, got a sweep without one ({why}). {advice}")


def _find_complete(paths: SweepPaths, asked: str) -> str:
    found = next((one.name for one in sorted(paths.trials.glob("*/")) if _is_same(asked, one.name)), None)
    complete = ", ".join(_complete_trials(paths)) or "none"
    if found is None:
        raise RunError(f"--trial {asked}: no such trial in {paths.root}. Complete trials: {complete}.")
    record = _read_record(paths, found)
    state = record.get("state", "unfinished")
    if state != "complete" or not paths.trial(found).adapter.is_dir():
        cause = f" ({record['cause']})" if record.get("cause") else ""
        got = f"{state}{cause}" if state != "complete" else "without its adapter"
        raise RunError(f"--trial {asked}: must be a complete trial, got one that is {got}. Complete: {complete}.")
    return found


def _complete_trials(paths: SweepPaths) -> list[str]:
    names = (path.parents[1].name for path in sorted(paths.trials.glob(f"*/adapter/{ADAPTER_CONFIG}")))
    return [name for name in names if _read_record(paths, name).get("state") == "complete"]


def _read_record(paths: SweepPaths, trial: str) -> dict[str, Any]:
    path = paths.trial(trial).record
    return dict(read_json(path)) if path.is_file() else {}


def _read_summary(paths: SweepPaths) -> dict[str, Any]:
    return dict(read_json(paths.summary)) if paths.summary.is_file() else {}


def _is_same(asked: str, trial: str) -> bool:
    return asked == trial or (asked.isdecimal() and trial.isdecimal() and int(asked) == int(trial))
