"""A sweep of three trials to export from, and the files of what was exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_ray.config.schema import SweepConfig
from qlora_ray.exporting.bundle import write_bundle
from qlora_ray.exporting.inventory import Bundle
from qlora_ray.exporting.selection import select_trial
from tests import sweep_folder
from tests.sweep_folder import Sketch

PARAMS = {"lora.r": 4, "lora.alpha_ratio": 2.0, "training.learning_rate": 0.0098}
SPACE = {
    "lora.r": {"choices": [4, 16]},
    "lora.alpha_ratio": {"choices": [1.0, 2.0]},
    "training.learning_rate": {"low": 1e-5, "high": 2e-2, "log": True},
}
SECTIONS: dict[str, Any] = {
    "data": {"max_length": 128, "max_validation_rows": 8},
    "training": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_samples": 2400,
        "optim": "adamw_torch",
    },
    "search": {"space": "search_spaces/rank_alpha_lr.yaml", "num_trials": 3},
}


def write_sweep(root: Path, *, winner: bool = True, verdict: str = "better", **sections: dict[str, Any]) -> Path:
    """A sweep's folder: 0000 pruned, 0001 complete and the winner if there is one, 0002 complete.

    Args:
        winner: Whether the sweep has ended.
        verdict: On the winner.
        sections: Values of the config's sections besides SECTIONS.
    """
    names = {**SECTIONS, **sections}
    values = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in names}
    paths = sweep_folder.write_sweep(
        root,
        make_sketches(),
        config=SweepConfig.model_validate(values),
        space=SPACE,
        status="complete" if winner else None,
        winner=1 if winner else None,
        verdict=verdict,
        has_journal=False,
        has_adapters=True,
    )
    return paths.root


def make_sketches() -> Sequence[Sketch]:
    """A trial that was stopped, and two that are complete."""
    complete = [Sketch([0.9, 0.4, 0.2, 0.0682], PARAMS) for _ in range(2)]
    return [Sketch([1.2], PARAMS, "pruned", "stopped by asha at report 1"), *complete]


def write_alone(sweep: Path, to: Path, *, trial: str = "best") -> Bundle:
    """A trial's bundle without a merged model."""
    return write_bundle(select_trial(sweep, trial=trial), to=to, merge=None, device="cpu", tell=print)


def files_of(folder: Path) -> set[str]:
    """Paths of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its path."""
    return {name: (folder / name).read_bytes() for name in files_of(folder)}
