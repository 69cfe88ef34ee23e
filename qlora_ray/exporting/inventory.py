"""What a bundle says of itself, and what may be written over: bundle.json, with every file's size and hash."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ray import __version__
from qlora_ray.errors import RunError
from qlora_ray.exporting.merge.report import MergeReport
from qlora_ray.exporting.selection import Selection
from qlora_ray.formats import list_first
from qlora_ray.regular_files import load_json, resolve_path
from qlora_ray.runs import read_json
from qlora_ray.runs.inventory import describe_file, hash_file, list_files
from qlora_ray.runs.typed_json import to_json

INVENTORY = "bundle.json"
# Changed when the folder's layout does.
BUNDLE_VERSION = 1
# What a bundle has at its top. On the hub, a repository with only these is one of ours, or was left by an upload that
# broke.
BUNDLE_FOLDERS = ("adapter/", "merged/", "merged-nf4/", "evaluation/")
BUNDLE_FILES = (
    "Modelfile",
    "README.md",
    "RUN_RECORD.md",
    "bundle.json",
    "record.json",
    "report.html",
    "scores.json",
    "sweep.yaml",
    "trial.yaml",
)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        inventory: bundle.json: what it is, and its files with sizes and hashes.
        merge: The merge's report; None without a merged model.
        notes: What the user should know, in words.
    """

    folder: Path
    inventory: dict[str, Any]
    merge: MergeReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The bundle's tagged name."""
        return str(self.inventory["name"])

    @property
    def num_bytes(self) -> int:
        """Bytes of all files but bundle.json."""
        return sum(file["bytes"] for file in self.inventory["files"])


def read_bundle(folder: Path) -> Bundle | None:
    """The bundle in a folder, every file held against its size and sha256; None if there is none.

    Raises:
        RunError: If its files are not those that were written, or this user may not read them.
    """
    if not is_bundle(folder):
        return None
    inventory = read_json(folder / INVENTORY)
    with looking_into(str(folder)):
        there = set(list_files(folder))
        for file in inventory["files"]:
            # A path that leads out of the folder is not among its files.
            path = folder / file["path"]
            is_same = (
                file["path"] in there and path.stat().st_size == file["bytes"] and hash_file(path) == file["sha256"]
            )
            if not is_same:
                raise RunError(f"{folder}: a bundle must be whole, got another or no {file['path']}. Export it again.")
    return Bundle(folder, inventory)


def is_bundle(folder: Path) -> bool:
    """Whether a folder was written by `write_bundle`, and its bundle.json is not damaged."""
    try:
        found = load_json(folder / INVENTORY)
    except (OSError, ValueError):
        return False
    if not isinstance(found, dict) or "bundle_version" not in found or not isinstance(found.get("name"), str):
        return False
    files = found.get("files")
    return isinstance(files, list) and all(map(_is_entry, files))


def _is_entry(file: object) -> bool:
    """Whether this is what `take_inventory` writes of a file."""
    kinds = {"path": str, "bytes": int, "sha256": str}
    return isinstance(file, dict) and all(isinstance(file.get(key), kind) for key, kind in kinds.items())


@contextmanager
def looking_into(where: str) -> Iterator[None]:
    """Turns what the disk says of a name that is too long, or of another user's private folder, into one message.

    Args:
        where: What the user gave the folder by.
    """
    try:
        yield
    except OSError as error:
        ask = ", or ask its owner for access" if isinstance(error, PermissionError) else ""
        raise RunError(
            f"{where}: cannot be looked into: {error.filename}: {error.strerror}. Choose another folder{ask}."
        ) from None


def check_target(to: Path, *, sweep: Path, option: str = "--to") -> None:
    """Raises RunError unless the bundle's folder is new, empty, or an earlier bundle with nothing beside it.

    Args:
        to: The bundle's folder.
        sweep: The sweep's folder, which must not be inside it.
        option: What the user gave the folder by.
    """
    target, root = resolve_path(to.expanduser()), resolve_path(sweep)
    if any("\udc80" <= letter <= "\udcff" for letter in str(target)):
        # safetensors opens no such path.
        raise RunError(f"{option} {to}: must be a path in UTF-8. Choose another folder.")
    kept = [root / part for part in ("trials", "best", "logs", "evaluation")]
    if root == target or root.is_relative_to(target) or any(target.is_relative_to(part) for part in kept):
        raise RunError(f"{option} {to}: must not be the sweep's own folder, or in its trials. Choose another folder.")
    with looking_into(f"{option} {to}"):
        _check_content(to, option=option)


def _check_content(to: Path, *, option: str) -> None:
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        what = "link" if to.is_symlink() else "file"
        raise RunError(f"{option} {to}: must be a folder, got a {what}. Choose another.")
    if not to.is_dir():
        return
    # A new folder takes the place of the old one, which neither a mounted disk nor where a shell stands lets happen.
    here = Path.cwd().is_relative_to(resolve_path(to.expanduser()))
    if here or to.is_mount():
        what = "the folder this command runs in" if here else "a mounted disk"
        raise RunError(f"{option} {to}: must be a folder that can be replaced, got {what}. Choose one inside it.")
    known = {file["path"] for file in read_json(to / INVENTORY)["files"]} | {INVENTORY} if is_bundle(to) else set()
    others = sorted(path for path in list_files(to) if path not in known)
    if others:
        raise RunError(
            f"{option} {to}: must be a new folder or an earlier bundle, got one with {list_first(others, limit=3)}. "
            "Choose another folder, or move these away."
        )


def take_inventory(selection: Selection, folder: Path, *, name: str, merge: MergeReport | None) -> dict[str, Any]:
    """Returns bundle.json: what the bundle is, and every file in it with size and sha256.

    Args:
        selection: The trial that was exported.
        folder: The bundle.
        name: The bundle's name.
        merge: How the merge came out; None where there is no merged model.
    """
    return {
        "bundle_version": BUNDLE_VERSION,
        "qlora_ray": __version__,
        "name": name,
        "sweep": selection.paths.name,
        "trial": selection.trial,
        "is_winner": selection.is_winner,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "base": to_json(selection.record.base),
        "merge": merge.rule if merge else None,
        "files": [describe_file(folder, path) for path in list_files(folder)],
    }
