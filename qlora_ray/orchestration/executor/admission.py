"""One admission of a trial to an executor, and how one who asks for a trial hears that it is over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qlora_ray.orchestration.executor.state_writer import Kept
from qlora_ray.training.engine import Report, TrialSpec

if TYPE_CHECKING:
    from qlora_ray.training.checkpoint import TrialState


class LeaseLost(RuntimeError):
    """The trial is not on this executor any more: it was evicted, or its driver stopped asking."""


class Evicted(LeaseLost):
    """The executor has no room for the trial any more; it goes on from its state wherever a slot is free."""


@dataclass(eq=False)
class Life:
    """One admission of a trial: one that was evicted and comes again has another life, and other reports.

    Attributes:
        state: What it enters the engine with, while it is not there yet.
        num_kept: Files being written: of a report, or of a trial that is evaluated meanwhile.
        kept: The state written before the evaluation under way.
        has_adapter: Whether the adapter was.
        restarted: Why it starts at its beginning although there is a state of it.
        silent_s: How long nobody has asked for it, as far as this process was awake to hear it.
    """

    spec: TrialSpec
    state: TrialState | None = None
    in_engine: bool = False
    is_training: bool = False
    has_ended: bool = False
    num_kept: int = 0
    kept: Kept | None = None
    has_adapter: bool = False
    report: Report | None = None
    restarted: str | None = None
    silent_s: float = 0.0

    def explain(self, report: Report) -> Report:
        """The report with why the trial has started at its beginning again, where it has."""
        return replace(report, facts={**report.facts, "restarted": self.restarted}) if self.restarted else report
