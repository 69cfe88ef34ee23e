"""Where a soak lives: a small disk that can be filled, and a home, Ray's folder and temporary files of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak_processes import kill_all, wait_until_gone

# Room for a sweep's folder, of which 64 MiB must be free when it starts.
DISK_MIB = 192
# What libraries make there: torch's cache and the trainer's folder have one name for all processes; wandb, which trl
# imports where it is installed, takes its own folders away unless its process is killed, as every executor is.
OF_LIBRARIES = re.compile(r"torchinductor_\w+|qlora_ray_trainer|tmp\w{8}wandb-(artifacts|media)")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Scratch:
    """Folders of a soak.

    Attributes:
        root: All of them.
        has_disk: Whether `sweeps` is a disk of its own.
    """

    root: Path
    has_disk: bool

    @property
    def sweeps(self) -> Path:
        """Where the sweeps are."""
        return self.root / "d"

    def mark(self, name: str) -> str:
        """Marks the processes of a sweep."""
        return f"{self.root.name}/{name}/"

    @property
    def environment(self) -> dict[str, str]:
        """What makes processes keep to these folders. The paths of Ray's sockets may have 107 letters."""
        return {
            "HOME": str(self.root / "h"),
            "TMPDIR": str(self.root / "t"),
            "RAY_TMPDIR": str(self.root / "r"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def find_leaks(self) -> list[str]:
        """Files that nobody will take away: temporary ones, and shared memory that no process has open.

        Ray keeps a folder of logs for each of its starts; that is Ray's way and is not counted.
        """
        left = [str(path) for path in (self.root / "t").iterdir() if not OF_LIBRARIES.fullmatch(path.name)]
        left += [str(path) for path in (self.root / "h").rglob("*.tmp")]
        return left + [str(path) for path in _shared_memory() if not _is_open(path)]

    def forget_logs(self) -> None:
        """Takes away what Ray's starts have logged."""
        shutil.rmtree(self.root / "r", ignore_errors=True)
        (self.root / "r").mkdir()


@contextmanager
def make_scratch() -> Iterator[Scratch]:
    """Folders for the length of the block; without the right to mount, there is no small disk."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        root = Path(name)
        for folder in ("d", "h", "t", "r"):
            (root / folder).mkdir()
        disk = root / "d"
        has_disk = _call("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "soak", str(disk))
        try:
            yield Scratch(root, has_disk)
        finally:
            # Of a soak that is stopped itself.
            kill_all(root.name)
            wait_until_gone(root.name)
            if has_disk:
                # Lazily: what has just been killed may hold it for a moment.
                _call("umount", "--lazy", str(disk))


def _call(*command: str) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _shared_memory() -> list[Path]:
    return list(SHARED_MEMORY.iterdir()) if SHARED_MEMORY.is_dir() else []


def _is_open(path: Path) -> bool:
    """Whether some process has it open or mapped."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if str(path) in (folder / "maps").read_text():
                    return True
                if any(link.readlink() == path for link in (folder / "fd").iterdir()):
                    return True
            except OSError:
                continue
    return False
