"""What the page is told of a sweep: that runs, was killed, has ended, goes on; and only what is new."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.dashboard.channel import encode
from qlora_ray.dashboard.following import FileReplaced
from qlora_ray.dashboard.model import Changes
from qlora_ray.dashboard.others import find_sweeps
from qlora_ray.dashboard.sweep_view import SweepView
from qlora_ray.runs import EventLog, SweepPaths, append_line
from qlora_ray.runs.live import LiveFigures, LivePhase, LiveTrial, write_live
from qlora_ray.runs.records import Summary, SweepStatus, write_record
from tests.sweep_folder import Sketch, edited, usual_sketches, write_sweep

RUNNING = [*usual_sketches(), Sketch([0.8, 0.5], state="running")]


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_ray.dashboard.sweep_view.STANDING_EVERY_S", 0.0)
    monkeypatch.setattr("qlora_ray.dashboard.sweep_view.OTHERS_EVERY_S", 0.0)


def _poll_first(paths: SweepPaths) -> tuple[SweepView, Changes]:
    view = SweepView(paths)
    return view, view.poll()


def test_a_finished_sweep_has_its_verdict_its_trials_and_its_answers(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), winner=3)
    for model, answer in (("base", "no idea"), ("0003", "SELECT 1"), ("0000", "of another")):
        append_line(
            paths.best / "answers.jsonl", {"model": model, "row": 5, "answer": answer, "reference": "SELECT 1;"}
        )
    view, changes = _poll_first(paths)
    head = changes.head
    assert head is not None
    assert (head.phase, head.headline, head.tone) == ("ended", "Trial 0003 is better than its base", "good")
    assert "exact_match 0.250 -> 0.750" in head.lead[0]
    assert head.counts == {"complete": 2, "pruned": 2, "failed": 2}
    assert (head.winner, head.best, head.best_loss, head.resume_command) == ("0003", "0003", 0.1, None)
    assert changes.answers is not None
    assert [(one.row, one.base, one.winner, one.expected) for one in changes.answers] == [
        (5, "no idea", "SELECT 1", "SELECT 1;")
    ]
    rows = {row.id: row for row in changes.trials}
    assert rows["0002"].reports == ((1, 600, 1.1), (2, 1200, 0.8))
    assert (rows["0002"].state, rows["0002"].cause) == ("pruned", "stopped by asha at report 2")
    assert rows["0003"].places == (1.0, pytest.approx(0.767, abs=1e-3))
    assert rows["0003"].executor == 1
    assert view.poll().is_empty()


def test_everything_is_what_the_changes_added_up_to(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), winner=3)
    view, changes = _poll_first(paths)
    whole = view.whole()
    assert whole.is_whole
    assert (whole.trials, whole.spans, whole.head, whole.axes) == (
        changes.trials,
        changes.spans,
        changes.head,
        changes.axes,
    )


def test_a_sweep_without_driver_and_summary_was_killed_and_says_how_it_goes_on(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", RUNNING, status=None)
    _, changes = _poll_first(paths)
    assert changes.head is not None
    assert changes.head.phase == "killed"
    assert changes.head.resume_command == paths.resume_command
    # As a resume will find it.
    assert changes.head.counts["interrupted"] == 1
    assert {row.state for row in changes.trials if row.id == "0006"} == {"interrupted"}


def test_a_running_sweep_is_told_as_it_grows(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", RUNNING, status=None)
    with paths.lock():
        view, changes = _poll_first(paths)
        assert changes.head is not None
        assert (changes.head.phase, changes.head.resume_command) == ("search", None)
        assert changes.head.counts["running"] == 1
        events = EventLog(paths.events)
        line: dict[str, Any] = {"report_index": 3, "samples_seen": 1800, "eval_loss": 0.05, "tokens_per_s": 123.0}
        append_line(paths.trial("0006").metrics, line)
        events.write("trial_reported", trial="0006", report_index=3)
        write_live(paths, LiveFigures(time=time.time(), phase=LivePhase.SCORING, trials={"0006": LiveTrial(step=7)}))
        changes = view.poll()
        assert [row.id for row in changes.trials] == ["0006"]
        assert changes.trials[0].reports[-1] == (3, 1800, 0.05)
        assert changes.live is not None and changes.live.trials["0006"].step == 7
        assert changes.head is not None and changes.head.phase == "scoring"
        # The best one is complete as long as there is a complete one.
        assert (changes.head.best, changes.head.is_best_complete) == ("0003", True)
        events.write("trial_failed", trial="0006", reason="diverged", metrics={})
        changes = view.poll()
        assert [(row.id, row.state, row.cause) for row in changes.trials] == [("0006", "failed", "diverged")]
    # The driver lets go without a summary.
    changes = view.poll()
    assert changes.head is not None and changes.head.phase == "killed"


def test_a_killed_sweep_that_is_resumed_runs_again(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", RUNNING, status=None)
    view, _ = _poll_first(paths)
    with paths.lock():
        # As the ledger does with what its predecessor left running.
        record = paths.trial("0006").record
        record.write_text(record.read_text().replace('"running"', '"interrupted"', 1))
        EventLog(paths.events).write("sweep_resumed", reason="1 interrupted trials are queued again")
        EventLog(paths.events).write("trial_opened", trial="0007", params={"lora.r": 8})
        changes = view.poll()
    assert changes.head is not None
    assert (changes.head.phase, changes.head.counts["running"], changes.head.counts["interrupted"]) == ("search", 1, 1)
    assert {row.id: row.state for row in changes.trials} == {"0006": "interrupted", "0007": "running"}


def test_a_resumed_sweep_that_starts_shows_nothing_of_the_run_before_as_its_own(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", RUNNING, status=None)
    earlier = LiveFigures(
        time=time.time() - 3600, phase=LivePhase.SEARCH, eta_s=60.0, gpu_hours=1.5, trials={"0006": LiveTrial(step=7)}
    )
    write_live(paths, earlier)
    for path in (paths.live, paths.events):
        os.utime(path, (0, time.time() - 3600))
    view, changes = _poll_first(paths)
    assert changes.head is not None and changes.head.phase == "killed"
    assert changes.live == earlier
    stood_s = changes.clock_s
    with paths.lock():
        changes = view.poll()
        assert changes.head is not None and changes.head.phase == "starting"
        assert changes.live is not None
        assert (changes.live.eta_s, changes.live.gpu_hours, dict(changes.live.trials)) == (None, 1.5, {})
        # The time between the runs is no time of the sweep.
        assert changes.clock_s == stood_s
        assert view.poll().live is None
        assert SweepView(paths).poll().live == changes.live
        EventLog(paths.events).write("sweep_resumed", reason="1 interrupted trials are queued again")
        write_live(paths, LiveFigures(time=time.time(), phase=LivePhase.SEARCH, gpu_hours=1.5))
        changes = view.poll()
        assert changes.head is not None and changes.head.phase == "search"
        assert stood_s <= changes.clock_s < stood_s + 60


def test_answers_and_other_sweeps_that_are_gone_are_taken_from_the_page(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), winner=3)
    other = write_sweep(tmp_path / "other", usual_sketches()[:1])
    row = {"row": 5, "answer": "SELECT 1", "reference": "SELECT 1;"}
    for model in ("base", "0003"):
        append_line(paths.best / "answers.jsonl", {"model": model, **row})
    view, changes = _poll_first(paths)
    told = json.loads(encode(changes))
    assert len(told["answers"]) == 1 and [one["name"] for one in told["others"]] == ["other"]
    shutil.rmtree(other.root)
    with paths.lock():
        EventLog(paths.events).write("sweep_resumed")
        told = json.loads(encode(view.poll()))
    assert (told["answers"], told["others"]) == ([], [])
    assert "trials" not in told and told["time"] == pytest.approx(time.time(), abs=60)


def test_a_clone_says_what_it_is_and_its_request_pauses_nothing(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", RUNNING, status=None)
    with edited(paths.trial("0006").record) as record:
        record["cloned_from"], record["cloned_at"] = "0003", 2
    with paths.lock():
        view, changes = _poll_first(paths)
        EventLog(paths.events).write("request_done", action="clone", reason="as asked", trial="0003")
        head = view.poll().head
    assert {row.id: (row.cloned_from, row.cloned_at) for row in changes.trials}["0006"] == ("0003", 2)
    assert changes.head is not None and list(changes.head.clone_space) == ["training.learning_rate"]
    assert head is not None and (head.is_paused, head.is_finishing, head.last_request) == (False, False, "as asked")


def test_what_was_asked_of_the_sweep_is_told_till_it_runs_anew(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", RUNNING, status=None)
    events = EventLog(paths.events)
    with paths.lock():
        view, changes = _poll_first(paths)
        seen = []
        for name, action, reason in (
            ("request_done", "pause", "no new trials"),
            ("request_refused", "stop_trial", "trial 0099 does not run"),
            ("request_done", "continue", "new trials again"),
            ("request_done", "finish", "no new trials from now on"),
        ):
            events.write(name, action=action, reason=reason)
            head = view.poll().head
            assert head is not None
            seen.append((head.is_paused, head.is_finishing, head.last_request))
        assert seen == [
            (True, False, "no new trials"),
            (True, False, "Refused: trial 0099 does not run"),
            (False, False, "new trials again"),
            (False, True, "no new trials from now on"),
        ]
        events.write("sweep_resumed")
        head = view.poll().head
    assert changes.head is not None and not changes.head.has_control
    assert head is not None and (head.is_finishing, head.last_request) == (False, None)


def test_the_end_is_told_when_the_summary_is_there(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", RUNNING, status=None)
    with paths.lock():
        view, _ = _poll_first(paths)
        write_record(paths.summary, Summary(status=SweepStatus.NO_WINNER))
        EventLog(paths.events).write("sweep_ended", reason="no_winner")
    changes = view.poll()
    assert changes.head is not None
    assert (changes.head.phase, changes.head.headline) == ("ended", "No winner: no trial was completed")


def test_trials_whose_events_are_lost_are_read_from_their_records(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), winner=3)
    paths.events.unlink()
    _, changes = _poll_first(paths)
    assert {row.id: row.state for row in changes.trials}["0001"] == "pruned"
    assert len(changes.trials) == 6
    assert changes.head is not None and changes.head.best_loss == 0.1


def test_broken_files_take_nothing_else_with_them(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), winner=3)
    paths.manifest.write_text("{")
    paths.trial("0003").record.write_text("[]")
    (paths.best / "scores.json").write_text("nothing")
    paths.live.write_text("[1")
    append_line(paths.events, {"time": "never", "event": ["list"], "trial": {"a": 1}})
    append_line(paths.events, {"event": "trial_opened", "trial": "../../etc"})
    append_line(paths.events, {"event": "trial_reported", "trial": "0099"})
    _, changes = _poll_first(paths)
    assert {row.id for row in changes.trials} == {f"{number:04d}" for number in range(6)}
    assert changes.head is not None and changes.head.winner == "0003"


def test_a_folder_that_was_made_again_is_another_sweep(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches())
    view, _ = _poll_first(paths)
    paths.root.rename(tmp_path / "old")
    write_sweep(tmp_path / "s", usual_sketches()[:1])
    with pytest.raises(FileReplaced):
        view.poll()
    shutil.rmtree(paths.root)
    _, changes = _poll_first(paths)
    assert changes.head is not None and changes.head.phase == "starting"


def test_the_other_sweeps_of_the_folder_stand_beside_it(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "mine", usual_sketches(), winner=3)
    write_sweep(tmp_path / "won", usual_sketches(), winner=0, verdict="no different")
    killed = write_sweep(tmp_path / "killed", usual_sketches(), status=None)
    EventLog(killed.events).write("trial_complete", trial="0000", metrics={"eval_loss": 0.2})
    EventLog(killed.events).write("trial_pruned", trial="0001", metrics={"eval_loss": 0.1})
    exact = write_sweep(tmp_path / "exact", usual_sketches(), status=None)
    EventLog(exact.events).write("trial_complete", trial="0000", metrics={"eval_loss": 0.0})
    EventLog(exact.events).write("trial_complete", trial="0001", metrics={"eval_loss": 0.1})
    (tmp_path / "no sweep").mkdir()
    view, changes = _poll_first(paths)
    assert changes.others is not None
    others = {one.name: one for one in changes.others}
    assert set(others) == {"won", "killed", "exact"}
    assert (others["exact"].best, others["exact"].best_loss) == ("0000", 0.0)
    assert (others["won"].status, others["won"].verdict, others["won"].best, others["won"].best_loss) == (
        "complete",
        "no different",
        "0000",
        0.2,
    )
    assert (others["killed"].status, others["killed"].counts, others["killed"].best) == (
        "killed",
        {"complete": 1, "pruned": 1},
        "0000",
    )
    assert view.poll().others is None
    with killed.lock():
        told = view.poll().others
    assert told is not None and {one.name: one.status for one in told}["killed"] == "running"


def test_another_sweep_whose_files_are_damaged_takes_no_page_away(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "mine", usual_sketches(), winner=3)
    write_sweep(tmp_path / "won", usual_sketches(), winner=0)
    (write_sweep(tmp_path / "damaged", usual_sketches()).manifest).write_text('{"config": {"search": null}}')
    _, changes = _poll_first(paths)
    assert changes.head is not None and changes.head.winner == "0003"
    assert changes.others is not None and [one.name for one in changes.others] == ["won"]


def test_a_folder_that_is_closed_to_the_reader_hides_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_sweep(tmp_path / name, usual_sketches()[:1]) for name in ("a", "closed", "z")]

    def is_sweep(folder: Path) -> bool:
        if folder.name == "closed":
            raise PermissionError(folder)
        return True

    monkeypatch.setattr("qlora_ray.dashboard.others.is_sweep", is_sweep)
    assert sorted(find_sweeps(tmp_path)) == [paths[0].root, paths[2].root]


def test_an_importance_that_cannot_be_told_is_not_tried_at_every_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sketches = [Sketch([1.0], {"lora.r": 8, "training.learning_rate": 1e-3}, "pruned")] * 12
    view, _ = _poll_first(write_sweep(tmp_path / "s", sketches))

    def fail(journal: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("qlora_ray.dashboard.sweep_view.read_importance", fail)
    assert view.needs_importance()
    with pytest.raises(ZeroDivisionError):
        view.read_importance()
    assert not view.needs_importance()


def test_importance_is_told_when_enough_trials_have_ended_and_not_again_for_a_few_more(tmp_path: Path) -> None:
    few = [Sketch([1.0], {"lora.r": 8, "training.learning_rate": 1e-3}, "pruned")] * 9
    view, _ = _poll_first(write_sweep(tmp_path / "few", few))
    assert not view.needs_importance()
    many = [
        Sketch([1.5 - index / 10], {"lora.r": 4, "training.learning_rate": 1e-4 * (index + 1)}, "pruned")
        for index in range(12)
    ]
    paths = write_sweep(tmp_path / "many", many)
    view, _ = _poll_first(paths)
    assert view.needs_importance()
    view.read_importance()
    changes = view.poll()
    assert changes.importance is not None
    assert next(iter(changes.importance.shares)) == "training.learning_rate"
    assert "PED-ANOVA" in changes.importance.note
    assert not view.needs_importance()
    assert view.whole().importance == changes.importance


def test_values_that_are_no_numbers_of_json_do_not_break_the_page(tmp_path: Path) -> None:
    nan = float("nan")
    params = {"lora.r": 5, "training.optim": "<script>alert(1)</script>"}
    sketches = [Sketch([nan, 0.5], params), Sketch([nan], params, "failed", "diverged")]
    _, changes = _poll_first(write_sweep(tmp_path / "s", sketches, has_journal=False))
    rows = {row.id: row for row in changes.trials}
    assert rows["0000"].reports[0] == (1, 600, None)
    assert rows["0001"].loss is None
    assert rows["0000"].params["training.optim"] == "<script>alert(1)</script>"
    # No choice of the axis, and not searched.
    assert rows["0000"].places == (None, None)
