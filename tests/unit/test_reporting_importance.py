"""Parameter importance: Optuna's own figures, from a journal that is only read."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from qlora_ray.reporting.importance import MIN_TOP_TRIALS, read_importance
from tests.sweep_folder import Sketch, usual_sketches, write_sweep

RATES = [1e-5 * 10 ** (index / 4) for index in range(12)]


def sketches(num_complete: int) -> list[Sketch]:
    """Twelve trials whose loss follows the learning rate; all but the first `num_complete` are stopped at once."""
    found = []
    for index, rate in enumerate(RATES):
        loss = 2.0 - index / 10
        params = {"lora.r": (4, 8, 16)[index % 3], "training.learning_rate": rate}
        is_complete = index < num_complete
        losses = [loss, loss / 2, loss / 3, loss / 4] if is_complete else [loss]
        found.append(Sketch(losses, params, "complete" if is_complete else "pruned"))
    return found


def test_with_enough_complete_trials_shares_are_optunas_own(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", sketches(12))
    found = read_importance(paths.study)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(paths.study)))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=MIN_TOP_TRIALS / 12)
    expected = optuna.importance.get_param_importances(
        optuna.load_study(study_name="sweep", storage=storage), evaluator=evaluator
    )
    assert found.shares == pytest.approx(expected)
    assert next(iter(found.shares)) == "training.learning_rate"
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert (found.num_trials, found.num_top) == (12, 5)
    assert "12 complete trials" in found.basis and "last loss" in found.basis


def test_with_few_complete_trials_all_are_taken_at_their_first_report(tmp_path: Path) -> None:
    found = read_importance(write_sweep(tmp_path / "s", sketches(3)).study)
    assert found.num_trials == 12
    assert "12 trials that reported" in found.basis and "first report" in found.basis
    assert found.shares["training.learning_rate"] > 0.5


def test_the_journal_is_not_written_and_not_locked(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", sketches(12))
    before, names = paths.study.read_bytes(), sorted(path.name for path in paths.root.iterdir())
    # Another process holds the lock: whoever writes would wait for it.
    lock = paths.study.with_name(paths.study.name + ".lock")
    lock.symlink_to(paths.study)
    assert read_importance(paths.study).shares
    lock.unlink()
    assert paths.study.read_bytes() == before
    assert sorted(path.name for path in paths.root.iterdir()) == names


def test_too_few_trials_are_said(tmp_path: Path) -> None:
    found = read_importance(write_sweep(tmp_path / "s", usual_sketches()).study)
    assert found.shares == {}
    assert found.reason == "at least 10 trials must have reported, got 4"


def test_a_journal_that_is_missing_or_broken_is_said_and_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "study.journal"
    assert read_importance(missing).reason == "study.journal is not there"
    assert not missing.exists()
    missing.write_text('{"op_code": 4, "study_id": 0}\n{"op_code"\n\n')
    assert "cannot be read" in str(read_importance(missing).reason)


def test_trials_of_one_loss_say_nothing_of_their_parameters(tmp_path: Path) -> None:
    same = [Sketch([1.0], sketch.params, "pruned") for sketch in sketches(0)]
    found = read_importance(write_sweep(tmp_path / "s", same).study)
    assert (found.shares, found.reason) == ({}, "all 12 trials have the same loss")
