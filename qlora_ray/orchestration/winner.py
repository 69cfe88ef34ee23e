"""The winner: the best trials scored again side by side, the base beside them, and the best adapter kept."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import SweepFailed
from qlora_ray.evaluation.scoring import Scores
from qlora_ray.modeling.loading import load_tokenizer
from qlora_ray.orchestration.ledger import Ledger, TrialEntry
from qlora_ray.orchestration.pool import describe_death
from qlora_ray.runs import SweepPaths, write_json
from qlora_ray.runs.files import append_line, whole_folder

BASE = "base"


@dataclass(frozen=True)
class Winner:
    """The winning trial, its scores, and the base's on the same rows by the same executors' class."""

    entry: TrialEntry
    scores: Scores
    base: Scores
    rescored: dict[str, Scores]

    @property
    def beats_base(self) -> bool:
        """Whether its validation loss is lower than the base's, and its deciding metric, if any, not worse."""
        name = next(iter(self.scores.metrics), None)
        answers_as_well = name is None or self.scores.metrics[name] >= self.base.metrics[name]
        return self.scores.loss < self.base.loss and answers_as_well


def choose_winner(ledger: Ledger, *, paths: SweepPaths, config: SweepConfig, pool: Any) -> Winner | None:
    """Scores the best again beside the base, and keeps the winner in best/; None without a complete trial."""
    for attempt in itertools.count(1):
        try:
            ray.get(pool.wait_ready.remote())
            winner = score_best(ledger, paths=paths, config=config, pool=pool)
            break
        except RayTaskError:
            raise
        except RayError as error:
            # An executor died while it scored; the pool starts another one.
            if attempt > config.cluster.max_trial_retries:
                raise SweepFailed(
                    f"{paths.root}: the executors died while scoring the best trials: {describe_death(error)} "
                    f"Go on with: python -m qlora_ray.sweep --resume {paths.root}"
                ) from None
    if winner is not None:
        keep_winner(winner, paths=paths, config=config)
    return winner


def score_best(ledger: Ledger, *, paths: SweepPaths, config: SweepConfig, pool: Any) -> Winner | None:
    """Scores the top k again, and the base, on one device class; None without a complete trial.

    Trials may have been trained in different precisions on different GPUs; what decides is one measurement of
    all of them on the same kind of device.
    """
    best = ledger.ranked()[: config.evaluate.top_k]
    if not best:
        return None
    executors = ray.get(pool.ready_executors.remote())
    if not executors:
        raise SweepFailed(
            f"{paths.root}: no executor is left to score the best trials on. "
            f"Go on with: python -m qlora_ray.sweep --resume {paths.root}"
        )
    device_class = executors[0][1]["device_class"]
    workers = [handle for handle, facts in executors if facts["device_class"] == device_class]
    adapters = [paths.trial(entry.id).adapter for entry in best]
    # An executor scores one model at a time; each takes its share in turn. The base is the last job.
    jobs = enumerate([*adapters, None])
    scores = ray.get([workers[index % len(workers)].score.remote(adapter) for index, adapter in jobs])
    rescored = {entry.id: result for entry, result in zip(best, scores[:-1], strict=True)}
    winner = min(best, key=lambda entry: rescored[entry.id].loss)
    return Winner(winner, rescored[winner.id], scores[-1], rescored)


def keep_winner(winner: Winner, *, paths: SweepPaths, config: SweepConfig) -> None:
    """Writes best/: the adapter with its tokenizer, the record, and the scores beside the base's."""
    tokenizer = load_tokenizer(config.model)
    with whole_folder(paths.best) as folder:
        shutil.copytree(paths.trial(winner.entry.id).adapter, folder / "adapter")
        tokenizer.save_pretrained(str(folder / "adapter"))
        shutil.copy(paths.trial(winner.entry.id).record, folder / "record.json")
        write_json(
            folder / "scores.json",
            {
                "trial": winner.entry.id,
                "beats_base": winner.beats_base,
                "winner": _without_answers(winner.scores),
                BASE: _without_answers(winner.base),
                "rescored": {trial: _without_answers(scores) for trial, scores in winner.rescored.items()},
            },
        )
        for name, scores in ((winner.entry.id, winner.scores), (BASE, winner.base)):
            for answer in scores.to_dict()["answers"]:
                append_line(folder / "answers.jsonl", {"model": name, **answer})


def _without_answers(scores: Scores) -> dict[str, Any]:
    return {key: value for key, value in scores.to_dict().items() if key not in ("answers", "row_metrics")}
