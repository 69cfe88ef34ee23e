"""The best trials trained again with other seeds: what a setting is worth, and not what one draw of it was."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import SweepConfig
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.searcher import AskedTrial, StudySearcher
from qlora_ray.orchestration.trial_entry import TrialEntry, TrialResult
from qlora_ray.runs.records import TrialStatus
from qlora_ray.search.space import SearchSpace
from qlora_ray.search.study import add_seed_trial

if TYPE_CHECKING:
    import optuna

SEED_PATH = "training.seed"
NUM_SEEDS = 2**32


@dataclass(frozen=True)
class SeedGroup:
    """One setting trained with several seeds.

    Attributes:
        trial: Id of the trial whose setting it is.
        losses: Validation loss by trial of the group, in nats per trained token.
    """

    trial: str
    losses: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean loss; not finite where one of them is not."""
        return math.fsum(self.losses.values()) / len(self.losses)

    @property
    def spread(self) -> float | None:
        """Standard deviation of a draw (n - 1 in the denominator); None of a single seed."""
        return statistics.stdev(self.losses.values()) if len(self.losses) > 1 and math.isfinite(self.mean) else None

    def to_dict(self) -> dict[str, Any]:
        """The group as JSON types."""
        return {"losses": self.losses, "mean": self.mean, "spread": self.spread}


@dataclass(frozen=True)
class PlannedSeed:
    """A trial to run: the setting of another one, with its own seed, from where an interrupted one stopped."""

    seed_of: int
    params: dict[str, Any]
    ancestors: tuple[int, ...] = ()


def find_finalists(ledger: Ledger, config: SweepConfig) -> list[TrialEntry]:
    """The best trials of the search itself.

    Where seeds decide, clones come in only if there is nothing else: no other seed can repeat what they went through.
    """
    searched = [entry for entry in ledger.ranked() if entry.seed_of is None]
    if config.search.final_seeds:
        searched = [entry for entry in searched if entry.clone_of is None] or searched
    return searched[: config.evaluate.top_k]


def plan_seeds(ledger: Ledger, config: SweepConfig) -> list[PlannedSeed]:
    """The trials that are missing: `search.final_seeds` of each of the best, those that an earlier run ended left out.

    Args:
        ledger: All trials of the sweep.
        config: Its config.
    """
    planned = []
    for entry in find_finalists(ledger, config):
        if entry.clone_of is not None:
            continue
        first = entry.params.get(SEED_PATH, config.training.seed)
        for offset in range(1, config.search.final_seeds + 1):
            params = {**entry.params, SEED_PATH: (first + offset) % NUM_SEEDS}
            runs = [run for run in ledger.entries.values() if run.seed_of == entry.number and run.params == params]
            if all(run.state is TrialStatus.INTERRUPTED for run in runs):
                planned.append(PlannedSeed(entry.number, params, tuple(sorted((r.number for r in runs), reverse=True))))
    return planned


def group_seeds(ledger: Ledger, config: SweepConfig) -> dict[str, list[TrialEntry]]:
    """The complete trials of each of the best settings' seeds, by the id of the setting's first trial."""
    complete = [entry for entry in ledger.entries.values() if entry.state is TrialStatus.COMPLETE]
    groups = {
        finalist.id: [entry for entry in complete if entry.seed_of == finalist.number]
        for finalist in find_finalists(ledger, config)
    }
    return {trial: entries for trial, entries in groups.items() if entries}


class SeedSearcher(StudySearcher):
    """Gives the search's loop the planned trials. The study gets their numbers only, so that no sampler sees them.

    Args:
        study: The study, on disk.
        space: What it searches.
        ledger: Who keeps the trials' books.
        planned: What runs, in this order.
        num_slots: Slots to begin with.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        space: SearchSpace,
        ledger: Ledger,
        planned: Sequence[PlannedSeed],
        num_slots: int,
    ) -> None:
        super().__init__(study, space=space, ledger=ledger, num_trials=0, num_slots=num_slots)
        self.num_left = len(planned)
        ledger.num_planned += len(planned)
        self._planned = deque(planned)
        self._seed_of: dict[int, int] = {}

    def ask(self) -> Future[AskedTrial]:
        """The next planned trial, once the study has given it a number."""
        self.num_left -= 1
        return self._do(self._number, self._planned.popleft())

    def open(self, asked: AskedTrial) -> None:
        """Enters a trial into the books."""
        self._ledger.open(
            asked.number, asked.params, ancestors=asked.ancestors, seed_of=self._seed_of.pop(asked.number)
        )

    def enter_report(self, result: TrialResult) -> None:
        """Enters a report into the books."""
        self._ledger.report(result)

    def close(self, number: int) -> None:
        """Ends a trial in the books as what it was."""
        self._ledger.close(number)

    def _number(self, planned: PlannedSeed) -> AskedTrial:
        number = add_seed_trial(self._study, seed_of=planned.seed_of)
        self._seed_of[number] = planned.seed_of
        return AskedTrial(number, planned.params, planned.ancestors, None)
