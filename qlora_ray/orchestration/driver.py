"""The driver of a sweep: preflight, plan, search, winner, summary, in this order."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qlora_ray.console import Console, noise_to
from qlora_ray.errors import ModelError, QloraRayError
from qlora_ray.hardware import NodeProfile, Plan
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.nodes import check_shared_storage, probe_cluster, ray_cluster
from qlora_ray.orchestration.preflight import Preflight, common_facts, describe_sweep, plan_sweep
from qlora_ray.orchestration.summary import Summary, print_outcome, print_plan, write_summary
from qlora_ray.runs import SweepPaths, write_json
from qlora_ray.search.study import end_interrupted, enqueue_known_points, open_study, requeue_interrupted


@dataclass
class _Started:
    """Set once a trial can have left something behind: from then on a sweep's folder is kept."""

    value: bool = False


def run_sweep(preflight: Preflight, *, paths: SweepPaths, is_resume: bool) -> Summary:
    """Runs a sweep to its winner.

    Args:
        preflight: What was checked before.
        paths: The sweep's folder; it exists when resuming, and is made otherwise.
        is_resume: Whether to go on with the study that is there.

    Returns:
        What came of it; also in summary.json.

    Raises:
        QloraRayError: If nothing can be trained; then a new sweep's folder is gone again.
    """
    if not is_resume:
        paths.create()
    started = _Started(is_resume)
    try:
        with paths.lock(), noise_to(paths.logs / "driver.log") as console, _terminate_as_interrupt():
            return _run(preflight, paths=paths, is_resume=is_resume, console=console, started=started)
    except (QloraRayError, KeyboardInterrupt):
        if not started.value:
            shutil.rmtree(paths.root, ignore_errors=True)
        raise


def _run(preflight: Preflight, *, paths: SweepPaths, is_resume: bool, console: Console, started: _Started) -> Summary:
    config = preflight.config
    console.progress("starting Ray ...")
    with ray_cluster(config.cluster):
        profiles = probe_cluster()
        check_shared_storage(paths.root)
        plan = plan_sweep(preflight, list(profiles.values()))
        if not is_resume:
            write_json(paths.manifest, describe_sweep(preflight, plan, list(profiles.values())))
        print_plan(console, preflight, plan, paths)
        ledger = Ledger(config, paths=paths, console=console, common=common_facts(preflight))
        if is_resume:
            ledger.restore()
        pool = _start_pool(preflight, plan, profiles, paths)
        study = open_study(paths.study, name=paths.name, search=config.search, space=preflight.space)
        if is_resume:
            requeued = requeue_interrupted(study)
            ledger.note("sweep_resumed", reason=f"{len(requeued)} interrupted trials are queued again")
        else:
            enqueue_known_points(study, preflight.space)
            ledger.note("sweep_started", reason=f"{config.search.num_trials} trials, {plan.total_slots} slots")
        console.progress("loading the base ...")
        _wait_ready(pool)
        started.value = True
        interrupted = False
        try:
            _search(preflight, plan=plan, paths=paths, ledger=ledger, study=study, pool=pool)
        except KeyboardInterrupt:
            interrupted = True
            ledger.interrupt()
            end_interrupted(study)
        winner = None
        if not interrupted:
            from qlora_ray.orchestration.winner import keep_winner, score_best

            console.progress("scoring the best trials and the base ...")
            winner = score_best(ledger, paths=paths, config=config, pool=pool)
            if winner is not None:
                keep_winner(winner, ledger=ledger, paths=paths, config=config)
        summary = write_summary(ledger, winner, paths=paths, interrupted=interrupted)
        ledger.note("sweep_ended", reason=summary.status)
        console.end_progress()
        print_outcome(console, summary, ledger=ledger, winner=winner, paths=paths, config=config)
        _close(pool)
        return summary


def _start_pool(preflight: Preflight, plan: Plan, profiles: dict[str, NodeProfile], paths: SweepPaths) -> Any:
    import ray

    from qlora_ray.orchestration.executor import ExecutorTerms
    from qlora_ray.orchestration.pool import Pool, Seat

    nodes = {profile.hostname: node_id for node_id, profile in profiles.items()}
    seats = [
        Seat(placement, nodes[device.rsplit(":", 1)[0]])
        for placement in plan.placements
        for device in placement.devices
        for _ in range(placement.slots_per_device)
    ]
    terms = ExecutorTerms(preflight.config, paths.root.resolve(), preflight.has_references)
    pool = (
        ray.remote(Pool)
        .options(num_cpus=0, max_concurrency=10_000)
        .remote(terms, seats, [ray.put(preflight.data)], plan.total_slots)
    )
    ray.get(pool.start.remote())
    return pool


def _wait_ready(pool: Any) -> None:
    import ray
    from ray.exceptions import RayTaskError

    from qlora_ray.orchestration.pool import NoExecutors

    try:
        ray.get(pool.wait_ready.remote())
    except RayTaskError as error:
        if isinstance(error.cause, NoExecutors):
            raise ModelError(str(error.cause)) from None
        raise


def _search(preflight: Preflight, *, plan: Plan, paths: SweepPaths, ledger: Ledger, study: Any, pool: Any) -> None:
    from qlora_ray.orchestration.searcher import StudySearcher
    from qlora_ray.orchestration.trial import TrialTerms
    from qlora_ray.orchestration.tuning import EventPump, Gate, run_trials

    config = preflight.config
    searcher = StudySearcher(
        study,
        space=preflight.space,
        ledger=ledger,
        paths=paths,
        num_trials=config.search.num_trials,
        num_slots=plan.total_slots,
    )
    if searcher.num_left <= 0:
        return
    gate = Gate(searcher, ledger)
    num_seats = sum(placement.num_slots for placement in plan.placements)
    pump = EventPump(pool, ledger=ledger, searcher=searcher, gate=gate, num_seats=num_seats)
    terms = TrialTerms(config, len(preflight.data.train), pool)
    ledger.show_progress()
    try:
        run_trials(terms, searcher=searcher, gate=gate, search=config.search, logs=paths.logs)
    finally:
        pump.end()


def _close(pool: Any) -> None:
    import ray

    ray.get(pool.close.remote())
    ray.kill(pool)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A SIGTERM (a batch system's time is up) stops the sweep as Ctrl-C does."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
