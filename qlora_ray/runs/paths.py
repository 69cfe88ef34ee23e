"""One class owns every path of a sweep's folder, one every path of a trial's."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qlora_ray.errors import RunError
from qlora_ray.regular_files import load_json
from qlora_ray.runs.artifacts import ARTIFACTS
from qlora_ray.runs.locks import is_locked, locked_file
from qlora_ray.runs.whole import is_temporary

# Names that peft 0.21 gives the two files of an adapter.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Auxiliary heads, beside an adapter.
HEADS_WEIGHTS = "heads.safetensors"
MERGE_REPORT = "merge_report.json"
# What the folder of a merged model that was quantized again is called, after the merged model's.
NF4_SUFFIX = "-nf4"

# Less free space than this and a sweep does not start: logs, records and adapters of a small sweep.
MIN_FREE_BYTES = 64 * 1024**2
# A report that looks whether a sweep runs holds its lock for microseconds.
LOCK_TRIES = 3
LOCK_PAUSE_S = 0.02


@dataclass(frozen=True)
class TrialPaths:
    """Files of one trial."""

    root: Path

    @property
    def record(self) -> Path:
        """What really ran, and how it ended."""
        return self.root / "record.json"

    @property
    def metrics(self) -> Path:
        """One JSON line per report, with the training losses since the one before."""
        return self.root / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        """The adapter in PEFT's own format."""
        return self.root / "adapter"

    @property
    def state(self) -> Path:
        """The trial's state at its last report, while it runs."""
        return self.root / "state"

    @property
    def error(self) -> Path:
        """The traceback of a failed trial."""
        return self.root / "error.txt"


_NOT_WRITABLE = (
    "a sweep's files must be where they can be written and locked, got {0}. "
    "Free space there, or get write access; or choose another folder, and copy the sweep's there if it has begun."
)


@dataclass(frozen=True)
class SweepPaths:
    """Files of one sweep: results/<name>/."""

    root: Path

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.root.name

    @property
    def resume_command(self) -> str:
        """What goes on with the sweep, as it is typed into a shell."""
        return f"python -m qlora_ray.sweep --resume {shlex.quote(str(self.root))}"

    @property
    def rebuild_command(self) -> str:
        """What writes damaged files again that can be made of others, as it is typed into a shell."""
        return f"python -m qlora_ray.report {shlex.quote(str(self.root))} --rebuild"

    @property
    def dashboard_command(self) -> str:
        """What serves the sweep's live page, as it is typed into a shell."""
        return f"python -m qlora_ray.dashboard {shlex.quote(str(self.root))}"

    @property
    def manifest(self) -> Path:
        """Resolved config, plan, versions, commit and data fingerprints, written before any training."""
        return self.root / "manifest.json"

    @property
    def summary(self) -> Path:
        """How the sweep ended: counts, winner, base. Written last."""
        return self.root / "summary.json"

    @property
    def study(self) -> Path:
        """Optuna's journal."""
        return self.root / "study.journal"

    @property
    def events(self) -> Path:
        """Every transition with its time and reason."""
        return self.root / "events.jsonl"

    @property
    def live(self) -> Path:
        """What the sweep does right now, replaced every few seconds while it runs; missing for older sweeps."""
        return self.root / "live.json"

    @property
    def trials_table(self) -> Path:
        """One row per trial."""
        return self.root / "trials.csv"

    @property
    def trials(self) -> Path:
        """Folder of all trials."""
        return self.root / "trials"

    @property
    def best(self) -> Path:
        """The winner: adapter with tokenizer, record, scores."""
        return self.root / "best"

    @property
    def control(self) -> Path:
        """What a user asks of the running sweep: a file for each request, until the driver has taken it."""
        return self.root / "control"

    @property
    def exports(self) -> Path:
        """One JSON line per bundle that was made of it: when, of which trial, where, and the merge's figures."""
        return self.root / "exports.jsonl"

    @property
    def artifacts(self) -> Path:
        """Every file that the sweep has made, with its size and hash; missing while it runs."""
        return self.root / ARTIFACTS

    @property
    def logs(self) -> Path:
        """What Ray, Tune and transformers had to say."""
        return self.root / "logs"

    @property
    def _lock_file(self) -> Path:
        return self.root / ".lock"

    def trial(self, trial_id: str) -> TrialPaths:
        """Paths of one trial."""
        return TrialPaths(self.trials / trial_id)

    def list_trials(self) -> list[TrialPaths]:
        """Trials that have a record, by name. What else lies in their folder is the user's."""
        folders = sorted(folder for folder in self.trials.glob("*") if folder.name.isdecimal())
        return [trial for trial in map(TrialPaths, folders) if trial.record.exists()]

    def create(self) -> None:
        """Makes the sweep's folder.

        Raises:
            RunError: If it is taken, cannot be made, or the disk is full.
        """
        self.check_unused()
        try:
            self.check_space()
            if self._lock_file.exists():
                # A sweep of that name that is still planning has written no manifest, but holds its lock.
                with self.lock():
                    pass
            self.trials.mkdir(parents=True, exist_ok=True)
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(
                f"results.dir: {self.root} cannot be made: {error.strerror}. Free some space, or choose another folder."
            ) from None

    def check_unused(self) -> None:
        """Raises RunError if the folder holds anything."""
        # A sweep that was killed before its manifest left only empty folders, logs and a beginning: its name is free.
        leftovers = {"logs", "trials", ".lock"}
        is_used = self.root.exists() and (
            not self.root.is_dir()
            or any(path.name not in leftovers and not is_temporary(path) for path in self.root.iterdir())
            or (self.trials.exists() and any(self.trials.iterdir()))
        )
        if is_used:
            raise RunError(
                f"results.name: {self.root} is already used. Choose another results.name, "
                f"or go on with it: {self.resume_command}"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the sweep for this process, whose name stands in the lock's file.

        Raises:
            RunError: If another process has it, or the folder cannot be written or is on a file system without locks.
        """
        with ExitStack() as held:
            for tries_left in reversed(range(LOCK_TRIES)):
                try:
                    held.enter_context(locked_file(self._lock_file))
                    break
                except BlockingIOError:
                    if not tries_left:
                        raise RunError(self.describe_holder()) from None
                except OSError as error:
                    raise RunError(f"{self.root}: {_NOT_WRITABLE.format(error.strerror)}") from None
                time.sleep(LOCK_PAUSE_S)
            # In the file itself: a renamed one would be another file than the locked one.
            with suppress(OSError):
                self._lock_file.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
            yield

    def read_holder(self) -> tuple[str, int] | None:
        """Host and process that took the sweep last, whether they still hold it or not; None where nothing says so."""
        try:
            holder = load_json(self._lock_file)
            return str(holder["host"]), int(holder["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_of_last_run(self, path: Path) -> bool:
        """Whether a file has been written since a process took the sweep last, by the clock of their file system."""
        try:
            return path.stat().st_mtime >= self._lock_file.stat().st_mtime
        except OSError:
            return True

    def describe_holder(self) -> str:
        """Who holds the sweep, and what can be done about it."""
        holder = self.read_holder()
        if holder is None:
            return f"{self.root}: another sweep is running there. Wait for it, or stop it."
        host, process = holder
        words = f"{self.root}: another sweep is running there, process {process} on {host}. Wait for it, or stop it."
        if host == socket.gethostname():
            return words
        return (
            f"{words} If {host} is gone, its file server frees the lock when that machine's lease ends, on NFS 4 "
            f"after about 90 s; where it does not, remove {self._lock_file}, once you know that {host} is down."
        )

    def is_held(self) -> bool:
        """Whether a process holds the sweep, as far as this machine's locks say; see also `live.is_running`."""
        return is_locked(self._lock_file)

    def check_resumable(self) -> None:
        """Raises RunError if the sweep that is there cannot go on: it runs, cannot be written, or has no room."""
        if self.is_held():
            raise RunError(self.describe_holder())
        # Other files are put in place whole, which asks for their folder alone.
        appended = (self.events, self.study, self._lock_file, *self.logs.glob("*"))
        for path in (self.root, self.logs, self.trials, *self.trials.glob("*"), *appended):
            if path.exists() and not os.access(path, os.W_OK):
                raise RunError(f"{path}: {_NOT_WRITABLE.format('one that you may only read')}")
        self.check_space()

    def check_space(self) -> None:
        """Raises RunError if the disk has too little room for a sweep."""
        existing = self.root
        while not existing.exists():
            existing = existing.parent
        if not os.access(existing, os.W_OK):
            raise RunError(f"results.dir: {existing} cannot be written. Choose another results.dir.")
        free = shutil.disk_usage(existing).free
        if free < MIN_FREE_BYTES:
            raise RunError(
                f"results.dir: at least {MIN_FREE_BYTES >> 20} MiB must be free on the disk of {self.root}, "
                f"got {free >> 20} MiB. Free some, or choose another results.dir."
            )


def default_cache_dir() -> Path:
    """Where what can be made again is kept for the user's next sweep: `$QLORA_RAY_CACHE`, or `~/.cache/qlora_ray`."""
    return Path(os.environ.get("QLORA_RAY_CACHE") or "~/.cache/qlora_ray").expanduser()


def trial_id_of(number: int) -> str:
    """The id of a trial: its number in the study, four digits, so that folders sort."""
    return f"{number:04d}"
