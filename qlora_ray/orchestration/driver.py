"""The driver of a sweep: preflight, plan, search, winner, summary, in this order."""

from __future__ import annotations

import contextlib
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_ray.console import Console, noise_to
from qlora_ray.errors import (
    ExecutorsLost,
    PoolLost,
    QloraRayError,
    RunError,
    SweepFailed,
    SweepInterrupted,
    first_line,
    is_disk_full,
)
from qlora_ray.exporting.adapter_hub import describe_pushes
from qlora_ray.orchestration.background import BackgroundCall
from qlora_ray.orchestration.cluster.fetching import fetch_on_nodes
from qlora_ray.orchestration.cluster.joining import find_dashboard_link
from qlora_ray.orchestration.cluster.planning import plan_nodes
from qlora_ray.orchestration.cluster.scaling import capacity_request
from qlora_ray.orchestration.cluster.starting import RayStart
from qlora_ray.orchestration.control import SearchControl
from qlora_ray.orchestration.gauges import SweepGauges
from qlora_ray.orchestration.hub_pushing import hub_pusher
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.live.collecting import make_collector
from qlora_ray.orchestration.live.watch import LiveWatch
from qlora_ray.orchestration.opening import list_executor_nodes, open_sweep_study, start_sweep_pool
from qlora_ray.orchestration.pool.calls import ask_pool, close_pool, read_device_wait, wait_ready
from qlora_ray.orchestration.pool_events import PoolEvents
from qlora_ray.orchestration.search_budget import SearchBudget
from qlora_ray.orchestration.searcher import settle_finished
from qlora_ray.orchestration.searching import run_search
from qlora_ray.orchestration.stopping import stop_signals
from qlora_ray.orchestration.summary import (
    describe_ray_dashboard,
    print_next_steps,
    print_outcome,
    print_plan,
    write_summary,
)
from qlora_ray.orchestration.tracked_trials import tracked_trials
from qlora_ray.orchestration.watching import watched_nodes, watched_ray
from qlora_ray.orchestration.winner import Winner, choose_winner
from qlora_ray.preflight.checks import Preflight
from qlora_ray.preflight.manifest import add_resume, check_same_inputs, common_facts, describe_sweep
from qlora_ray.runs import EventLog, SweepPaths
from qlora_ray.runs.artifacts import write_sweep_artifacts
from qlora_ray.runs.control import take_requests
from qlora_ray.runs.live import LivePhase, read_live
from qlora_ray.runs.ownership import sign
from qlora_ray.runs.records import Manifest, Summary, read_record, write_record
from qlora_ray.search.study import end_interrupted


@dataclass
class _Started:
    """Set once a trial can have left something behind: from then on a sweep's folder is kept."""

    value: bool = False


def run_sweep(
    preflight: Preflight,
    *,
    paths: SweepPaths,
    is_resume: bool,
    is_exported: bool = False,
    ray_start: RayStart | None = None,
) -> Summary:
    """Runs a sweep to its winner.

    Args:
        preflight: What was checked before.
        paths: The sweep's folder; it exists when resuming, and is made otherwise.
        is_resume: Whether to go on with the study that is there.
        is_exported: Whether the caller exports the winner next, so that nobody need be told how.
        ray_start: A Ray that is being started already; None starts one here.

    Returns:
        What came of it; also in summary.json.

    Raises:
        QloraRayError: If nothing can be trained; then a new sweep's folder is gone again.
        SweepInterrupted: If Ray or the pool died, or a disk is full; the sweep can be resumed.
        SweepFailed: If the sweep itself broke; its folder is kept, with the traceback in logs/driver.log.
    """
    is_new_parent = not paths.root.parent.exists()
    if not is_resume:
        paths.create()
    started = _Started(is_resume)
    # The folder is only removed while its lock is ours: another sweep may have taken its name.
    with paths.lock():
        # Asked of an earlier run. What is asked from now on, while this one starts, its search is told.
        take_requests(paths)
        try:
            with (
                noise_to(paths.logs / "driver.log") as console,
                _explained(paths, started=started),
                LiveWatch(console).running() as watch,
            ):
                return _run(
                    preflight,
                    paths=paths,
                    is_resume=is_resume,
                    is_exported=is_exported,
                    ray_start=ray_start or RayStart(),
                    console=console,
                    watch=watch,
                    started=started,
                )
        except (QloraRayError, KeyboardInterrupt) as error:
            if not started.value and not isinstance(error, SweepFailed):
                shutil.rmtree(paths.root, ignore_errors=True)
                if is_new_parent:
                    with contextlib.suppress(OSError):
                        paths.root.parent.rmdir()
            raise


@contextlib.contextmanager
def _explained(paths: SweepPaths, *, started: _Started) -> Iterator[None]:
    """What is nobody's bad input becomes a SweepFailed, with its traceback in the log; a full disk an interruption."""
    try:
        yield
    except QloraRayError as error:
        # From an actor it comes as Ray's, whose text is the remote traceback.
        there = getattr(error, "cause", None)
        plain = there if isinstance(there, QloraRayError) else error
        if plain is not error:
            traceback.print_exc()
        if started.value and is_disk_full(plain):
            place, is_ours, _ = str(plain).partition(": cannot be written")
            raise _interrupted_by_disk(paths, place if is_ours else first_line(plain)) from None
        if started.value and not isinstance(plain, SweepInterrupted | ExecutorsLost):
            EventLog(paths.events).write("sweep_failed", reason=str(plain))
        raise plain from None
    except Exception as error:
        traceback.print_exc()
        cause = first_line(error)
        if is_disk_full(error):
            where = getattr(error, "filename", None) or paths.root
            if started.value:
                raise _interrupted_by_disk(paths, where) from None
            raise RunError(f"{where}: cannot be written: {cause}. Free some space there.") from None
        if started.value:
            EventLog(paths.events).write("sweep_failed", reason=f"{type(error).__name__}: {cause}")
        raise SweepFailed(
            f"{paths.root}: the sweep broke: {type(error).__name__}: {cause}. "
            f"The traceback is in {paths.logs / 'driver.log'}."
        ) from None


def _interrupted_by_disk(paths: SweepPaths, where: object) -> SweepInterrupted:
    """A sweep that has no room to write, in one line.

    Nothing more is written: the study's journal may lack what this process believes to be in it. What the books say is
    what a killed driver leaves, and a resume puts it right.
    """
    return SweepInterrupted(
        f"{where}: cannot be written: the disk is full. What ran is interrupted, nothing that has ended is lost. "
        f"Free some space there, then go on with: {paths.resume_command}"
    )


def _run(
    preflight: Preflight,
    *,
    paths: SweepPaths,
    is_resume: bool,
    is_exported: bool,
    ray_start: RayStart,
    console: Console,
    watch: LiveWatch,
    started: _Started,
) -> Summary:
    config = preflight.config
    watch.say("starting Ray")
    # It reads every byte of the base, which takes as long as Ray does, or longer.
    reading = BackgroundCall(lambda: common_facts(preflight))
    with (
        stop_signals() as stops,
        ray_start.running(config.cluster),
        watched_ray(config.cluster, stops),
        capacity_request(config.cluster.scale_up) as request,
        tracked_trials(config.results.report_to, paths, tell=console.event) as tracked,
        contextlib.ExitStack() as followed,
    ):
        stops.check()
        planned = plan_nodes(preflight, paths.root, request=request, tell=watch.say)
        plan, profiles = planned.plan, planned.nodes.profiles
        common = reading.result()
        first = read_record(paths.manifest, Manifest) if is_resume else None
        if first is not None:
            notes = check_same_inputs(preflight, first, common=common)
            preflight = replace(preflight, notes=[*preflight.notes, *notes])
        if (words := describe_pushes(config.export)) is not None:
            preflight = replace(preflight, notes=[*preflight.notes, words])
        manifest = describe_sweep(preflight, plan, list(profiles.values()), common=common)
        if first is not None:
            manifest = add_resume(first, manifest)
        # What it lists changes from here on.
        paths.artifacts.unlink(missing_ok=True)
        write_record(paths.manifest, sign(manifest))
        print_plan(console, preflight, plan, paths)
        if config.cluster.ray_dashboard:
            console.line(describe_ray_dashboard(find_dashboard_link()))
        # Not before a resume is known to go on with the same inputs: it takes up what was not pushed.
        pusher = followed.enter_context(hub_pusher(config, paths, tell=console.event))
        observers = [observer for observer in (tracked, pusher) if observer is not None]
        ledger = Ledger(config, paths=paths, console=console, common=common, observers=observers)
        fetch_on_nodes(config.model, list_executor_nodes(plan, profiles), tell=watch.say, check=stops.check)
        watch.say("starting the executors, which load the base")
        pool = start_sweep_pool(preflight, plan, profiles, paths, base=common.base)
        budget = SearchBudget(config.search)
        earlier = read_live(paths)
        collector = make_collector(preflight, plan, ledger=ledger, pool=pool, earlier=earlier, budget=budget)
        followed.enter_context(watch.following(collector, ledger=ledger, paths=paths, gauges=SweepGauges(paths.name)))
        study = open_sweep_study(preflight, ledger, paths=paths, is_resume=is_resume, num_slots=plan.total_slots)
        wait_ready(pool)
        stops.check()
        started.value = True
        winner = None
        waiting = None
        interrupted = False
        lost: PoolLost | None = None
        unscored: ExecutorsLost | None = None
        events = PoolEvents(pool, ledger=ledger, waits_for_nodes=config.cluster.scale_up is not None)
        control = SearchControl(paths, ledger)
        try:
            with watched_nodes(preflight, pool, planned=planned, ledger=ledger, paths=paths, request=request):
                watch.begin(LivePhase.SEARCH, "training")
                run_search(
                    preflight,
                    paths=paths,
                    plan=plan,
                    ledger=ledger,
                    study=study,
                    pool=pool,
                    events=events,
                    stops=stops,
                    control=control,
                    budget=budget,
                )
                waiting = read_device_wait(pool)
                watch.begin(LivePhase.SCORING, "the best trials and the base")
                winner = _choose_winner(preflight, ledger=ledger, paths=paths, pool=pool, events=events)
        except KeyboardInterrupt:
            interrupted = True
        except ExecutorsLost as error:
            unscored = error
        except PoolLost as error:
            lost = error
        except Exception:
            # Whatever fails after Ray has died fails for that.
            if stops.ray_death is None:
                raise
        if stops.ray_death is not None:
            lost = PoolLost(stops.ray_death)
        pushes = None
        if pusher is not None:
            watch.say("pushing adapters to the hub")
            if winner is not None:
                pusher.add(winner.entry, is_best=True)
            pushes = pusher.finish(is_stopped=winner is None)
        # From here on everything is told; there is nothing left to stop.
        stops.ignore()
        if lost is not None:
            ledger.note("pool_lost", reason=str(lost))
        # What is still open was cut off, by Ctrl-C or by the loss of every executor.
        ledger.interrupt()
        settle_finished(study, ledger)
        end_interrupted(study)
        summary = write_summary(
            ledger,
            winner,
            paths=paths,
            interrupted=interrupted or lost is not None or unscored is not None,
            device_wait_share=waiting,
            pushes=pushes,
        )
        watch.begin(LivePhase.REPORT, "writing the page")
        report = _write_report(paths)
        followed.close()
        if lost is not None:
            raise SweepInterrupted(
                f"{paths.root}: {lost} Its running trials are interrupted. Go on with: {paths.resume_command}"
            )
        if unscored is not None:
            raise unscored
        print_outcome(console, summary, ledger=ledger, winner=winner, paths=paths, report=report)
        print_next_steps(console, summary, ledger=ledger, winner=winner, paths=paths, is_exported=is_exported)
        close_pool(pool)
        return summary


def _choose_winner(
    preflight: Preflight, *, ledger: Ledger, paths: SweepPaths, pool: Any, events: PoolEvents
) -> Winner | None:
    ask_pool(pool, "begin_scoring")
    try:
        return choose_winner(ledger, paths=paths, config=preflight.config, data=preflight.data, pool=pool)
    finally:
        # What became of nodes and executors meanwhile.
        events.note_rest()


def _write_report(paths: SweepPaths) -> Path | None:
    """The sweep's page, and the list of its files; None if they cannot be made, which takes nothing from the sweep."""
    from qlora_ray.reporting import write_report

    try:
        report = write_report(paths)
        write_sweep_artifacts(paths.root)
        return report
    except Exception:
        traceback.print_exc()
        return None
