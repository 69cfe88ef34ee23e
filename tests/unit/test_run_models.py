"""Models in turn on a device that has no room for one of them: the others' results stay, and advice that helps."""

from __future__ import annotations

import io
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluation_fixtures import make_llama, make_split, make_tokenizer

from qlora_ray.config.schema import Evaluate
from qlora_ray.console import Console
from qlora_ray.data import TokenizedSplit
from qlora_ray.errors import DataError, ModelError
from qlora_ray.evaluation.lm_eval.tasks import TaskRequest
from qlora_ray.evaluation.models.loading import LoadedModel
from qlora_ray.evaluation.prompt_sets.sets import PromptSet
from qlora_ray.evaluation.run.answer_log import AnswerLog
from qlora_ray.evaluation.run.models import FailedModel, ModelRuns, describe_lack
from qlora_ray.evaluation.run.prompts import PromptRun
from qlora_ray.evaluation.target.target import ModelName
from qlora_ray.hardware import DeviceProfile

pytestmark = pytest.mark.slow

NAMES: list[ModelName] = ["base", "adapter", "merged"]
GPU = DeviceProfile(0, "cuda", "a GPU", (8, 0), 2**30, 2**30)
# As torch 2.9 words it.
FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.74 GiB of which 2.12 MiB is "
    "free. Including non-PyTorch memory, this process has 14.73 GiB memory in use. Of the allocated memory"
)


class Device:
    """Loads models by hand, and has no room at the places it is given: `merged` or `merged 0-shot`."""

    def __init__(self, *full: str) -> None:
        self.full = full
        self.loaded: list[str] = []

    def open(self, _load_plan: object, names: Sequence[ModelName]) -> Generator[LoadedModel]:
        for name in names:
            if name in self.full:
                raise torch.OutOfMemoryError(f"{FULL}\nmore")
            self.loaded.append(name)
            yield LoadedModel(name, make_llama(), make_tokenizer(), "fp32", "by hand")


def make_model_runs(folder: Path, device: Device, monkeypatch: pytest.MonkeyPatch, *, num_sets: int = 1) -> ModelRuns:
    made = make_split([(4, 3), (6, 2)])
    rows = TokenizedSplit("test", made.input_ids, made.completion_mask, made.prompt_ids, made.references)
    sets = [PromptSet(f"{one}-shot", rows, ["0", "1"], 2, max_new_tokens=4) for one in range(num_sets)]
    answer_log = AnswerLog(folder, {"target": {}, "models": {}, "prompts": {}})
    evaluate = Evaluate(max_new_tokens=4, batch_size=2)
    prompt_run = PromptRun(answer_log, Console(io.StringIO()), evaluate, loss_batch_size=2, is_live=False)
    run = PromptRun.run

    def run_with_room(prompt_run: PromptRun, loaded: LoadedModel, prompts: PromptSet) -> float | None:
        if f"{loaded.name} {prompts.name}" in device.full:
            raise torch.OutOfMemoryError(FULL)
        return run(prompt_run, loaded, prompts)

    monkeypatch.setattr("qlora_ray.evaluation.run.models.open_models", device.open)
    monkeypatch.setattr(PromptRun, "run", run_with_room)
    load_plan: Any = SimpleNamespace(device=GPU)
    return ModelRuns(prompt_run, load_plan, NAMES, sets, TaskRequest([]), tell=lambda *_: None)


def ask(model_runs: ModelRuns) -> list[tuple[str, str]]:
    with model_runs.prompt_run.answer_log.hold():
        return [(one.model, one.stage) for one in model_runs.run()]


@pytest.mark.parametrize(
    ("full", "failed_model", "loaded"),
    [
        ("merged", ("merged", "loading"), ["base", "adapter"]),
        ("merged 0-shot", ("merged", "0-shot"), NAMES),
        ("adapter 0-shot", ("adapter", "0-shot"), NAMES),
        ("adapter", ("adapter", "loading"), ["base", "merged"]),
        ("base", ("base", "loading"), ["adapter", "merged"]),
        ("base 0-shot", ("base", "0-shot"), NAMES),
    ],
)
def test_a_model_that_does_not_fit_costs_only_its_own_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str, failed_model: tuple[str, str], loaded: list[str]
) -> None:
    device = Device(full)
    model_runs = make_model_runs(tmp_path / "to", device, monkeypatch)
    assert ask(model_runs) == [failed_model]
    assert device.loaded == loaded
    assert [name for name in NAMES if model_runs.has_answered(name)] == [one for one in NAMES if one != failed_model[0]]
    device.full = ()
    assert ask(model_runs) == []
    assert device.loaded == [*loaded, failed_model[0]]
    assert (tmp_path / "to" / "settings.json").exists()
    assert all(model_runs.has_answered(name) for name in NAMES)


def test_nothing_is_written_where_no_model_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(*NAMES)
    model_runs = make_model_runs(tmp_path / "to", device, monkeypatch)
    every = r"got no room for base \(loading: CUDA out .*\), adapter \(.*\), merged \(.* 2\.12 MiB is free\)\. Free"
    with pytest.raises(ModelError, match=every):
        ask(model_runs)
    assert device.loaded == []
    assert not (tmp_path / "to").exists()


def test_tasks_that_do_not_fit_leave_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(model: Any, *_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr("qlora_ray.evaluation.run.lm_eval_stage.run_tasks", run)
    monkeypatch.setattr("qlora_ray.evaluation.run.models.check_data", lambda _: None)
    model_runs = make_model_runs(tmp_path / "to", Device(), monkeypatch)
    model_runs = replace(model_runs, tasks=TaskRequest(["sums"]))
    assert ask(model_runs) == [(name, "lm-eval") for name in NAMES]
    assert all(model_runs.has_answered(name) and not model_runs.has_run_tasks(name) for name in NAMES)
    with pytest.raises(ModelError, match=r"got no room for base \(lm-eval: CUDA"):
        ask(replace(model_runs, sets=[]))


def test_tasks_that_fail_while_they_run_leave_the_answers_and_the_other_models_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "sums cannot be run, got KeyError: 'acc_norm'. Check the task's data."

    def run(model: Any, *_: Any, **__: Any) -> Any:
        asked.append(model)
        if len(asked) < 3:
            raise DataError(f"lm-eval: {broken}")
        return {}

    asked: list[Any] = []
    monkeypatch.setattr("qlora_ray.evaluation.run.lm_eval_stage.run_tasks", run)
    monkeypatch.setattr("qlora_ray.evaluation.run.models.check_data", lambda _: None)
    model_runs = replace(make_model_runs(tmp_path / "to", Device(), monkeypatch), tasks=TaskRequest(["sums"]))
    with model_runs.prompt_run.answer_log.hold():
        failed_models = model_runs.run()
    assert [(one.model, one.stage, one.cause, one.lacks_room) for one in failed_models] == [
        ("base", "lm-eval", broken, False),
        ("adapter", "lm-eval", broken, False),
    ]
    assert all(model_runs.has_answered(name) for name in NAMES)
    assert [name for name in NAMES if model_runs.has_run_tasks(name)] == ["merged"]
    assert describe_lack(failed_models, model_runs.load_plan, with_results=NAMES) == (
        f"lm-eval: tasks must run on every model, got an error with base and adapter: {broken} "
        "The results are of base and adapter and merged. Run it again then: it goes on; or leave --lm-eval out."
    )
    asked.clear()
    with pytest.raises(ModelError, match=r"got an error with base and adapter: sums cannot be run.* it goes on\.$"):
        ask(replace(model_runs, sets=[], names=["base", "adapter"]))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
            "DefaultCPUAllocator: can't allocate memory",
        ),
        (MemoryError(), "MemoryError"),
        (RuntimeError("shapes cannot be multiplied"), None),
    ],
)
def test_a_cpu_without_room_is_told_from_other_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str | None
) -> None:
    model_runs = make_model_runs(tmp_path / "to", Device(), monkeypatch)

    def run(_prompt_run: PromptRun, loaded: LoadedModel, _prompts: PromptSet) -> None:
        if loaded.name == "merged":
            raise error

    monkeypatch.setattr(PromptRun, "run", run)
    monkeypatch.setattr(PromptRun, "is_done", lambda _prompt_run, name, _prompts: name != "merged")
    with model_runs.prompt_run.answer_log.hold():
        if cause is None:
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                model_runs.run()
        else:
            assert [one.cause for one in model_runs.run()] == [cause]


def test_tasks_without_their_data_are_known_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: TaskRequest) -> None:
        raise DataError(f"lm-eval: {request.tasks[0]} cannot be run")

    monkeypatch.setattr("qlora_ray.evaluation.run.models.check_data", refuse)
    device = Device()
    model_runs = replace(make_model_runs(tmp_path / "to", device, monkeypatch), tasks=TaskRequest(["sums"]))
    with pytest.raises(DataError, match="sums cannot be run"):
        ask(model_runs)
    assert device.loaded == []
    assert not (tmp_path / "to").exists()


def test_advice_is_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_runs = make_model_runs(tmp_path / "to", Device("merged"), monkeypatch)
    with model_runs.prompt_run.answer_log.hold():
        failed_models = model_runs.run()
    text = describe_lack(failed_models, model_runs.load_plan, with_results=["base", "adapter"])
    assert text.startswith("evaluation: a GPU must have room for a model and one row, got no room for merged (loading:")
    assert "The results are of base and adapter. Free the device and run it again: it goes on; or leave merged" in text
    assert "--models base,adapter; or run it with another --to on a larger device, or on the CPU" in text
    assert "max_new_tokens" not in text
    device = Device(*(f"{name} 0-shot" for name in NAMES))
    with pytest.raises(ModelError, match=r"; or lower evaluate\.max_new_tokens with --fresh; or run"):
        ask(make_model_runs(tmp_path / "other", device, monkeypatch))


def test_a_model_that_only_lacks_its_tasks_is_not_advised_to_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_runs = make_model_runs(tmp_path / "to", Device(), monkeypatch)
    text = describe_lack(
        [FailedModel("merged", "lm-eval", "CUDA out of memory")], model_runs.load_plan, with_results=NAMES
    )
    assert "; or leave merged out with --models base,adapter; or leave --lm-eval out; or run it with another" in text
    every = [FailedModel(name, "lm-eval", "CUDA out of memory") for name in NAMES]
    text = describe_lack(every, model_runs.load_plan, with_results=NAMES)
    assert "it goes on; or leave --lm-eval out; or run it with another" in text
