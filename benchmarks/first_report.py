"""From the command to the first report of the quickstart: seconds, of this checkout and of another, in turns."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from qlora_ray.runs import read_events

ROOT = Path(__file__).parents[1]
CONFIG = "configs/quickstart.yaml"
REPETITIONS = 5
POLL_S = 0.02
# Far more than any start takes.
LIMIT_S = 300.0


def compare_starts(other: Path) -> dict[str, Any]:
    """Starts the command of both checkouts in turns, each time stopping the sweep after its first report.

    Returns:
        The median of the ratios, ours over the other's, and all seconds.
    """
    seconds: dict[str, list[float]] = {"ours": [], "other": []}
    for repetition in range(REPETITIONS):
        pair = [("ours", ROOT), ("other", other)]
        for name, checkout in pair if repetition % 2 == 0 else reversed(pair):
            seconds[name].append(_time_first_report(checkout.resolve()))
    ratios = [ours / others for ours, others in zip(seconds["ours"], seconds["other"], strict=True)]
    rounded = {name: [round(value, 2) for value in values] for name, values in seconds.items()}
    return {"figure": round(statistics.median(ratios), 2), **rounded}


def _time_first_report(checkout: Path) -> float:
    with tempfile.TemporaryDirectory(prefix="start-") as scratch:
        results = Path(scratch) / "results"
        command = [
            str(checkout / ".venv/bin/python"),
            "-m",
            "qlora_ray.sweep",
            *("--config", CONFIG),
            *("--set", f"results.dir={results}"),
            *("--set", "results.name=start"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "RAY_USAGE_STATS_ENABLED": "0"}
        started = time.monotonic()
        with subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                while not _has_report(results / "start" / "events.jsonl"):
                    if process.poll() is not None or time.monotonic() - started > LIMIT_S:
                        raise RuntimeError(f"{checkout}: the quickstart must make a report, got none.")
                    time.sleep(POLL_S)
                return time.monotonic() - started
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.wait(LIMIT_S)


def _has_report(events: Path) -> bool:
    return any(event["event"] == "trial_reported" for event in read_events(events))
