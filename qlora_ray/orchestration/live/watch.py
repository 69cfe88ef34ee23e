"""The watch over a running sweep: what is under way, told on the terminal and in live.json every few seconds."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qlora_ray.console import Console
from qlora_ray.errors import RunError
from qlora_ray.formats import format_loss
from qlora_ray.orchestration.cluster.repeating import RepeatingThread
from qlora_ray.orchestration.live.block import Activity, Standing, describe_status, render_block
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.live import LiveFigures, LivePhase, write_live

if TYPE_CHECKING:
    from qlora_ray.orchestration.gauges import SweepGauges
    from qlora_ray.orchestration.ledger import Ledger
    from qlora_ray.orchestration.live.collecting import LiveCollector

LOOK_INTERVAL_S = 2.0
# In a pipe, or a log of a batch system, this often a line says how the sweep stands.
STATUS_INTERVAL_S = 60.0


class LiveWatch:
    """Says what a sweep does, from the command's first second to its end.

    On a terminal it is a block below the lines, renewed every 2 s; elsewhere a line a minute. As soon as there are a
    pool and a ledger, it asks them, and writes live.json. All of it happens on a thread of its own.

    Args:
        console: The user's lines.
        clock: Monotonic seconds.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        # Held while the pool is asked, so that who stops following it knows that nobody asks any more.
        self._lock = threading.RLock()
        self._collector: LiveCollector | None = None
        # Held while the block is drawn, or taken away for good.
        self._drawing = threading.Lock()
        self._is_over = False
        self._ledger: Ledger | None = None
        self._paths: SweepPaths | None = None
        self._gauges: SweepGauges | None = None
        self._figures = LiveFigures()
        self._phase = LivePhase.STARTING
        self._words = "checking"
        self._began_at = self._told_at = self._moved_at = clock()
        self._moved: object = None
        self._thread = RepeatingThread(self.look, interval_s=LOOK_INTERVAL_S, name="live-watch")

    @contextmanager
    def running(self) -> Iterator[LiveWatch]:
        """Watches for the length of the block."""
        self._thread.start()
        try:
            yield self
        finally:
            self._hide()
            self._thread.close()

    @contextmanager
    def following(
        self, collector: LiveCollector, *, ledger: Ledger, paths: SweepPaths, gauges: SweepGauges
    ) -> Iterator[None]:
        """Asks the pool for figures for the length of the block; at its end the last ones are written, and no more is
        shown."""
        with self._lock:
            self._collector, self._ledger, self._paths, self._gauges = collector, ledger, paths, gauges
        try:
            yield
        finally:
            with self._lock:
                self._collector = None
                try:
                    self._write(collector.conclude())
                except Exception:
                    # As on the thread: it goes to the sweep's log, and takes nothing from how the sweep ends.
                    traceback.print_exc()
            self._hide()

    def begin(self, phase: LivePhase, words: str) -> None:
        """Something else is under way from now on; it is shown at once."""
        if (phase, words) == (self._phase, self._words):
            return
        self._phase, self._words, self._began_at = phase, words, self._clock()
        self._moved_at, self._moved = self._began_at, None
        self._show()

    def say(self, words: str) -> None:
        """Something else is under way in the same phase."""
        self.begin(self._phase, words)

    def look(self) -> None:
        """Asks for the figures, writes them and shows them."""
        with self._lock:
            if self._collector is not None:
                self._write(self._collector.collect(self._phase))
        self._show()

    def _write(self, figures: LiveFigures) -> None:
        self._figures = figures
        assert self._paths is not None and self._ledger is not None and self._gauges is not None
        # A disk that is full ends the sweep where it matters.
        with contextlib.suppress(RunError):
            write_live(self._paths, figures)
        best = self._ledger.best
        self._gauges.publish(
            figures, counts=self._ledger.counts(), best=None if best is None else self._ledger.value_of(best)
        )
        steps = [(trial_id, trial.state, trial.step) for trial_id, trial in figures.trials.items()]
        moved = (steps, figures.scoring)
        if moved != self._moved:
            self._moved, self._moved_at = moved, self._clock()

    def _hide(self) -> None:
        with self._drawing:
            self._is_over = True
            self._console.end_progress()

    def _show(self) -> None:
        now = self._clock()
        figures, standing, activity = self._figures, self._standing(), self._activity(now)
        with self._drawing:
            if self._is_over:
                return
            if self._console.is_live:
                columns, rows = self._console.size
                self._console.show(render_block(figures, standing, activity, columns=columns, rows=rows))
            elif now - self._told_at >= STATUS_INTERVAL_S:
                self._told_at = now
                self._console.event(describe_status(figures, standing, activity))

    def _activity(self, now: float) -> Activity:
        runs = bool(self._figures.trials) or self._figures.scoring is not None
        return Activity(self._phase, self._words, now - self._began_at, now - self._moved_at if runs else None)

    def _standing(self) -> Standing:
        ledger = self._ledger
        if ledger is None:
            return Standing()
        best = ledger.best
        words = None
        if best is not None:
            words = f"best {ledger.objective} {format_loss(ledger.value_of(best))} (trial {best.id})"
        return Standing(ledger.num_planned, ledger.counts(), words)
