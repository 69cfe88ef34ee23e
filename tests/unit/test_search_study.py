"""The study on disk: each sampler proposes valid trials, and every trial's end is told as what it was."""

from __future__ import annotations

import sys

import pytest
from optuna.trial import TrialState

from qlora_ray.config.choices import SAMPLERS
from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import ConfigError
from qlora_ray.search.parsing import load_space
from qlora_ray.search.samplers import make_sampler
from qlora_ray.search.space import apply_values
from qlora_ray.search.study import (
    INTERRUPTED,
    RESUMED_FROM_ATTRIBUTE,
    count_finished,
    describe_unused,
    end_interrupted,
    enqueue_known_points,
    interrupted_trials,
    open_study,
    requeue_interrupted,
)

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE = {
    "lora.r": {"choices": [4, 8, 16]},
    "lora.target_modules": {"choices": ["attention", ["q_proj", "v_proj"]]},
    "lora.lora_dropout": {"low": 0.0, "high": 0.2, "step": 0.1},
    "training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "training.gradient_accumulation_steps": {"low": 1, "high": 8},
}
STEPPED = {**SPACE, "training.learning_rate": {"choices": [1e-4, 1e-3]}}
STEPPED["training.gradient_accumulation_steps"] = {"low": 2, "high": 8, "step": 3}


class Sweep:
    """A config, its space, and the study in a folder, which may be opened again as after a crash."""

    def __init__(self, folder, *, sampler="random", space=None, **search):
        folder.mkdir(exist_ok=True)
        self.path = folder / "study.journal"
        given = space or (STEPPED if sampler == "grid" else SPACE)
        settings = {"sampler": sampler, "num_trials": 6, "num_startup_trials": 2, "space": given, **search}
        self.config = SweepConfig.model_validate({"search": settings})
        self.space = load_space(self.config)

    def open(self):
        return open_study(self.path, name="s", search=self.config.search, space=self.space)

    def ask(self, study):
        return study.ask(self.space.distributions())

    def run(self, num_trials):
        """Asks and tells as a sweep does, in a study opened anew; returns the config values of each trial."""
        study = self.open()
        values = []
        for _ in range(num_trials):
            trial = self.ask(study)
            values.append(self.space.decode(trial.params))
            config = apply_values(self.config, values[-1])
            study.tell(trial, abs(config.training.learning_rate - 3e-4) * 1e3 + config.lora.r / 64)
        return values


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


def killed(*args, **kwargs):
    raise KeyboardInterrupt("kill -9")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_valid_trials_and_the_same_ones_for_the_same_seed(sampler, tmp_path):
    first = Sweep(tmp_path / "a", sampler=sampler).run(6)
    second = Sweep(tmp_path / "b", sampler=sampler).run(6)
    assert first == second
    assert len({str(values) for values in first}) > 1
    for values in first:
        assert set(values) == set(SPACE)
        assert values["lora.target_modules"] in ("attention", ["q_proj", "v_proj"])


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "cma-es"])
def test_another_seed_proposes_other_trials(sampler, tmp_path):
    assert Sweep(tmp_path / "a", sampler=sampler).run(3) != Sweep(tmp_path / "b", sampler=sampler, seed=8).run(3)


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "cma-es", "gp"])
def test_a_resumed_study_does_not_propose_its_first_trials_again(sampler, tmp_path):
    sweep = Sweep(tmp_path, sampler=sampler, num_startup_trials=10)
    before, after = sweep.run(2), sweep.run(2)
    assert [values for values in after if values in before] == []


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_sweep_that_was_killed_and_resumed_runs_the_settings_of_one_that_was_not(sampler, tmp_path):
    undisturbed = Sweep(tmp_path / "a", sampler=sampler).run(6)
    sweep = Sweep(tmp_path / "b", sampler=sampler)
    before = sweep.run(2)
    study = sweep.open()
    lost = sweep.space.decode(sweep.ask(study).params)
    again = sweep.open()
    assert requeue_interrupted(again) == [2]
    del again
    after = sweep.run(4)
    assert (before, lost) == (undisturbed[:2], undisturbed[2])
    assert after == undisturbed[2:]


GRID = {"lora.r": {"choices": [4, 8]}, "lora.use_dora": {"choices": [True, False]}}


def test_a_grid_visits_each_of_its_points_once_across_a_resume(tmp_path):
    sweep = Sweep(tmp_path, sampler="grid", space=GRID, num_trials=4)
    visited = [tuple(values.values()) for values in sweep.run(2) + sweep.run(2)]
    assert sorted(visited) == [(4, False), (4, True), (8, False), (8, True)]


def test_parallel_trials_of_a_grid_are_different_points_of_its_own(tmp_path):
    sweep = Sweep(tmp_path, sampler="grid", space={**GRID, "points_to_evaluate": [{"lora.r": 8}]}, num_trials=4)
    study = sweep.open()
    enqueue_known_points(study, search=sweep.config.search, space=sweep.space)
    assert study.get_trials() == []
    assert len({str(sweep.ask(study).params) for _ in range(4)}) == 4


@pytest.mark.parametrize("seed", range(4))
def test_a_grid_goes_on_after_an_interruption(seed, tmp_path):
    sweep = Sweep(tmp_path, sampler="grid", space=GRID, num_trials=4, seed=seed)
    first = sweep.ask(sweep.open()).params
    study = sweep.open()
    requeue_interrupted(study)
    trials = [sweep.ask(study) for _ in range(4)]
    for trial in trials:
        study.tell(trial, 1.0)
    assert trials[0].params == first
    assert len({str(sorted(trial.params.items())) for trial in trials}) == 4
    assert count_finished(study) == 4


def test_a_grid_goes_on_from_a_trial_that_was_killed_before_it_had_all_its_parameters(tmp_path):
    sweep = Sweep(tmp_path, sampler="grid", space=GRID, num_trials=4)
    first = sweep.open().ask().suggest_categorical("lora.r", [4, 8])
    study = sweep.open()
    assert requeue_interrupted(study) == [0]
    again = sweep.ask(study)
    assert again.params["lora.r"] == first and again.params["lora.use_dora"] in (True, False)


def test_two_objectives_are_two_directions(tmp_path):
    objectives = {"eval_loss": "min", "trainable_parameters": "max"}
    sweep = Sweep(tmp_path, sampler="nsga2", scheduler="none", objectives=objectives)
    assert [direction.name for direction in sweep.open().directions] == ["MINIMIZE", "MAXIMIZE"]


@pytest.mark.parametrize(("sampler", "package"), [("cma-es", "cmaes"), ("gp", "scipy")])
def test_a_sampler_without_its_package_says_what_to_install(sampler, package, sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "qlora_ray.search.cma_es", raising=False)
    search = sweep.config.search.model_copy(update={"sampler": sampler})
    with pytest.raises(ConfigError, match=rf"{sampler} needs the package {package}.*qlora_ray\[samplers\]"):
        make_sampler(search, sweep.space)


def test_known_points_run_first_in_their_order_and_once(tmp_path):
    points = [{"lora.r": 8, "lora.target_modules": ["q_proj", "v_proj"]}, {"training.learning_rate": 2e-4}]
    sweep = Sweep(tmp_path, sampler="tpe", space={**SPACE, "points_to_evaluate": points})
    study = sweep.open()
    enqueue_known_points(study, search=sweep.config.search, space=sweep.space)
    enqueue_known_points(sweep.open(), search=sweep.config.search, space=sweep.space)
    asked = [sweep.space.decode(sweep.ask(study).params) for _ in range(3)]
    assert asked[0] | points[0] == asked[0]
    assert asked[1]["training.learning_rate"] == 2e-4
    assert asked[2]["training.learning_rate"] != 2e-4
    assert len(study.get_trials()) == 3


def test_no_more_points_are_queued_than_the_sweep_has_trials_so_that_an_interrupted_one_has_a_place(tmp_path):
    rates = [1e-4, 2e-4, 3e-4]
    points = [{"training.learning_rate": rate} for rate in rates]
    sweep = Sweep(tmp_path, sampler="random", space={**SPACE, "points_to_evaluate": points}, num_trials=2)
    study = sweep.open()
    enqueue_known_points(study, search=sweep.config.search, space=sweep.space)
    done, _interrupted = sweep.ask(study), sweep.ask(study)
    study.tell(done.number, 1.0)
    again = sweep.open()
    enqueue_known_points(again, search=sweep.config.search, space=sweep.space)
    requeue_interrupted(again)
    # The second of two trials, and not a third point.
    assert sweep.ask(again).params["training.learning_rate"] == 2e-4


@pytest.mark.parametrize("num_tears", [1, 2])
def test_a_trial_whose_draws_were_torn_off_the_journal_draws_the_same_again(tmp_path, num_tears):
    def start(name):
        return Sweep(tmp_path / name, sampler="random", space=SPACE, num_trials=4)

    (tmp_path / "whole").mkdir()
    (tmp_path / "torn").mkdir()
    whole, torn = start("whole"), start("torn")
    study = whole.open()
    undisturbed = [whole.ask(study).params for _ in range(4)]
    study = torn.open()
    study.tell(torn.ask(study).number, 1.0)
    for _ in range(num_tears):
        # It stands in the journal without its parameters.
        study.ask()
        study = torn.open()
        assert len(requeue_interrupted(study)) == 1
    assert [torn.ask(study).params for _ in range(3)] == undisturbed[1:]


def test_a_renamed_sweep_goes_on_with_its_own_study_and_queues_no_finished_trial(sweep):
    sweep.run(2)
    study = open_study(sweep.path, name="another", search=sweep.config.search, space=sweep.space)
    assert (study.study_name, count_finished(study), requeue_interrupted(study)) == ("s", 2, [])
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 2
    assert all(set(trial.params) == set(SPACE) for trial in study.get_trials())


def test_running_trials_are_ended_as_interrupted_and_count_as_unfinished(sweep):
    study = sweep.open()
    done, pruned, failed, running = (sweep.ask(study) for _ in range(4))
    study.tell(done, 1.0)
    pruned.report(2.0, 1)
    study.tell(pruned, state=TrialState.PRUNED)
    study.tell(failed, state=TrialState.FAIL)
    assert count_finished(study) == 3
    assert end_interrupted(study) == [running.number]
    assert interrupted_trials(study) == {running.number}
    assert study.get_trials()[running.number].state is TrialState.FAIL
    assert count_finished(study) == 3
    assert end_interrupted(study) == []


def test_a_second_resume_queues_nothing_twice(sweep):
    study = sweep.open()
    sweep.ask(study), sweep.ask(study)
    assert requeue_interrupted(sweep.open()) == [0, 1]
    assert requeue_interrupted(sweep.open()) == []
    waiting = [trial for trial in sweep.open().get_trials() if trial.state is TrialState.WAITING]
    assert len(waiting) == 2


def test_an_interrupted_trial_is_queued_again_with_its_parameters_as_often_as_it_is_interrupted(sweep):
    study = sweep.open()
    trial = sweep.ask(study)
    for _ in range(2):
        study = sweep.open()
        assert requeue_interrupted(study) == [trial.number]
        again = sweep.ask(study)
        assert again.params == trial.params
        assert again.user_attrs[RESUMED_FROM_ATTRIBUTE] == trial.number
        assert count_finished(study) == 0
        trial = again
    study.tell(trial, 1.0)
    assert count_finished(study) == 1


def test_a_queued_trial_whose_parameters_were_not_all_written_is_queued_again_with_all_of_them(sweep):
    point = {"lora.r": 8, "training.learning_rate": 3e-4}
    study = sweep.open()
    study.enqueue_trial(sweep.space.encode(point))
    sweep.ask(study)
    lines = sweep.path.read_bytes().splitlines(keepends=True)
    # A power cut in the middle of the write: the trial has begun, and has none of its parameters.
    begun = next(number for number, line in enumerate(lines) if b'"op_code":6' in line)
    sweep.path.write_bytes(b"".join(lines[: begun + 1]))
    study = sweep.open()
    assert [(trial.state, trial.params) for trial in study.get_trials()] == [(TrialState.RUNNING, {})]
    assert requeue_interrupted(study) == [0]
    decoded = sweep.space.decode(sweep.ask(study).params)
    assert {path: decoded[path] for path in point} == point


def test_a_kill_between_the_reason_and_the_end_loses_no_trial(sweep, monkeypatch):
    study = sweep.open()
    params = [sweep.ask(study).params for _ in range(2)]
    monkeypatch.setattr(study, "tell", killed)
    with pytest.raises(KeyboardInterrupt, match=r"^kill -9$"):
        end_interrupted(study)
    study = sweep.open()
    assert study.user_attrs[INTERRUPTED] == [0, 1]
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING] * 2
    assert requeue_interrupted(study) == [0, 1]
    assert [sweep.ask(study).params for _ in range(2)] == params
    assert count_finished(study) == 0


def test_a_kill_between_two_queued_trials_queues_the_other_one_on_the_next_resume(sweep, monkeypatch):
    study = sweep.open()
    sweep.ask(study), sweep.ask(study)
    enqueue = study.enqueue_trial

    def killed_after_the_first(params, **kwargs):
        enqueue(params, **kwargs)
        killed()

    monkeypatch.setattr(study, "enqueue_trial", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt, match=r"^kill -9$"):
        requeue_interrupted(study)
    assert requeue_interrupted(sweep.open()) == [1]


def test_a_lock_that_optunas_own_writer_left_holds_nobody_up(sweep):
    sweep.run(1)
    lock = sweep.path.with_name("study.journal.lock")
    lock.symlink_to(sweep.path)
    sweep.run(1)
    assert len(sweep.open().get_trials()) == 2


@pytest.mark.parametrize(
    ("search", "unused"),
    [
        ({"sampler": "tpe", "num_startup_trials": 3, "grace_reports": 2, "reduction_factor": 2}, []),
        ({"sampler": "random", "num_startup_trials": 3}, ["search.num_startup_trials"]),
        ({"scheduler": "none", "grace_reports": 2, "reduction_factor": 2}, ["search.grace_", "search.reduction_"]),
        ({"scheduler": "median", "reduction_factor": 2}, ["search.reduction_factor"]),
        ({"scheduler": "hyperband", "grace_reports": 2}, ["search.grace_reports"]),
        ({"scheduler": "none"}, []),
        ({"sampler": "cma-es"}, ["sampler cma-es searches ranges; it draws"]),
    ],
)
def test_settings_that_sampler_and_scheduler_do_not_use_are_named(search, unused):
    config = SweepConfig.model_validate({"search": {"space": SPACE, **search}})
    found = describe_unused(config.search, load_space(config))
    assert len(found) == len(unused)
    assert all(line.startswith(beginning) for line, beginning in zip(found, unused, strict=True))
