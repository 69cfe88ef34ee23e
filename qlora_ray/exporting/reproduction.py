"""Configs that run a sweep again, or one of its trials alone, from nothing but themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qlora_ray.config.data_names import list_names
from qlora_ray.config.reuse import PATH_KEYS
from qlora_ray.exporting.selection import Selection
from qlora_ray.modeling.loading import EMBEDDED
from qlora_ray.runs.records import POINTS_KEY

SWEEP_FILE = "sweep.yaml"
TRIAL_FILE = "trial.yaml"


def trial_command() -> str:
    """The command that trains the exported trial again, run in the bundle."""
    return f"python -m qlora_ray.sweep --config {TRIAL_FILE}"


def sweep_command() -> str:
    """The command that searches again, run in the bundle."""
    return f"python -m qlora_ray.sweep --config {SWEEP_FILE}"


def render_sweep_config(selection: Selection) -> str:
    """sweep.yaml: the sweep's resolved config, with its search space in it."""
    config = _portable(selection)
    config["search"]["space"] = dict(selection.manifest.space)
    return _render(
        config,
        f"The resolved config of sweep {selection.paths.name}, with its search space. Searches again:",
        sweep_command(),
    )


def render_trial_config(selection: Selection) -> str:
    """trial.yaml: a sweep of one trial, which has this trial's values and is not stopped early."""
    config = _portable(selection)
    params = selection.record.params
    config["search"] |= {
        "space": {path: {"choices": [value]} for path, value in params.items()} | {POINTS_KEY: [dict(params)]},
        "num_trials": 1,
        "sampler": "random",
        "scheduler": "none",
        "final_seeds": 0,
        "time_budget": None,
        "gpu_hours": None,
    }
    title = f"Trial {selection.trial} of sweep {selection.paths.name}, and nothing else. Trains it again:"
    if (origin := describe_clone(selection)) is not None:
        title = f"The last values of trial {selection.trial} of sweep {selection.paths.name}, from the start: {origin}"
    return _render(config, title, trial_command())


def describe_clone(selection: Selection) -> str | None:
    """What a clone cannot be made again by; None of a trial that is none."""
    record = selection.record
    if record.cloned_from is None:
        return None
    return (
        f"it is a clone of trial {record.cloned_from} at report {record.cloned_at}, trained with that trial's values "
        "until then, so that this is another training and not the one that made the adapter."
    )


def local_paths(selection: Selection) -> list[str]:
    """The files and folders of this machine that the two configs name."""
    config = _portable(selection)
    return [name for section, key in PATH_KEYS for name in list_names(config[section][key]) if is_local_path(name)]


def is_local_path(name: Any) -> bool:
    """Whether a config's value is a path of this machine."""
    return isinstance(name, str) and name.startswith(("/", "~"))


def _portable(selection: Selection) -> dict[str, Any]:
    """The config, which works from any folder of this machine."""
    config = selection.config.model_dump()
    for section, key in PATH_KEYS:
        name = config[section][key]
        # `test` may be a split of a hub dataset, whatever is called so here.
        may_be_path = isinstance(name, str) and (key in ("name", "train") or "/" in name or "." in name)
        if may_be_path and name != EMBEDDED and Path(name).expanduser().exists():
            config[section][key] = str(Path(name).expanduser().resolve())
    config["model"]["trust_remote_code"] = selection.needs_code
    # Where results and adapters go, and on which cluster, is the next user's to say.
    config["results"] = {"dir": "results", "name": None}
    config["cluster"]["address"] = None
    del config["export"]
    return config


def _render(config: dict[str, Any], title: str, command: str) -> str:
    return f"# {title}\n#   {command}\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
