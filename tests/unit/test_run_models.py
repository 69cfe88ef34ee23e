"""Models in turn on a device that does not fit one of them: the others' results stay, and advice that helps."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlora_ray.config.schema import Evaluate
from qlora_ray.console import Console
from qlora_ray.errors import DataError, ModelError
from qlora_ray.evaluation.lm_eval.tasks import TaskRequest
from qlora_ray.evaluation.models.loading import LoadedModel
from qlora_ray.evaluation.prompt_sets.sets import PromptSet
from qlora_ray.evaluation.run.answer_log import AnswerLog
from qlora_ray.evaluation.run.models import FailedModel, ModelRuns, describe_lack
from qlora_ray.evaluation.run.prompts import PromptRun
from qlora_ray.evaluation.target.target import ModelName
from qlora_ray.hardware import DeviceProfile
from tests.unit.evaluation_fixtures import make_llama, make_split, make_tokenizer

pytestmark = pytest.mark.slow

NAMES: list[ModelName] = ["base", "adapter", "merged"]
MODEL, TOKENIZER = make_llama(), make_tokenizer()
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
            yield LoadedModel(name, MODEL, TOKENIZER, "fp32", "by hand")


def make_model_runs(folder: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> ModelRuns:
    prompts = PromptSet("0-shot", make_split([(4, 3), (6, 2)]), ["0", "1"], 2, max_new_tokens=4)
    answer_log = AnswerLog(folder, {"target": {}, "models": {}, "prompts": {}})
    evaluate = Evaluate(max_new_tokens=4, batch_size=2)
    prompt_run = PromptRun(answer_log, Console(io.StringIO()), evaluate, loss_batch_size=2, is_live=False)
    run = PromptRun.run

    def run_where_it_fits(prompt_run: PromptRun, loaded: LoadedModel, prompts: PromptSet) -> float | None:
        if f"{loaded.name} {prompts.name}" in device.full:
            raise torch.OutOfMemoryError(FULL)
        return run(prompt_run, loaded, prompts)

    monkeypatch.setattr("qlora_ray.evaluation.run.models.open_models", device.open)
    monkeypatch.setattr(PromptRun, "run", run_where_it_fits)
    # Nothing is freed here, and collecting garbage takes a second beside the loaded libraries.
    monkeypatch.setattr("qlora_ray.evaluation.run.models.free_memory", lambda: None)
    load_plan: Any = SimpleNamespace(device=GPU)
    return ModelRuns(prompt_run, load_plan, NAMES, [prompts], TaskRequest([]), tell=lambda *_: None)


def run_models(model_runs: ModelRuns) -> list[FailedModel]:
    with model_runs.prompt_run.answer_log.hold():
        return model_runs.run()


def run_and_name(model_runs: ModelRuns) -> list[tuple[str, str]]:
    """The models that failed, and at what."""
    return [(failed.model, failed.stage) for failed in run_models(model_runs)]


def play_tasks(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    """Puts a function in place of the harness."""
    monkeypatch.setattr("qlora_ray.evaluation.run.lm_eval_stage.run_tasks", run)
    monkeypatch.setattr("qlora_ray.evaluation.run.models.check_data", lambda _: None)


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
    assert run_and_name(model_runs) == [failed_model]
    assert device.loaded == loaded
    assert [name for name in NAMES if not model_runs.has_answered(name)] == [failed_model[0]]
    device.full = ()
    assert run_and_name(model_runs) == []
    assert device.loaded == [*loaded, failed_model[0]]
    assert (tmp_path / "to" / "settings.json").exists()
    assert all(model_runs.has_answered(name) for name in NAMES)


def test_nothing_is_written_where_no_model_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(*NAMES)
    model_runs = make_model_runs(tmp_path / "to", device, monkeypatch)
    with pytest.raises(ModelError, match=r"base \(loading: CUDA .*\), adapter \(.*\), merged \(.* 2\.12 MiB is free"):
        run_models(model_runs)
    assert device.loaded == []
    assert not (tmp_path / "to").exists()


def test_tasks_that_do_not_fit_leave_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError(FULL)

    play_tasks(monkeypatch, run)
    model_runs = replace(make_model_runs(tmp_path / "to", Device(), monkeypatch), tasks=TaskRequest(["sums"]))
    assert run_and_name(model_runs) == [(name, "lm-eval") for name in NAMES]
    assert all(model_runs.has_answered(name) and not model_runs.has_run_tasks(name) for name in NAMES)
    with pytest.raises(ModelError, match=r"got no room for base \(lm-eval: CUDA"):
        run_models(replace(model_runs, sets=[]))


def test_tasks_that_fail_while_they_run_leave_the_answers_and_the_other_models_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "sums cannot be run, got KeyError: 'acc_norm'. Check the task's data."
    outcomes: list[Exception | None] = [DataError(f"lm-eval: {broken}"), DataError(f"lm-eval: {broken}"), None]

    def run(*_: Any, **__: Any) -> Any:
        error = outcomes.pop(0)
        if error is not None:
            raise error
        return {}

    play_tasks(monkeypatch, run)
    model_runs = replace(make_model_runs(tmp_path / "to", Device(), monkeypatch), tasks=TaskRequest(["sums"]))
    failed_models = run_models(model_runs)
    assert failed_models == [FailedModel(name, "lm-eval", broken, lacks_room=False) for name in ("base", "adapter")]
    assert all(model_runs.has_answered(name) for name in NAMES)
    assert [name for name in NAMES if model_runs.has_run_tasks(name)] == ["merged"]
    told = describe_lack(failed_models, model_runs.load_plan, with_results=NAMES)
    for fact in (f"base and adapter: {broken}", "base and adapter and merged", "it goes on", "leave --lm-eval out"):
        assert fact in told
    outcomes += [DataError(f"lm-eval: {broken}")] * 2
    with pytest.raises(ModelError, match=r"base and adapter: sums cannot be run.* it goes on\.$"):
        run_models(replace(model_runs, sets=[], names=["base", "adapter"]))


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
def test_a_cpu_out_of_memory_is_told_from_other_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str | None
) -> None:
    model_runs = make_model_runs(tmp_path / "to", Device(), monkeypatch)

    def run(_prompt_run: PromptRun, loaded: LoadedModel, _prompts: PromptSet) -> None:
        if loaded.name == "merged":
            raise error

    monkeypatch.setattr(PromptRun, "run", run)
    monkeypatch.setattr(PromptRun, "is_done", lambda _prompt_run, name, _prompts: name != "merged")
    if cause is None:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            run_models(model_runs)
    else:
        assert [failed.cause for failed in run_models(model_runs)] == [cause]


def test_tasks_without_their_data_are_known_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: TaskRequest) -> None:
        raise DataError(f"lm-eval: {request.tasks[0]} cannot be run")

    monkeypatch.setattr("qlora_ray.evaluation.run.models.check_data", refuse)
    device = Device()
    model_runs = replace(make_model_runs(tmp_path / "to", device, monkeypatch), tasks=TaskRequest(["sums"]))
    with pytest.raises(DataError, match="sums cannot be run"):
        run_models(model_runs)
    assert device.loaded == []
    assert not (tmp_path / "to").exists()


def test_advice_is_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_runs = make_model_runs(tmp_path / "to", Device("merged"), monkeypatch)
    told = describe_lack(run_models(model_runs), model_runs.load_plan, with_results=["base", "adapter"])
    for fact in ("a GPU", "merged (loading:", "base and adapter", "--models base,adapter", "another --to"):
        assert fact in told
    assert "max_new_tokens" not in told
    device = Device(*(f"{name} 0-shot" for name in NAMES))
    with pytest.raises(ModelError, match=r"lower evaluate\.max_new_tokens with --fresh"):
        run_models(make_model_runs(tmp_path / "other", device, monkeypatch))


@pytest.mark.parametrize(("lacking", "is_left_out"), [(["merged"], True), (NAMES, False)])
def test_models_that_only_lack_their_tasks_are_advised_to_go_without_these(
    lacking: list[ModelName], is_left_out: bool
) -> None:
    failed_models = [FailedModel(name, "lm-eval", "CUDA out of memory") for name in lacking]
    load_plan: Any = SimpleNamespace(device=GPU)
    told = describe_lack(failed_models, load_plan, with_results=NAMES)
    assert "leave --lm-eval out" in told
    assert ("leave merged out with --models base,adapter" in told) == ("--models" in told) == is_left_out
