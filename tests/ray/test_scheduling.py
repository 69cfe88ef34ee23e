"""Our scheduling against Tune's own: what each scheduler decides in a real run of its Tuner, call by call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from qlora_ray.config.schema import Search
from qlora_ray.orchestration.schedulers import TIME_ATTRIBUTE, make_scheduler
from qlora_ray.orchestration.scheduling import OBJECTIVE, ScheduledTrial, Scheduling

NUM_TRIALS = 9
NUM_REPORTS = 4
STATUS_AFTER = {
    TrialScheduler.CONTINUE: Trial.RUNNING,
    TrialScheduler.PAUSE: Trial.PAUSED,
    TrialScheduler.STOP: Trial.TERMINATED,
}


def curve(number: int, index: int) -> float:
    """Trials whose order changes from report to report."""
    return (number * 7 % NUM_TRIALS) + (number * 5 % 4 + 1) / index


class Curve(tune.Trainable):
    """A trial of Tune's that makes the reports of a curve."""

    def setup(self, config: dict[str, Any]) -> None:
        self._index = 0

    def step(self) -> dict[str, Any]:
        self._index += 1
        number = self.config["number"]
        return {
            TIME_ATTRIBUTE: self._index,
            OBJECTIVE: curve(number, self._index),
            "done": self._index == NUM_REPORTS,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "index.json").write_text(json.dumps(self._index))

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        self._index = json.loads((Path(checkpoint_dir) / "index.json").read_text())


@dataclass(frozen=True)
class Call:
    """A call of Tune's controller to the scheduler that none of the scheduler's own calls led to.

    Attributes:
        statuses: Of all trials at that moment.
        decision: What was returned, if anything was.
    """

    kind: str
    number: int
    index: int
    statuses: dict[int, str]
    decision: str | None = None


class Recorder(TrialScheduler):
    """Passes a scheduler's calls on and keeps them."""

    _supports_buffered_results = False

    def __init__(self, scheduler: TrialScheduler) -> None:
        super().__init__()
        self._scheduler: Any = scheduler
        self._trials: list[Any] = []
        self._depth = 0
        self.calls: list[Call] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return bool(self._scheduler.set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._trials.append(trial)
        self._call("add", trial, 0, lambda: self._scheduler.on_trial_add(tune_controller, trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        index = result[TIME_ATTRIBUTE]
        return str(
            self._call("result", trial, index, lambda: self._scheduler.on_trial_result(tune_controller, trial, result))
        )

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        index = result[TIME_ATTRIBUTE]
        self._call("complete", trial, index, lambda: self._scheduler.on_trial_complete(tune_controller, trial, result))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._call("remove", trial, 0, lambda: self._scheduler.on_trial_remove(tune_controller, trial))

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return self._scheduler.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return ""

    def _call(self, kind: str, trial: Any, index: int, call: Any) -> Any:
        statuses = {one.config["number"]: one.status for one in self._trials}
        self._depth += 1
        answer = call()
        self._depth -= 1
        if self._depth == 0:
            self.calls.append(Call(kind, trial.config["number"], index, statuses, answer))
        return answer


@pytest.mark.parametrize("name", ["asha", "hyperband", "median", "none"])
def test_each_scheduler_decides_as_it_does_under_tunes_own_controller(
    name: str, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_RESULT_BUFFER_LENGTH", "1")
    settings = Search.model_validate({"scheduler": name, "num_reports": NUM_REPORTS, "reduction_factor": 2})
    recorder = Recorder(make_scheduler(settings))
    tune.Tuner(
        tune.with_resources(Curve, {"cpu": 0.6}),
        param_space={"number": tune.grid_search(list(range(NUM_TRIALS)))},
        tune_config=tune.TuneConfig(metric=OBJECTIVE, mode="min", scheduler=recorder, reuse_actors=False),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()

    ours = Scheduling(make_scheduler(settings), mode="min")
    trials: dict[int, ScheduledTrial] = {}
    decided = set()
    for call in recorder.calls:
        for number, status in call.statuses.items():
            if number in trials and not trials[number].is_ended:
                # When Tune has started an actor is no decision of a scheduler's.
                trials[number].status = status
        if call.kind == "add":
            trials[call.number] = ScheduledTrial(call.number)
            ours.add(trials[call.number])
            continue
        trial = trials[call.number]
        if call.kind == "complete" and trial.is_ended:
            # Tune tells a stop after the result that led to it; ours was told then.
            continue
        result = {
            TIME_ATTRIBUTE: call.index,
            OBJECTIVE: curve(call.number, call.index),
            "done": call.kind == "complete",
        }
        ours.judge(trial, result)
        if call.decision is not None:
            decided.add(call.decision)
            assert trial.status == STATUS_AFTER[call.decision], call
    assert {trial.status for trial in trials.values()} == {Trial.TERMINATED}
    expected = {"none": {"CONTINUE"}, "asha": {"CONTINUE", "STOP"}, "hyperband": {"PAUSE", "STOP"}, "median": {"STOP"}}
    assert decided >= expected[name]
