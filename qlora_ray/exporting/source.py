"""Whether what is to be exported is a sweep, and what to do with what is none."""

from __future__ import annotations

import shlex
from pathlib import Path

from qlora_ray.errors import RunError
from qlora_ray.regular_files import resolve_path
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.paths import ADAPTER_CONFIG
from qlora_ray.runs.winner import BEST


def check_is_sweep(folder: Path) -> None:
    """Raises RunError unless the folder is a sweep's: with the command for a part of one, and PEFT's for an adapter."""
    if SweepPaths(folder).manifest.is_file():
        return
    part = _find_part(resolve_path(folder))
    if part is not None:
        sweep, trial = part
        option = "" if trial == BEST else f" --trial {trial}"
        got, advice = (
            f"a part of {sweep}",
            f"Use `python -m qlora_ray.export {shlex.quote(str(sweep))}{option} --to DIR`",
        )
    elif (folder / ADAPTER_CONFIG).is_file():
        got = "an adapter of no sweep, which has no record of its training"
        merge = f"AutoPeftModelForCausalLM.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained(...)"
        advice = f"PEFT merges it: `{merge}`"
    else:
        other = "a file" if folder.exists() else "no such folder"
        got = "one without manifest.json" if folder.is_dir() else other
        advice = "Give results/<name>"
    raise RunError(f"{folder}: must be a sweep's folder, got {got}. {advice}.")


def _find_part(folder: Path) -> tuple[Path, str] | None:
    """The sweep, and the trial or `best`, that a folder is of, or its adapter."""
    home = folder.parent if folder.name == "adapter" else folder
    for sweep, trial in ((home.parent, BEST), (home.parent.parent, home.name)):
        paths = SweepPaths(sweep)
        own = paths.best if trial == BEST else paths.trial(trial).root
        if own == home and paths.manifest.is_file():
            return sweep, trial
    return None
