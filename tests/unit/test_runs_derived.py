"""summary.json and trials.csv, made again of events and records alone: byte for byte what the driver wrote."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_ray import report
from qlora_ray.orchestration import driver
from qlora_ray.orchestration.searcher import PlannedClone
from qlora_ray.orchestration.trial_entry import CloneOrigin
from qlora_ray.reporting.story import read_story
from qlora_ray.reporting.writing import Written
from qlora_ray.runs import EventLog, SweepPaths, read_events, write_text
from qlora_ray.runs.derived import RebuildState, end_sweep, find_summary, rebuild
from qlora_ray.runs.files import append_line, format_json, read_lines
from qlora_ray.runs.record_parts import PushesRecord
from qlora_ray.runs.records import Summary, SweepStatus, TrialRecord, as_read, read_record, to_dict
from qlora_ray.scoring.heads import HeadScores
from qlora_ray.training.engine import Failure
from tests.sweep_folder import usual_sketches, write_sweep
from tests.unit.driver_fixtures import World, complete_all, make_winner
from tests.unit.orchestration_fixtures import Books, ask, make_result, remote

UNCHANGED, REBUILT = RebuildState.UNCHANGED, RebuildState.REBUILT
PUSHES = PushesRecord(
    repository="https://hub/ann/s", num_pushed=1, waiting=("0004",), reason="the hub refuses.", command="push it"
)
RATE = "training.learning_rate"
RunReport = Callable[..., tuple[int, str, str]]


class _Pusher:
    """What the driver asks of the pusher of a sweep whose hub has refused one adapter."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None

    def finish(self, *, is_stopped: bool) -> PushesRecord:
        return PUSHES


def _end_each_way(searcher: Any, stop: Any) -> None:
    """A search with a pruned trial, a failed one, a loss that overflows, a clone, and two that Ctrl-C interrupts."""
    pruned, failed, other = ask(searcher), ask(searcher), ask(searcher)
    searcher.enter_report(make_result(pruned.number, 1, loss=3.0))
    searcher.close(pruned.number)
    diverged = Failure("diverged", 'loss is nan, "at", step 3\nand then')
    searcher.enter_report(make_result(failed.number, 1, loss=math.nan))
    searcher.enter_report(make_result(failed.number, 2, is_final=True, metrics={}, failure=diverged))
    searcher.close(failed.number)
    measured = {"eval_loss": 0.1 + 0.2, "train_s": 1.23456, "tokens_per_s": 777.7}
    searcher.enter_report(make_result(other.number, 1, metrics=measured))
    planned = PlannedClone(CloneOrigin(other.number, 0), {**other.params, RATE: 2e-3})
    clone = searcher.number_clone(planned).result().of(CloneOrigin(other.number, 1, 7))
    searcher.open(clone)
    signal.raise_signal(signal.SIGINT)


def _with_heads(ledger: Any, **_: Any) -> Any:
    winner = make_winner(ledger.ranked()[0])
    heads = {"emotion": HeadScores(0.1 + 0.2, math.nan, 0.5, 0.25, 8, {})}
    return replace(winner, scores=replace(winner.scores, heads=heads))


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A sweep of every kind of trial, with pushes, that Ctrl-C has stopped."""
    world = World(tmp_path, monkeypatch)
    monkeypatch.setattr(driver, "check_same_inputs", lambda preflight, first, *, common: [])
    monkeypatch.setattr(driver, "hub_pusher", lambda *_, **__: contextlib.nullcontext(_Pusher()))
    usage = {"first_step_at": 1.0, "training_s": 3.0, "idle_s": 0.7}
    world.pool.executors = [(SimpleNamespace(usage=remote(lambda: usage)), {})]
    monkeypatch.setattr(world.preflight.config.search, "final_seeds", 1)
    world.search, world.winner = _end_each_way, _with_heads
    assert world.run().status == "interrupted"
    return world


@pytest.fixture
def finished(interrupted: World) -> World:
    """The same, resumed to its end."""
    interrupted.search = complete_all
    assert interrupted.run(is_resume=True).status == "complete"
    return interrupted


def derived_of(paths: SweepPaths) -> list[bytes]:
    return [paths.trials_table.read_bytes(), paths.summary.read_bytes()]


def states_of(paths: SweepPaths) -> list[RebuildState]:
    return [file.state for file in rebuild(paths)]


def test_what_a_sweep_wrote_is_made_again_byte_for_byte(finished: World) -> None:
    paths = finished.paths
    written = derived_of(paths)
    rows = written[0].decode()
    assert all(word in rows for word in ("complete", "pruned", "failed", "interrupted", ",0002,1\n", ",0004,,\n"))
    summary = read_record(paths.summary, Summary)
    assert (summary.pushes, summary.device_wait_share, summary.verdict) == (PUSHES, 0.1892, "better")
    assert summary.heads == {"emotion": {"accuracy": 0.1 + 0.2, "macro_f1": None}}
    assert states_of(paths) == [UNCHANGED, UNCHANGED]
    paths.trials_table.unlink()
    paths.summary.unlink()
    assert states_of(paths) == [REBUILT, REBUILT]
    assert derived_of(paths) == written


@pytest.mark.slow
def test_wherever_one_of_them_is_cut_it_is_made_again(finished: World) -> None:
    paths = finished.paths
    written = derived_of(paths)
    for file, content in zip((paths.trials_table, paths.summary), written, strict=True):
        for size in range(len(content)):
            file.write_bytes(content[:size])
            assert sorted(states_of(paths)) == [REBUILT, UNCHANGED]
            assert derived_of(paths) == written


def test_of_a_sweep_that_was_stopped_or_goes_on_the_summary_is_of_the_last_end(interrupted: World) -> None:
    paths = interrupted.paths
    written = derived_of(paths)
    assert states_of(paths) == [UNCHANGED, UNCHANGED]
    # Resumed, and killed.
    EventLog(paths.events).write("sweep_resumed")
    paths.summary.write_text("{")
    assert states_of(paths) == [UNCHANGED, REBUILT]
    assert derived_of(paths) == written


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff{", b"[]"])
def test_a_resume_comes_out_the_same_whatever_became_of_both_files(
    interrupted: World, tmp_path: Path, content: bytes | None
) -> None:
    interrupted.search = complete_all
    shutil.copytree(interrupted.paths.root, tmp_path / "kept")
    interrupted.run(is_resume=True)
    undisturbed = derived_of(interrupted.paths)
    shutil.rmtree(interrupted.paths.root)
    shutil.copytree(tmp_path / "kept", interrupted.paths.root)
    for file in (interrupted.paths.trials_table, interrupted.paths.summary):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
    interrupted.run(is_resume=True)
    assert derived_of(interrupted.paths) == undisturbed


def test_a_trial_whose_driver_was_killed_has_its_reports_in_its_record_after_a_resume(tmp_path: Path) -> None:
    books = Books(tmp_path)
    searcher = books.make_searcher()
    asked = ask(searcher)
    for index in (1, 2):
        metrics = {"eval_loss": 1 / index, "train_s": 2.0, "tokens_per_s": 100.0, "peak_memory_bytes": 8 * index}
        searcher.enter_report(make_result(asked.number, index, metrics=metrics))
    searcher.finish()
    again = Books(tmp_path)
    again.ledger.restore()
    record = read_record(books.paths.trial("0000").record, TrialRecord)
    assert (record.state, record.reports) == ("interrupted", {1: 1.0, 2: 0.5})
    assert (record.metrics["eval_loss"], record.tokens_per_s, record.times.train_s) == (0.5, 100.0, 4.0)
    assert (record.memory.peak_bytes, record.times.closed) == (16, None)
    (row,) = again.paths.trials_table.read_text().splitlines()[1:]
    assert row.startswith("0000,interrupted,0.5,2,4.0,100.0,")


@pytest.mark.parametrize(
    "summary",
    [
        Summary(),
        Summary(status=SweepStatus.INTERRUPTED, first_failure="trial 0001: \ud800 \u2028\nline", counts={"failed": 1}),
        Summary(status=SweepStatus.COMPLETE, winner="0003", device_wait_share=0.0, pushes=PushesRecord()),
        Summary(heads={"": {"accuracy": 1e-320, "macro_f1": None}}, end_reason="search.time_budget of 1:00 is spent"),
    ],
)
def test_an_event_says_all_that_a_summary_does(tmp_path: Path, summary: Summary) -> None:
    paths = SweepPaths(tmp_path)
    end_sweep(paths, summary)
    (event,) = read_events(paths.events)
    assert (event["event"], event["reason"]) == ("sweep_ended", summary.status)
    assert find_summary([event, {"event": "trial_opened"}]) == as_read(summary) == read_record(paths.summary, Summary)
    assert format_json(to_dict(as_read(summary))) == paths.summary.read_text()


def test_the_event_is_on_the_disk_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, synced = SweepPaths(tmp_path), []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append((paths.events.exists(), paths.summary.exists())))
    end_sweep(paths, Summary())
    assert synced[:2] == [(True, False), (True, False)]


@pytest.fixture
def run_report(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """The command with `--rebuild` and without drawing: its exit code, stdout and stderr."""
    written = Written(Path("report.html"), Path("report.md"), None, "the verdict")
    monkeypatch.setattr("qlora_ray.reporting.write_reports", lambda paths: written)

    def run(paths: SweepPaths, *options: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = report.main([str(paths.root), "--rebuild", *options])
        return code, *capfd.readouterr()

    return run


def test_the_command_says_what_it_did_with_each_file_and_then_reports(finished: World, run_report: RunReport) -> None:
    paths = finished.paths
    paths.trials_table.write_bytes(paths.trials_table.read_bytes()[:-9])
    code, out, _ = run_report(paths)
    num_trials = len(paths.list_trials())
    done = [f"trials.csv: rebuilt, {num_trials} trials", "summary.json: unchanged"]
    assert (code, out.splitlines()) == (0, [*done, "the verdict", "report.html", "report.md"])
    paths.summary.unlink()
    code, out, _ = run_report(paths, "--json")
    assert (code, json.loads(out)["result"]["rebuilt"]) == (
        0,
        {"trials.csv": "unchanged", "summary.json": "rebuilt"},
    )


def test_a_report_names_a_summary_that_is_not_what_the_events_say_and_tells_what_they_do(
    finished: World,
) -> None:
    for content in ("{", '{"winner": null, "status": "no_winner"}', None):
        finished.paths.summary.unlink()
        if content is not None:
            finished.paths.summary.write_text(content)
        story = read_story(finished.paths)
        assert any(f"Have it written again: {finished.paths.rebuild_command}" in words for words in story.problems)
        assert (story.outcome.status, story.outcome.winner) == ("complete", "0004")
        rebuild(finished.paths)
    assert not any("summary.json" in words for words in read_story(finished.paths).problems)


def test_nothing_is_rebuilt_where_a_sweep_runs(finished: World, run_report: RunReport) -> None:
    paths = finished.paths
    paths.summary.unlink()
    with paths.lock():
        code, out, err = run_report(paths)
    assert (code, out, err.count("\n")) == (2, "", 1) and "another sweep is running there, process" in err
    assert not paths.summary.exists()


def test_a_folder_that_is_no_sweeps_is_refused_and_stays_as_it_is(tmp_path: Path, run_report: RunReport) -> None:
    code, _, err = run_report(SweepPaths(tmp_path / "none"))
    assert code == 2 and err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    code, _, err = run_report(SweepPaths(tmp_path / "empty"))
    assert code == 2 and err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_without_a_trials_record_its_row_is_not_lost_with_it(finished: World, run_report: RunReport) -> None:
    paths = finished.paths
    whole = paths.trials_table.read_text()
    paths.trial("0001").record.write_text('{"trial": "0001"')
    code, out, _ = run_report(paths)
    assert code == 1 and "trials.csv: left as it is: record.json of 0001 cannot be read. Delete it" in out
    assert paths.trials_table.read_text() == whole
    paths.trials_table.unlink()
    code, out, _ = run_report(paths, "--json")
    assert code == 1 and json.loads(out)["result"]["rebuilt"]["trials.csv"] == "partial"
    rows = [line for line in whole.splitlines(keepends=True) if not line.startswith("0001,")]
    assert paths.trials_table.read_text() == "".join(rows)
    # What is there is all that can be had.
    assert states_of(paths) == [UNCHANGED, UNCHANGED]


def test_no_end_is_made_up_for_a_sweep_that_has_none(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), status=None)
    _, summary = rebuild(paths)
    assert (summary.state, paths.summary.exists()) == (UNCHANGED, False) and paths.resume_command in summary.words
    write_text(paths.summary, "{")
    _, summary = rebuild(paths)
    assert (summary.state, paths.summary.read_text()) == (RebuildState.LEFT, "{")
    # A version that logged no summary.
    older = write_sweep(tmp_path / "older", usual_sketches(), winner=3)
    before = older.summary.read_bytes()
    _, summary = rebuild(older)
    assert (summary.state, older.summary.read_bytes()) == (UNCHANGED, before)


def test_trials_that_were_running_have_no_row_and_other_files_no_say(tmp_path: Path) -> None:
    sketches = [*usual_sketches(), replace(usual_sketches()[0], state="running")]
    paths = write_sweep(tmp_path / "s", sketches, status=None)
    shutil.copytree(paths.trial("0000").root, paths.trials / "0000 copy")
    (paths.trials / "0099").mkdir()
    table, _ = rebuild(paths)
    assert table.words == f"rebuilt, {len(sketches) - 1} trials"
    ids = [line.partition(",")[0] for line in paths.trials_table.read_text().splitlines()[1:]]
    assert ids == [f"{number:04d}" for number in range(len(sketches) - 1)]


def test_links_are_replaced_and_never_followed(finished: World, tmp_path: Path) -> None:
    paths = finished.paths
    written = derived_of(paths)
    outside = tmp_path / "outside"
    for content in (b"mine", written[0], written[1]):
        outside.write_bytes(content)
        for file in (paths.trials_table, paths.summary):
            file.unlink()
            file.symlink_to(outside)
        assert states_of(paths) == [REBUILT, REBUILT]
        assert derived_of(paths) == written and outside.read_bytes() == content
        assert not paths.trials_table.is_symlink() and not paths.summary.is_symlink()


def test_damaged_events_end_no_rebuild(finished: World) -> None:
    paths = finished.paths
    written = derived_of(paths)
    lines = paths.events.read_bytes().splitlines(keepends=True)
    paths.events.write_bytes(b"\x00\xff\n[1]\n7\n" + b"".join(lines[5:]) + b'{"event": "sweep_en')
    paths.summary.unlink()
    assert states_of(paths) == [UNCHANGED, REBUILT]
    assert derived_of(paths) == written
    # The next line that is appended is whole.
    append_line(paths.events, {"event": "later"})
    assert read_lines(paths.events)[-1] == {"event": "later"}
