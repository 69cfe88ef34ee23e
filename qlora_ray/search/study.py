"""The Optuna study behind a sweep: its journal on disk, and the truth about each trial's end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.choices import SAMPLERS, SCHEDULER_KEYS, SCHEDULERS
from qlora_ray.config.schema import Search
from qlora_ray.errors import ConfigError, RunError, first_line, is_disk_full
from qlora_ray.search.samplers import make_sampler
from qlora_ray.search.space import DRAWS_AS, FIXED, SearchSpace

if TYPE_CHECKING:
    import optuna

# Attributes of a trial and of the study that carry what Optuna's states cannot say.
CAUSE_ATTRIBUTE = "cause"
STATE_ATTRIBUTE = "state"
RESUMED_FROM_ATTRIBUTE = "resumed_from"
SEED_OF_ATTRIBUTE = "seed_of"
CLONED_FROM_ATTRIBUTE = "cloned_from"
# Of trials that no sampler proposed: the study has their numbers only.
NOT_PROPOSED = (SEED_OF_ATTRIBUTE, CLONED_FROM_ATTRIBUTE)
INTERRUPTED = "interrupted"
# training.engine.FailureCause of a trial that no device could hold.
OUT_OF_MEMORY = "oom"


def open_study(path: Path, *, name: str, search: Search, space: SearchSpace) -> optuna.Study:
    """Opens the study in its journal file, creating it when new.

    Optuna's documentation advises JournalStorage over SQLite where several processes or NFS are at hand.

    Args:
        path: The journal file, `study.journal`.
        name: The study's name in it.
        search: The config section `search`: sampler and objectives.
        space: The search space.

    Raises:
        RunError: If the journal cannot be read, or has no room.
    """
    try:
        return _create_study(path, name=name, search=search, space=space)
    except ConfigError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise RunError(f"{path}: cannot be written: {first_line(error)}. Free some space there.") from None
        # A journal cut in the middle fails in many ways, assertions among them.
        raise RunError(
            f"{path}: the study's journal cannot be read: {type(error).__name__}: {error}. "
            "Restore it from a copy, or start a new sweep."
        ) from None


def _create_study(path: Path, *, name: str, search: Search, space: SearchSpace) -> optuna.Study:
    import optuna

    from qlora_ray.search.history import BoundedHistory, SteadySampler
    from qlora_ray.search.journal import SweepJournal
    from qlora_ray.search.storage import SweepStorage
    from qlora_ray.search.study_sampler import StudySampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = SweepStorage(SweepJournal(path))
    # A journal holds one study, whatever the folder is called by now: a copied or renamed sweep goes on with it.
    names = optuna.get_all_study_names(storage)
    study = optuna.create_study(
        study_name=names[0] if names else name,
        storage=storage,
        directions=["minimize" if mode == "min" else "maximize" for mode in search.objectives.values()],
        load_if_exists=True,
    )
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(search.objectives))
    entry = SAMPLERS[search.sampler]
    history = None if entry.history is None else BoundedHistory(num_best=entry.history[0], num_latest=entry.history[1])
    sampler = StudySampler(
        make_sampler(search, space),
        space=space,
        study=study,
        ran_out_of_memory=_ran_out_of_memory,
        max_draws=entry.max_draws,
    )
    study.sampler = SteadySampler(sampler, seed=search.seed, history=history)
    return study


def add_seed_trial(study: optuna.Study, *, seed_of: int) -> int:
    """Takes a number in the study for a trial that repeats another one with a new seed; returns it."""
    return _take_number(study, SEED_OF_ATTRIBUTE, seed_of)


def add_clone_trial(study: optuna.Study, *, cloned_from: int) -> int:
    """Takes a number in the study for a trial that goes on from another one's state; returns it.

    Its loss is of two settings, one after the other, so that a sampler would learn a false one from it.
    """
    return _take_number(study, CLONED_FROM_ATTRIBUTE, cloned_from)


def _take_number(study: optuna.Study, attribute: str, other: int) -> int:
    """Takes a number for a trial that stands in the study as failed, which every sampler leaves out.

    It is no new point, and its number is never given again.
    """
    import optuna

    failed = optuna.trial.TrialState.FAIL
    study.add_trial(optuna.trial.create_trial(state=failed, user_attrs={attribute: other}))
    return max(trial.number for trial in study.get_trials(deepcopy=False) if attribute in trial.user_attrs)


def note_end(
    study: optuna.Study, number: int, notes: Mapping[str, Any], *, reports: Mapping[int, float] | None = None
) -> None:
    """Writes to a trial of the study, which has not ended there, how it ended, and reports that were not told.

    Args:
        study: The study.
        number: The trial's number.
        notes: User attributes, as Optuna's dashboard shows them; CAUSE_ATTRIBUTE is one.
        reports: The objective by report.
    """
    # Through the storage: to make an optuna.Trial is to ask the sampler.
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    for index, value in (reports or {}).items():
        study._storage.set_trial_intermediate_value(trial_id, index, value)
    for name, note in notes.items():
        study._storage.set_trial_user_attr(trial_id, name, note)


def _ran_out_of_memory(trial: optuna.trial.FrozenTrial) -> bool:
    return trial.user_attrs.get(CAUSE_ATTRIBUTE) == OUT_OF_MEMORY


def describe_unused(search: Search, space: SearchSpace) -> list[str]:
    """What the config says that its sampler and scheduler have no use for, a line each."""
    unused = []
    defaults = Search()
    given = {name for name in search.model_fields_set if getattr(search, name) != getattr(defaults, name)}
    sampler = SAMPLERS[search.sampler]
    for key in SCHEDULER_KEYS:
        if key in given and key not in SCHEDULERS[search.scheduler].reads:
            unused.append(f"search.{key} is not used by scheduler {search.scheduler}")
    if "num_startup_trials" in given and not sampler.uses_startup_trials:
        unused.append(f"search.num_startup_trials is not used by sampler {search.sampler}")
    if sampler.visits_grid and space.points_to_evaluate:
        unused.append(f"points_to_evaluate are not run first by sampler {search.sampler}, which visits its own points")
    choices = [parameter.path for parameter in space.parameters if parameter.choices is not None]
    if sampler.searches_ranges_only and choices:
        unused.append(f"sampler {search.sampler} searches ranges; it draws {', '.join(choices)} at random")
    return unused


def enqueue_known_points(study: optuna.Study, *, search: Search, space: SearchSpace) -> None:
    """Queues the space's first points before all others, once; a grid visits its own points only.

    No more of them than the sweep has trials: what a resume queues again comes after them, and is to have a place.

    Args:
        study: The study.
        search: Has the sampler's name and the number of trials.
        space: The search space, which has the points.
    """
    if SAMPLERS[search.sampler].visits_grid:
        return
    for point in space.first_points[: search.num_trials]:
        study.enqueue_trial(space.encode(point), skip_if_exists=True)


def interrupted_trials(study: optuna.Study) -> set[int]:
    """Numbers of the trials whose end says nothing about their parameters, because the sweep stopped first."""
    return set(study.user_attrs.get(INTERRUPTED, []))


def end_interrupted(study: optuna.Study) -> list[int]:
    """Ends the trials that are still running in the study; returns their numbers."""
    import optuna

    running = [trial.number for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))]
    # First the reason, then the end: a driver killed in between leaves a trial that is ended again on resume.
    study.set_user_attr(INTERRUPTED, sorted(interrupted_trials(study) | set(running)))
    for number in running:
        # Optuna has no state for it; who looks at the study with its tools is told so.
        note_end(study, number, {STATE_ATTRIBUTE: INTERRUPTED})
        study.tell(number, state=optuna.trial.TrialState.FAIL)
    return running


def requeue_interrupted(study: optuna.Study) -> list[int]:
    """Queues the parameters of every interrupted trial again, once.

    Returns:
        The numbers of the interrupted trials that were queued now.
    """
    from qlora_ray.search.history import draws_of
    from qlora_ray.search.journal import journal_of

    end_interrupted(study)
    trials = study.get_trials(deepcopy=False)
    already = {trial.user_attrs.get(RESUMED_FROM_ATTRIBUTE) for trial in trials}
    queued = [number for number in sorted(interrupted_trials(study)) if number not in already]
    names = {name for trial in trials for name in trial.params}
    with journal_of(study).one_write():
        for number in queued:
            params = _params_of(trials[number])
            attributes: dict[str, Any] = {RESUMED_FROM_ATTRIBUTE: number}
            if not params or names - params.keys():
                # The journal's end was torn off, and with it what was drawn: the same is drawn again.
                params = trials[number].system_attrs.get(FIXED, {})
                attributes[DRAWS_AS] = draws_of(trials[number], trials)
            study.enqueue_trial(params, user_attrs=attributes)
    return queued


def _params_of(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """A trial's parameters, those too that it was queued with and had not taken when its driver was killed."""
    return {**trial.system_attrs.get(FIXED, {}), **trial.params}


def count_finished(study: optuna.Study) -> int:
    """Trials that need not run again: complete, pruned, or failed of themselves."""
    interrupted = interrupted_trials(study)
    return sum(
        trial.state.is_finished()
        and trial.number not in interrupted
        and not any(attribute in trial.user_attrs for attribute in NOT_PROPOSED)
        for trial in study.get_trials(deepcopy=False)
    )
