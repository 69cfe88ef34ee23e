"""Tokens per second that earlier sweeps measured of the same base on the same class of device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import RunError
from qlora_ray.hardware import Placement
from qlora_ray.hardware.speed import Speed
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.records import Manifest, TrialRecord, read_record

# Of the newest sweeps only: an older one is of older code.
NEWEST_SWEEPS = 20
TRIALS_PER_SWEEP = 50
# Other ranks and lengths in the pack, and what else the machine did. A choice.
SPREAD = 0.25


def find_speed(config: SweepConfig, placement: Placement) -> Speed | None:
    """What the newest sweep in `results.dir` with this base, class and engine measured; None if none has.

    Args:
        config: Names the base and the folder.
        placement: The plan for the class.
    """
    for paths in _list_sweeps(Path(config.results.dir)):
        try:
            base = read_record(paths.manifest, Manifest).base
        except RunError:
            continue
        if (base.name, base.revision) != (config.model.name, config.model.revision):
            continue
        measured = [speed for record in _read_trials(paths) if (speed := _device_speed(record, placement))]
        if measured:
            middle = median(measured)
            words = f"measured by {paths.root.name} in {len(measured)} trials, within a quarter"
            return Speed((1 - SPREAD) * middle, (1 + SPREAD) * middle, words)
    return None


def _list_sweeps(folder: Path) -> list[SweepPaths]:
    """The newest sweeps of a folder, newest first."""
    found = [SweepPaths(path) for path in folder.iterdir()] if folder.is_dir() else []
    dated = [(paths.manifest.stat().st_mtime, paths) for paths in found if paths.manifest.is_file()]
    return [paths for _, paths in sorted(dated, key=lambda item: -item[0])[:NEWEST_SWEEPS]]


def _read_trials(paths: SweepPaths) -> Iterator[TrialRecord]:
    for folder in sorted(paths.trials.iterdir())[:TRIALS_PER_SWEEP] if paths.trials.is_dir() else ():
        try:
            yield read_record(folder / "record.json", TrialRecord)
        except RunError:
            continue


def _device_speed(record: TrialRecord, placement: Placement) -> float | None:
    """Tokens per second of the whole device that a trial shared; None if it was another class, or measured nothing."""
    executor = record.executor
    if executor.simulated or (executor.device, executor.engine) != (placement.device_name, placement.engine):
        return None
    if not record.tokens_per_s:
        return None
    pack = record.ran.extra.get("pack")
    mean_trials = pack.get("mean_trials") if isinstance(pack, dict) else None
    at_once = mean_trials if isinstance(mean_trials, int | float) and mean_trials > 0 else 1.0
    return float(record.tokens_per_s * at_once * placement.executors_per_device)
