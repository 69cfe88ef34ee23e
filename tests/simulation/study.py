"""What the simulated driver asks for trials and tells their ends: rules of a few lines, or the real study's."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from qlora_ray.config.documents import Document
from qlora_ray.config.schema import SweepConfig
from qlora_ray.orchestration.ledger import Outcome
from qlora_ray.orchestration.searcher import StudySearcher, settle_finished
from qlora_ray.orchestration.trial_entry import CloneOrigin
from qlora_ray.runs.records import TrialStatus
from qlora_ray.search.parsing import parse_space

ENDED = frozenset({"complete", "pruned", "failed"})


class Study(Protocol):
    """What outlives a driver, beside the records.

    Attributes:
        told: How each trial has ended there, by its number.
    """

    told: dict[int, str]

    def resume(self, records: Mapping[int, str]) -> None:
        """A driver begins: what the last one did not tell is told, and what it interrupted goes on."""

    def ask(self) -> tuple[int, int | None] | None:
        """The next trial's number, and that of the interrupted one that it goes on with; None if there are enough."""

    def tell(self, number: int, state: str) -> None:
        """A trial has ended, and its record says so."""

    def close(self) -> None:
        """The schedule is over."""


class PlainStudy:
    """The rules as they are meant, in a dictionary: what most schedules use, since it costs nothing.

    Args:
        num_trials: Trials of the sweep.
    """

    def __init__(self, num_trials: int) -> None:
        self.told: dict[int, str] = {}
        self._num_left = num_trials
        self._next_number = 0
        self._queued: list[int] = []

    def resume(self, records: Mapping[int, str]) -> None:
        """See Study."""
        for number, state in records.items():
            if state in ENDED:
                self.told[number] = state
            elif number not in self.told:
                self.told[number] = state
                self._queued.append(number)

    def ask(self) -> tuple[int, int | None] | None:
        """See Study."""
        earlier = self._queued.pop(0) if self._queued else None
        if earlier is None:
            if not self._num_left:
                return None
            self._num_left -= 1
        number, self._next_number = self._next_number, self._next_number + 1
        return number, earlier

    def tell(self, number: int, state: str) -> None:
        """See Study."""
        self.told[number] = state

    def close(self) -> None:
        """See Study."""


class RealStudy:
    """Optuna's study in its journal, with the searcher and the resuming of a real driver; only the books are not real.

    Args:
        num_trials: Trials of the sweep.
        config: Its config.
    """

    def __init__(self, num_trials: int, config: SweepConfig) -> None:
        self.told: dict[int, str] = {}
        self._num_trials = num_trials
        self._search = config.search.model_copy(update={"sampler": "random", "scheduler": "none"})
        self._space = parse_space(Document("simulation", {"lora.r": {"choices": [4, 8]}}), config)
        self._folder = tempfile.TemporaryDirectory(prefix="qlora_ray-simulation-")
        self._books: Any = None
        self._study: Any = None
        self._searcher: StudySearcher | None = None

    def resume(self, records: Mapping[int, str]) -> None:
        """See Study."""
        from qlora_ray.search.study import open_study, requeue_interrupted

        self._close_searcher()
        path = Path(self._folder.name) / "study.journal"
        self._study = open_study(path, name="simulation", search=self._search, space=self._space)
        self._books = _Books(records)
        settle_finished(self._study, self._books)
        requeue_interrupted(self._study)
        self._searcher = StudySearcher(
            self._study, space=self._space, ledger=self._books, num_trials=self._num_trials, num_slots=1
        )
        self._read()

    def ask(self) -> tuple[int, int | None] | None:
        """See Study."""
        assert self._searcher is not None
        if not self._searcher.has_more():
            return None
        asked = self._searcher.ask().result()
        self._searcher.open(asked)
        return asked.number, next(iter(asked.ancestors), None)

    def tell(self, number: int, state: str) -> None:
        """See Study."""
        assert self._searcher is not None
        self._searcher.close(number)
        self._searcher.flush()
        self._read()

    def close(self) -> None:
        """See Study."""
        self._close_searcher()
        # The journal's file is closed with them.
        self._searcher = self._study = None
        self._folder.cleanup()

    def _close_searcher(self) -> None:
        """Its thread ends with its driver; what it was given is done by then."""
        # What went wrong on it was raised where the study was asked or told.
        with contextlib.suppress(Exception):
            if self._searcher is not None:
                self._searcher.finish()

    def _read(self) -> None:
        """What the study itself says."""
        from qlora_ray.search.study import interrupted_trials

        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        interrupted = interrupted_trials(self._study)
        self.told = {
            trial.number: "interrupted" if trial.number in interrupted else names[trial.state.name]
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        }


class _Books:
    """The ledger as far as the searcher asks it: an end is what the record says."""

    objective, mode, is_stopping = "eval_loss", "min", False

    def __init__(self, records: Mapping[int, str]) -> None:
        self._records = records
        self.entries = {number: SimpleNamespace(number=number, intermediate={}) for number in records}

    def open(
        self, number: int, params: Mapping[str, Any], *, ancestors: tuple[int, ...], clone_of: CloneOrigin | None
    ) -> None:
        """Enters a trial."""
        self.entries[number] = SimpleNamespace(number=number, intermediate={})

    def close(self, number: int) -> Outcome:
        """The record is written already: a driver may be killed before it tells the study."""
        return self.outcome_of(self.entries[number])

    def outcome_of(self, entry: Any) -> Outcome:
        """What a record says; one that runs was interrupted."""
        state = self._records[entry.number]
        is_open = state not in ENDED
        return Outcome(TrialStatus.INTERRUPTED if is_open else TrialStatus(state), None, [1.0])
