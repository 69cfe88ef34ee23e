"""What a sweep is told and what it found, as its manifest has it; and what a resume is held against."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qlora_ray import __version__
from qlora_ray.config.differences import list_differences
from qlora_ray.config.schema import Data
from qlora_ray.data.cache import CACHE_VERSION, compute_fingerprint
from qlora_ray.data.report import DataReport
from qlora_ray.errors import RunError
from qlora_ray.hardware import NodeProfile, Plan
from qlora_ray.hardware.probe import find_versions
from qlora_ray.modeling.identity import compare_bases, shorten_hash
from qlora_ray.modeling.loading import hash_base, load_tokenizer
from qlora_ray.preflight.checks import Preflight
from qlora_ray.runs.record_parts import (
    BaseRecord,
    DataRecord,
    DatasetRecord,
    GitState,
    PlanRecord,
    RunRecord,
    Seeds,
    SweepFacts,
)
from qlora_ray.runs.records import Manifest
from qlora_ray.runs.typed_json import parse_record
from qlora_ray.search.extension import list_space_differences


def check_same_inputs(preflight: Preflight, manifest: Manifest, *, common: SweepFacts) -> list[str]:
    """Holds rows and base against those that the sweep began with.

    Args:
        preflight: The data as they are now.
        manifest: The sweep's manifest.
        common: Has the fingerprint of the base as it is now.

    Returns:
        A note if the base could not be verified, else nothing.

    Raises:
        RunError: If rows or base are others than at the sweep's beginning.
    """
    first_data = manifest.data or DataRecord()
    before, now = first_data.fingerprint or "unknown", preflight.data.report.fingerprint
    if before != now and not _is_same_otherwise_named(preflight, manifest, first_data):
        differing = _list_data_differences(first_data, preflight.data.report)
        told = "".join(f"\n  {line}" for line in differing)
        raise RunError(
            f"--resume: the data must be what the sweep began with (fingerprint {before[:12]}), got {now[:12]}. "
            f"Restore the files, or start a new sweep.{told}"
        )
    base, first = common.base.hash or "unknown", manifest.base.hash or "unknown"
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


def _is_same_otherwise_named(preflight: Preflight, manifest: Manifest, first: DataRecord) -> bool:
    """Whether the rows are those that the sweep began with, under the names of their files then.

    Where files lie is a part of the fingerprint, and says nothing about the rows. So is the version, which is raised
    where some rows are read otherwise: a sweep of an older one has its own rows still if they have as many tokens.
    """
    report = preflight.data.report
    has_as_many = (first.num_rows, first.num_tokens, first.num_completion_tokens) == (
        report.num_rows,
        report.num_tokens,
        report.num_completion_tokens,
    )
    versions = range(CACHE_VERSION, 0, -1) if has_as_many else (CACHE_VERSION,)
    return any(
        first.fingerprint == _fingerprint_at_first_place(preflight, manifest, version=version) for version in versions
    )


def _fingerprint_at_first_place(preflight: Preflight, manifest: Manifest, *, version: int) -> str:
    """The fingerprint of that version, if the files were still called as when the sweep began."""
    written = manifest.config.get("data")
    if not isinstance(written, Mapping):
        written = {}
    config = preflight.config
    values = config.data.model_dump()
    first_names = {
        key: written[key]
        for key in ("train", "validation", "test")
        if isinstance(written.get(key), str) and isinstance(values[key], str)
    }
    return compute_fingerprint(
        Data.model_validate({**values, **first_names}),
        digests=preflight.data.report.digests,
        tokenizer=load_tokenizer(config.model),
        data_seed=config.training.data_seed,
        heads=config.heads,
        version=version,
    )


def _list_data_differences(first: DataRecord, now: DataReport) -> list[str]:
    """What differs between the rows as they were and as they are, a line each, as far as the manifest knows."""
    lines: list[str] = []
    for label, was, value in (("format", first.format, now.format), ("template", first.template, now.template)):
        if was is not None and was != value:
            lines.append(f"{label}: was {was}, now {value}")
    for split in now.num_rows.keys() | first.num_rows.keys():
        was_rows, rows = first.num_rows.get(split), now.num_rows.get(split)
        was_digest, digest = first.digests.get(split), now.digests.get(split)
        if was_rows != rows:
            lines.append(f"{split}: was {was_rows or 0} rows, now {rows or 0}")
        elif was_digest != digest:
            lines.append(f"{split}: {now.sources.get(split)} has other content than when the sweep began")
    return sorted(lines) or ["the tokenizer, or how rows are cut: see `data` in manifest.json"]


def describe_sweep(preflight: Preflight, plan: Plan, nodes: list[NodeProfile], *, common: SweepFacts) -> Manifest:
    """Returns the manifest: resolved config, space, plan, versions, commit, data fingerprints, command.

    Args:
        preflight: Config, space and data.
        plan: The placements.
        nodes: What the probe found, one profile per node.
        common: What the manifest has in common with every trial's record.
    """
    return Manifest(
        qlora_ray=__version__,
        folder=str(Path.cwd()),
        command=(Path(sys.argv[0]).name, *sys.argv[1:]),
        config=preflight.config.model_dump(),
        space=preflight.space.to_dict(),
        plan=parse_record(PlanRecord, plan.to_dict()),
        nodes=tuple(node.to_dict() for node in nodes),
        data=parse_record(DataRecord, preflight.data.report.to_dict()),
        metrics=preflight.metrics_reason,
        unused=tuple(preflight.unused),
        notes=tuple(preflight.notes),
        **vars(common),
    )


def add_resume(first: Manifest, now: Manifest) -> Manifest:
    """The manifest of a sweep that goes on: how it began stays, its base too, and what runs now is what it plans.

    Args:
        first: The manifest as it is.
        now: `describe_sweep` of this run.
    """
    run = RunRecord(
        command=now.command,
        folder=now.folder,
        qlora_ray=now.qlora_ray,
        versions=now.versions,
        git=now.git,
        # Of a base of the hub that was not pinned, today's commit may be another.
        base=None if now.base == first.base else now.base,
        changes=tuple(
            map(str, [*list_differences(first.config, now.config), *list_space_differences(first.space, now.space)])
        ),
    )
    return replace(
        now,
        command=first.command,
        folder=first.folder,
        qlora_ray=first.qlora_ray,
        versions=first.versions,
        git=first.git,
        base=first.base,
        resumes=(*first.resumes, run),
    )


def common_facts(preflight: Preflight) -> SweepFacts:
    """What every record of a sweep holds: versions, commit, data, base, seeds."""
    report = preflight.data.report
    model, training = preflight.config.model, preflight.config.training
    return SweepFacts(
        base=BaseRecord(name=model.name, revision=model.revision, hash=hash_base(model)),
        dataset=DatasetRecord(
            fingerprint=report.fingerprint,
            sources=report.sources,
            num_rows=report.num_rows,
            num_truncated=report.num_truncated,
            overlap=report.overlap,
            overlap_check=report.overlap_verdict,
        ),
        seeds=Seeds(seed=training.seed, data_seed=training.data_seed, search_seed=preflight.config.search.seed),
        versions=find_versions() | {"python": platform.python_version()},
        git=_git_state(),
    )


def _git_state() -> GitState:
    """Commit and dirty flag of the folder the user works in; None outside a repository."""
    try:
        return GitState(
            commit=_git("rev-parse", "HEAD"), dirty=bool(_git("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return GitState()


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
