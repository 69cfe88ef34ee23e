"""Whole folders and large files: made under a name of our own, then put in place. Several processes may do so at once.

A process that is killed at any point leaves the older one or the new one, whole, and what else it left is taken away by
the next.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from qlora_ray.errors import RunError
from qlora_ray.platforms import CAN_RENAME_OPEN_FILES, open_folder, sync_file
from qlora_ray.runs.locks import held_if_free, hold, locked_file
from qlora_ray.runs.modes import share, share_tree

# What the name of a folder ends in while its replacement takes its place, and then until it is taken away.
OLDER = ".old"
GONE = ".gone"
# Ends the name of the file that orders renames, where a temporary file or folder has eight letters of its own.
TURN = "turn"
LEFT = re.compile(
    rf"\.(?P<name>.+)\.qlora_ray-(?P<key>[a-z0-9_]{{8}}|{TURN})({re.escape(OLDER)}({re.escape(GONE)})?)?", re.DOTALL
)


@contextmanager
def whole_folder(path: Path, *, taken: str | None = None) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends well, replacing an older one.

    Killed at any point, also by a power cut, it leaves the older folder or the new one, whole; between two renames
    the older one has another name, until `restore_folder` or the next writer puts it back.

    Args:
        path: The folder that is to be written, which need not be there.
        taken: What is said where somebody else is at work on the same name; None lets both work, and the last one
            wins.

    Raises:
        RunError: If `taken` is given, and another one is at work there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy_up(path, taken=taken)
    temporary, held = _make_held(path, is_folder=True)
    try:
        if taken is not None:
            # Again, now that others see this one: of two that begin at once, never both go on.
            _tidy_up(path, taken=taken, own=temporary)
        yield temporary
        share_tree(temporary)
        _sync_tree(temporary)
        _take_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if held is not None:
            os.close(held)


def restore_folder(path: Path) -> None:
    """Puts right what a killed `whole_folder` left, as the next one would; for who reads a folder before that.

    An older one that was on its way out comes back if nothing has taken its place, and the rest is taken away. Waits
    where a living one is just then giving its folder the name.
    """
    if path.parent.is_dir():
        _tidy_up(path)


@contextmanager
def whole_file(path: Path, *, is_synced: bool = True) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that takes its name when the block ends well, replacing an older one.

    What a killed process left of such files is taken away first.

    Args:
        path: The file.
        is_synced: Whether it is on the disk at the end, under its name; otherwise a power cut may leave the older one.
    """
    _remove_left_files(path)
    temporary, handle = _make_held(path, is_folder=False)
    assert handle is not None
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            if is_synced:
                os.fsync(handle)
            share(temporary)
            if CAN_RENAME_OPEN_FILES:
                temporary.replace(path)
        if not CAN_RENAME_OPEN_FILES:
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if is_synced:
        _sync_folder(path.parent)


def is_temporary(path: Path) -> bool:
    """Whether a name is that of a file or folder which was to take another name; its writer lives, or was killed."""
    return LEFT.fullmatch(path.name) is not None


def tidy_folder(folder: Path) -> None:
    """Takes away what killed writers left in a folder, whatever it was to be, and puts older folders back."""
    names = [match["name"] for entry in folder.iterdir() if (match := LEFT.fullmatch(entry.name))]
    for name in sorted(set(names)):
        _remove_left_files(folder / name)
        _tidy_up(folder / name)


def _remove_left_files(path: Path) -> None:
    for left in _find_left(path):
        # What is left of a folder of the same name is not this one's.
        if left.is_file():
            with held_if_free(left) as is_free:
                if is_free:
                    left.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    """What the names of temporary files and folders of `path` begin with, and nobody's own: `.env.defaults` is."""
    return f".{path.name}.qlora_ray-"


def _make_held(path: Path, *, is_folder: bool) -> tuple[Path, int | None]:
    """A new temporary file or folder of `path`, and the descriptor that holds it; no folder has one on Windows."""
    while True:
        # Before it is held, another process may tidy it up: then it is made again.
        if is_folder:
            temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
            try:
                descriptor = open_folder(temporary)
            except FileNotFoundError:
                continue
            if descriptor is None:
                return temporary, None
        else:
            descriptor, name = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
            temporary = Path(name)
        # A file system without locks says nothing, and nothing is tidied up there.
        hold(descriptor)
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Brings all files of a folder to the disk, so that a power cut after the rename does not leave empty ones."""
    for root, _, names in os.walk(folder):
        for file in (Path(root, name) for name in names):
            if not file.is_symlink():
                sync_file(file)
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    # Some file systems have no fsync of folders; those that need it do.
    with suppress(OSError):
        sync_file(folder)


def _take_place(temporary: Path, path: Path) -> None:
    """Gives a folder its name, and takes the older one of that name away."""
    older = Path(f"{temporary}{OLDER}")
    with _turn(path):
        try:
            if os.path.lexists(path):
                path.replace(older)
            temporary.replace(path)
        finally:
            _settle(older, path)
    _sync_folder(path.parent)
    _remove(Path(f"{older}{GONE}"))


def _settle(older: Path, path: Path) -> None:
    """Puts an older folder back if nothing has taken its place; else marks it as one to take away.

    What is taken away has another name first: cut off halfway, it must never come back.
    """
    if os.path.lexists(older):
        older.replace(Path(f"{older}{GONE}") if os.path.lexists(path) else path)


def _remove(path: Path) -> None:
    """Takes away what a new folder has replaced; what cannot be is left to the next one."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _turn_file(path: Path) -> Path:
    return path.parent / f"{_prefix(path)}{TURN}"


@contextmanager
def _turn(path: Path) -> Iterator[bool]:
    """Lets one process at a time move folders into the place of `path`; False where a file system has no locks.

    Its file is there for these moments only. Whoever dies in them leaves it, and no lock.
    """
    file = _turn_file(path)
    with ExitStack() as turn:
        try:
            turn.enter_context(locked_file(file, waits=True))
            has_turn = True
        except OSError:
            has_turn = False
        try:
            yield has_turn
        finally:
            # Windows does not remove what is open: there it stays.
            with suppress(PermissionError):
                file.unlink(missing_ok=True)


def _tidy_up(path: Path, *, taken: str | None = None, own: Path | None = None) -> None:
    """Removes or puts back what killed processes left of folders that were to be `path`.

    Args:
        path: The name that they were to take.
        taken: What is said as RunError if a living process is at work on one.
        own: One that is this process's.
    """
    if _turn_file(path).exists() or any(left.name.endswith(OLDER) for left in _find_left(path)):
        with _turn(path) as has_turn:
            # Looked for again: a living process has settled its own meanwhile.
            for left in _find_left(path):
                if has_turn and left.name.endswith(OLDER):
                    _settle(left, path)
    for left in _find_left(path):
        if left.name.endswith(GONE):
            _remove(left)
        elif left.is_dir() and left != own and not left.name.endswith(OLDER):
            with held_if_free(left) as is_free:
                if is_free:
                    shutil.rmtree(left, ignore_errors=True)
                elif is_free is False and taken is not None:
                    raise RunError(taken)


def _find_left(path: Path) -> list[Path]:
    """The temporary files and folders of `path`, of living processes and of killed ones."""
    return [
        entry
        for entry in path.parent.iterdir()
        if (match := LEFT.fullmatch(entry.name)) and match["name"] == path.name and match["key"] != TURN
    ]
