"""Links in a sweep's folder that came from elsewhere: what is written there must not be written somewhere else."""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path

from qlora_ray.errors import RunError
from qlora_ray.runs.ownership import is_own
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.records import Manifest, read_record


def check_links(folder: Path) -> None:
    """Refuses links out of a sweep's folder that is not the user's own.

    A command that reads, appends, locks or copies anything there asks first, so that no file of the folder, whatever
    its name, leads elsewhere, nor a folder on the way to it.

    Args:
        folder: A sweep's folder; one without a manifest has nothing to check.

    Raises:
        RunError: A symbolic link leads out of the folder, or a file has a name (a hard link) elsewhere too.
    """
    manifest = SweepPaths(folder).manifest
    if not os.path.lexists(manifest):
        return
    # A link to a manifest of the user's own makes no folder theirs.
    if not manifest.is_symlink() and _is_own(manifest):
        return
    found = find_link_out(folder)
    if found is None:
        return
    raise RunError(
        f"{found}: a sweep that this user did not start here must have no links out of its folder, got one. "
        "Put what it leads to in its place if you trust it, or remove it."
    )


def find_link_out(folder: Path) -> Path | None:
    """Returns the first path in a folder that leads out of it, by a symbolic or a hard link; None without one."""
    root = Path(os.path.realpath(folder))
    names: Counter[tuple[int, int]] = Counter()
    shared: dict[tuple[int, int], tuple[Path, int]] = {}
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in sorted([*folders, *files])):
            try:
                found = path.lstat()
            except FileNotFoundError:
                # The sweep may run, and put a file in its place meanwhile.
                continue
            if stat.S_ISLNK(found.st_mode):
                if not Path(os.path.realpath(path)).is_relative_to(root):
                    return path
            elif stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
                file = (found.st_dev, found.st_ino)
                names[file] += 1
                shared[file] = (path, found.st_nlink)
    return next((path for file, (path, num_links) in shared.items() if names[file] < num_links), None)


def _is_own(manifest: Path) -> bool:
    try:
        return is_own(read_record(manifest, Manifest))
    except RunError:
        return False
