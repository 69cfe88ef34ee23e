"""Real small sweeps under faults drawn from a seed, each resumed until it is complete, and what was lost: nothing.

    python -m benchmarks.soak                                     # an hour
    python -m benchmarks.soak --minutes 10 --seed 3 --json FILE

Every sweep is held against one of the same seed that nothing has disturbed. It runs on Linux; without the right to
mount a small disk, the disk is never full. Exit code 1: something was lost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.soak_books import Losses, Outcome, check_folder, compare_moments, compare_with_undisturbed, read_outcome
from benchmarks.soak_faults import Fault, FaultKind, draw_faults
from benchmarks.soak_memory import measure_growth
from benchmarks.soak_processes import wait_until_gone
from benchmarks.soak_scratch import Scratch, make_scratch
from benchmarks.soak_sweep import TORN, DriverEnd, SoakedSweep
from benchmarks.soak_table import Strike, format_growth, format_losses, format_strikes
from qlora_ray.console import Console

# Sweeps that differ in how trials share a device; of each there is an undisturbed one.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "packed": {},
    "seeds": {"search": {"seed": 11, "final_seeds": 2, "num_trials": 5}},
    "single": {"cluster": {"packing": "single"}},
}
# A sweep that is not complete after so many drivers cannot be resumed.
MAX_DRIVERS = 40
# How a driver may end: complete, no executor left, interrupted.
EXIT_CODES = (0, 1, 130)
# What is Ray's: its C++ ends the driver's process, or it does not start on a machine that is too busy.
RAYS_WORDS = {
    "Worker will terminate": "drivers that Ray itself ended in its start",
    "Ray must start within": "drivers for which Ray did not start in time",
}
# How a driver says how to go on where none of its trials had begun.
SAME_COMMAND = ("give the same command again", "\nstopped")
# By the signal itself. It is no fault where there was nothing to say yet, or nothing to do any more.
KILLED, STOPPED = (-9,), (-2, -15)


class Soak:
    """Sweeps, one after another, under faults.

    Args:
        scratch: Where they live.
        faults: What is done to them.
        console: What is told as it happens.
        until: When no further fault is begun, in seconds of time.monotonic.
    """

    def __init__(self, scratch: Scratch, faults: Iterator[Fault], *, console: Console, until: float) -> None:
        self._scratch = scratch
        self._faults = faults
        self._console = console
        self._until = until
        self._undisturbed: dict[str, Outcome] = {}
        self._pending: Fault | None = None
        self.strikes: list[Strike] = []
        self.losses = Losses()
        self.counts: dict[str, int] = defaultdict(int)

    def run(self) -> None:
        """Soaks until the time is over."""
        for number, variant in enumerate(itertools.cycle(VARIANTS)):
            if time.monotonic() >= self._until:
                return
            if variant not in self._undisturbed:
                self._undisturbed[variant] = self._run_undisturbed(variant)
            self._run_disturbed(f"{variant}-{number}", variant)

    def _make_sweep(self, name: str, variant: str) -> SoakedSweep:
        folder = self._scratch.sweeps / name
        folder.mkdir()
        return SoakedSweep(folder, self._scratch.mark(name), self._scratch.environment, VARIANTS[variant])

    def _run_undisturbed(self, variant: str) -> Outcome:
        sweep = self._make_sweep(f"undisturbed-{variant}", variant)
        sweep.start()
        end = sweep.wait()
        if end.exit_code != 0:
            raise RuntimeError(f"{variant}: the undisturbed sweep ended with {end.exit_code}:\n{end.output}")
        self._note_left(sweep)
        outcome = read_outcome(sweep.paths)
        shutil.rmtree(sweep.folder)
        return outcome

    def _run_disturbed(self, name: str, variant: str) -> None:
        sweep = self._make_sweep(name, variant)
        self.counts["sweeps"] += 1
        before = Outcome({})
        arguments: list[str] | None = None
        for _ in range(MAX_DRIVERS):
            self.counts["drivers"] += 1
            self.counts["resumes"] += sweep.has_begun
            sweep.start(arguments)
            struck = self._strike(sweep)
            end = sweep.wait()
            self._note_end(sweep, struck, end)
            if struck and struck[-1].fault.kind in TORN:
                sweep.tear(struck[-1].fault)
            arguments = end.resume_arguments
            now = read_outcome(sweep.paths)
            self._note(name, compare_moments(before, now))
            before = now
            if end.exit_code == 0:
                break
        else:
            self._note(name, Losses(endings=[f"it is not complete after {MAX_DRIVERS} drivers"]))
        self._note_left(sweep)
        self.counts["trials"] += len(before.trials)
        self._note(name, compare_with_undisturbed(before, self._undisturbed[variant]))
        self._note(name, check_folder(sweep.paths))
        self._note(name, Losses(files=self._scratch.find_leaks()))
        self._console.event(f"{name}: complete; {len(self.strikes)} faults so far")
        shutil.rmtree(sweep.folder)
        self._scratch.forget_logs()

    def _strike(self, sweep: SoakedSweep) -> list[Strike]:
        """Strikes a driver until it has ended, or the time is over; returns what was done to it."""
        struck: list[Strike] = []
        since = sweep.count_events()
        while time.monotonic() < self._until:
            fault = self._pending or next(self._faults)
            self._pending = fault
            if not sweep.wait_for(fault, since=since):
                break
            self._pending = None
            begin = time.monotonic()
            sweep.strike(fault)
            struck.append(Strike(fault, sweep.folder.name, begin))
            self._console.event(f"{sweep.folder.name}: {fault.kind}")
            if not fault.is_followed:
                break
            since = sweep.count_events()
        self.strikes += struck
        return struck

    def _note_end(self, sweep: SoakedSweep, struck: list[Strike], end: DriverEnd) -> None:
        """Takes down how a driver ended, and what it should have said."""
        wrong = []
        if struck:
            struck[-1].exit_code = end.exit_code
            struck[-1].ended_after_s = time.monotonic() - struck[-1].time
        for words, what in RAYS_WORDS.items():
            if words in end.output:
                self.counts[what] += 1
                return
        is_early_or_late = end.exit_code in STOPPED and (not end.output or sweep.is_complete)
        if end.exit_code not in (0, *KILLED) and not is_early_or_late:
            if end.exit_code not in EXIT_CODES:
                wrong.append(f"exit code {end.exit_code}")
            is_told = end.resume_arguments is not None or any(words in end.output for words in SAME_COMMAND)
            if sweep.has_begun and not is_told:
                wrong.append("no word of how to go on")
        if "Traceback" in end.output:
            wrong.append("a traceback")
        kinds = ", ".join(strike.fault.kind for strike in struck)
        last = "\n".join(end.output.splitlines()[-12:])
        self._note(sweep.folder.name, Losses(endings=[f"after {kinds or 'nothing'}: {one}:\n{last}" for one in wrong]))

    def _note_left(self, sweep: SoakedSweep) -> None:
        left = wait_until_gone(sweep.mark)
        self._note(sweep.folder.name, Losses(processes=[f"{one.title} ({one.pid})" for one in left]))

    def _note(self, name: str, losses: Losses) -> None:
        for kind, sentences in asdict(losses).items():
            for sentence in sentences:
                self._console.event(f"{name}: {kind}: {sentence}")
        self.losses.add(losses)


def main(argv: list[str] | None = None) -> int:
    """Soaks, and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long faults are struck (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults (1)")
    parser.add_argument("--memory-trials", type=int, default=240, help="trials of the sweep whose memory is watched")
    parser.add_argument("--json", type=Path, help="where all of it goes")
    options = parser.parse_args(argv)
    console = Console(sys.stdout)
    for signum in (signal.SIGINT, signal.SIGTERM):
        # What is mounted and started is taken away again; a shell has Ctrl-C ignored in what it runs in the background.
        signal.signal(signum, signal.default_int_handler)
    with make_scratch() as scratch:
        kinds = [kind for kind in FaultKind if scratch.has_disk or kind is not FaultKind.DISK_FULL]
        if not scratch.has_disk:
            console.event("no small disk can be mounted here: the disk is never full")
        growth = measure_growth(scratch, options.memory_trials) if options.memory_trials else {}
        until = time.monotonic() + 60 * options.minutes
        soak = Soak(scratch, draw_faults(options.seed, kinds=kinds), console=console, until=until)
        soak.run()
    console.line(format_strikes(soak.strikes))
    console.line(format_losses(soak.counts, soak.losses))
    if growth:
        console.line(format_growth(growth, options.memory_trials))
    if options.json:
        found = {
            "seed": options.seed,
            "strikes": [asdict(strike) for strike in soak.strikes],
            "counts": soak.counts,
            "losses": asdict(soak.losses),
            "growth": growth,
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if soak.losses.is_empty else 1


if __name__ == "__main__":
    sys.exit(main())
