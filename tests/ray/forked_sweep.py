"""A sweep of the real driver on real raylets, over executors whose trials are a formula, as its user starts it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from qlora_ray.runs import SweepPaths, read_events, read_json
from tests.driver_forks import DriverEnd, DriverForks
from tests.fake_executor import HOLD

NUM_TRIALS = 6
NUM_REPORTS = 3
# For what happens within seconds where nothing else runs.
WAIT_S = 200.0
POLL_S = 0.1


class ForkedSweep:
    """A sweep whose drivers are started by DriverForks.

    Args:
        folder: A new folder, for the sweep's own and for what belongs to it.
        forks: Starts drivers.
        scheduler: The config's.
        **cluster: The config section `cluster`; without an address each driver has a Ray of its own.
    """

    def __init__(self, folder: Path, forks: DriverForks, *, scheduler: str = "none", **cluster: Any) -> None:
        self._forks = forks
        self._pid = 0
        self.paths = SweepPaths(folder / "s")
        folder.mkdir()
        self._config = folder / "config.yaml"
        self._config.write_text(
            yaml.safe_dump(
                {
                    "data": {"max_train_rows": 64, "max_validation_rows": 16, "max_length": 128},
                    "training": {"max_samples": 24, "gradient_accumulation_steps": 1, "optim": "adamw_torch"},
                    "search": {
                        "space": {"training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}},
                        "num_trials": NUM_TRIALS,
                        "num_reports": NUM_REPORTS,
                        "scheduler": scheduler,
                        "reduction_factor": 2,
                    },
                    "evaluate": {"metrics": []},
                    "cluster": {"slots_per_device": 2, **cluster},
                    "results": {"dir": str(folder), "name": "s"},
                }
            )
        )

    @property
    def is_complete(self) -> bool:
        """Whether its end is written."""
        return self.paths.summary.exists() and read_json(self.paths.summary)["status"] == "complete"

    @property
    def text(self) -> str:
        """All that its drivers printed."""
        return (self.paths.root.parent / "s.log").read_text()

    def start(self, *, kill_at: int | None = None) -> None:
        """Starts the sweep, or goes on with it, as its user would."""
        if self.paths.manifest.exists():
            arguments = ["--resume", self.paths.root]
        else:
            # Nothing has begun: there is nothing to go on with.
            assert not list(self.paths.trials.glob("*"))
            shutil.rmtree(self.paths.root, ignore_errors=True)
            arguments = ["--config", self._config]
        self._pid = self._forks.start(arguments, folder=self.paths.root, kill_at=kill_at)

    def drive(self, *, kill_at: int | None = None) -> DriverEnd:
        """As `start`, and waits for the driver's end: by the kill, or because the sweep is complete."""
        self.start(kill_at=kill_at)
        end = self._forks.wait()
        assert end.was_killed or end.exit_code == 0, self.text
        return end

    def hold(self) -> None:
        """Its trials train on after `let_go`."""
        (self.paths.root.parent / HOLD).touch()

    def let_go(self) -> None:
        """Lets its trials train."""
        (self.paths.root.parent / HOLD).unlink()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its events of one name."""
        return [event for event in read_events(self.paths.events) if event["event"] == name]

    def wait_for_events(self, name: str, count: int = 1) -> None:
        """Waits until there are so many events of a name."""
        deadline = time.monotonic() + WAIT_S
        while len(self.events(name)) < count:
            assert time.monotonic() < deadline, self.text
            time.sleep(POLL_S)

    def find_process(self, title: str) -> int:
        """The one process whose title begins so: of the driver's own Ray, where it has one, else of the tests'."""
        found = _find_children(self._pid, title) or _find_children(os.getpid(), title)
        (pid,) = found
        return pid

    def records(self) -> list[dict[str, Any]]:
        """The records of its trials, interrupted ones left out."""
        records = [read_json(path) for path in sorted(self.paths.trials.glob("*/record.json"))]
        return [record for record in records if record["state"] != "interrupted"]

    def outcome(self) -> tuple[list[Any], Any]:
        """What came of it, whatever its trials are called: settings with their values, and the winner's."""
        winner = read_json(self.paths.trial(read_json(self.paths.summary)["winner"]).record)
        trials = sorted((sorted(record["params"].items()), record["reports"]) for record in self.records())
        return trials, (winner["params"], winner["reports"])


def _find_children(parent: int, title: str) -> list[int]:
    children = psutil.Process(parent).children(recursive=True)
    lines = {child.pid: child.cmdline() for child in children}
    return [pid for pid, line in lines.items() if line and Path(line[0]).name.startswith(title)]
