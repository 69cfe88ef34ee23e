"""Clones: what can be cloned and with which values, what books and study know of them, and how they go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ray.errors import RunError
from qlora_ray.orchestration import control
from qlora_ray.orchestration.cloning import plan_clones
from qlora_ray.orchestration.control import SearchControl
from qlora_ray.orchestration.final_seeds import find_finalists, plan_seeds
from qlora_ray.orchestration.searcher import StudySearcher
from qlora_ray.runs import read_events
from qlora_ray.runs.control import ControlAction, write_request
from qlora_ray.runs.files import read_lines
from qlora_ray.runs.records import TrialRecord, TrialStatus, read_record
from qlora_ray.search.study import count_finished
from qlora_ray.training.checkpoint import TENSORS_FILE, StatePlace, TrialState, copy_state
from qlora_ray.training.engine import Report
from tests.unit.orchestration_fixtures import Books
from tests.unit.search_fixtures import World

RATE = {"training.learning_rate": 2e-3}
COMPLETE = TrialStatus.COMPLETE


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOOK_INTERVAL_S", 0.001)


def make_state(trial_id: str, report_index: int, *, step: int | None = None, **fields: Any) -> TrialState:
    step = 2 * report_index if step is None else step
    tensors = {"a": torch.full((64,), float(step))}
    metrics = {"eval_loss": 1.0} if report_index else {}
    return TrialState(
        trial_id, step, report_index, tensors, {"a/exp_avg": tensors["a"] + 1}, {}, {}, step, metrics, **fields
    )


def make_world(folder: Path, **options: Any) -> World:
    world = World(folder, **options)
    world.control = SearchControl(world.books.paths, world.books.ledger)
    return world


def answers(world: World) -> list[tuple[str, str]]:
    """What became of the requests: the event and its reason."""
    events = read_events(world.books.paths.events)
    return [(event["event"], event["reason"]) for event in events if event["event"].startswith("request_")]


async def ask(world: World, *asked: tuple[str | None, Any]) -> None:
    """Asks for clones, and waits for all answers."""
    before = len(answers(world))
    for count, (trial, params) in enumerate(asked, start=1):
        write_request(world.books.paths, ControlAction.CLONE, trial=trial, params=params)
        while len(answers(world)) < before + count:
            await asyncio.sleep(0.001)


def clone_at(world: World, number: int, index: int, *asked: tuple[str | None, Any], state: TrialState | None) -> None:
    """Has clones asked for as a trial comes to a report; its last state is this one."""

    async def on_report(at: int, report: int) -> Report | None:
        if (at, report) == (number, index):
            if state is not None:
                state.save(world.books.paths.trial(f"{number:04d}").state)
            await ask(world, *asked)
        entry = world.books.ledger.entries[at]
        if entry.clone_of is not None and report <= entry.clone_of.at:
            # As an executor tells the last report of a state that it goes on from.
            return Report(entry.id, report, False, {"eval_loss": 99.0})
        return None

    world.on_report = on_report


def read(world: World | Books, trial: str) -> TrialRecord:
    books = world.books if isinstance(world, World) else world
    return read_record(books.paths.trial(trial).record, TrialRecord)


def test_a_clone_is_a_trial_of_its_own_that_begins_with_the_reports_up_to_its_state(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=2, num_slots=0)
    clone_at(world, 0, 3, ("0000", RATE), state=make_state("0000", 2))
    world.run()
    assert world.states() == [COMPLETE] * 3
    assert world.books.ledger.num_planned == 3
    [number] = [entry.number for entry in world.books.ledger.entries.values() if entry.clone_of]
    clone, first = read(world, f"{number:04d}"), read(world, "0000")
    assert (clone.cloned_from, clone.cloned_at, clone.resumed_from) == ("0000", 2, None)
    assert clone.params == {**first.params, **RATE} and first.params != clone.params
    assert {index: clone.reports[index] for index in (1, 2)} == {index: first.reports[index] for index in (1, 2)}
    assert clone.reports[3] == number + 1 / 3
    lines = read_lines(world.books.paths.trial(clone.trial).metrics)
    assert [line["report_index"] for line in lines] == [1, 2, 3, 4]
    [event] = [event for event in read_events(world.books.paths.events) if event["event"] == "trial_cloned"]
    assert {key: event[key] for key in ("trial", "cloned_from", "cloned_at", "step", "changed")} == {
        "trial": clone.trial,
        "cloned_from": "0000",
        "cloned_at": 2,
        "step": 4,
        "changed": RATE,
    }
    assert answers(world) == [("request_done", f"trial {clone.trial} is a clone of trial 0000, as asked")]


def test_no_sampler_sees_a_clone_and_it_takes_no_trial_from_the_search(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=3, num_slots=0)
    clone_at(world, 0, 2, ("0000", RATE), state=make_state("0000", 1))
    world.run()
    [number] = [entry.number for entry in world.books.ledger.entries.values() if entry.clone_of]
    trials = world.books.trials()
    assert (len(trials), trials[number].state.name) == (4, "FAIL")
    assert (trials[number].params, trials[number].intermediate_values) == ({}, {})
    assert trials[number].user_attrs == {"cloned_from": 0}
    assert count_finished(world.books.study) == 3


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median", "none"])
def test_every_scheduler_judges_a_clone_by_its_own_reports_alone(tmp_path: Path, scheduler: str) -> None:
    world = make_world(tmp_path, num_trials=4, num_slots=2, scheduler=scheduler)
    clone_at(world, 0, 3, ("0000", RATE), state=make_state("0000", 2))
    world.run()
    [entry] = [entry for entry in world.books.ledger.entries.values() if entry.clone_of]
    # Judged by the 99 of before, it would have been stopped there.
    assert max(entry.intermediate) > 2
    assert len(world.states()) == 5


def test_a_state_of_before_an_evaluation_is_of_the_report_that_is_being_made(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=1, num_slots=0)
    state = make_state("0000", 1, step=4, pending_metrics={"train_loss": 1.0})
    clone_at(world, 0, 2, ("0000", RATE), state=state)
    world.run()
    clone = read(world, "0001")
    assert clone.cloned_at == 2
    # It makes that report itself.
    assert (clone.reports[1], clone.reports[2]) == (1.0, 99.0)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("0000", {"lora.r": 8}), "lora.r cannot be another one: a state depends on it"),
        (("0000", {"training.per_device_train_batch_size": 8}), "per_device_train_batch_size cannot be another one"),
        (("0000", {"training.weight_decay": 0.1}), "training.weight_decay is not in the search space"),
        (("0000", {"training.learning_rate": 0.5}), "training.learning_rate must be in "),
        (("0000", {"training.learning_rate": "1e-3"}), "training.learning_rate must be in "),
        (("0000", {"training.learning_rate": True}), "training.learning_rate must be in "),
        (("0000", {}), "no value is another one than the trial's own"),
        (("0000", {"training.learning_rate": 1e-3}), "no value is another one than the trial's own"),
        (("0077", RATE), "there is no such trial"),
        (("x", RATE), "there is no such trial"),
        ((None, RATE), "there is no such trial"),
    ],
)
def test_what_cannot_be_cloned_is_refused_with_its_reason(
    tmp_path: Path, asked: tuple[str | None, dict[str, Any]], why: str
) -> None:
    world = make_world(tmp_path, num_trials=2, num_slots=1)
    world.gathers = 2
    clone_at(world, 0, 2, asked, state=make_state("0000", 1))
    world.run()
    [(event, reason)] = answers(world)
    assert event == "request_refused" and why in reason
    assert world.states() == [COMPLETE] * 2 and world.books.ledger.num_planned == 2
    assert {path.name for path in world.books.paths.trials.iterdir()} == {"0000", "0001"}


def test_a_trial_that_has_trained_all_its_samples_or_has_ended_is_not_cloned(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=2, num_slots=0)
    last = make_state("0001", 3, step=8, pending_metrics={"train_loss": 1.0})
    clone_at(world, 1, 4, ("0001", RATE), ("0000", RATE), state=last)
    world.run()
    assert [reason.split(": ", 1)[1] for _, reason in answers(world)] == [
        "it has trained all its samples",
        "it is complete, and the state of such a trial is not kept",
    ]


def test_where_no_states_are_kept_nothing_is_cloned(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=1)
    cluster = world.books.config.cluster.model_copy(update={"keep_trial_state": False})
    world.books.config = world.books.config.model_copy(update={"cluster": cluster})
    clone_at(world, 0, 2, ("0000", RATE), state=None)
    world.run()
    assert "cluster.keep_trial_state is false" in answers(world)[0][1]


def test_a_trial_without_a_state_yet_is_not_cloned_and_costs_no_number(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=1, num_slots=0)
    clone_at(world, 0, 1, ("0000", RATE), state=None)
    world.run()
    assert answers(world) == [("request_refused", "trial 0000 is not cloned: there is no state of it yet")]
    assert world.books.states() == ["COMPLETE"]


def test_a_sweep_that_is_to_finish_clones_nothing(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=1, num_slots=0)

    async def on_report(number: int, index: int) -> None:
        if index == 2:
            make_state("0000", 1).save(world.books.paths.trial("0000").state)
            write_request(world.books.paths, ControlAction.FINISH)
            while not answers(world):
                await asyncio.sleep(0.001)
            await ask(world, ("0000", RATE))

    world.on_report = on_report
    world.run()
    assert [event for event, _ in answers(world)] == ["request_done", "request_refused"]
    assert world.states() == [COMPLETE]


def test_a_clone_that_would_begin_anew_fails(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=1, num_slots=0)
    clone_at(world, 0, 2, ("0000", RATE), state=make_state("0000", 1))
    inner = world.on_report

    async def on_report(number: int, index: int) -> Report | None:
        if number == 1:
            return Report("0001", 1, False, {"eval_loss": 1.0}, facts={"restarted": "holds no readable trial state"})
        return await inner(number, index)

    world.on_report = on_report
    world.run()
    record = read(world, "0001")
    assert record.state is TrialStatus.FAILED and "no beginning of its own" in (record.message or "")


def interrupted_clone(folder: Path) -> Books:
    """A sweep's books whose driver was killed while a clone of its first trial ran."""
    world = make_world(folder, num_trials=1, num_slots=0)
    clone_at(world, 0, 3, ("0000", RATE), state=make_state("0000", 2))
    inner = world.on_report

    async def on_report(number: int, index: int) -> Report | None:
        if number == 1 and index == 4:
            world.stop.request("Ctrl-C")
            await asyncio.Event().wait()
        return await inner(number, index)

    world.on_report = on_report
    world.run()
    return world.books


def test_a_resume_goes_on_with_a_clone_as_what_it_is(tmp_path: Path) -> None:
    interrupted_clone(tmp_path)
    again = Books(tmp_path, num_trials=1)
    again.ledger.restore()
    planned = plan_clones(again.ledger, again.paths)
    assert [(one.clone_of.number, one.clone_of.at, one.ancestors) for one in planned] == [(0, 2, (1,))]
    searcher = StudySearcher(
        again.study, space=again.space, ledger=again.ledger, num_trials=1, num_slots=1, clones=planned
    )
    assert searcher.num_left == 1
    asked = searcher.ask().result()
    searcher.open(asked)
    assert not searcher.has_more()
    searcher.finish()
    record = read(again, "0002")
    assert (record.cloned_from, record.cloned_at, record.resumed_from) == ("0000", 2, "0001")
    assert record.params["training.learning_rate"] == 2e-3
    assert sorted(again.ledger.entries[2].intermediate) == [1, 2, 3]
    assert TrialState.load(again.paths.trial("0002").state).step == 4
    assert not again.paths.trial("0001").state.exists()
    # It is neither planned again, nor asked of the study.
    third = Books(tmp_path, num_trials=1)
    third.ledger.restore()
    assert [one.ancestors for one in plan_clones(third.ledger, third.paths)] == [(2, 1)]
    assert third.states() == ["COMPLETE", "FAIL", "FAIL"]


def test_a_clone_whose_state_is_gone_does_not_begin_anew(tmp_path: Path) -> None:
    books = interrupted_clone(tmp_path)
    for path in books.paths.trial("0001").state.iterdir():
        path.unlink()
    books.paths.trial("0001").state.rmdir()
    again = Books(tmp_path, num_trials=1)
    again.ledger.restore()
    assert plan_clones(again.ledger, again.paths) == []


def test_where_seeds_decide_a_clone_is_no_finalist_beside_others(tmp_path: Path) -> None:
    world = make_world(tmp_path, num_trials=2, num_slots=0, final_seeds=2)
    clone_at(world, 0, 3, ("0000", RATE), state=make_state("0000", 2))
    world.run()
    clones = {entry.number for entry in world.books.ledger.entries.values() if entry.clone_of}
    config, ledger = world.books.config, world.books.ledger
    assert not {entry.number for entry in find_finalists(ledger, config)} & clones
    assert not {one.seed_of for one in plan_seeds(ledger, config)} & clones
    without = config.model_copy(update={"search": config.search.model_copy(update={"final_seeds": 0})})
    assert {entry.number for entry in find_finalists(ledger, without)} >= clones


@pytest.fixture
def replaced(tmp_path: Path) -> Iterator[Path]:
    """A state that its writer replaces again and again."""
    folder = tmp_path / "state"
    make_state("0000", 1).save(folder)
    ended = threading.Event()

    def write() -> None:
        index = 1
        while not ended.is_set():
            index += 1
            state = make_state("0000", index, pending_metrics={"train_loss": 1.0})
            state.save(folder)
            replace(state, pending_metrics={}).save_facts(folder)

    writer = threading.Thread(target=write)
    writer.start()
    yield folder
    ended.set()
    writer.join()


def test_a_copy_is_of_one_state_while_it_is_replaced(replaced: Path, tmp_path: Path) -> None:
    for number in range(10):
        place = copy_state(replaced, tmp_path / f"{number}" / "state")
        copied = TrialState.load(tmp_path / f"{number}" / "state")
        assert copied.adapter["a"].tolist() == [float(copied.step)] * 64
        assert copied.optimizer["a/exp_avg"].tolist() == [copied.step + 1.0] * 64
        assert place == StatePlace(copied.step, copied.report_index, copied.has_pending_report)


def test_a_state_that_cannot_be_read_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no state"):
        copy_state(tmp_path / "state", tmp_path / "copy")
    make_state("0000", 1).save(tmp_path / "state")
    (tmp_path / "state" / TENSORS_FILE).write_bytes(b"torn")
    with pytest.raises(RunError, match="no readable trial state"):
        copy_state(tmp_path / "state", tmp_path / "copy")
