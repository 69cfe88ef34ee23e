"""Our storage lists the trials that Optuna's own lists, whatever happens to the study."""

from __future__ import annotations

import random
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from qlora_ray.search.journal import SweepJournal
from qlora_ray.search.storage import SweepStorage

STATES: list[tuple[TrialState, ...] | None] = [
    None,
    (TrialState.WAITING,),
    (TrialState.RUNNING, TrialState.WAITING),
    (TrialState.COMPLETE, TrialState.PRUNED),
    (TrialState.RUNNING, TrialState.FAIL),
]


def act(study: optuna.Study, draw: random.Random, running: list[optuna.Trial]) -> None:
    """Does one thing to a study: asks, queues, reports or tells."""
    action = draw.choice(["ask", "queue", "report", "tell"])
    if action == "queue":
        study.enqueue_trial({"x": draw.random()})
    elif action == "ask" or not running:
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        running.append(trial)
    elif action == "report":
        draw.choice(running).report(draw.random(), draw.randrange(10**6))
    else:
        trial = running.pop(draw.randrange(len(running)))
        state = draw.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
        study.tell(trial, draw.random() if state is TrialState.COMPLETE else None, state=state)


@pytest.mark.parametrize("seed", range(5))
def test_the_trials_of_every_state_are_those_that_optuna_reads_of_the_file(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "study.journal"
    study = optuna.create_study(storage=SweepStorage(SweepJournal(path)), study_name="s")
    draw, running = random.Random(seed), list[optuna.Trial]()
    for _ in range(40):
        act(study, draw, running)
        own = optuna.load_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name="s")
        for states in STATES:
            assert study.get_trials(deepcopy=False, states=states) == own.get_trials(deepcopy=False, states=states)


def test_a_list_of_trials_is_the_callers_own(tmp_path: Path) -> None:
    study = optuna.create_study(storage=SweepStorage(SweepJournal(tmp_path / "study.journal")), study_name="s")
    study.add_trial(optuna.create_trial(value=1.0))
    study.get_trials(deepcopy=False).clear()
    study.trials[0].values[0] = 2.0
    assert [trial.value for trial in study.get_trials(deepcopy=False)] == [1.0]


def test_two_studies_in_one_journal_are_read_as_optuna_reads_them(tmp_path: Path) -> None:
    storage = SweepStorage(SweepJournal(tmp_path / "study.journal"))
    first, second = (optuna.create_study(storage=storage, study_name=name) for name in "ab")
    first.enqueue_trial({"x": 1.0})
    assert [len(study.get_trials()) for study in (first, second)] == [1, 0]
