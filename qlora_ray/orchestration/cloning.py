"""Clones: copies of trials that go on from their last states with other values, as trials of their own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import ConfigError, RunError
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.searcher import AskedTrial, PlannedClone, StudySearcher
from qlora_ray.orchestration.trial_entry import CloneOrigin, TrialEntry
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.control import CLONE_PATHS
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.runs.records import TrialStatus
from qlora_ray.runs.whole import restore_folder
from qlora_ray.search.space import Parameter, SearchSpace, apply_values
from qlora_ray.training.checkpoint import StatePlace, copy_state
from qlora_ray.training.engine import Failure, Report


class CloneRefused(Exception):
    """Why a trial cannot be cloned as asked."""


class Cloner:
    """Makes clones of a search's trials.

    Args:
        config: The sweep's config.
        space: The search space, which other values must be of.
        paths: The sweep's folder, which the states are in.
        ledger: The books.
        searcher: Numbers the clones.
    """

    def __init__(
        self, config: SweepConfig, *, space: SearchSpace, paths: SweepPaths, ledger: Ledger, searcher: StudySearcher
    ) -> None:
        self._config = config
        self._space = space
        self._paths = paths
        self._ledger = ledger
        self._searcher = searcher

    async def make(self, number: int, changes: Mapping[str, Any]) -> AskedTrial:
        """Copies a trial's state into the folder of a new one, which is not in the books yet.

        Args:
            number: The trial's number.
            changes: The clone's other values, by config path.

        Raises:
            CloneRefused: If there is nothing to copy, or the values cannot be given to a state.
        """
        entry = self._ledger.entries.get(number)
        if entry is None:
            raise CloneRefused("there is no such trial")
        params = self._plan_params(entry, changes)
        await asyncio.to_thread(self._require_state, entry)
        clone = await asyncio.wrap_future(self._searcher.number_clone(PlannedClone(CloneOrigin(number, 0), params)))
        trial = self._paths.trial(clone.trial_id)
        try:
            place = await asyncio.to_thread(copy_state, self._paths.trial(entry.id).state, trial.state)
            origin = self._origin_of(number, place)
        except (CloneRefused, RunError, OSError) as error:
            # Its number stays unused.
            await asyncio.to_thread(shutil.rmtree, trial.root, ignore_errors=True)
            raise CloneRefused(str(error)) from None
        return clone.of(origin)

    def _plan_params(self, entry: TrialEntry, changes: Mapping[str, Any]) -> dict[str, Any]:
        parameters = {parameter.path: parameter for parameter in self._space.parameters}
        for path, value in changes.items():
            if path not in CLONE_PATHS:
                raise CloneRefused(f"{path} cannot be another one: a state depends on it. {_list_paths(parameters)}")
            if path not in parameters:
                raise CloneRefused(f"{path} is not in the search space. {_list_paths(parameters)}")
            if not parameters[path].has(value):
                raise CloneRefused(f"{path} must be in {parameters[path].describe()}, got {value!r}")
        params = {**entry.params, **changes}
        if params == entry.params:
            raise CloneRefused("no value is another one than the trial's own")
        try:
            apply_values(self._config, params)
        except ConfigError as error:
            raise CloneRefused(str(error)) from None
        return params

    def _require_state(self, entry: TrialEntry) -> None:
        if entry.seed_of is not None:
            raise CloneRefused("it repeats another trial with a new seed")
        if not self._config.cluster.keep_trial_state:
            raise CloneRefused("no states are kept: cluster.keep_trial_state is false")
        if entry.state not in (TrialStatus.RUNNING, TrialStatus.INTERRUPTED):
            raise CloneRefused(f"it is {entry.state}, and the state of such a trial is not kept")
        state = self._paths.trial(entry.id).state
        restore_folder(state)
        if not state.exists():
            raise CloneRefused("there is no state of it yet")

    def _origin_of(self, number: int, place: StatePlace) -> CloneOrigin:
        # A state that was written before an evaluation is of the report that is being made.
        at = place.report_index + place.has_pending_report
        if at >= self._config.search.num_reports:
            raise CloneRefused("it has trained all its samples")
        return CloneOrigin(number, at, place.step)


def plan_clones(ledger: Ledger, paths: SweepPaths) -> list[PlannedClone]:
    """The clones that an earlier driver left open, to go on from where they stopped.

    One whose state is gone has nothing to go on from, and stays interrupted: the beginning of a clone is another
    trial's.

    Args:
        ledger: All trials of the sweep.
        paths: Its folder.
    """
    planned = []
    for entry in ledger.resumable():
        if entry.clone_of is None:
            continue
        ancestors = [entry.number]
        while (earlier := ledger.entries[ancestors[-1]].resumed_from) is not None:
            ancestors.append(earlier)
        states = [paths.trial(trial_id_of(number)).state for number in ancestors]
        for state in states:
            restore_folder(state)
        if any(state.exists() for state in states):
            planned.append(PlannedClone(entry.clone_of, entry.params, tuple(ancestors)))
    return planned


def _list_paths(parameters: Mapping[str, Parameter]) -> str:
    known = [path for path in CLONE_PATHS if path in parameters]
    return f"A clone may have another {', '.join(known)}" if known else "No key of this space can be another one"


def fail_restarted(report: Report, entry: TrialEntry) -> Report:
    """A report; a failure where a clone has begun anew, since its beginning was another trial's."""
    if "restarted" not in report.facts or entry.clone_of is None:
        return report
    message = f"the state that it goes on from {report.facts['restarted']}, and a clone has no beginning of its own"
    return replace(report, is_final=True, failure=Failure("error", message))
