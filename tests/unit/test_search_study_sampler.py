"""What ran out of memory is not asked again, whichever sampler asks, and a wider range is searched as one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
import pytest

from qlora_ray.config.choices import SAMPLERS
from qlora_ray.config.documents import Document
from qlora_ray.config.loading import validate_document
from qlora_ray.search.parsing import parse_space
from qlora_ray.search.study import CAUSE_ATTRIBUTE, OUT_OF_MEMORY, note_end, open_study

RANKS: dict[str, Any] = {"low": 2, "high": 64}
SPACE: dict[str, Any] = {
    "lora.r": RANKS,
    "lora.use_dora": {"choices": [False, True]},
    "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
}
GRID: dict[str, Any] = {
    "lora.r": {"choices": [2, 4, 8, 16, 32, 64]},
    "lora.use_dora": {"choices": [False, True]},
    "training.learning_rate": {"choices": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]},
}
# Of 64 and one for DoRA: what the largest device holds.
LARGEST = 20
NUM_TRIALS = 30
# A Gaussian process is fitted anew for every trial.
SLOW = {"gp"}


def params_of(samplers: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in samplers]


class Searching:
    """A study whose largest settings do not fit, and whose loss falls with the rank: every sampler is drawn there."""

    def __init__(self, path: Path, sampler: str, space: dict[str, Any] | None = None) -> None:
        given = space or (GRID if sampler == "grid" else SPACE)
        search = {"sampler": sampler, "num_trials": NUM_TRIALS, "space": given, "scheduler": "none"}
        config = validate_document(Document("a.yaml", {"search": search}))
        self.space = parse_space(Document("space", given), config)
        self.study = open_study(path, name="s", search=config.search, space=self.space)

    def run(self, num_trials: int, *, is_limited: bool = True) -> list[dict[str, Any]]:
        asked = []
        for _ in range(num_trials):
            trial = self.study.ask(self.space.distributions())
            settings = self.space.decode(trial.params)
            asked.append(settings)
            if is_limited and "lora.r" in settings and is_too_large(settings):
                trial.set_user_attr(CAUSE_ATTRIBUTE, OUT_OF_MEMORY)
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self.study.tell(trial, 4.0 - settings.get("lora.r", 0) / 16 + settings["training.learning_rate"])
        return asked


def is_too_large(settings: dict[str, Any]) -> bool:
    return settings["lora.r"] * (1.5 if settings["lora.use_dora"] else 1.0) > LARGEST


@pytest.mark.parametrize("sampler", params_of(SAMPLERS))
def test_settings_that_do_not_fit_are_hardly_asked_after_the_first_failures(tmp_path: Path, sampler: str) -> None:
    searching = Searching(tmp_path / "study", sampler)
    asked = [is_too_large(settings) for settings in searching.run(NUM_TRIALS)]
    # A uniform draw is too large three times in four.
    num_first, num_later = sum(asked[:10]), sum(asked[10:30])
    assert num_first >= 2 and num_later / 20 <= 0.3 * num_first / 10
    # A resumed study knows it too.
    assert sum(map(is_too_large, Searching(tmp_path / "study", sampler).run(4))) <= 1


@pytest.mark.parametrize("sampler", params_of(name for name in SAMPLERS if name != "grid"))
def test_without_it_they_are_asked_again_and_again(tmp_path: Path, sampler: str) -> None:
    searching = Searching(tmp_path / "study", sampler)
    searching.study.sampler.sampler = searching.study.sampler.sampler.inner
    asked = [is_too_large(settings) for settings in searching.run(NUM_TRIALS)]
    assert sum(asked[10:30]) >= 8


def test_a_queued_setting_runs_as_it_is(tmp_path: Path) -> None:
    searching = Searching(tmp_path / "study", "random")
    searching.run(10)
    largest = {"lora.r": 64, "lora.use_dora": True, "training.learning_rate": 1e-3}
    searching.study.enqueue_trial(searching.space.encode(largest))
    assert searching.run(1) == [largest]


def test_nothing_changes_until_something_runs_out_of_memory(tmp_path: Path) -> None:
    ours, inner = Searching(tmp_path / "a", "tpe"), Searching(tmp_path / "b", "tpe")
    inner.study.sampler.sampler = inner.study.sampler.sampler.inner
    assert ours.run(20, is_limited=False) == inner.run(20, is_limited=False)


def test_the_cause_of_an_end_that_a_killed_driver_did_not_tell_is_learnt_too(tmp_path: Path) -> None:
    searching = Searching(tmp_path / "study", "random")
    trial = searching.study.ask(searching.space.distributions())
    note_end(searching.study, trial.number, {CAUSE_ATTRIBUTE: OUT_OF_MEMORY})
    searching.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    limits = searching.study.sampler.sampler._limits
    assert limits.is_too_large(searching.space.decode(trial.params))


@pytest.mark.parametrize("sampler", params_of(name for name, entry in SAMPLERS.items() if entry.takes_wider_ranges))
def test_a_study_goes_on_in_a_wider_range_with_what_it_knows(tmp_path: Path, sampler: str) -> None:
    narrow = {"training.learning_rate": {"low": 1e-3, "high": 2e-3, "log": True}}
    wide = {"training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}}
    Searching(tmp_path / "study", sampler, narrow).run(12)
    searching = Searching(tmp_path / "study", sampler, wide)
    rates = [settings["training.learning_rate"] for settings in searching.run(24)]
    # The loss rises with the rate: what lies below the old range is better than all of it.
    assert min(rates) < 1e-3
    if sampler not in ("random", "nsga2"):
        # A model of both ranges goes there; draws at random would lie there every second time. So do those of nsga2,
        # whose two generations of seven lie there 3 to 8 times in 12 over 14 seeds.
        assert sum(rate < 1e-3 for rate in rates[-12:]) >= 9
