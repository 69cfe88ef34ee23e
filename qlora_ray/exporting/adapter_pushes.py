"""Which adapters of a sweep go to the hub, which have gone, and the push of the next one. It knows no thread."""

from __future__ import annotations

import shlex
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qlora_ray.config.outputs import Export
from qlora_ray.errors import RunError
from qlora_ray.exporting.adapter_hub import MAIN, AdapterRepository, open_repository
from qlora_ray.exporting.checkpoint_adapter import write_checkpoint_adapter
from qlora_ray.formats import format_loss
from qlora_ray.runs import EventLog, SweepPaths, read_events
from qlora_ray.runs.derived import find_summary
from qlora_ray.runs.paths import ADAPTER_CONFIG
from qlora_ray.runs.records import Summary, TrialRecord, TrialStatus, read_record

PUSHED, MADE = "adapter_pushed", "push_repository_made"
# What their events say, as text; one that was damaged says nothing.
_SAID_OF = {PUSHED: ("repository", "url", "branch", "trial"), MADE: ("repository",)}


@dataclass(frozen=True)
class Push:
    """An adapter on its way to a branch: a complete trial's, or that of a report of one that runs."""

    trial: str
    branch: str
    report: int | None = None


@dataclass(frozen=True)
class _Found:
    """An adapter's folder, and the optimizer step that it is of where its trial has not ended."""

    folder: Path
    step: int | None = None


class AdapterPushes:
    """What is to be pushed of a sweep. events.jsonl has what was, so that a resume goes on where it stood.

    Any thread may add; one at a time pushes.

    Args:
        export: The config's section.
        paths: The sweep's folder. Its trials that are complete are taken up.
    """

    def __init__(self, export: Export, paths: SweepPaths) -> None:
        self._export = export
        self._paths = paths
        self._events = EventLog(paths.events)
        self._lock = threading.Lock()
        # By branch; of several for one branch the newest alone counts.
        self._waiting: dict[str, Push] = {}
        self._repository: AdapterRepository | None = None
        self._page: str | None = None
        self._known: set[str] = set()
        self._on_branch: dict[tuple[str, str], str] = {}
        events = read_events(paths.events)
        for event in events:
            needed = _SAID_OF.get(str(event.get("event")))
            if needed is None or not all(isinstance(event.get(key), str) for key in needed):
                continue
            self._known.add(event["repository"])
            if event["event"] == MADE:
                continue
            self._page = event["url"].partition("/tree/")[0]
            if event.get("step") is None:
                self._on_branch[event["repository"], event["branch"]] = event["trial"]
        self._take_up(find_summary(events))

    @property
    def repository(self) -> str | None:
        """The page of the repository that was pushed to last; None where none was."""
        return self._page

    @property
    def waiting(self) -> list[str]:
        """Complete trials whose adapters are still to be pushed."""
        with self._lock:
            return sorted({push.trial for push in self._waiting.values() if push.report is None})

    @property
    def num_pushed(self) -> int:
        """Trials whose adapters are on the hub, by all runs of the sweep."""
        with self._lock:
            return len(set(self._on_branch.values()))

    @property
    def command(self) -> str:
        """What pushes the waiting ones later, as it is typed into a shell."""
        return f"python -m qlora_ray.export {shlex.quote(str(self._paths.root))} --push-adapters"

    def add(self, trial: str, *, is_best: bool) -> None:
        """A trial's adapter was saved.

        Args:
            trial: Its id.
            is_best: Whether it is the best so far, or the winner.
        """
        with self._lock:
            if self._export.push_every in ("trial", "save"):
                self._waiting[branch_of(trial)] = Push(trial, branch_of(trial))
            if is_best:
                self._waiting[MAIN] = Push(trial, MAIN)

    def add_report(self, trial: str, report: int) -> None:
        """A running trial has made a report, and its state of it is saved."""
        if self._export.push_every == "save":
            with self._lock:
                self._waiting[branch_of(trial)] = Push(trial, branch_of(trial), report)

    def drop_report(self, trial: str) -> None:
        """A trial has ended without an adapter: what waits of it has gone with its state."""
        with self._lock:
            self._waiting.pop(branch_of(trial), None)

    def push_next(self) -> str | None:
        """Pushes what has waited longest, and returns a line for the user; None where nothing is left to do.

        Raises:
            QloraRayError: If it did not work; it waits on.
        """
        while (push := self._first()) is not None:
            with self._found(push) as found:
                if found is None or self._is_there(push):
                    self._settle(push)
                    continue
                repository = self._open()
                self._upload(repository, push, found)
            self._page = repository.url
            if push.report is None:
                with self._lock:
                    self._on_branch[repository.repo_id, push.branch] = push.trial
            self._settle(push)
            at = "" if push.report is None else f" at report {push.report}"
            return f"trial {push.trial}  pushed{at} to {repository.url}, {push.branch}"
        return None

    def _first(self) -> Push | None:
        with self._lock:
            return next(iter(self._waiting.values()), None)

    @contextmanager
    def _found(self, push: Push) -> Iterator[_Found | None]:
        """The adapter to push; None where it has gone: a state with its trial's end, all else by the user."""
        trial = self._paths.trial(push.trial)
        if push.report is None:
            yield _Found(trial.adapter) if (trial.adapter / ADAPTER_CONFIG).is_file() else None
            return
        with tempfile.TemporaryDirectory() as folder:
            adapter = Path(folder)
            try:
                base = read_record(trial.record, TrialRecord).base
                step = write_checkpoint_adapter(trial.state, adapter, base=base)
            except RunError:
                step = None
            yield None if step is None else _Found(adapter, step)

    def _settle(self, push: Push) -> None:
        with self._lock:
            # A newer best may wait for main by now.
            if self._waiting.get(push.branch) == push:
                del self._waiting[push.branch]

    def _is_there(self, push: Push) -> bool:
        """Whether an earlier run has pushed it, as far as that is known without a network."""
        if push.report is not None:
            return False
        owner, _, name = (self._export.push_to or "").partition("/")
        for repo_id in self._known:
            its_owner, _, its_name = repo_id.partition("/")
            is_meant = owner in ("", its_owner) and (name or self._paths.name) == its_name
            if is_meant and self._on_branch.get((repo_id, push.branch)) == push.trial:
                return True
        return False

    def _open(self) -> AdapterRepository:
        if self._repository is None:
            self._repository = open_repository(
                self._export, name=self._paths.name, is_ours=self._known.__contains__, note_made=self._note_made
            )
        return self._repository

    def _note_made(self, repo_id: str) -> None:
        self._known.add(repo_id)
        self._events.write(MADE, reason="private", repository=repo_id)

    def _upload(self, repository: AdapterRepository, push: Push, found: _Found) -> None:
        words = "the best so far" if push.branch == MAIN else "complete"
        if found.step is not None:
            words = f"step {found.step}"
        else:
            loss = read_record(self._paths.trial(push.trial).record, TrialRecord).metrics.get("eval_loss")
            words = f"{words}, eval_loss {format_loss(loss)}"
        message = f"Trial {push.trial} of {self._paths.name}: {words}"
        repository.push(found.folder, branch=push.branch, message=message)
        self._events.write(
            PUSHED,
            reason=words,
            trial=push.trial,
            repository=repository.repo_id,
            branch=push.branch,
            step=found.step,
            url=f"{repository.url}/tree/{push.branch}",
        )

    def _take_up(self, ended: Summary | None) -> None:
        """Has what earlier runs of the sweep saved wait; what they pushed is known when its turn comes."""
        records = [read_record(trial.record, TrialRecord) for trial in self._paths.list_trials()]
        saved = [record for record in records if is_pushable(record)]
        for record in saved:
            self.add(record.trial, is_best=False)
        best = (ended.winner if ended else None) or _find_best(saved)
        if best is not None:
            self.add(best, is_best=True)


def branch_of(trial: str) -> str:
    """The branch that a trial has for itself."""
    return f"trial-{trial}"


def is_pushable(record: TrialRecord) -> bool:
    """Whether a trial has an adapter for others: it is complete, and no CPU stood for its device."""
    return record.state is TrialStatus.COMPLETE and not record.executor.simulated


def _find_best(records: Iterable[TrialRecord]) -> str | None:
    """The trial of the lowest loss, which is the first objective of every sweep."""
    losses = [(loss, one.trial) for one in records if (loss := one.metrics.get("eval_loss")) is not None]
    return min(losses)[1] if losses else None
