"""The merge reports of a sweep's bundles: those in its folder, and those elsewhere that exports.jsonl knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.regular_files import resolve_path
from qlora_ray.reporting.folder_files import FolderFiles
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.files import read_lines
from qlora_ray.runs.paths import MERGE_REPORT
from qlora_ray.runs.typed_json import parse_record

# Where a bundle has its merged model.
MERGED = "merged"
# Where export puts merged models in the sweep's own folder: beside its other files, or in a bundle one level below.
MERGE_REPORTS = (MERGE_REPORT, f"*/{MERGE_REPORT}", f"*/*/{MERGE_REPORT}")


@dataclass(frozen=True)
class _Export:
    """A line of exports.jsonl, as far as a report needs it."""

    to: str | None = None
    trial: str | None = None
    time: str | None = None
    merge: Mapping[str, Any] = field(default_factory=dict)


def read_merges(paths: SweepPaths, files: FolderFiles) -> dict[str, Mapping[str, Any]]:
    """Returns the merge reports of bundles of the sweep, by the folder of the merged model, or what to call it.

    Args:
        paths: The sweep's folder: bundles in it are found there, others by its exports.jsonl.
        files: Reads the reports.
    """
    return {
        str(path.parent.relative_to(paths.root)): report
        for pattern in MERGE_REPORTS
        for path in sorted(paths.root.glob(pattern))
        # A bundle that is being written, or was left by a killed export, is hidden.
        if not any(part.startswith(".") for part in path.relative_to(paths.root).parts)
        # A copy in NF4 has its merged model's report.
        and (report := files.read(path))
        and path.parent.name != report.get("nf4_copy")
    } | read_exported_merges(paths)


def read_exported_merges(paths: SweepPaths) -> dict[str, Mapping[str, Any]]:
    """The merge reports of bundles that are not right in the sweep's folder, of each the last, by what to call them.

    They are as they were when the bundle was made: it may have been moved since. Its path stays out, because reports
    are given to others.
    """
    latest: dict[str, _Export] = {}
    for line in read_lines(paths.exports):
        export = parse_record(_Export, line)
        if export.to is not None and "\0" not in export.to:
            # Taken out first, so that the order is that of the last exports.
            latest.pop(export.to, None)
            latest[export.to] = export
    merges: dict[str, Mapping[str, Any]] = {}
    root = resolve_path(paths.root)
    for to, export in latest.items():
        # One right in the sweep's folder is found by its own files.
        is_here = resolve_path(Path(to)).parent == root or _has_moved_along(Path(to), root, export.merge)
        if not export.merge or is_here:
            continue
        name = f"{Path(to).name}/{MERGED}, of trial {export.trial or 'unknown'}"
        merges[name if name not in merges else f"{name}, {export.time or to}"] = export.merge
    return merges


def _has_moved_along(to: Path, root: Path, report: Mapping[str, Any]) -> bool:
    """Whether the bundle is right in the sweep's folder after all, which was moved or copied with it."""
    try:
        return bool(read_json(root / to.name / MERGED / MERGE_REPORT) == report)
    except RunError:
        return False
