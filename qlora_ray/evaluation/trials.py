"""Which trial of a sweep is meant: its winner, or one by its number."""

from __future__ import annotations

from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.modeling.identity import ADAPTER_CONFIG
from qlora_ray.runs import SweepPaths, read_json

BEST = "best"


def find_trial(paths: SweepPaths, asked: str | None) -> tuple[str, bool]:
    """Returns a trial's id, and whether it is the winner.

    Args:
        paths: The sweep.
        asked: A trial's number as the user writes it; None or `best` for the winner.

    Raises:
        RunError: If the sweep has no winner, or no complete trial of that number.
    """
    summary = read_json(paths.summary) if paths.summary.exists() else {}
    if asked is None or asked == BEST or _is_same(asked, summary.get("winner")):
        return _find_winner(paths, summary), True
    return _find_complete(paths, asked), False


def _find_winner(paths: SweepPaths, summary: dict[str, Any]) -> str:
    winner = summary.get("winner")
    if winner is not None and (paths.best / "adapter" / ADAPTER_CONFIG).is_file():
        return str(winner)
    complete = _complete_trials(paths)
    advice = f"Name a complete trial: --trial {complete[0]}." if complete else "Run the sweep to its end first."
    if not summary:
        raise RunError(f"{paths.root}: must have ended with a winner, got a sweep that has not ended. {advice}")
    why = summary.get("first_failure") or summary.get("status", "no winner")
    raise RunError(f"{paths.root}: must have a winner, got a sweep without one ({why}). {advice}")


def _find_complete(paths: SweepPaths, asked: str) -> str:
    found = next((one.name for one in sorted(paths.trials.glob("*/")) if _is_same(asked, one.name)), None)
    complete = ", ".join(_complete_trials(paths)) or "none"
    if found is None:
        raise RunError(f"--trial {asked}: no such trial in {paths.root}. Complete trials: {complete}.")
    state = read_json(paths.trial(found).record).get("state") if paths.trial(found).record.exists() else "unfinished"
    if state != "complete" or not paths.trial(found).adapter.is_dir():
        raise RunError(f"--trial {asked}: must be a complete trial, got one that is {state}. Complete: {complete}.")
    return found


def _complete_trials(paths: SweepPaths) -> list[str]:
    adapters = sorted(paths.trials.glob(f"*/adapter/{ADAPTER_CONFIG}"))
    return [path.parents[1].name for path in adapters]


def _is_same(asked: str, trial: str | None) -> bool:
    if trial is None:
        return False
    return asked == trial or (asked.isdigit() and trial.isdigit() and int(asked) == int(trial))
