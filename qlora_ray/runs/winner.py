"""Which trial of a sweep is meant: its winner, or one by its number."""

from __future__ import annotations

from qlora_ray.errors import RunError
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.paths import ADAPTER_CONFIG
from qlora_ray.runs.records import Summary, TrialRecord, TrialStatus, read_record

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
    winner = scores.get("trial") if isinstance(scores, dict) else (_read_summary(paths) or Summary()).winner
    return None if winner is None else str(winner)


def _no_winner(paths: SweepPaths) -> RunError:
    complete = _complete_trials(paths)
    advice = f"Name a complete trial: --trial {complete[0]}." if complete else "Run the sweep to its end first."
    summary = _read_summary(paths)
    if summary is None:
        return RunError(f"{paths.root}: must have ended with a winner, got a sweep that has not ended. {advice}")
    why = summary.first_failure or summary.status
    return RunError(f"{paths.root}: must have a winner, got a sweep without one ({why}). {advice}")


def _find_complete(paths: SweepPaths, asked: str) -> str:
    found = next((folder.name for folder in sorted(paths.trials.glob("*/")) if _is_same(asked, folder.name)), None)
    complete = ", ".join(_complete_trials(paths)) or "none"
    if found is None:
        raise RunError(f"--trial {asked}: no such trial in {paths.root}. Complete trials: {complete}.")
    record = _read_trial(paths, found)
    is_complete = record is not None and record.state is TrialStatus.COMPLETE
    if not is_complete or not paths.trial(found).adapter.is_dir():
        cause = f" ({record.cause})" if record is not None and record.cause else ""
        state = "unfinished" if record is None else record.state
        got = "without its adapter" if is_complete else f"{state}{cause}"
        raise RunError(f"--trial {asked}: must be a complete trial, got one that is {got}. Complete: {complete}.")
    return found


def _complete_trials(paths: SweepPaths) -> list[str]:
    names = (path.parents[1].name for path in sorted(paths.trials.glob(f"*/adapter/{ADAPTER_CONFIG}")))
    records = {name: _read_trial(paths, name) for name in names}
    return [name for name, record in records.items() if record is not None and record.state is TrialStatus.COMPLETE]


def _read_trial(paths: SweepPaths, trial: str) -> TrialRecord | None:
    path = paths.trial(trial).record
    return read_record(path, TrialRecord) if path.is_file() else None


def _read_summary(paths: SweepPaths) -> Summary | None:
    return read_record(paths.summary, Summary) if paths.summary.is_file() else None


def _is_same(asked: str, trial: str) -> bool:
    return asked == trial or (asked.isdecimal() and trial.isdecimal() and int(asked) == int(trial))
