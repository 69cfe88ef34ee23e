"""The winner: the best trials scored again side by side, the best of them judged against the base, and kept."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayError, RayTaskError

from qlora_ray.config.schema import SweepConfig
from qlora_ray.data import PreparedData
from qlora_ray.errors import ExecutorsLost, NoExecutors, SweepFailed, first_line
from qlora_ray.modeling.loading import load_tokenizer
from qlora_ray.orchestration.actor_calls import get_again
from qlora_ray.orchestration.final_seeds import SeedGroup, find_finalists, group_seeds
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.pool.calls import ask_pool
from qlora_ray.orchestration.ray_errors import describe_death
from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs import SweepPaths, write_json
from qlora_ray.runs.files import append_line
from qlora_ray.runs.whole import whole_folder
from qlora_ray.scoring.metrics.choice import resolve_data_metrics
from qlora_ray.scoring.scores import Scores
from qlora_ray.scoring.verdict import Verdict, judge

BASE = "base"


@dataclass(frozen=True)
class Winner:
    """The winning trial, and the verdict on it.

    Attributes:
        entry: The trial.
        scores: What it is worth on the verdict's rows.
        base: What its base is worth on them.
        rescored: The loss of the best trials on the validation rows, where the lowest won, by trial.
        verdict: Whether the winner is better than its base.
        seeds: The best settings with several seeds each, the best mean first; empty without `search.final_seeds`.
    """

    entry: TrialEntry
    scores: Scores
    base: Scores
    rescored: dict[str, Scores]
    verdict: Verdict
    seeds: tuple[SeedGroup, ...] = ()


def choose_winner(
    ledger: Ledger, *, paths: SweepPaths, config: SweepConfig, data: PreparedData, pool: Any
) -> Winner | None:
    """Scores the best trials again, judges the winner, and keeps it in best/; None without a complete trial.

    Args:
        ledger: All trials of the sweep.
        paths: The sweep's folder, which has the adapters.
        config: Has `evaluate.top_k` and how often scoring is tried again after an executor died.
        data: The validation and test rows.
        pool: The pool's handle; its executors score.

    Raises:
        ExecutorsLost: If no executor is left, or they die again and again.
        SweepFailed: If no loss is finite.
        PoolLost: If the pool is gone.
    """
    ledger.note("scoring_started")
    for attempt in itertools.count(1):
        try:
            ask_pool(pool, "wait_ready")
            winner = score_best(ledger, paths=paths, config=config, data=data, pool=pool)
            break
        except RayTaskError as error:
            if not isinstance(error.cause, NoExecutors):
                raise
            raise _no_executor(paths, first_line(error.cause)) from None
        except RayError as error:
            # An executor died while it scored; the pool starts another one.
            if attempt > config.cluster.max_trial_retries:
                raise _no_executor(paths, f"they died again and again: {describe_death(error)}") from None
    ledger.note("scoring_ended", winner=None if winner is None else winner.entry.id)
    if winner is not None:
        keep_winner(winner, paths=paths, config=config)
    return winner


def score_best(
    ledger: Ledger, *, paths: SweepPaths, config: SweepConfig, data: PreparedData, pool: Any
) -> Winner | None:
    """Scores the top k again, then winner and base on the test rows, on one device class; None without a complete
    trial.

    Trials may have been trained in different precisions on different GPUs; what decides is one measurement of
    all of them on the same kind of device. Without test rows the verdict is on the validation rows, and says so.

    Args:
        ledger: All trials of the sweep.
        paths: The sweep's folder.
        config: The sweep's config: `evaluate.top_k` trials are scored again.
        data: The splits that they are scored on.
        pool: The pool's actor, whose executors score.
    """
    groups = group_seeds(ledger, config) if config.search.final_seeds else {}
    best = [entry for entries in groups.values() for entry in entries] or find_finalists(ledger, config)
    if not best:
        return None
    workers = _workers_of_one_class(paths, pool)

    def score(models: Mapping[str, Path | None], split: str, *, with_answers: bool) -> dict[str, Scores]:
        # Each executor has its share of the models in one call, and goes through the rows once for as many as it can.
        shares = [dict(itertools.islice(models.items(), at, None, len(workers))) for at in range(len(workers))]
        found: list[dict[str, Scores]] = get_again(
            lambda: [
                worker.score.remote(share, split, with_answers=with_answers)
                for worker, share in zip(workers, shares, strict=True)
                if share
            ]
        )
        return {name: scores for share in found for name, scores in share.items()}

    adapters: dict[str, Path | None] = {entry.id: paths.trial(entry.id).adapter for entry in best}
    # The loss decides: nothing is answered here.
    rescored = score(adapters, "validation", with_answers=False)
    # NaN compares with nothing: a trial whose loss overflows on this device class must not win by coming first.
    finite = [entry for entry in best if math.isfinite(rescored[entry.id].loss)]
    if not finite:
        raise SweepFailed(
            f"{paths.root}: one of the best trials must have a finite loss when scored again, got none of "
            f"{', '.join(adapters)}. Train with training.precision: bf16 or fp32, or see the trials' records."
        )
    seeds = sorted(
        (SeedGroup(trial, {one.id: rescored[one.id].loss for one in entries}) for trial, entries in groups.items()),
        key=lambda group: group.mean if math.isfinite(group.mean) else math.inf,
    )
    if seeds and math.isfinite(seeds[0].mean):
        finite = [entry for entry in finite if entry.id in seeds[0].losses]
    winner = min(finite, key=lambda entry: rescored[entry.id].loss)
    split = "validation" if data.test is None else "test"
    judged = score({winner.id: adapters[winner.id], BASE: None}, split, with_answers=True)
    tuned, base = judged[winner.id], judged[BASE]
    metrics, _ = resolve_data_metrics(config, data)
    verdict = judge(base, tuned, metrics=metrics, split=split, was_chosen_on=data.test is None)
    if winner.clone_of is not None:
        note = f"the winner is a {winner.clone_of.describe()}: its setting was not run from its start"
        verdict = replace(verdict, note="; ".join(filter(None, (note, verdict.note))))
    return Winner(winner, tuned, base, rescored, verdict, tuple(seeds))


def _workers_of_one_class(paths: SweepPaths, pool: Any) -> list[Any]:
    executors = ask_pool(pool, "ready_executors")
    if not executors:
        raise _no_executor(paths, "the last one has just died")
    # Processors of one class may have measured bf16 differently.
    first = executors[0][1]["device_class"], executors[0][1].get("precision")
    return [handle for handle, facts in executors if (facts["device_class"], facts.get("precision")) == first]


def _no_executor(paths: SweepPaths, reason: str) -> ExecutorsLost:
    return ExecutorsLost(
        f"{paths.root}: no executor is left to train or score on: {reason.rstrip('.')}. "
        f"Go on with: {paths.resume_command}"
    )


def keep_winner(winner: Winner, *, paths: SweepPaths, config: SweepConfig) -> None:
    """Writes best/: the adapter with its tokenizer, the record, the verdict, and the scores beside the base's.

    Args:
        winner: The trial and its scores.
        paths: The sweep's folder.
        config: Names the base, whose tokenizer is saved.
    """
    tokenizer = load_tokenizer(config.model)
    with whole_folder(paths.best) as folder:
        shutil.copytree(paths.trial(winner.entry.id).adapter, folder / "adapter")
        tokenizer.save_pretrained(str(folder / "adapter"))
        shutil.copy(paths.trial(winner.entry.id).record, folder / "record.json")
        write_json(
            folder / "scores.json",
            {
                "trial": winner.entry.id,
                "verdict": winner.verdict.to_dict(),
                "winner": _without_answers(winner.scores),
                BASE: _without_answers(winner.base),
                "final_seeds": {group.trial: group.to_dict() for group in winner.seeds},
                "rescored": {trial: _without_answers(scores) for trial, scores in winner.rescored.items()},
            },
        )
        for name, scores in ((winner.entry.id, winner.scores), (BASE, winner.base)):
            for answer in scores.to_dict()["answers"]:
                append_line(folder / "answers.jsonl", {"model": name, **answer})


def _without_answers(scores: Scores) -> dict[str, Any]:
    return {key: value for key, value in scores.to_dict().items() if key not in ("answers", "row_metrics")}
