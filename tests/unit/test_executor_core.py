"""ExecutorCore without Ray: reports, going on, eviction, leases that time out, and what is left on disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_ray.config.schema import Lora, Training
from qlora_ray.orchestration.executor.admission import LeaseLost
from qlora_ray.orchestration.executor.core import REAP_INTERVAL_S, ExecutorCore
from qlora_ray.runs import SweepPaths, TrialPaths
from qlora_ray.training.budget import make_budget
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import UNEVALUATED, TrialSpec
from tests.fake_engine import DIVERGING_DECAY, UNEVALUATED_DECAY, WAIT_S, FakeEngine, fake_loss


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock at zero."""
    return Clock()


@pytest.fixture
def engine() -> FakeEngine:
    """A fake engine with two slots."""
    return FakeEngine()


@pytest.fixture
def core(engine: FakeEngine, clock: Clock, tmp_path: Path) -> Iterator[ExecutorCore]:
    """A core with a lease time-out of a minute of the test's clock."""
    paths = SweepPaths(tmp_path)
    for trial_id in ("0000", "0001", "0002"):
        paths.trial(trial_id).root.mkdir(parents=True)
    core = ExecutorCore(engine, paths=paths, lease_timeout_s=60, keep_state=True, clock=clock)
    yield core
    core.close()


def test_a_report_whose_answer_was_lost_is_handed_out_again_before_the_trial_goes_on(core: ExecutorCore) -> None:
    core.admit(make_spec("0000"), 1)
    first = core.next_report("0000", 1, timeout_s=WAIT_S, num_heard=0)
    assert first is not None and core.next_report("0000", 1, timeout_s=WAIT_S, num_heard=0) is first
    assert core.live()["trials"]["0000"]["state"] == "reported"
    second = core.next_report("0000", 1, timeout_s=WAIT_S, num_heard=1)
    assert second is not None and second.index == first.index + 1


def test_live_figures_say_where_each_trial_is(core: ExecutorCore) -> None:
    core.admit(make_spec("0000"), 1)
    assert core.next_report("0000", 1, timeout_s=WAIT_S) is not None
    (trial,) = core.live()["trials"].values()
    assert trial["state"] == "reported"
    assert (trial["step"], trial["num_steps"]) == (2, 8)
    assert trial["eval_loss"] == pytest.approx(fake_loss(Training().learning_rate, 2))
    core.evict("0000")
    assert core.live()["trials"] == {}


def test_live_figures_have_the_memory_and_how_busy_the_device_was(
    engine: FakeEngine, clock: Clock, tmp_path: Path
) -> None:
    SweepPaths(tmp_path).trial("0000").root.mkdir(parents=True)
    core = ExecutorCore(
        engine,
        paths=SweepPaths(tmp_path),
        lease_timeout_s=600,
        keep_state=True,
        clock=clock,
        read_memory=lambda: 3,
        total_memory_bytes=10,
    )
    before = core.live()
    core.admit(make_spec("0000"), 1)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    core.clear()
    clock.now = 5.0
    after = core.live()
    core.close()
    assert (before["memory_bytes"], before["total_memory_bytes"], before["busy_share"]) == (3, 10, None)
    # All that passed was after the engine's last step.
    assert after["busy_share"] == 0.0


def make_spec(trial_id: str, *, num_reports: int = 4, **training: float) -> TrialSpec:
    """Eight steps, four reports."""
    config = Training(max_samples=8, gradient_accumulation_steps=1, **training)
    return TrialSpec(trial_id, Lora(), config, make_budget(config, num_train_rows=8, num_reports=num_reports))


def test_asking_again_means_go_on(core: ExecutorCore) -> None:
    core.admit(make_spec("0000"), 1)
    reports = [core.next_report("0000", 1, timeout_s=WAIT_S) for _ in range(4)]
    assert [report.index for report in reports if report] == [1, 2, 3, 4]
    assert reports[3] is not None
    assert reports[3].is_final
    assert reports[0] is not None
    assert reports[0].metrics["eval_loss"] == fake_loss(2e-4, 2)


def test_a_trial_nobody_asks_on_is_not_proceeded(core: ExecutorCore, engine: FakeEngine) -> None:
    core.admit(make_spec("0000"), 1)
    core.admit(make_spec("0001"), 1)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    core.next_report("0001", 1, timeout_s=WAIT_S)
    assert engine.log.count(("proceed", "0000")) == 1
    assert ("proceed", "0001") not in engine.log


def test_a_final_report_leaves_the_adapter_and_the_state_for_the_driver_to_clear(
    core: ExecutorCore, tmp_path: Path
) -> None:
    trial = SweepPaths(tmp_path).trial("0000")
    core.admit(make_spec("0000"), 1)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    assert (trial.state / "state.safetensors").exists()
    for _ in range(3):
        core.next_report("0000", 1, timeout_s=WAIT_S)
    assert (trial.adapter / "adapter.txt").read_text() == "0000"
    # A driver killed before it hears of the end goes on from here.
    assert (trial.state / "state.safetensors").exists()


def test_a_trial_goes_on_from_the_state_on_disk_in_another_executor(
    core: ExecutorCore, clock: Clock, tmp_path: Path
) -> None:
    core.admit(make_spec("0000"), 1)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    core.evict("0000")
    other = ExecutorCore(FakeEngine(), paths=SweepPaths(tmp_path), lease_timeout_s=60, keep_state=True, clock=clock)
    assert other.admit(make_spec("0000"), 1) is True
    report = other.next_report("0000", 1, timeout_s=WAIT_S)
    other.close()
    assert report is not None
    assert report.index == 3


def test_a_trial_goes_on_from_a_state_that_a_killed_writer_had_moved_out_of_the_way(
    core: ExecutorCore, tmp_path: Path
) -> None:
    core.admit(make_spec("0000"), 1)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    core.evict("0000")
    state = SweepPaths(tmp_path).trial("0000").state
    # As it is between the two renames: the older one has left, and the newer one has not come.
    state.rename(state.parent / ".state.qlora_ray-0abc_xyz.old")
    (state.parent / ".state.qlora_ray-0abc_xyz").mkdir()
    assert core.admit(make_spec("0000"), 1) is True
    report = core.next_report("0000", 1, timeout_s=WAIT_S)
    assert report is not None
    assert (report.index, "restarted" in report.facts) == (2, False)


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_a_trial_whose_state_cannot_be_read_starts_at_its_beginning_and_says_why(
    core: ExecutorCore, tmp_path: Path, file: str
) -> None:
    core.admit(make_spec("0000"), 1)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    core.evict("0000")
    (SweepPaths(tmp_path).trial("0000").state / file).write_bytes(b"")
    assert core.admit(make_spec("0000"), 1) is False
    reports = [core.next_report("0000", 1, timeout_s=WAIT_S) for _ in range(4)]
    assert [report.index for report in reports if report] == [1, 2, 3, 4]
    for report in filter(None, reports):
        assert report.facts["restarted"].startswith("holds no readable trial state: ")
        # It goes into the record, which is given to others.
        assert str(tmp_path) not in report.facts["restarted"]
    # The next admission goes on from what this one has written.
    core.evict("0000")
    assert core.admit(make_spec("0000"), 1) is True


def test_a_trial_without_a_state_starts_afresh(core: ExecutorCore) -> None:
    assert core.admit(make_spec("0000"), 1) is False


def let_pass(core: ExecutorCore, clock: Clock, seconds: float) -> None:
    """Time in which the core is awake."""
    for _ in range(int(seconds / REAP_INTERVAL_S)):
        clock.now += REAP_INTERVAL_S
        core.reap()


def test_a_driver_that_stops_asking_loses_its_slot(core: ExecutorCore, clock: Clock) -> None:
    core.admit(make_spec("0000"), 1)
    core.admit(make_spec("0001"), 1)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    core.next_report("0001", 1, timeout_s=WAIT_S)
    let_pass(core, clock, 50)
    core.next_report("0001", 1, timeout_s=WAIT_S)
    let_pass(core, clock, 50)
    assert core.trials() == ["0001"]
    core.admit(make_spec("0002"), 1)
    with pytest.raises(LeaseLost, match="trial 0000 is not here"):
        core.next_report("0000", 1, timeout_s=WAIT_S)


def test_time_in_which_the_whole_process_stood_still_is_nobodys_silence(core: ExecutorCore, clock: Clock) -> None:
    core.admit(make_spec("0000"), 1)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    clock.now += 1000
    core.reap()
    assert core.trials() == ["0000"]


def test_an_eviction_wakes_the_one_who_waits(engine: FakeEngine, clock: Clock, tmp_path: Path) -> None:
    engine.advance = lambda: []  # type: ignore[method-assign]
    core = ExecutorCore(engine, paths=SweepPaths(tmp_path), lease_timeout_s=60, keep_state=True, clock=clock)
    core.admit(make_spec("0000"), 1)
    lost: list[Exception] = []

    def wait() -> None:
        try:
            core.next_report("0000", 1, timeout_s=WAIT_S)
        except LeaseLost as error:
            lost.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    core.evict("0000")
    waiter.join()
    core.close()
    assert len(lost) == 1


def test_a_diverged_trial_reports_its_failure_and_leaves_no_adapter(core: ExecutorCore, tmp_path: Path) -> None:
    core.admit(make_spec("0000", weight_decay=DIVERGING_DECAY), 1)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    report = core.next_report("0000", 1, timeout_s=WAIT_S)
    assert report is not None
    assert report.failure is not None
    assert report.failure.cause == "diverged"
    assert not SweepPaths(tmp_path).trial("0000").adapter.exists()


@pytest.mark.parametrize(
    ("error", "cause", "words"),
    [
        (OSError(28, "No space left on device"), "disk_full", "No space left on device"),
        (PermissionError(13, "Permission denied"), "error", "Permission denied"),
    ],
)
def test_an_adapter_that_cannot_be_written_ends_its_trial_and_leaves_no_half_of_it(
    core: ExecutorCore, engine: FakeEngine, tmp_path: Path, error: OSError, cause: str, words: str
) -> None:
    def fail(trial_id: str, folder: Path) -> None:
        raise error

    engine.save_adapter = fail  # type: ignore[method-assign]
    core.admit(make_spec("0000"), 1)
    reports = [core.next_report("0000", 1, timeout_s=WAIT_S) for _ in range(4)]
    assert reports[3] is not None
    assert reports[3].failure is not None
    assert reports[3].failure.cause == cause
    assert words in reports[3].failure.message
    assert [path.name for path in SweepPaths(tmp_path).trial("0000").root.iterdir()] == ["state"]


def test_an_engine_that_raises_fails_the_trials_it_was_training(core: ExecutorCore, engine: FakeEngine) -> None:
    def broken() -> list[object]:
        raise RuntimeError("kernel launch failed")

    engine.advance = broken  # type: ignore[assignment, method-assign]
    core.admit(make_spec("0000"), 1)
    report = core.next_report("0000", 1, timeout_s=WAIT_S)
    assert report is not None
    assert report.failure is not None
    assert "kernel launch failed" in report.failure.message


def test_an_engine_that_is_broken_for_good_ends_its_executor(
    core: ExecutorCore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> list[object]:
        raise RuntimeError("illegal memory access")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "advance", broken)
        patch.setattr(engine, "evict", broken)
        core.admit(make_spec("0000"), 1)
        with pytest.raises(RuntimeError, match="the engine broke: RuntimeError: illegal memory access"):
            core.wait_change(0)


def test_a_restored_trial_tells_the_report_its_state_was_written_at_again(
    core: ExecutorCore, engine: FakeEngine, clock: Clock, tmp_path: Path
) -> None:
    core.admit(make_spec("0000"), 1)
    told = core.next_report("0000", 1, timeout_s=WAIT_S)
    assert told is not None
    core.evict("0000")
    state = TrialState.load(SweepPaths(tmp_path).trial("0000").state)
    state.metrics = told.metrics
    state.save(SweepPaths(tmp_path).trial("0000").state)
    assert core.admit(make_spec("0000"), 1) is True
    again = core.next_report("0000", 1, timeout_s=WAIT_S)
    following = core.next_report("0000", 1, timeout_s=WAIT_S)
    assert again is not None
    assert (again.index, again.metrics) == (told.index, told.metrics)
    assert following is not None
    assert following.index == told.index + 1


class EvaluatingEngine(FakeEngine):
    """A fake engine whose evaluation lasts until the state is on disk, and then looks at what else is there."""

    def __init__(self, written: threading.Semaphore, trial: TrialPaths) -> None:
        super().__init__()
        self._written = written
        self._trial = trial
        self.seen: list[tuple[int, bool, bool]] = []

    def evaluate(self, trial_ids: list[str]) -> None:
        """Takes note of the state's step, whether its report is pending, and whether the adapter is there."""
        assert self._written.acquire(timeout=WAIT_S)
        state = TrialState.load(self._trial.state)
        self.seen.append((state.step, state.has_pending_report, (self._trial.adapter / "adapter.txt").exists()))


def test_the_state_and_at_the_end_the_adapter_are_on_disk_before_the_evaluation_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Semaphore(0)
    save = TrialState.save

    def save_and_tell(state: TrialState, folder: Path) -> None:
        save(state, folder)
        written.release()

    monkeypatch.setattr(TrialState, "save", save_and_tell)
    trial = SweepPaths(tmp_path).trial("0000")
    trial.root.mkdir(parents=True)
    engine = EvaluatingEngine(written, trial)
    core = ExecutorCore(engine, paths=SweepPaths(tmp_path), lease_timeout_s=60, keep_state=True)
    core.admit(make_spec("0000"), 1)
    pending = []
    for _ in range(4):
        core.next_report("0000", 1, timeout_s=WAIT_S)
        pending.append(TrialState.load(trial.state).has_pending_report)
    core.close()
    assert engine.seen == [(2, True, False), (4, True, False), (6, True, False), (8, True, True)]
    # The last one is for a driver that is killed before it hears of the end: the report is made again.
    assert pending == [False, False, False, True]
    # Once a report, as large as they are.
    assert not written.acquire(blocking=False)


def test_a_trial_without_memory_for_its_evaluation_leaves_all_it_has_trained(
    core: ExecutorCore, clock: Clock, tmp_path: Path
) -> None:
    trial = SweepPaths(tmp_path).trial("0000")
    core.admit(make_spec("0000", weight_decay=UNEVALUATED_DECAY), 1)
    reports = [core.next_report("0000", 1, timeout_s=WAIT_S) for _ in range(4)]
    assert reports[3] is not None
    assert reports[3].failure is not None
    assert reports[3].failure.cause == "unevaluated"
    assert reports[3].failure.message.startswith(UNEVALUATED)
    assert (trial.adapter / "adapter.txt").read_text() == "0000"
    core.evict("0000")
    # With more memory it is evaluated where it stands.
    engine = FakeEngine()
    other = ExecutorCore(engine, paths=SweepPaths(tmp_path), lease_timeout_s=60, keep_state=True, clock=clock)
    trained: list[str] = []
    engine.train = trained.extend  # type: ignore[method-assign]
    assert other.admit(make_spec("0000"), 1) is True
    report = other.next_report("0000", 1, timeout_s=WAIT_S)
    other.close()
    assert report is not None
    assert (report.index, report.is_final, report.failure) == (4, True, None)
    assert trained == []


def test_a_trial_that_diverges_in_its_last_evaluation_leaves_no_adapter(core: ExecutorCore, tmp_path: Path) -> None:
    core.admit(make_spec("0000", num_reports=2, weight_decay=DIVERGING_DECAY), 1)
    core.next_report("0000", 1, timeout_s=WAIT_S)
    report = core.next_report("0000", 1, timeout_s=WAIT_S)
    assert report is not None
    assert report.failure is not None
    assert report.failure.cause == "diverged"
    assert not SweepPaths(tmp_path).trial("0000").adapter.exists()
