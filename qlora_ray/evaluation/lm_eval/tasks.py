"""Runs tasks of the lm-evaluation-harness (the extra `lm-eval`) on a model that is loaded already, by its own HFLM.

What the harness reports is reported: its task versions, metrics and standard errors. Its samples give a score per row,
so that base and tuned are paired as with our own metrics (`task_results.compare_tasks`).
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Evaluate
from qlora_ray.errors import ConfigError, DataError, first_line
from qlora_ray.evaluation.lm_eval.results import TaskResult, read_results
from qlora_ray.evaluation.lm_eval.task_files import EXAMPLE, find_task_files
from qlora_ray.modeling.device_memory import is_out_of_memory
from qlora_ray.regular_files import read_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qlora_ray.config.schema import Precision

EXTRA = "lm-eval"
MAX_NEAR_NAMES = 3
MIXED_PRECISION = {"bf16": "bfloat16", "fp16": "float16"}
# The harness indexes files of this name alone (lm_eval 0.4.13, tasks/_index.py).
SUFFIX = ".yaml"
OTHER_SUFFIX = ".yml"


@dataclass(frozen=True)
class TaskRequest:
    """What to run.

    Attributes:
        tasks: Names, tags, groups or patterns (`mmlu_*`) of the harness, or paths of the user's task YAMLs.
        num_fewshot: Examples in the prompt; None: as each task says. A task that fixes 0 keeps it, which its result
            tells.
        limit: Rows of each task, from the top; None: all.
        batch_size: Halved, down to 1, if it does not fit the device.
        include_path: A folder with task YAMLs to be called by their names.
        chat_template: Whether prompts go through the tokenizer's chat template; None: if it has one, as `data.template`
            auto does it for training. The harness's own default is not to.
        seed: Of the few-shot draw and of all else that is random.
    """

    tasks: Sequence[str]
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 1
    include_path: Path | None = None
    chat_template: bool | None = None
    seed: int = Evaluate().shot_seed


def check_installed() -> None:
    """Raises ConfigError, which says what to install, unless the harness can be imported."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            f"lm-eval: tasks need the lm-evaluation-harness, which is not installed. "
            f'Install the extra: pip install "qlora_ray[{EXTRA}]".'
        )


def run_tasks(
    model: Any, tokenizer: PreTrainedTokenizerBase, *, request: TaskRequest, precision: Precision
) -> dict[str, TaskResult]:
    """Scores a model in tasks; a batch that does not fit the device starts them again with half of it.

    Args:
        model: A transformers model, with PEFT's adapter or without, in its place on the device.
        tokenizer: Its tokenizer, whose padding side and tokens are left as they are.
        request: The tasks, and with how many rows and examples.
        precision: What `inference.evaluating` computes in.

    Returns:
        The result of each task, and of each group that reports figures of its own, by name.

    Raises:
        ConfigError: If the harness is not installed, or has no such task.
        DataError: If a task cannot be run: its data cannot be loaded, or it runs code the harness holds to be unsafe.
        RuntimeError, MemoryError: If one row alone does not fit the device (`device_memory.is_out_of_memory`).
    """
    check_installed()
    import copy

    import torch
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from qlora_ray.scoring.inference import evaluating, input_device

    manager, names = find_tasks(request)
    dtype = MIXED_PRECISION.get(precision) if input_device(model).type == "cuda" else None
    chat_template = bool(tokenizer.chat_template) if request.chat_template is None else request.chat_template
    size = request.batch_size
    while True:
        try:
            with _quiet(), evaluating(model, precision=precision):
                # HFLM sets the tokenizer's pad token.
                harness_model = HFLM(
                    pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=size, mixed_precision_dtype=dtype
                )
                found = simple_evaluate(
                    model=harness_model,
                    tasks=names,
                    num_fewshot=request.num_fewshot,
                    limit=request.limit,
                    log_samples=True,
                    apply_chat_template=chat_template,
                    task_manager=manager,
                    random_seed=request.seed,
                    numpy_random_seed=request.seed,
                    torch_random_seed=request.seed,
                    fewshot_random_seed=request.seed,
                )
        except Exception as error:
            if not is_out_of_memory(error):
                raise _cannot_run(names, error) from error
            if size == 1:
                raise
        else:
            return read_results(found, chat_template=chat_template)
        # Outside the handler: there the traceback would still hold the failed batch's tensors.
        size //= 2
        torch.cuda.empty_cache()


def check_data(request: TaskRequest) -> None:
    """Loads the tasks' data once, so that what lacks is known before a model has answered for an hour.

    Raises:
        ConfigError: As `find_tasks` does.
        DataError: If the data of a task cannot be loaded.
    """
    manager, names = find_tasks(request)
    from lm_eval.tasks import get_task_dict

    try:
        with _quiet():
            get_task_dict(names, manager)
    except Exception as error:
        raise _cannot_run(names, error) from error


def find_tasks(request: TaskRequest) -> tuple[Any, list[str]]:
    """Returns the harness's index of tasks, and the names that are meant; a YAML's folder is added to the index.

    Raises:
        ConfigError: If the harness has no such task, a YAML or one that it includes cannot be read, or the harness
            would run another file of that name.
    """
    check_installed()
    from lm_eval.tasks import TaskManager

    for task in request.tasks:
        if task.endswith(OTHER_SUFFIX):
            raise ConfigError(f"lm-eval: a task file must end in {SUFFIX} for the harness, got {task}. Rename it.")
    files = {task: Path(task).expanduser() for task in request.tasks if task.endswith(SUFFIX)}
    names = {task: _read_name(path) for task, path in files.items()}
    folders = [str(path.parent) for path in files.values()]
    if request.include_path is not None:
        folders.append(str(request.include_path))
    # The harness's own folder has thousands of files: it takes seconds to index, and is left out where it can be.
    manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(request.tasks))
    found: list[str] = []
    unknown: list[str] = []
    for task in request.tasks:
        matches = manager.match_tasks([names.get(task, task)])
        found += matches
        if not matches:
            near = difflib.get_close_matches(task, manager.all_tasks, n=MAX_NEAR_NAMES)
            unknown.append(
                f"lm-eval: a task must be one of the harness's or a YAML file, got {task!r}. "
                + (f"Did you mean {' or '.join(near)}?" if near else "See `lm-eval ls tasks`.")
            )
        elif task in files:
            _check_is_run(files[task], names[task], manager.task_index.get(names[task]))
    if unknown:
        raise ConfigError(unknown)
    if not found:
        raise ConfigError("lm-eval: at least one task must be named, got none. Name one, as hellaswag.")
    return manager, list(dict.fromkeys(found))


def _check_is_run(path: Path, name: str, entry: Any) -> None:
    """Raises ConfigError unless the file that the harness runs by a name is the one that is meant: it keeps one of each
    name in a folder and those below it, the first, and the last folder's of several."""
    indexed = entry.yaml_path if entry is not None else None
    if indexed is None or indexed.resolve() != path.resolve():
        raise ConfigError(
            f"lm-eval: the task {name} of {path} must have a name of its own, got one that the harness takes from "
            f"{indexed or 'elsewhere'}. Rename the task in one of them, or move {path.name} to a folder of its own."
        )


def _read_name(path: Path) -> str:
    """Returns what a task YAML calls its task."""
    # The harness passes over a YAML that it cannot read, and would say only that there is no such task.
    find_task_files(path)
    text = read_bytes(path).decode()
    named = re.search(r"^(?:task|group):[ \t]*[\"']?([^\s\"'#]+)", text, flags=re.MULTILINE)
    if named is None:
        raise ConfigError(f"lm-eval: {path} must have a line `task: name`, got none. {EXAMPLE}.")
    return named.group(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the harness's notes on how it was called from the terminal; its progress bars stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cannot_run(names: Sequence[str], error: Exception) -> DataError:
    return DataError(
        f"lm-eval: {', '.join(names)} cannot be run, got {type(error).__name__}: {first_line(error).rstrip('.')}. "
        "Check the task's data (the hub needs a network) and its YAML."
    )
