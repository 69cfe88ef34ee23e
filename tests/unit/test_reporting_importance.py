"""What is read of a study's journal, with Optuna's own figures: importance of parameters, and the Pareto front."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from qlora_ray.pages.blocks import Drawing, Words
from qlora_ray.reporting.figures_parameters import draw_front
from qlora_ray.reporting.importance import MIN_TOP_TRIALS, read_front, read_importance
from qlora_ray.reporting.searches import tell_search
from qlora_ray.reporting.story import Story, read_story
from tests.sweep_folder import Sketch, edited, traces, usual_sketches, write_sweep

RATES = [1e-5 * 10 ** (index / 4) for index in range(12)]
OBJECTIVES = ("eval_loss", "trainable_parameters")
# Sketches have 1000 parameters times their number: the second is beaten by the first in both.
LOSSES = [0.5, 0.6, 0.3, 0.1, 0.2]
FRONT = {0, 2, 3}


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


def write_study(journal: Path) -> None:
    """A study of two objectives whose trials are those of the sketches, and one that failed."""
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))), directions=["minimize", "minimize"]
    )
    for number, loss in enumerate(LOSSES):
        study.add_trial(optuna.trial.create_trial(values=[loss, 1000.0 * (number + 1)]))
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    sketches = [Sketch([1.0, loss]) for loss in LOSSES] + [Sketch([2.0], state="failed", cause="oom")]
    root = tmp_path_factory.mktemp("front") / "s"
    paths = write_sweep(root, sketches, winner=3, has_journal=False)
    with edited(paths.manifest) as manifest:
        manifest["config"]["search"]["objectives"] = dict.fromkeys(OBJECTIVES, "min")
    write_study(paths.study)
    return read_story(paths)


def test_the_front_is_who_no_other_beats_in_both(tmp_path: Path) -> None:
    write_study(tmp_path / "study.journal")
    front = read_front(tmp_path / "study.journal", OBJECTIVES)
    points = [(loss, number) for number, loss in enumerate(LOSSES)]
    by_hand = {
        number
        for loss, number in points
        if not any(other != (loss, number) and other[0] <= loss and other[1] <= number for other in points)
    }
    assert front.numbers == by_hand == FRONT


def test_the_figure_of_the_front_has_it_by_size_the_rest_and_the_winner(story: Story) -> None:
    figure = draw_front(story)
    assert figure is not None
    drawn = traces(figure)
    assert (drawn["front"]["x"], drawn["front"]["y"]) == ([1000, 3000, 4000], [0.5, 0.3, 0.1])
    assert drawn["other complete trials"]["y"] == [0.6, 0.2]
    assert (drawn["winner 0003"]["x"], drawn["winner 0003"]["y"]) == ([4000], [0.1])


def test_the_report_draws_the_front_and_tells_its_ends(story: Story) -> None:
    drawing = next(block for block in tell_search(story).blocks if getattr(block, "name", "") == "front")
    assert isinstance(drawing, Drawing)
    for end in ("3 trials", "0003 (loss 0.1, 4,000 parameters)", "0000 (loss 0.5, 1,000 parameters)"):
        assert end in drawing.caption


def test_a_search_for_one_objective_has_no_front(tmp_path: Path) -> None:
    story = read_story(write_sweep(tmp_path / "s", [Sketch([1.0, 0.5])], winner=0))
    assert story.front is None
    assert not any(getattr(block, "name", "") == "front" for block in tell_search(story).blocks)


def test_a_journal_that_is_missing_or_broken_is_said(story: Story, tmp_path: Path) -> None:
    assert read_front(tmp_path / "study.journal", OBJECTIVES).reason == "study.journal is not there"
    (tmp_path / "study.journal").write_text('{"op_code": 4, "study_id": 0}\n{"op_code"\n\n')
    front = read_front(tmp_path / "study.journal", OBJECTIVES)
    assert front.reason is not None and "study.journal cannot be read" in front.reason
    words = [block.text for block in tell_search(replace(story, front=front)).blocks if isinstance(block, Words)]
    assert any("front of both objectives is not shown" in text for text in words)
