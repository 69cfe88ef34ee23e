"""The search of a sweep: its trials, and then those with new seeds, over the pool's executors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_ray.hardware import Plan
from qlora_ray.hardware.trial_size import TrialSizes
from qlora_ray.orchestration.cloning import Cloner, plan_clones
from qlora_ray.orchestration.control import SearchControl
from qlora_ray.orchestration.final_seeds import SeedSearcher, plan_seeds
from qlora_ray.orchestration.leased_trial import TrialTerms
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.pool_events import PoolEvents
from qlora_ray.orchestration.search_budget import SearchBudget
from qlora_ray.orchestration.search_loop import run_trials
from qlora_ray.orchestration.searcher import StudySearcher
from qlora_ray.orchestration.stopping import SearchStop, StopSignals
from qlora_ray.preflight.checks import Preflight
from qlora_ray.runs import SweepPaths

if TYPE_CHECKING:
    import optuna


def run_search(
    preflight: Preflight,
    *,
    paths: SweepPaths,
    plan: Plan,
    ledger: Ledger,
    study: optuna.Study,
    pool: Any,
    events: PoolEvents,
    stops: StopSignals,
    control: SearchControl,
    budget: SearchBudget,
) -> None:
    """Runs all trials that are left to their ends, and those with new seeds where the config asks for them.

    Args:
        preflight: Has the config, the space and the data.
        paths: The sweep's folder.
        plan: The executors at the start.
        ledger: The books; what came of it is there, and in the study.
        study: Optuna's.
        pool: The pool's actor.
        events: What happens in the pool.
        stops: Ends it.
        control: What the user asks of it.
        budget: What it may take, from now on.
    """

    def run(preflight: Preflight, searcher: StudySearcher, cloner: Cloner | None = None) -> None:
        _run_trials(
            preflight,
            searcher,
            plan=plan,
            ledger=ledger,
            pool=pool,
            events=events,
            stops=stops,
            control=control,
            cloner=cloner,
            budget=budget,
        )

    budget.begin()
    num_trials, num_slots = preflight.config.search.num_trials, plan.total_slots
    clones = plan_clones(ledger, paths)
    ledger.num_planned += len(clones)
    searcher = StudySearcher(
        study, space=preflight.space, ledger=ledger, num_trials=num_trials, num_slots=num_slots, clones=clones
    )
    run(
        preflight,
        searcher,
        Cloner(preflight.config, space=preflight.space, paths=paths, ledger=ledger, searcher=searcher),
    )
    is_over = ledger.is_stopping or ledger.is_finishing or budget.find_spent() is not None
    planned = [] if is_over else plan_seeds(ledger, preflight.config)
    if planned:
        ledger.note("final_seeds_planned", reason=f"{len(planned)} trials with new seeds")
        seeds = SeedSearcher(study, space=preflight.space, ledger=ledger, planned=planned, num_slots=num_slots)
        # All of them to the end: they are compared with each other, and no longer searched among.
        search = preflight.config.search.model_copy(update={"scheduler": "none"})
        config = preflight.config.model_copy(update={"search": search})
        run(replace(preflight, config=config), seeds)


def _run_trials(
    preflight: Preflight,
    searcher: StudySearcher,
    *,
    plan: Plan,
    ledger: Ledger,
    pool: Any,
    events: PoolEvents,
    stops: StopSignals,
    control: SearchControl,
    cloner: Cloner | None,
    budget: SearchBudget,
) -> None:
    if searcher.num_left <= 0:
        return
    stop = SearchStop()
    try:
        stops.begin_search(stop, ledger)
        run_trials(
            # Any placement serves to compare trials.
            TrialTerms(
                preflight.config,
                len(preflight.data.train),
                sizes=TrialSizes(preflight.shape, plan.placements[0]),
                classes=preflight.data.report.classes,
            ),
            searcher=searcher,
            ledger=ledger,
            pool=pool,
            stop=stop,
            events=events,
            control=control,
            cloner=cloner,
            budget=budget,
        )
    finally:
        stops.end_search()
    stops.check()
