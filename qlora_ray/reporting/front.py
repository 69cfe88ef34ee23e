"""The trials that no other beats in both objectives, by Optuna."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qlora_ray.reporting.importance import open_journal


@dataclass(frozen=True)
class Front:
    """The Pareto front of a search for two objectives.

    Attributes:
        objectives: Their names, the one that decides the winner first.
        numbers: Its trials; empty if `reason` says why.
        reason: Why there is no front.
    """

    objectives: tuple[str, str]
    numbers: frozenset[int] = frozenset()
    reason: str | None = None


def read_front(journal: Path, objectives: tuple[str, str]) -> Front:
    """The front by Optuna's `Study.best_trials`, read from the study's journal and only read."""
    if not journal.is_file():
        return Front(objectives, reason=f"{journal.name} is not there")
    try:
        study = open_journal(journal)
        numbers = frozenset() if study is None else frozenset(trial.number for trial in study.best_trials)
    except Exception as error:
        # A journal cut in the middle fails in many ways, assertions among them.
        return Front(objectives, reason=f"{journal.name} cannot be read: {type(error).__name__}: {error}")
    return Front(objectives, numbers, None if numbers else "no trial is complete")
