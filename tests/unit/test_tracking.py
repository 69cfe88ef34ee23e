"""Trackers: what is handed to them, what their own libraries then have, and what becomes of one that breaks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config.choices import TRACKERS, TrackerEntry
from qlora_ray.errors import ConfigError
from qlora_ray.tracking.reporter import TrackerReporter, hide_secrets
from qlora_ray.tracking.table import check_trackers, make_tracker
from qlora_ray.tracking.tracker import TrackedSweep, Tracker, flatten

CONFIG = {"trial": "0000", "params.lora.r": 8, "base.name": "embedded"}
OTHER_CONFIG = {**CONFIG, "trial": "0001", "params.lora.r": 16}
LOSSES = {1: 2.0, 2: 1.5, 4: 1.25}


class Recorder:
    """A tracker that keeps its calls, and breaks at one of them."""

    broken_at: str | None = None
    error: BaseException = OSError("no route")
    made: list[Recorder]

    def __init__(self, sweep: TrackedSweep) -> None:
        self.sweep = sweep
        self.calls: list[tuple[Any, ...]] = []
        type(self).made.append(self)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            self.calls.append((name, *arguments))
            if name == type(self).broken_at:
                raise type(self).error

        return call


def put_recorder(monkeypatch: pytest.MonkeyPatch, name: str, *, broken_at: str | None = None) -> type[Recorder]:
    """Puts a class of recorders in a tracker's place."""
    kind = type(f"{name.title()}Recorder", (Recorder,), {"broken_at": broken_at, "made": []})
    monkeypatch.setitem(globals(), kind.__name__, kind)
    monkeypatch.setitem(TRACKERS, name, TrackerEntry(f"{__name__}:{kind.__name__}", library="json"))
    return kind


def run_two_trials(reporter: Any) -> None:
    """One trial that is completed, and one beside it that is pruned."""
    reporter.start_trial("0000", CONFIG)
    reporter.start_trial("0001", OTHER_CONFIG)
    for step, loss in LOSSES.items():
        reporter.log("0000", step, {"train/loss": loss})
    reporter.log("0001", 1, {"train/loss": 3.0})
    reporter.end_trial("0001", "pruned", "stopped by asha at report 1", {"eval_loss": 2.5})
    reporter.end_trial("0000", "complete", "", {"eval_loss": 1.0})
    reporter.close()


def test_each_tracker_hears_everything_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds = [put_recorder(monkeypatch, name) for name in ("mlflow", "wandb")]
    told: list[str] = []
    run_two_trials(TrackerReporter(["mlflow", "wandb"], TrackedSweep("s", tmp_path), tell=told.append))
    for kind in kinds:
        (tracker,) = kind.made
        assert tracker.sweep == TrackedSweep("s", tmp_path)
        names = [name for name, *_ in tracker.calls]
        assert names == ["start_trial"] * 2 + ["log"] * 4 + ["end_trial"] * 2 + ["close"]
        assert tracker.calls[0] == ("start_trial", "0000", CONFIG)
        assert tracker.calls[-3] == ("end_trial", "0001", "pruned", "stopped by asha at report 1", {"eval_loss": 2.5})
    assert told == []


def test_a_tracker_that_breaks_is_told_once_and_takes_nothing_from_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken, whole = put_recorder(monkeypatch, "mlflow", broken_at="log"), put_recorder(monkeypatch, "wandb")
    told: list[str] = []
    run_two_trials(TrackerReporter(["mlflow", "wandb"], TrackedSweep("s", tmp_path), tell=told.append))
    assert [call[0] for call in broken.made[0].calls] == ["start_trial", "start_trial", "log"]
    assert len(whole.made[0].calls) == 9
    (note,) = told
    assert "mlflow" in note and "OSError: no route" in note


def test_a_library_that_ends_the_process_is_left_out_as_one_that_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_recorder(monkeypatch, "mlflow", broken_at="start_trial").error = SystemExit(1)
    whole = put_recorder(monkeypatch, "wandb")
    said: list[str] = []
    reporter = TrackerReporter(["mlflow", "wandb"], TrackedSweep("s", tmp_path), tell=said.append)
    run_two_trials(reporter)
    reporter.close()
    assert said == ["note: nothing more goes to mlflow: SystemExit: 1"]
    assert whole.made[0].calls[-1] == ("close",)


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "MINIO_SECRET_KEY", "DB_PASSWD", "WANDB_API_KEY", "HF_TOKEN"]
)
def test_the_values_of_variables_that_hold_secrets_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "a-long-value-of-mine")
    assert hide_secrets("denied for a-long-value-of-mine here") == "denied for *** here"


def test_what_a_library_quotes_of_passwords_and_keys_stands_in_no_line_and_no_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "bearer-of-mine")
    put_recorder(monkeypatch, "mlflow", broken_at="log").error = OSError(
        "API request to https://me:pass@word@tracker.example/api failed, with bearer-of-mine"
    )
    told: list[str] = []
    run_two_trials(TrackerReporter(["mlflow"], TrackedSweep("s", tmp_path), tell=told.append))
    (note,) = told
    assert "https://***@tracker.example/api failed, with ***" in note
    log = capfd.readouterr().err
    assert "tracker.example" in log
    for text in (note, log):
        assert "word" not in text and "bearer-of-mine" not in text


def test_a_slow_tracker_gets_every_begin_and_end_and_as_many_figures_as_may_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("qlora_ray.tracking.reporter.MAX_WAITING", 2)
    slow = put_recorder(monkeypatch, "mlflow")
    may_begin = threading.Event()
    make = slow.__init__

    def wait(self: Recorder, sweep: TrackedSweep) -> None:
        may_begin.wait()
        make(self, sweep)

    monkeypatch.setattr(slow, "__init__", wait)
    told: list[str] = []
    reporter = TrackerReporter(["mlflow"], TrackedSweep("s", tmp_path), tell=told.append)
    reporter.start_trial("0000", CONFIG)
    for step in range(4):
        reporter.log("0000", step, {"train/loss": 1.0})
    reporter.start_trial("0001", CONFIG)
    reporter.end_trial("0000", "complete", "", {})
    may_begin.set()
    reporter.close()
    (tracker,) = slow.made
    assert [call[0] for call in tracker.calls] == ["start_trial", "log", "start_trial", "end_trial", "close"]
    assert told == ["note: 3 figures were not reported: the trackers were too slow"]


def test_a_library_that_is_not_there_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", TrackerEntry("a:b", library="no_such_library"))
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match=r"got none of wandb.*'\.\[wandb\]'"):
        check_trackers(["tensorboard", "wandb"])


def test_a_record_is_flattened_to_what_trackers_compare() -> None:
    record = {"trial": "0001", "params": {"lora.r": 8}, "lora": {"target_modules": ["q", "k"], "dropout": None}}
    assert flatten(record) == {
        "trial": "0001",
        "params.lora.r": 8,
        "lora.target_modules": "['q', 'k']",
        "lora.dropout": None,
    }


@pytest.fixture
def sweep(tmp_path: Path) -> TrackedSweep:
    return TrackedSweep("s", tmp_path)


def make(name: str, sweep: TrackedSweep) -> Tracker:
    pytest.importorskip(TRACKERS[name].library)
    return make_tracker(name, sweep)


@pytest.mark.slow
def test_tensorboard_has_a_folder_for_each_trial(sweep: TrackedSweep) -> None:
    run_two_trials(make("tensorboard", sweep))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(sweep.folder / "tensorboard" / "0000"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("train/loss")} == LOSSES
    assert [event.value for event in events.Scalars("final/eval_loss")] == [1.0]
    assert {path.name for path in (sweep.folder / "tensorboard").iterdir()} == {"0000", "0001"}


@pytest.mark.slow
def test_mlflow_has_an_experiment_for_the_sweep(sweep: TrackedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (sweep.folder / "mlruns").as_uri())
    # From 3.x on MLflow asks for this word before it writes plain files.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_two_trials(make("mlflow", sweep))
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    assert {(run.info.run_name, run.info.status, run.data.tags["state"]) for run in runs} == {
        ("0000", "FINISHED", "complete"),
        ("0001", "FINISHED", "pruned"),
    }
    (first,) = [run for run in runs if run.info.run_name == "0000"]
    assert first.data.params["params.lora.r"] == "8"
    history = client.get_metric_history(first.info.run_id, "train/loss")
    assert {metric.step: metric.value for metric in history} == LOSSES


@pytest.mark.slow
def test_wandb_has_a_run_for_each_trial_at_once(sweep: TrackedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker: Any = make("wandb", sweep)
    tracker.start_trial("0000", CONFIG)
    tracker.start_trial("0001", OTHER_CONFIG)
    first, second = tracker._runs["0000"], tracker._runs["0001"]
    assert (first.group, first.config["params.lora.r"], second.config["params.lora.r"]) == ("s", 8, 16)
    tracker.log("0000", 4, {"train/loss": 1.25})
    tracker.log("0001", 1, {"train/loss": 3.0})
    finish, finals = first.finish, []
    # A run that has finished shows its summary no more.
    monkeypatch.setattr(first, "finish", lambda **options: finals.append(dict(first.summary)) or finish(**options))
    tracker.end_trial("0000", "complete", "", {"eval_loss": 1.0})
    assert (finals[0]["eval_loss"], finals[0]["state"], finals[0]["train/loss"]) == (1.0, "complete", 1.25)
    tracker.close()
    assert len(list((sweep.folder / "wandb").glob("offline-run-*"))) == 2


@pytest.mark.slow
def test_trackio_has_a_run_for_each_trial(sweep: TrackedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(sweep.folder / "trackio"))
    run_two_trials(make("trackio", sweep))
    from trackio.sqlite_storage import SQLiteStorage

    assert set(SQLiteStorage.get_runs("qlora_ray")) == {"s-0000", "s-0001"}
    logs = SQLiteStorage.get_logs("qlora_ray", "s-0000")
    assert {line["step"]: line["train/loss"] for line in logs if "train/loss" in line} == LOSSES
    assert json.dumps(logs)
