"""The journal's file: Optuna reads it, a torn end is cut off, and how often the disk is waited for."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from qlora_ray.search.journal import SweepJournal, journal_of

SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    "a": optuna.distributions.FloatDistribution(0.0, 1.0),
    "b": optuna.distributions.IntDistribution(1, 9),
}


def make_study(path: Path, *, backend: type = SweepJournal) -> optuna.Study:
    """The study in a file."""
    storage = JournalStorage(backend(str(path)) if backend is JournalFileBackend else SweepJournal(path))
    return optuna.create_study(study_name="s", storage=storage, load_if_exists=True)


def run(study: optuna.Study, count: int) -> None:
    """Trials with two reports each."""
    for _ in range(count):
        trial = study.ask(SPACE)
        for index in (1, 2):
            trial.report(trial.params["a"] / index, index)
        trial.set_user_attr("cause", {"why": ["x", 1]})
        study.tell(trial, trial.params["a"])


def describe(study: optuna.Study) -> list[object]:
    """What a study knows of its trials."""
    return [(t.state, t.values, t.params, t.intermediate_values, t.user_attrs) for t in study.get_trials()]


def test_optunas_own_backend_reads_what_was_written_and_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    ours = make_study(path)
    run(ours, 3)
    theirs = make_study(path, backend=JournalFileBackend)
    assert describe(theirs) == describe(ours)
    run(theirs, 2)
    assert describe(make_study(path)) == describe(theirs)
    assert len(theirs.get_trials()) == 5


def test_a_line_that_a_power_cut_tore_is_cut_off_and_the_study_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    run(make_study(path), 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"worker')
    study = make_study(path)
    assert path.read_bytes().startswith(whole + b'{"op_code":0,')
    run(study, 1)
    assert len(make_study(path, backend=JournalFileBackend).get_trials()) == 3


def test_an_end_that_is_torn_at_any_byte_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    run(make_study(path), 1)
    whole = path.read_bytes()
    begin = whole[:-1].rfind(b"\n") + 1
    for size in range(begin, len(whole)):
        path.write_bytes(whole[:size])
        SweepJournal(path)
        assert path.read_bytes() == whole[:begin]


def test_a_trial_is_asked_for_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.journal"
    study = make_study(path)
    before = path.read_bytes()

    class Killed(BaseException):
        pass

    def die(descriptor: int, content: bytes) -> int:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", die)
        with pytest.raises(Killed), journal_of(study).one_write():
            study.ask(SPACE)
    assert path.read_bytes() == before
    assert make_study(path).get_trials() == []


def test_the_disk_is_waited_for_twice_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path / "study.journal")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with journal_of(study).one_write():
        trial = study.ask(SPACE)
    assert len(synced) == 1
    trial.report(0.5, 1)
    trial.set_user_attr("cause", "oom")
    assert len(synced) == 1
    study.tell(trial, 0.5)
    assert len(synced) == 2


def test_a_full_disk_leaves_nothing_of_what_did_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.journal"
    study = make_study(path)
    before = path.read_bytes()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:9]))
        with pytest.raises(OSError, match="No space left"):
            study.ask(SPACE)
    assert path.read_bytes() == before
