"""Runs the models of an evaluation in turn; one that does not fit the device does not cost the others' results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from qlora_ray.errors import DataError, ModelError
from qlora_ray.evaluation.lm_eval.tasks import TaskRequest, check_data
from qlora_ray.evaluation.models.load_plan import LoadPlan
from qlora_ray.evaluation.models.loading import LoadedModel, free_memory, open_models
from qlora_ray.evaluation.prompt_sets.sets import PromptSet
from qlora_ray.evaluation.run.lm_eval_stage import is_finished, run_harness
from qlora_ray.evaluation.run.prompts import PromptRun
from qlora_ray.evaluation.target.target import ModelName
from qlora_ray.modeling.device_memory import CPU_ALLOCATOR, is_out_of_memory

LOADING = "loading"
TASKS = "lm-eval"


@dataclass(frozen=True)
class FailedModel:
    """A model that did not fit the device, or whose tasks the harness could not run.

    Attributes:
        stage: What it was at: `loading`, a prompt set's name, or `lm-eval`.
        cause: What the device or the harness said, in a line.
        lacks_room: Whether it did not fit the device; else the harness failed.
    """

    model: ModelName
    stage: str
    cause: str
    lacks_room: bool = True

    def __str__(self) -> str:
        return f"{self.model} ({self.stage}: {self.cause})"


@dataclass(frozen=True)
class ModelRuns:
    """What is asked of which models.

    Attributes:
        tell: Called with a model, a prompt set and its answers per second when the set is finished.
    """

    prompt_run: PromptRun
    load_plan: LoadPlan
    names: Sequence[ModelName]
    sets: Sequence[PromptSet]
    tasks: TaskRequest
    tell: Callable[[ModelName, PromptSet, float | None], None]

    def has_answered(self, name: ModelName) -> bool:
        """Whether a model was loaded, in this run or before, and has nothing left to answer."""
        answer_log = self.prompt_run.answer_log
        return name in answer_log.settings.get("loaded", {}) and all(
            self.prompt_run.is_done(name, prompts) for prompts in self.sets
        )

    def has_run_tasks(self, name: ModelName) -> bool:
        """Whether a model's results of the harness are there; true if there are no tasks."""
        return is_finished(self.prompt_run.answer_log, name, self.tasks)

    def has_results(self, name: ModelName) -> bool:
        """Whether a model is worth concluding with."""
        return self.has_answered(name) if self.sets else self.has_run_tasks(name)

    def run(self) -> list[FailedModel]:
        """Loads each model that has something left to do, and runs it; nothing is written before the first is there.

        Returns:
            The models that did not fit the device, or whose tasks failed, where there are results.

        Raises:
            ModelError: If a model cannot be loaded, or none has results.
            DataError: If the data of a task cannot be loaded; then no model was.
        """
        answer_log = self.prompt_run.answer_log
        left = [name for name in self.names if not (self.has_answered(name) and self.has_run_tasks(name))]
        failed_models: list[FailedModel] = []
        if not all(self.has_run_tasks(name) for name in left):
            check_data(self.tasks)
        while left:
            failed_model = self._run_in_turn(left)
            self.prompt_run.console.end_progress()
            if failed_model is None:
                return failed_models
            # The failed model's tensors are let go of by now: its traceback is gone.
            free_memory()
            what = "does not fit" if failed_model.lacks_room else TASKS
            self.prompt_run.console.event(f"{failed_model.model}  {what}: {failed_model.cause}")
            failed_models.append(failed_model)
            left = left[left.index(failed_model.model) + 1 :]
        if failed_models and not any(self.has_results(name) for name in self.names):
            raise ModelError(describe_lack(failed_models, self.load_plan, with_results=[]))
        answer_log.write_settings()
        return failed_models

    def _run_in_turn(self, names: Sequence[ModelName]) -> FailedModel | None:
        """Runs models until one does not fit, or its tasks fail."""
        prompt_run = self.prompt_run
        at: tuple[ModelName, str] = (names[0], LOADING)
        prompt_run.console.progress(f"loading {names[0]} ...")
        try:
            with closing(open_models(self.load_plan, names)) as loaded_models:
                for number, name in enumerate(names):
                    at = (name, LOADING)
                    loaded: LoadedModel | None = next(loaded_models)
                    assert loaded is not None and loaded.name == name
                    if number == 0:
                        prompt_run.answer_log.write_settings()
                    prompt_run.answer_log.note_loaded(name, loaded.how)
                    for prompts in self.sets:
                        at = (name, prompts.name)
                        self.tell(name, prompts, prompt_run.run(loaded, prompts))
                    if self.tasks.tasks:
                        at = (name, TASKS)
                        prompt_run.console.progress(f"{name}  lm-eval ...")
                        try:
                            run_harness(prompt_run.answer_log, loaded, self.tasks)
                        except DataError as error:
                            return FailedModel(name, TASKS, str(error).removeprefix(f"{TASKS}: "), lacks_room=False)
                    # Let go of it first: the next model may need its memory.
                    loaded = None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return FailedModel(*at, _read_cause(error))
        finally:
            prompt_run.console.end_progress()
        return None


def _read_cause(error: BaseException) -> str:
    """What was asked of the device and what it has; torch 2.x says in the same line what its allocator holds."""
    line = next(iter(str(error).splitlines()), "")
    known, is_free, _ = line.partition(" is free. ")
    known = known[max(known.find(CPU_ALLOCATOR), 0) :]
    return (known + is_free).rstrip(". ") or type(error).__name__


def describe_lack(
    failed_models: Sequence[FailedModel], load_plan: LoadPlan, *, with_results: Sequence[ModelName]
) -> str:
    """Returns what did not fit or failed, and what helps.

    Args:
        with_results: The models whose results are written: also one that failed, if only its tasks are missing.
    """
    device = load_plan.device
    full = [failed_model for failed_model in failed_models if failed_model.lacks_room]
    parts = []
    if full:
        parts.append(
            f"evaluation: {device.name} must have room for a model and one row, got no room for "
            f"{', '.join(map(str, full))}."
        )
    failed: dict[str, list[ModelName]] = {}
    for failed_model in failed_models:
        if not failed_model.lacks_room:
            failed.setdefault(failed_model.cause, []).append(failed_model.model)
    parts += [
        f"{TASKS}: tasks must run on every model, got an error with {' and '.join(models)}: {cause}"
        for cause, models in failed.items()
    ]
    if with_results:
        parts.append(f"The results are of {' and '.join(with_results)}.")
    advice = ["Free the device and run it again: it goes on" if full else "Run it again then: it goes on"]
    fitting = [name for name in with_results if name not in {failed_model.model for failed_model in full}]
    if full and fitting:
        advice.append(
            f"leave {' and '.join(failed_model.model for failed_model in full)} out with --models {','.join(fitting)}"
        )
    if any(failed_model.stage == TASKS and failed_model.model in with_results for failed_model in failed_models):
        advice.append("leave --lm-eval out")
    if any(failed_model.stage not in (LOADING, TASKS) for failed_model in failed_models):
        advice.append("lower evaluate.max_new_tokens with --fresh")
    if full and device.kind != "cpu":
        # Another device's figures are not mixed with these: the folder keeps to one.
        advice.append("run it with another --to on a larger device, or on the CPU with CUDA_VISIBLE_DEVICES=")
    return " ".join([*parts, f"{'; or '.join(advice)}."])
