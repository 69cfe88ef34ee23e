"""What an evaluation's command line asks for, held against the target and against itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qlora_ray.errors import ConfigError
from qlora_ray.evaluation.lm_eval.tasks import check_installed
from qlora_ray.evaluation.target.target import MODEL_NAMES, ModelName, Request, Target


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        models: Which of base, adapter and merged; None: all there are.
        num_rows: The first so many rows of the split, all of them answered; None: all, answered as far as
            `evaluate.max_rows`.
        prompt_files: Prompts to be answered besides.
        max_prompts: The first so many of each file; None: all.
        metrics: `path/to/file.py:Class` of metrics of the user's own.
        tasks: Tasks of the lm-evaluation-harness.
        task_shots: Examples in their prompts; None: as each task says.
        to: The folder; None: beside the target.
        fresh: Whether to forget what an earlier run left there.
    """

    target: str
    request: Request = field(default_factory=Request)
    models: Sequence[str] | None = None
    split: str = "auto"
    num_rows: int | None = None
    prompt_files: Sequence[str] = ()
    max_prompts: int | None = None
    metrics: Sequence[str] = ()
    tasks: Sequence[str] = ()
    task_shots: int | None = None
    to: Path | None = None
    fresh: bool = False
    needs_verdict: bool = False


def check_options(options: Options) -> None:
    """Raises ConfigError for an option of what is not asked for, and without the harness where it is."""
    if options.tasks:
        check_installed()
    elif options.task_shots is not None:
        raise ConfigError(f"--lm-eval-shots {options.task_shots}: needs --lm-eval tasks, got none. Name one.")
    if options.max_prompts is not None and not options.prompt_files:
        raise ConfigError(f"--max-prompts {options.max_prompts}: needs --prompts files, got none. Name one.")


def choose_models(options: Options, target: Target) -> list[ModelName]:
    """Returns the models that are run, in their order.

    Raises:
        ConfigError: If there is no such model, or a verdict is required of models that give none.
    """
    asked = list(options.models) if options.models is not None else list(target.available)
    for name in asked:
        if name not in MODEL_NAMES:
            raise ConfigError(f"--models: must be of {', '.join(MODEL_NAMES)}, got {name}. Correct the name.")
        if name not in target.available:
            advice = "Name one with --merged DIR" if name == "merged" else "Give a sweep or an adapter folder"
            raise ConfigError(
                f"--models {name}: {target.path} must have such a model, got {', '.join(target.available)} only. "
                f"{advice}, or leave {name} out."
            )
    if not asked:
        raise ConfigError(f"--models: must name one of {', '.join(target.available)}, got none. Name one.")
    names: list[ModelName] = [name for name in MODEL_NAMES if name in asked]
    if options.needs_verdict and ("base" not in names or len(names) == 1 or options.split == "none"):
        raise ConfigError(
            f"--require-improvement: needs the base and an adapter or merged model on rows, got {', '.join(names)} on "
            f"split {options.split}. Name more --models, or leave it out."
        )
    return names
