"""What a sweep's folder knows of bundles that lie elsewhere: exports.jsonl, a line for each export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.reporting.trials import as_mapping, as_text
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.files import read_lines
from qlora_ray.runs.paths import MERGE_REPORT

MERGED = "merged"


def read_merges(paths: SweepPaths) -> dict[str, Mapping[str, Any]]:
    """The merge reports of bundles that are not right in the sweep's folder, of each the last, by what to call them.

    They are as they were when the bundle was made: it may have been moved since. Its path stays out, because reports
    are given to others.
    """
    latest: dict[str, Mapping[str, Any]] = {}
    for line in map(as_mapping, read_lines(paths.exports)):
        to = as_text(line.get("to"))
        if to is not None:
            # Taken out first, so that the order is that of the last exports.
            latest.pop(to, None)
            latest[to] = line
    merges: dict[str, Mapping[str, Any]] = {}
    root = paths.root.resolve()
    for to, line in latest.items():
        report = as_mapping(line.get("merge"))
        # One right in the sweep's folder is found by its own files.
        if not report or Path(to).resolve().parent == root or _has_moved_along(Path(to), root, report):
            continue
        name = f"{Path(to).name}/{MERGED}, of trial {as_text(line.get('trial')) or 'unknown'}"
        merges[name if name not in merges else f"{name}, {as_text(line.get('time')) or to}"] = report
    return merges


def _has_moved_along(to: Path, root: Path, report: Mapping[str, Any]) -> bool:
    """Whether the bundle is right in the sweep's folder after all, which was moved or copied with it."""
    try:
        return bool(read_json(root / to.name / MERGED / MERGE_REPORT) == report)
    except RunError:
        return False
