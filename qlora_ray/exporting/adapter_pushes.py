"""Which adapters of a sweep go to the hub, which have gone, and the push of the next one. It knows no thread."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from qlora_ray.config.outputs import Export
from qlora_ray.errors import ConfigError, QloraRayError
from qlora_ray.exporting.adapter_hub import MAIN, AdapterRepository, check_access, open_repository
from qlora_ray.formats import format_loss
from qlora_ray.runs import EventLog, SweepPaths, read_events
from qlora_ray.runs.paths import ADAPTER_CONFIG
from qlora_ray.runs.records import Manifest, Summary, TrialRecord, TrialStatus, read_record

PUSHED, MADE = "adapter_pushed", "push_repository_made"


@dataclass(frozen=True)
class Push:
    """An adapter on its way to a branch."""

    trial: str
    branch: str


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
        # The trial that waits for a branch; of main the newest one alone counts.
        self._waiting: dict[str, str] = {}
        self._repository: AdapterRepository | None = None
        self._known: set[str] = set()
        self._on_branch: dict[tuple[str, str], str] = {}
        for event in read_events(paths.events):
            if event.get("event") in (PUSHED, MADE):
                self._known.add(event["repository"])
            if event.get("event") == PUSHED:
                self._on_branch[event["repository"], event["branch"]] = event["trial"]
        self._take_up()

    @property
    def repository(self) -> str | None:
        """The repository's page; None before it was found or made."""
        return None if self._repository is None else self._repository.url

    @property
    def waiting(self) -> list[str]:
        """Trials whose adapters are still to be pushed."""
        with self._lock:
            return sorted(set(self._waiting.values()))

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
            if self._export.push_every == "save":
                self._waiting.setdefault(f"trial-{trial}", trial)
            if is_best:
                self._waiting[MAIN] = trial

    def push_next(self) -> str | None:
        """Pushes what has waited longest, and returns a line for the user; None where nothing is left to do.

        Raises:
            QloraRayError: If it did not work; it waits on.
        """
        while (push := self._first()) is not None:
            # One that is gone was taken away by the user since.
            is_gone = not (self._paths.trial(push.trial).adapter / ADAPTER_CONFIG).is_file()
            if is_gone or self._is_there(push):
                self._settle(push)
                continue
            repository = self._open()
            self._upload(repository, push)
            with self._lock:
                self._on_branch[repository.repo_id, push.branch] = push.trial
            self._settle(push)
            return f"trial {push.trial}  pushed to {repository.url}, {push.branch}"
        return None

    def _first(self) -> Push | None:
        with self._lock:
            branch, trial = next(iter(self._waiting.items()), (None, ""))
            return None if branch is None else Push(trial, branch)

    def _settle(self, push: Push) -> None:
        with self._lock:
            # A newer best may wait for main by now.
            if self._waiting.get(push.branch) == push.trial:
                del self._waiting[push.branch]

    def _is_there(self, push: Push) -> bool:
        """Whether an earlier run has pushed it, as far as that is known without a network."""
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

    def _upload(self, repository: AdapterRepository, push: Push) -> None:
        paths = self._paths.trial(push.trial)
        loss = read_record(paths.record, TrialRecord).metrics.get("eval_loss")
        words = "the best so far" if push.branch == MAIN else "saved"
        message = f"Trial {push.trial} of {self._paths.name}, {words}: eval_loss {format_loss(loss)}"
        repository.push(paths.adapter, branch=push.branch, message=message)
        self._events.write(
            PUSHED,
            reason=words,
            trial=push.trial,
            repository=repository.repo_id,
            branch=push.branch,
            url=f"{repository.url}/tree/{push.branch}",
        )

    def _take_up(self) -> None:
        """Has what earlier runs of the sweep saved wait; what they pushed is known when its turn comes."""
        records = [read_record(path, TrialRecord) for path in sorted(self._paths.trials.glob("*/record.json"))]
        saved = [record for record in records if is_pushable(record)]
        for record in saved:
            self.add(record.trial, is_best=False)
        best = _find_best(saved)
        if self._paths.summary.exists():
            best = read_record(self._paths.summary, Summary).winner or best
        if best is not None:
            self.add(best, is_best=True)


def push_waiting(paths: SweepPaths, *, tell: Callable[[str], None]) -> AdapterPushes:
    """Pushes what a sweep that does not run has not pushed, as its own config says.

    Args:
        paths: The sweep's folder.
        tell: Takes lines for the user.

    Raises:
        ConfigError: If the sweep pushes nothing.
        RunError: If the folder is no sweep's, or a process holds it; or if a push does not work.
    """
    written = read_record(paths.manifest, Manifest).config.get("export")
    export = Export.model_validate(written if isinstance(written, Mapping) else {})
    if export.push_every == "never":
        raise ConfigError(
            "--push-adapters: needs a sweep with export.push_every best or save, got never. Push a bundle with "
            "--to DIR --push USER."
        )
    with paths.lock():
        pushes = AdapterPushes(export, paths)
        while (line := pushes.push_next()) is not None:
            tell(line)
    tell(f"{pushes.num_pushed} adapters of {paths.name} are on the hub")
    return pushes


def is_pushable(record: TrialRecord) -> bool:
    """Whether a trial has an adapter for others: it is complete, and no CPU stood for its device."""
    return record.state is TrialStatus.COMPLETE and not record.executor.simulated


def can_push() -> bool:
    """Whether there is a token and a network may be used, as far as that is known without one."""
    try:
        check_access()
    except QloraRayError:
        return False
    return True


def describe_pushes(export: Export) -> str | None:
    """What will be pushed, or what is missing for it, in a line; asks no network. None where nothing is to be."""
    if export.push_every == "never":
        return None
    try:
        check_access()
    except QloraRayError as error:
        return f"nothing is pushed to the hub for now. {error}"
    owner, _, name = (export.push_to or "").partition("/")
    what = "each adapter as it is saved" if export.push_every == "save" else "each new best adapter"
    return (
        f"{what} is pushed to a private repository of {owner or 'the user of the token'}, "
        f"under {name or 'the name of the sweep'} (export.push_every)"
    )


def _find_best(records: Iterable[TrialRecord]) -> str | None:
    """The trial of the lowest loss, which is the first objective of every sweep."""
    losses = [(loss, one.trial) for one in records if (loss := one.metrics.get("eval_loss")) is not None]
    return min(losses)[1] if losses else None
