"""One sweep of a soak: its drivers as processes of their own, and what is done to them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.soak_faults import Fault, FaultKind
from benchmarks.soak_processes import MARK, POLL_S, find_titled, kill_all, poll, send
from qlora_ray.runs import SweepPaths, read_json

ROOT = Path(__file__).resolve().parents[1]
HEARTBEAT_TIMEOUT_S = 10.0
# No line in events.jsonl for so long, and it hangs.
STILL_S = 300.0
# How long a full disk stays full for a sweep that does not end over it.
FULL_S = 90.0
FILLER = "filler"
RESUME = re.compile(r"python -m qlora_ray\.sweep --resume (\S+)")
TITLES = {
    FaultKind.EXECUTOR_KILLED: "ray::Executor",
    FaultKind.EXECUTOR_FROZEN: "ray::Executor",
    FaultKind.EXECUTOR_FROZEN_SHORTLY: "ray::Executor",
    FaultKind.POOL_KILLED: "ray::Pool",
    FaultKind.RAYLET_KILLED: "raylet",
    FaultKind.GCS_KILLED: "gcs_server",
}
# What is torn after its driver was killed.
TORN = {
    FaultKind.EVENTS_TORN: "events.jsonl",
    FaultKind.JOURNAL_TORN: "study.journal",
    FaultKind.TABLE_TORN: "trials.csv",
}
CONFIG: dict[str, dict[str, Any]] = {
    "data": {"max_train_rows": 64, "max_validation_rows": 16, "max_length": 128},
    "training": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_samples": 24,
        "optim": "adamw_torch",
        # Sweeps are compared, and each may measure for itself whether this processor gains by bf16.
        "precision": "fp32",
    },
    "search": {
        "space": {"training.learning_rate": {"low": 1e-4, "high": 5e-3, "log": True}},
        "sampler": "random",
        "scheduler": "none",
        "num_trials": 8,
        "num_reports": 3,
    },
    "evaluate": {"metrics": [], "top_k": 2, "max_rows": 4},
    "cluster": {"max_slots": 2, "heartbeat_timeout_s": HEARTBEAT_TIMEOUT_S},
}


@dataclass
class DriverEnd:
    """How a driver ended.

    Attributes:
        exit_code: Its exit code; negative for a signal; None where it hung and was ended.
        output: What it printed.
    """

    exit_code: int | None
    output: str

    @property
    def resume_arguments(self) -> list[str] | None:
        """What it said that one should go on with."""
        named = RESUME.findall(self.output)
        return ["--resume", *shlex.split(named[-1])] if named else None


@dataclass
class SoakedSweep:
    """A sweep.

    Attributes:
        folder: A folder of its own, which is there.
        mark: Marks the processes of all of its drivers.
        environment: What its processes get besides this one's.
        overrides: Sections of the config that are merged in.
    """

    folder: Path
    mark: str
    environment: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paths = SweepPaths(self.folder / "s")
        self._config = self.folder / "config.yaml"
        self._output = self.folder / "output"
        config = {name: {**section, **self.overrides.get(name, {})} for name, section in CONFIG.items()}
        config["results"] = {"dir": str(self.folder), "name": "s"}
        self._config.write_text(yaml.safe_dump(config))
        self._driver: subprocess.Popen[bytes] | None = None
        self._num_drivers = 0
        self._strikes: dict[FaultKind, Callable[[Fault], None]] = {
            **dict.fromkeys(TITLES, self._kill),
            **dict.fromkeys((FaultKind.DRIVER_KILLED, *TORN), lambda _: self._signal(signal.SIGKILL)),
            FaultKind.DRIVER_TERMINATED: lambda _: self._signal(signal.SIGTERM),
            FaultKind.DRIVER_INTERRUPTED: lambda _: os.killpg(self.pid, signal.SIGINT),
            FaultKind.EVERYTHING_KILLED: lambda _: kill_all(self.driver_mark),
            FaultKind.EXECUTOR_FROZEN: self._freeze,
            FaultKind.EXECUTOR_FROZEN_SHORTLY: self._freeze,
            FaultKind.DISK_FULL: lambda _: self._fill_disk(),
        }

    @property
    def pid(self) -> int:
        """Its driver."""
        assert self._driver is not None
        return self._driver.pid

    @property
    def driver_mark(self) -> str:
        """Marks the processes of the newest driver: those of the one before may still be ending."""
        return f"{self.mark}{self._num_drivers}/"

    @property
    def is_complete(self) -> bool:
        """Whether its summary says so."""
        return self.paths.summary.exists() and read_json(self.paths.summary)["status"] == "complete"

    @property
    def has_begun(self) -> bool:
        """Whether there is something to go on with."""
        return self.paths.manifest.exists()

    def start(self, resume_arguments: list[str] | None = None) -> None:
        """Starts a driver: by what the last one said, else as a user would who knows the folder only."""
        if self.has_begun:
            arguments = resume_arguments or ["--resume", str(self.paths.root)]
        else:
            arguments = ["--config", str(self._config)]
        self._num_drivers += 1
        environment = {**os.environ, **self.environment, MARK: self.driver_mark, "PYTHONPATH": str(ROOT)}
        with self._output.open("wb") as output:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", "qlora_ray.sweep", *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether its driver has not ended."""
        assert self._driver is not None
        return self._driver.poll() is None

    def count_events(self) -> int:
        """Lines of events.jsonl."""
        return self.paths.events.read_bytes().count(b"\n") if self.paths.events.exists() else 0

    def wait_for(self, fault: Fault, *, since: int) -> bool:
        """Waits until a fault is due; returns whether it is, and False where the driver ended first.

        Args:
            fault: The fault.
            since: From which number of events its own are counted.
        """
        title = TITLES.get(fault.kind)
        while self.is_running and not self._hangs():
            is_due = self.count_events() - since >= fault.after_events
            if is_due and (title is None or find_titled(self.driver_mark, title)):
                time.sleep(fault.delay_s)
                return self.is_running
            time.sleep(POLL_S)
        return False

    def strike(self, fault: Fault) -> None:
        """Does it."""
        self._strikes[fault.kind](fault)

    def wait(self) -> DriverEnd:
        """Waits for the end of the driver; one that does nothing for STILL_S is ended."""
        assert self._driver is not None
        while self.is_running and not self._hangs():
            time.sleep(POLL_S)
        is_stuck = self.is_running
        if is_stuck:
            kill_all(self.driver_mark)
        code = self._driver.wait()
        (self.folder / FILLER).unlink(missing_ok=True)
        return DriverEnd(None if is_stuck else code, self._output.read_text(errors="replace"))

    def tear(self, fault: Fault) -> bool:
        """Cuts a file's last line off at some byte, as a power cut does; returns whether there was one to cut."""
        path = self.paths.root / TORN[fault.kind]
        content = path.read_bytes() if path.exists() else b""
        begin = content.rfind(b"\n", 0, -1) + 1
        # The first line of the journal and of the table were on the disk before there was anything to lose.
        if not begin:
            return False
        os.truncate(path, begin + int(fault.share * (len(content) - begin)))
        return True

    def _hangs(self) -> bool:
        newest = max(
            (path.stat().st_mtime for path in (self.paths.events, self._output) if path.exists()), default=time.time()
        )
        return time.time() - newest > STILL_S

    def _signal(self, signum: int) -> None:
        send(self.pid, signum)

    def _kill(self, fault: Fault) -> None:
        for pid in find_titled(self.driver_mark, TITLES[fault.kind])[:1]:
            send(pid, signal.SIGKILL)

    def _freeze(self, fault: Fault) -> None:
        """Stops an executor for less than its heartbeat's limit, or for longer."""
        factor = 0.1 + 0.6 * fault.share if fault.kind is FaultKind.EXECUTOR_FROZEN_SHORTLY else 1.5 + fault.share
        for pid in find_titled(self.driver_mark, TITLES[fault.kind])[:1]:
            if send(pid, signal.SIGSTOP):
                time.sleep(HEARTBEAT_TIMEOUT_S * factor)
                send(pid, signal.SIGCONT)

    def _fill_disk(self) -> None:
        """Fills the disk until the driver has ended, or for FULL_S."""
        block = bytes(1 << 20)
        filler = self.folder / FILLER
        with filler.open("ab", buffering=0) as stream:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while stream.write(block[:size]) == size:
                        pass
                except OSError:
                    continue
        for _ in poll(FULL_S):
            if not self.is_running:
                break
        filler.unlink()
