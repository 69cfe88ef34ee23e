"""What the live page of a large sweep costs: how far it is behind, its server's CPU, its browser's memory.

    python -m benchmarks.dashboard --json dashboard.json
    python -m benchmarks.dashboard --only-write DIR --seconds 600    # only a folder that grows, to look at

A simulated sweep, of which many trials run at once, writes its folder as a real one does: trials report and end, others
begin, and live.json is replaced every 2 s. A Chromium without a window has the page open.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.simulated_sweep import SimulatedSweep
from qlora_ray.console import Console
from qlora_ray.formats import MIB, format_table
from qlora_ray.runs import SweepPaths

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu"]
# So tall that all figures are in sight, and drawn: the most that a page costs.
WINDOW = {"width": 1280, "height": 4200}
TICK_S = 0.1
LIVE_EVERY_S = 2.0
# How far behind the page is each time it has drawn an event it had not heard of.
WATCH = """
() => {
  window.lags = [];
  const main = document.querySelector("main");
  new MutationObserver(() => window.lags.push(Date.now() / 1000 - Number(main.dataset.lastEvent)))
    .observe(main, { attributes: true, attributeFilter: ["data-last-event"] });
}
"""


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1_000, help="trials when the page is opened (default: 1,000)")
    parser.add_argument("--running", type=int, default=200, help="trials that run at once (default: 200)")
    parser.add_argument("--report-s", type=float, default=20.0, help="seconds between a trial's reports (default: 20)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it is measured (default: 60)")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--only-write", type=Path, metavar="DIR", help="write a folder there, and measure nothing")
    options = parser.parse_args(argv)
    console = Console(sys.stdout)
    folder = options.only_write or Path(tempfile.mkdtemp()) / "simulated"
    paths = SweepPaths(folder)
    sweep = SimulatedSweep(
        paths, num_planned=2 * options.trials, num_running=options.running, report_s=options.report_s
    )
    sweep.write_past(options.trials)
    console.line(f"{folder}: {sweep.num_opened} trials, {options.running} of them running")
    stop = threading.Event()
    with paths.lock():
        if options.only_write:
            _write_on(sweep, stop, seconds=options.seconds)
            return 0
        writer = threading.Thread(target=_write_on, args=(sweep, stop), kwargs={"seconds": 3600.0})
        writer.start()
        try:
            found = _measure(folder, seconds=options.seconds)
        finally:
            stop.set()
            writer.join()
            shutil.rmtree(folder.parent)
    found |= {"trials": sweep.num_opened, "running": options.running, "load_average": round(os.getloadavg()[0], 1)}
    console.line(format_table([["what", "value"], *([name, f"{value}"] for name, value in found.items())], right=(1,)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def _write_on(sweep: SimulatedSweep, stop: threading.Event, *, seconds: float) -> None:
    end, live_at = time.monotonic() + seconds, 0.0
    while time.monotonic() < end and not stop.wait(TICK_S):
        sweep.advance(time.time())
        if time.monotonic() - live_at >= LIVE_EVERY_S:
            live_at = time.monotonic()
            sweep.write_live()


def _measure(folder: Path, *, seconds: float) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, BROWSERS)))
    began = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "qlora_ray.dashboard", str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    started_s = time.monotonic() - began
    process = psutil.Process(server.pid)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
            page = browser.new_page(viewport=WINDOW)
            complaints: list[str] = []
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable")
            began = time.monotonic()
            page.goto(url)
            page.wait_for_selector("#trial-table tbody tr")
            first_s = time.monotonic() - began
            page.evaluate(WATCH)
            before = process.cpu_times()
            page.wait_for_timeout(1000 * seconds)
            after = process.cpu_times()
            lags = page.evaluate("() => window.lags")
            metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
            found = {
                "server starts, s": round(started_s, 2),
                "page is there, s": round(first_s, 2),
                "lag median, s": round(statistics.median(lags), 2),
                "lag 95th percentile, s": round(statistics.quantiles(lags, n=20)[-1], 2),
                "lag at most, s": round(max(lags), 2),
                "updates": len(lags),
                "server CPU, s per minute": round((sum(after[:2]) - sum(before[:2])) * 60 / seconds, 1),
                "server memory, MiB": round(process.memory_info().rss / MIB),
                "page script CPU, s per minute": round(metrics["TaskDuration"] * 60 / (seconds + first_s), 1),
                "page JavaScript heap, MiB": round(metrics["JSHeapUsedSize"] / MIB, 1),
                "browser memory that is its own, MiB": round(_browser_bytes() / MIB),
                "console messages": len(complaints),
            }
            browser.close()
            return found
    finally:
        server.terminate()
        server.wait()


def _browser_bytes() -> int:
    """Of all processes of the browser, without what they share."""
    children = psutil.Process().children(recursive=True)
    return sum(child.memory_full_info().uss for child in children if "chrom" in child.name())


if __name__ == "__main__":
    sys.exit(main())
