"""Optuna's journal storage, whose list of trials costs the same after 5,000 of them.

Optuna 5.0 builds that list anew for each trial that is asked for, twice or more: only to look for queued ones.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import TYPE_CHECKING

from optuna.storages import JournalStorage
from optuna.trial import TrialState

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class SweepStorage(JournalStorage):
    """A journal storage of one study, which remembers its finished trials: those never change."""

    # By number; those at the places in `_open` may have changed since they were read.
    _seen: list[FrozenTrial]
    _open: list[int]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See BaseStorage; `deepcopy` is obeyed."""
        with self._thread_lock:
            self._sync_with_backend()
            is_read = self._read(study_id)
        if not is_read:
            return super().get_all_trials(study_id, deepcopy, states)
        if states is None:
            trials = list(self._seen)
        else:
            wants_finished = any(state in states for state in TrialState if state.is_finished())
            among = self._seen if wants_finished else [self._seen[number] for number in self._open]
            trials = [trial for trial in among if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _read(self, study_id: int) -> bool:
        """Brings the list up to date; False where the journal does not hold this study alone."""
        found = self._replay_result
        ids = found._study_id_to_trial_ids.get(study_id)
        if ids is None or len(found._study_id_to_trial_ids) != 1:
            return False
        if not hasattr(self, "_seen"):
            self._seen, self._open = [], []
        for number in self._open:
            self._seen[number] = found._trials[ids[number]]
        new = range(len(self._seen), len(ids))
        self._seen += [found._trials[ids[number]] for number in new]
        self._open = [number for number in (*self._open, *new) if not self._seen[number].state.is_finished()]
        return True
