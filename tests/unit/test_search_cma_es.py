"""CMA-ES without pickle proposes what Optuna's own does, and runs nothing that a journal holds."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import optuna
import pytest

from qlora_ray.search.cma_es import JsonCmaEsSampler

NUM_TRIALS = 60
NUM_STARTUP = 4


def propose(sampler: optuna.samplers.BaseSampler, storage: object = None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=storage, sampler=sampler, study_name="s", load_if_exists=True)
    for _ in range(NUM_TRIALS):
        trial = study.ask()
        x, y = trial.suggest_float("x", 1e-5, 1e-1, log=True), trial.suggest_int("y", 1, 64)
        study.tell(trial, (x * 50 - 1) ** 2 + (y - 20) ** 2 / 400)
    return study


def test_it_proposes_what_optunas_own_does() -> None:
    ours = propose(JsonCmaEsSampler(n_startup_trials=NUM_STARTUP, seed=3))
    theirs = propose(optuna.samplers.CmaEsSampler(n_startup_trials=NUM_STARTUP, seed=3))
    assert [trial.params for trial in ours.trials] == [trial.params for trial in theirs.trials]
    # Optuna cuts the text into numbered parts.
    states = [
        "".join(text for key, text in trial.system_attrs.items() if key.startswith("cma:optimizer:"))
        for trial in ours.trials
    ]
    written = [json.loads(state) for state in states if state]
    assert len(written) > 3 and all(state["_n_dim"] == 2 for state in written)


class Payload:
    """What a stranger's journal holds."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, (str(Payload.path), "w")

    path: Path


@pytest.mark.parametrize("kind", [optuna.samplers.CmaEsSampler, JsonCmaEsSampler])
def test_what_a_journal_holds_is_not_unpickled(tmp_path: Path, kind: type[optuna.samplers.CmaEsSampler]) -> None:
    Payload.path = tmp_path / "was-run"
    stranger = optuna.create_study(sampler=kind(n_startup_trials=NUM_STARTUP, seed=3))
    for trial in propose(kind(n_startup_trials=NUM_STARTUP, seed=3)).trials:
        attributes = {**trial.system_attrs, "cma:optimizer:0": pickle.dumps(Payload()).hex()}
        stranger.add_trial(
            optuna.trial.create_trial(
                value=trial.value, params=trial.params, distributions=trial.distributions, system_attrs=attributes
            )
        )
    distributions = stranger.trials[-1].distributions
    if kind is JsonCmaEsSampler:
        assert stranger.ask(distributions).params.keys() == {"x", "y"}
    else:
        # Optuna's own runs it: the danger is there.
        with pytest.raises(AttributeError, match="dim"):
            stranger.ask(distributions)
    assert Payload.path.exists() is (kind is not JsonCmaEsSampler)
