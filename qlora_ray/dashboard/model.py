"""What the page is told: typed records, as JSON by `runs.typed_json.to_json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qlora_ray.runs.live import LiveFigures
from qlora_ray.runs.records import TrialStatus

if TYPE_CHECKING:
    # Imports numpy, which the page does not wait for.
    from qlora_ray.reporting.examples import Example


@dataclass(frozen=True, kw_only=True)
class Head:
    """The top of the page.

    Attributes:
        phase: live.json's while the sweep runs; else `ended`, `killed` or `starting`.
        headline: The verdict, or how the sweep stands, as the report has it; `tone` is its colour.
        lead: The sentences under it.
        counts: Trials by state.
        best: The complete trial with the lowest loss; until there is one, the trial with the lowest last report.
        mode: Whether the objective is to be small, `min`, or large, `max`.
        started_at: Seconds since 1970, as `last_event_at`.
        dashboard_command: What serves this page again.
        resume_command: What goes on with it; None while it runs, and where there is nothing to go on with.
        has_control: Whether the page has buttons.
        clone_space: The part of the search space that a clone of a trial may have other values of.
        is_paused: Whether the sweep begins no trials until it is told to continue; `is_finishing`, none any more.
        last_request: What became of what was asked of it last.
        report: The name of its report in the folder; None where there is none.
    """

    name: str
    folder: str
    phase: str
    headline: str
    dashboard_command: str
    tone: str = ""
    lead: tuple[str, ...] = ()
    objective: str = "eval_loss"
    mode: str = "min"
    counts: Mapping[str, int] = field(default_factory=dict)
    num_planned: int | None = None
    best: str | None = None
    best_loss: float | None = None
    is_best_complete: bool = False
    winner: str | None = None
    started_at: float | None = None
    last_event_at: float | None = None
    resume_command: str | None = None
    has_control: bool = False
    clone_space: Mapping[str, Any] = field(default_factory=dict)
    is_paused: bool = False
    is_finishing: bool = False
    last_request: str | None = None
    report: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial, as far as it has come.

    Attributes:
        cause: Why it was stopped or interrupted, or the failure's cause.
        places: Where its parameters lie on the axes, from 0 to 1, in the axes' order; empty until these are known.
        reports: (report, samples seen, validation loss) of each; a loss that is not finite is None.
        loss: Of its last report, in nats per trained token.
        peak_bytes: Of the executor's memory, at its last report; `planned_bytes` is the plan's estimate of it.
        opened_at: Seconds since 1970, as `closed_at`.
    """

    id: str
    state: TrialStatus = TrialStatus.RUNNING
    cause: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[float | None, ...] = ()
    reports: tuple[tuple[int, int | None, float | None], ...] = ()
    loss: float | None = None
    tokens_per_s: float | None = None
    executor: int | None = None
    peak_bytes: int | None = None
    planned_bytes: int | None = None
    resumed_from: str | None = None
    seed_of: str | None = None
    cloned_from: str | None = None
    cloned_at: int | None = None
    opened_at: float | None = None
    closed_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Span:
    """A trial in a slot. Times are seconds on the sweep's own clock, which stands still between two of its runs.

    Attributes:
        key: Its number, by which a later message ends it.
        executor: The executor's name, with its host.
        slot: From 0; a trial takes the first one that is free.
        end_s: None while the trial holds the slot.
    """

    key: int
    trial: str
    executor: str
    slot: int
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class AxisLine:
    """A searched parameter as an axis: its name, and (place from 0 to 1, label) of its ticks."""

    path: str
    name: str
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, kw_only=True)
class ImportanceBars:
    """How much each parameter moved the loss, as shares that add up to 1; empty where `note` says why."""

    shares: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class OtherSweep:
    """A sweep of the same folder.

    Attributes:
        status: As in summary.json; `running` while a process holds it.
        best_loss: The lowest loss of a complete trial.
    """

    name: str
    status: str
    counts: Mapping[str, int] = field(default_factory=dict)
    best: str | None = None
    best_loss: float | None = None
    objective: str | None = None
    verdict: str | None = None
    base: str | None = None


@dataclass(kw_only=True)
class Changes:
    """What is new since the message before; None and empty parts are as they were.

    Attributes:
        is_whole: Whether this is everything, for a page that has just been opened.
        time: Of the server, in seconds since 1970: a browser's clock may be another.
        clock_s: The sweep's own clock now; open spans end here.
        trials: Rows that are new or have changed, whole.
        live: live.json, as the driver left it; it is old where no driver runs.
        answers: The first rows that base and winner answered.
        others: The other sweeps of the folder.
    """

    is_whole: bool = False
    time: float = 0.0
    clock_s: float = 0.0
    head: Head | None = None
    trials: list[TrialRow] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    slots: dict[str, int] | None = None
    live: LiveFigures | None = None
    axes: tuple[AxisLine, ...] | None = None
    importance: ImportanceBars | None = None
    answers: tuple[Example, ...] | None = None
    others: tuple[OtherSweep, ...] | None = None

    def is_empty(self) -> bool:
        """Whether there is nothing to send; the clock alone is no reason to."""
        parts = (self.head, self.slots, self.live, self.axes, self.importance, self.answers, self.others)
        return not (self.trials or self.spans or any(part is not None for part in parts))
