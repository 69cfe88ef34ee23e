"""What a trial leaves on disk at a report: its state, and its adapter at the end, before it is evaluated there."""

from __future__ import annotations

import queue
import shutil
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.errors import is_disk_full
from qlora_ray.modeling.identity import write_adapter_origin
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.whole import whole_folder
from qlora_ray.training.engine import Failure

if TYPE_CHECKING:
    from qlora_ray.training.checkpoint import TrialState


@dataclass
class PendingWrite:
    """A state given to be written. Its tensors are written once, its facts again at the report.

    Attributes:
        is_written: Whether its tensors are on disk.
    """

    is_written: bool = False


@dataclass(frozen=True)
class _Job:
    trial_id: str
    state: TrialState | None
    pending: PendingWrite
    is_wanted: Callable[[], bool]
    then: Callable[[Exception | None], None]


class StateWriter:
    """Writes states on a thread of its own, one after the other, so that the other trials train on meanwhile.

    Args:
        paths: The sweep's folder.
        origin: How every adapter of this executor is trained, for its folder: base and quantization.
    """

    def __init__(self, paths: SweepPaths, origin: dict[str, Any] | None = None) -> None:
        self._paths = paths
        self._origin = origin
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="state-writer", daemon=True)
        self._thread.start()

    def write_adapter(self, trial_id: str, save: Callable[[str, Path], None]) -> None:
        """Writes a trial's adapter whole, now; `save` is the engine's."""
        with whole_folder(self._paths.trial(trial_id).adapter) as folder:
            save(trial_id, folder)
            if self._origin is not None:
                write_adapter_origin(folder, {"trial": trial_id, **self._origin})

    def drop_adapter(self, trial_id: str) -> None:
        """Removes the adapter of a trial that has failed in its last evaluation."""
        shutil.rmtree(self._paths.trial(trial_id).adapter, ignore_errors=True)

    def write_state(
        self,
        trial_id: str,
        state: TrialState | None,
        *,
        earlier: PendingWrite | None = None,
        is_wanted: Callable[[], bool],
        then: Callable[[Exception | None], None],
    ) -> PendingWrite:
        """Writes a state soon, after all that was given before.

        Args:
            trial_id: The id of the trial, which its folder is named by.
            state: The state, which nobody changes any more; None only waits for what was given before.
            earlier: The write of the same tensors with other facts.
            is_wanted: Asked just before; the state of a trial that has left is not written.
            then: Called on the writer's thread at the end, with the error if the state could not be written.
        """
        pending = earlier or PendingWrite()
        self._jobs.put(_Job(trial_id, state, pending, is_wanted, then))
        return pending

    def close(self) -> None:
        """Ends the thread once all is written."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.then(self._write(job))

    def _write(self, job: _Job) -> Exception | None:
        if job.state is None or not job.is_wanted():
            return None
        folder = self._paths.trial(job.trial_id).state
        try:
            if job.pending.is_written:
                job.state.save_facts(folder)
            else:
                job.state.save(folder)
                job.pending.is_written = True
        except Exception as error:
            return error
        return None


def describe_unwritable(root: Path, error: Exception) -> Failure:
    """The failure of a trial whose state or adapter cannot be written into its folder."""
    trace = "".join(traceback.format_exception(error))
    # The next trial would meet the same.
    return Failure("disk_full" if is_disk_full(error) else "error", f"{root}: cannot be written: {error}", trace)
