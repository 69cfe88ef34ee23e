"""What a sweep is told and what it found, as its manifest has it; and what a resume is held against."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from qlora_ray import __version__
from qlora_ray.errors import RunError
from qlora_ray.hardware import NodeProfile, Plan
from qlora_ray.hardware.probe import find_versions
from qlora_ray.modeling.identity import compare_bases, shorten_hash
from qlora_ray.modeling.loading import hash_base
from qlora_ray.preflight.checks import Preflight

# What belongs to one run of a sweep: how it was called, and with what code.
RUN_KEYS = ("command", "folder", "qlora_ray", "versions", "git")


def check_same_inputs(preflight: Preflight, manifest: dict[str, Any], *, common: dict[str, Any]) -> list[str]:
    """Holds rows and base against those that the sweep began with.

    Returns:
        A note if the base could not be verified, else nothing.

    Raises:
        RunError: If they are others.
    """
    before, now = manifest["data"]["fingerprint"], preflight.data.report.fingerprint
    if before != now:
        raise RunError(
            f"--resume: the data must be what the sweep began with (fingerprint {before[:12]}), got {now[:12]}. "
            "Restore the files, or start a new sweep."
        )
    base, first = common["base"]["hash"], manifest["base"]["hash"]
    verdict = compare_bases(first, base)
    if verdict == "other" or first.split(":")[0] != base.split(":")[0]:
        raise RunError(
            f"--resume: the base must be what the sweep began with ({shorten_hash(first)}), got {shorten_hash(base)}. "
            "Restore it, or start a new sweep."
        )
    if verdict == "same":
        return []
    # A sweep of an older release knows a hub's branch and no commit, which cannot be told from today's.
    return [
        f"the base could not be verified: the sweep began with {first}, whatever that was then, and goes on with {base}"
    ]


def describe_sweep(
    preflight: Preflight, plan: Plan, nodes: list[NodeProfile], *, common: dict[str, Any]
) -> dict[str, Any]:
    """The manifest: resolved config, space, plan, versions, commit, data fingerprints, command."""
    return {
        "qlora_ray": __version__,
        "folder": str(Path.cwd()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "config": preflight.config.model_dump(),
        "space": preflight.space.to_dict(),
        "plan": plan.to_dict(),
        "nodes": [node.to_dict() for node in nodes],
        "data": preflight.data.report.to_dict(),
        "metrics": preflight.metrics_reason,
        "unused": preflight.unused,
        "notes": list(preflight.notes),
        **common,
    }


def add_resume(first: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a sweep that goes on: how it began stays, its base too, and what runs now is what it plans.

    Args:
        first: The manifest as it is.
        now: `describe_sweep` of this run.
    """
    began = {key: first[key] for key in (*RUN_KEYS, "base") if key in first}
    # Of a base of the hub that was not pinned, today's commit may be another.
    base = {} if now.get("base") == first.get("base") else {"base": now["base"]}
    resumes = [*first.get("resumes", []), {key: now[key] for key in RUN_KEYS} | base]
    return {**now, **began, "resumes": resumes}


def common_facts(preflight: Preflight) -> dict[str, Any]:
    """What every record of a sweep holds: versions, commit, data, base, seeds."""
    report = preflight.data.report
    config = preflight.config
    return {
        "base": {"name": config.model.name, "revision": config.model.revision, "hash": hash_base(config.model)},
        "dataset": {
            "fingerprint": report.fingerprint,
            "sources": report.sources,
            "num_rows": report.num_rows,
            "num_truncated": report.num_truncated,
            "overlap": report.overlap,
            "overlap_check": report.overlap_verdict,
        },
        "seeds": {
            "seed": config.training.seed,
            "data_seed": config.training.data_seed,
            "search_seed": config.search.seed,
        },
        "versions": find_versions() | {"python": platform.python_version()},
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any]:
    """Commit and dirty flag of the folder the user works in; nulls outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
