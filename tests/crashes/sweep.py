"""A small sweep through the real driver, whose trials follow a script: what each loses at each report is its rate's."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_ray.config.schema import SweepConfig
from qlora_ray.data import TokenizedSplit
from qlora_ray.orchestration import driver
from qlora_ray.orchestration.winner import choose_winner
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.derived import rebuild
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.runs.records import TrialRecord, read_record
from qlora_ray.runs.whole import whole_folder
from qlora_ray.scoring.scores import Scores
from qlora_ray.search.parsing import load_space
from qlora_ray.search.study import open_study
from qlora_ray.training.checkpoint import TrialState, find_state
from qlora_ray.training.engine import Failure
from tests.unit.driver_fixtures import World
from tests.unit.orchestration_fixtures import make_result, remote

RATE = "training.learning_rate"
BEST, PRUNED, DIVERGED = 1e-3, 1e-5, 1e-1
NUM_REPORTS = 2
SEARCH = {
    "space": {
        RATE: {"low": 1e-5, "high": 1e-1, "log": True},
        "points_to_evaluate": [{RATE: rate} for rate in (PRUNED, DIVERGED, BEST)],
    },
    "num_trials": 3,
    "num_reports": NUM_REPORTS,
    "sampler": "random",
    "final_seeds": 1,
}
LOSSES = {BEST: 0.2, PRUNED: 3.0, DIVERGED: 1.0}


def loss_of(rate: float, report_index: int) -> float:
    """The validation loss of a trial at a report."""
    return LOSSES[rate] + 1 / report_index


class ScriptedSweep:
    """The sweep of one driver: a second one of the same folder resumes it.

    Args:
        root: The sweep's folder comes to lie in it.
        inputs: A folder of the driver's own, outside.
        patch: Puts the fakes of Ray and of executors in place.
    """

    def __init__(self, root: Path, inputs: Path, patch: pytest.MonkeyPatch) -> None:
        self.world = World(inputs, patch)
        self.world.paths = self.paths = SweepPaths(root / "s")
        config = SweepConfig.model_validate({"search": SEARCH, "evaluate": {"metrics": [], "top_k": 1}})
        rows = TokenizedSplit.of("rows", [[1, 2]], [[0, 1]], [[1]], ["answer"])
        report = SimpleNamespace(
            summary_lines=lambda: ["1 row"], fingerprint="f", format="prompt-completion", classes={}
        )
        data: Any = SimpleNamespace(train=[0] * 8, validation=rows, test=None, report=report, folder=root)
        preflight = self.world.preflight
        self.world.preflight = replace(preflight, config=config, space=load_space(config), data=data)
        self.world.search = self._search
        usage = {"first_step_at": 1.0, "training_s": 4.0, "idle_s": 0.0}
        executor = SimpleNamespace(score=remote(self._score), usage=remote(lambda: usage))
        self.world.pool.executors = [(executor, {"device_class": "cpu"})]
        patch.setattr(driver, "choose_winner", choose_winner)
        # No figures on a timer's time: the operation of a number is the same one each time.
        patch.setattr("qlora_ray.orchestration.live.watch.LOOK_INTERVAL_S", 3600.0)
        patch.setattr(driver, "check_same_inputs", lambda preflight, first, *, common: [])

    def run(self) -> None:
        """Begins the sweep, or goes on with what is there."""
        self.world.run(is_resume=self.paths.manifest.exists())

    def _search(self, searcher: Any, stop: Any) -> None:
        while searcher.has_more():
            asked = searcher.ask().result()
            searcher.open(asked)
            self._train(searcher, asked.number, asked.params)
            searcher.close(asked.number)
            # One thing after the other, for the same reason.
            searcher.flush()

    def _train(self, searcher: Any, number: int, params: Mapping[str, Any]) -> None:
        """Does what an executor does, and the search's loop: what a report says is on the disk before the report is."""
        trial, rate = self.paths.trial(trial_id_of(number)), params[RATE]
        state, problem = find_state(trial.state)
        assert problem is None, problem
        if state is None:
            state = TrialState(trial.root.name, 0, 0, {"rate": torch.tensor([rate])}, {}, {}, {})
        assert state.adapter["rate"].item() == pytest.approx(rate)
        if state.metrics:
            # Told again: the driver may have been stopped before it heard of it.
            self._enter(searcher, number, rate, state.report_index)
            if rate == PRUNED:
                return
        for index in range(state.report_index + 1, NUM_REPORTS + 1):
            is_final = index == NUM_REPORTS
            if rate == DIVERGED and is_final:
                failure = Failure("diverged", "loss is nan at step 3")
                searcher.enter_report(make_result(number, index, is_final=True, metrics={}, failure=failure))
                return
            if not state.has_pending_report:
                state = replace(state, step=index, pending_metrics={"train_s": 1.0})
                state.save(trial.state)
            if is_final:
                with whole_folder(trial.adapter) as folder:
                    save_file(state.adapter, folder / "adapter_model.safetensors")
            else:
                state = state.reported(index, metrics={"eval_loss": loss_of(rate, index)})
                state.save_facts(trial.state)
            self._enter(searcher, number, rate, index)
            if rate == PRUNED:
                return

    def _enter(self, searcher: Any, number: int, rate: float, index: int) -> None:
        searcher.enter_report(make_result(number, index, loss=loss_of(rate, index), is_final=index == NUM_REPORTS))

    def _score(self, models: Mapping[str, Any], split: str, *, with_answers: bool) -> dict[str, Scores]:
        def score(adapter: Path | None) -> Scores:
            loss = 4.0
            if adapter is not None:
                rate = load_file(adapter / "adapter_model.safetensors")["rate"].item()
                loss = next(loss for each, loss in LOSSES.items() if each == pytest.approx(rate))
            return Scores(loss, 40, 4, {}, {}, [], 0, 0, row_nll=[10 * loss] * 4, row_tokens=[10] * 4)

        return {name: score(adapter) for name, adapter in models.items()}


def describe(root: Path) -> dict[str, Any]:
    """What a sweep's folder says, without times, and without what an interruption leaves: other numbers of trials.

    Reads every file of it, and fails where one cannot be read, is left over, or says what another one denies.
    """
    paths = SweepPaths(root / "s")
    for path in sorted(paths.root.rglob("*")):
        name = path.relative_to(paths.root)
        assert not path.name.startswith(".") or str(name) == ".lock", f"{name} is left over"
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
    records = [read_record(path / "record.json", TrialRecord) for path in sorted(paths.trials.iterdir())]
    by_id = {record.trial: record for record in records}
    ended = [record for record in records if record.state != "interrupted"]
    for record in ended:
        trial = paths.trial(record.trial)
        assert not trial.state.exists(), f"the state of {record.trial} is left over"
        assert trial.adapter.exists() == (record.state == "complete")
        told = [json.loads(line) for line in trial.metrics.read_text().splitlines()] if trial.metrics.exists() else []
        assert [line["report_index"] for line in told] == list(range(1, len(told) + 1)) == sorted(record.reports)
    with paths.trials_table.open() as stream:
        table = {row["trial"]: row["state"] for row in csv.DictReader(stream)}
    assert table == {record.trial: str(record.state) for record in records}
    config = SweepConfig.model_validate({"search": SEARCH})
    study = open_study(paths.study, name="s", search=config.search, space=load_space(config))
    of_study = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    told_of = {trial.number: of_study.get(trial.state.name) for trial in study.get_trials()}
    for record in ended:
        if record.seed_of is None:
            assert told_of[record.number] == record.state, f"the study has {told_of[record.number]} for {record.trial}"
    summary = read_json(paths.summary)
    events = [json.loads(line)["event"] for line in paths.events.read_text().splitlines()]
    assert events[-1] == "sweep_ended"
    # Made again of events and records, both are what the driver made of what it knew, byte for byte.
    assert [file.state for file in rebuild(paths)] == ["unchanged", "unchanged"]

    def first_of(trial: str | None) -> float | None:
        return None if trial is None else by_id[trial].params[RATE]

    return {
        "ended": sorted(
            [
                (record.params[RATE], first_of(record.seed_of), str(record.state), record.cause, dict(record.reports))
                for record in ended
            ],
            key=str,
        ),
        "summary": {key: summary[key] for key in ("status", "verdict", "objective")},
        "counts": {state: count for state, count in summary["counts"].items() if state != "interrupted"},
        "winner": first_of(summary["winner"]),
        "best": sorted(str(path.relative_to(paths.best)) for path in paths.best.rglob("*")),
        "best_trial": first_of(read_json(paths.best / "scores.json")["trial"]),
        "names": sorted({path.name for path in paths.root.iterdir()}),
    }
