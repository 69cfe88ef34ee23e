"""The story of a folder, however far the sweep came, and what is said of files that are not there."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from qlora_ray.errors import RunError
from qlora_ray.pages.blocks import Code, Table
from qlora_ray.reporting.figures_search import base_validation_loss
from qlora_ray.reporting.searches import tell_failures, tell_leaderboard
from qlora_ray.reporting.story import read_story
from qlora_ray.reporting.verdicts import facts_of, headline_of, lead_of, summary_line, tell_verdict
from qlora_ray.reporting.writing import compose, write_reports
from qlora_ray.runs import SweepPaths, append_line, read_json, write_json
from qlora_ray.runs.records import SweepStatus
from qlora_ray.runs.score_records import EvaluationRecord
from qlora_ray.training.engine import UNEVALUATED
from tests.sweep_folder import START, Sketch, edited, usual_sketches, write_sweep


def test_a_finished_sweep_has_its_winner_and_the_verdict_as_it_was_written(paths: SweepPaths) -> None:
    story = read_story(paths)
    assert story.winner is not None and story.winner.id == "0003"
    assert story.counts == {"complete": 2, "pruned": 2, "failed": 2}
    assert story.problems == ()
    written = read_json(paths.best / "scores.json")["verdict"]
    assert story.outcome.verdict is not None and story.outcome.verdict.to_dict() == written
    assert headline_of(story.outcome) == ("Trial 0003 is better than its base", "good")
    assert story.outcome.verdict.deciding.sentence() in lead_of(story)[0]
    assert ("winner's validation loss", "0.1000") in facts_of(story)
    assert summary_line(story).endswith("(2 complete, 2 pruned, 2 failed)")


def test_trials_that_were_interrupted_have_not_ended(tmp_path: Path) -> None:
    sketches = [
        Sketch([1.0], state="complete"),
        Sketch([1.0], state="pruned"),
        Sketch([1.1], state="interrupted"),
        Sketch([], state="interrupted"),
    ]
    story = read_story(write_sweep(tmp_path / "s", sketches, status="interrupted"))
    planned = story.manifest.setting("search", "num_trials")
    assert dict(facts_of(story))["trials ended"] == f"2 of {planned}"


@pytest.mark.parametrize(("word", "tone"), [("no different", "warn"), ("worse", "bad")])
def test_a_verdict_that_is_no_improvement_is_said_as_plainly(paths: SweepPaths, word: str, tone: str) -> None:
    with edited(paths.best / "scores.json") as scores:
        scores["verdict"]["deciding"]["verdict"] = word
        scores["verdict"]["note"] = "chosen on these rows"
    story = read_story(paths)
    headline = headline_of(story.outcome)
    assert word in headline[0] and headline[1] == tone
    assert "Note: chosen on these rows." in lead_of(story)


def test_an_older_sweep_has_a_winner_without_a_test(paths: SweepPaths) -> None:
    with edited(paths.best / "scores.json") as scores:
        del scores["verdict"]
        scores["beats_base"] = True
    story = read_story(paths)
    assert "not tested" in headline_of(story.outcome)[0]
    assert story.problems == ()


def test_a_sweep_without_a_winner_names_the_first_cause(tmp_path: Path) -> None:
    sketches = [Sketch([], state="failed", cause="oom", message="no room")]
    story = read_story(write_sweep(tmp_path / "s", sketches, status="no_winner"))
    headline, tone = headline_of(story.outcome)
    assert "No winner" in headline and tone == "bad"
    assert lead_of(story) == ("First cause: trial 0000: no room.",)


def test_a_sweep_whose_lock_is_held_runs_and_any_other_that_has_not_ended_was_killed(tmp_path: Path) -> None:
    sketches = [Sketch([1.0, 0.5, 0.3, 0.2]), Sketch([1.0], state="running")]
    paths = write_sweep(tmp_path / "s", sketches, status=None)
    with paths.lock():
        running = read_story(paths)
    assert "running" in headline_of(running.outcome)[0]
    assert [trial.state for trial in running.trials] == ["complete", "running"]
    assert not any(isinstance(block, Code) for block in tell_verdict(running).blocks)
    killed = read_story(paths)
    assert "killed" in headline_of(killed.outcome)[0]
    # As a resume will find it.
    assert [trial.state for trial in killed.trials] == ["complete", "interrupted"]
    assert any(isinstance(block, Code) and "--resume" in block.text for block in tell_verdict(killed).blocks)


def test_the_page_that_an_interrupted_sweep_writes_itself_says_how_to_go_on(tmp_path: Path) -> None:
    sketches = [Sketch([1.0, 0.5, 0.3, 0.2]), Sketch([1.0], state="interrupted", cause="the sweep was stopped")]
    paths = write_sweep(tmp_path / "s", sketches, status="interrupted")
    with paths.lock():
        written = write_reports(paths)
    for path in (written.page, written.markdown):
        assert f"python -m qlora_ray.sweep --resume {paths.root}" in path.read_text()
    # Those that were stopped with the sweep have not failed.
    assert tell_failures(read_story(paths)) is None


@pytest.mark.parametrize("winner", [None, 0])
def test_a_sweep_that_has_ended_says_which_trials_can_go_on_and_why_they_do_not(
    tmp_path: Path, winner: int | None
) -> None:
    cause = f"{UNEVALUATED}: CUDA out of memory."
    first = Sketch([1.0, 0.5, 0.3, 0.2]) if winner == 0 else Sketch([1.0], state="pruned", cause="stopped by asha")
    sketches = [first, Sketch([1.0, 0.5, 0.3], state="interrupted", cause=cause, message=cause)]
    status = "complete" if winner == 0 else "no_winner"
    paths = write_sweep(tmp_path / "s", sketches, status=status, winner=winner)
    with paths.lock():
        written = write_reports(paths)
    for path in (written.page, written.markdown):
        text = path.read_text()
        assert "1 trial can go on:" in text and f"python -m qlora_ray.sweep --resume {paths.root}" in text
    failures = tell_failures(read_story(paths))
    assert failures is not None
    (table,) = [block for block in failures.blocks if isinstance(block, Table)]
    assert table.rows == (("0001", cause, "3", "0"),)


def test_a_trial_that_another_has_gone_on_with_is_no_open_end(tmp_path: Path) -> None:
    sketches = [Sketch([1.0], state="interrupted", cause="no room", message="no room"), Sketch([1.0, 0.5, 0.3, 0.2])]
    paths = write_sweep(tmp_path / "s", sketches, winner=1)
    with edited(paths.trial("0001").record) as record:
        record["resumed_from"] = "0000"
    story = read_story(paths)
    assert story.counts == {"complete": 1, "interrupted": 1}
    assert not any(isinstance(block, Code) for block in tell_verdict(story).blocks)
    assert tell_failures(story) is None


def test_a_clone_is_said_to_be_one_and_counts_as_no_trial_of_the_search(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", [Sketch([1.0, 0.5, 0.3, 0.2]) for _ in range(2)], winner=1)
    with edited(paths.trial("0001").record) as record:
        record["cloned_from"], record["cloned_at"] = "0000", 2
    story = read_story(paths)
    (table,) = [block for block in tell_leaderboard(story).blocks if isinstance(block, Table)]
    assert {row[0]: row[-1] for row in table.rows} == {"0000": "", "0001": "winner; clone of 0000 at report 2"}
    assert dict(facts_of(story))["trials ended"] == "1 of 2"


def test_merges_are_told_once_and_none_that_an_export_left_half_written(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / ".hidden" / "s", usual_sketches(), winner=0)
    half = (".bundle.qlora_ray-0abc_xyz/merged", ".merged", "bundle/.merged")
    for folder in (*half, "bundle/merged", "bundle/merged-nf4"):
        (paths.root / folder).mkdir(parents=True)
        write_json(paths.root / folder / "merge_report.json", {"rule": "w16", "nf4_copy": "merged-nf4"})
    assert list(read_story(paths).merges) == ["bundle/merged"]


def test_a_sweep_that_has_not_ended_says_when_it_was_last_heard_of(tmp_path: Path) -> None:
    sketches = [Sketch([1.0, 0.5, 0.3, 0.2]), Sketch([1.0], state="running")]
    story = read_story(write_sweep(tmp_path / "s", sketches, status=None))
    assert story.outcome.status == SweepStatus.UNFINISHED
    best, last = lead_of(story)
    assert "0000, loss 0.2000" in best and "2023-11-14 22:1" in last
    # The running trial's loss is its last report's.
    assert story.trials[1].loss == 1.0


def test_a_resumed_sweep_is_not_told_by_the_summary_of_its_first_run(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), status="interrupted")
    assert read_story(paths).outcome.status == "interrupted"
    os.utime(paths.summary, (START + 100, START + 100))
    append_line(paths.events, {"time": START + 200, "event": "sweep_resumed"})
    assert read_story(paths).outcome.status == SweepStatus.UNFINISHED
    append_line(paths.events, {"time": START + 300, "event": "sweep_ended"})
    assert read_story(paths).outcome.status == "interrupted"


def test_a_sweep_that_broke_says_on_what(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), status=None)
    append_line(paths.events, {"time": START + 300, "event": "sweep_failed", "reason": "no executor is left"})
    story = read_story(paths)
    assert "broke" in headline_of(story.outcome)[0]
    assert any(getattr(block, "text", "") == "no executor is left" for block in tell_verdict(story).blocks)
    # Once it goes on, it is a sweep that runs.
    append_line(paths.events, {"time": START + 400, "event": "sweep_resumed"})
    assert read_story(paths).outcome.failure is None


def test_a_verdict_that_cannot_be_read_is_not_told_as_never_made(paths: SweepPaths) -> None:
    (paths.best / "scores.json").write_text('{"trial": "0003", "verdict"')
    headline, tone = headline_of(read_story(paths).outcome)
    assert "0003" in headline and "cannot be read" in headline and tone == "bad"


@pytest.mark.parametrize("value", [5, "x", [1], {"a": 1}, 10**400, math.inf])
@pytest.mark.parametrize("key", ["measure", "base", "difference", "interval", "p_value", "test", "num_rows", "verdict"])
def test_a_verdict_with_a_damaged_value_is_told_or_said_to_be_unreadable(
    paths: SweepPaths, key: str, value: object
) -> None:
    with edited(paths.best / "scores.json") as scores:
        scores["verdict"]["deciding"][key] = value
    story = read_story(paths)
    assert (story.outcome.verdict is None) == any("its verdict cannot be read" in text for text in story.problems)
    compose(story)


def test_a_missing_file_is_said_and_not_guessed(paths: SweepPaths) -> None:
    (paths.best / "scores.json").unlink()
    paths.events.unlink()
    paths.manifest.write_text("{")
    story = read_story(paths)
    assert story.outcome.verdict is None
    # Events are gone, so the records tell the slots.
    assert story.timeline is not None and story.timeline.source == "records"
    for said in ("scores.json is missing", "events.jsonl is missing", "manifest.json: cannot be read"):
        assert [problem for problem in story.problems if said in problem]
    # The space is told by the trials' own values.
    assert {axis.path for axis in story.axes} == {"lora.r", "training.learning_rate"}


def test_what_came_after_the_sweep_is_found(paths: SweepPaths) -> None:
    for folder in ("evaluation", "merged", "bundle/merged"):
        (paths.root / folder).mkdir(parents=True)
    write_json(paths.root / "evaluation" / "evaluation.json", {"scores": []})
    write_json(paths.root / "merged" / "merge_report.json", {"rule": "w16"})
    write_json(paths.root / "bundle" / "merged" / "merge_report.json", {"rule": "dequant"})
    story = read_story(paths)
    assert story.evaluation == EvaluationRecord()
    assert {folder: report.rule for folder, report in story.merges.items()} == {
        "merged": "w16",
        "bundle/merged": "dequant",
    }


@pytest.mark.parametrize("value", [None, 5, "x", [1], {"a": 1}])
def test_a_damaged_config_or_space_is_left_out_of_the_report(paths: SweepPaths, value: object) -> None:
    with edited(paths.manifest) as manifest:
        manifest["config"]["search"]["objectives"] = value
        manifest["config"]["cluster"] = {"packing": value}
        manifest["space"] = {"lora.r": value}
    story = read_story(paths)
    assert story.front is None and story.problems == ()
    assert "lora.r" in [axis.path for axis in story.axes]
    write_reports(paths)


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        read_story(SweepPaths(tmp_path / "nowhere"))
    with pytest.raises(RunError, match=r"a sweep's folder has manifest\.json"):
        read_story(SweepPaths(tmp_path))


def test_answers_of_base_and_winner_are_paired_by_row(paths: SweepPaths) -> None:
    for model, row, answer in (("base", 0, "no"), ("0003", 1, "yes"), ("0003", 0, "SELECT 1"), ("other", 0, "?")):
        line = {"model": model, "row": row, "answer": answer, "reference": "SELECT 2"}
        append_line(paths.best / "answers.jsonl", line)
    (example,) = read_story(paths).examples
    assert (example.row, example.expected, example.base, example.winner) == (0, "SELECT 2", "no", "SELECT 1")


def test_a_run_interrupted_after_a_complete_one_is_not_mixed_with_it(paths: SweepPaths) -> None:
    append_line(paths.best / "answers.jsonl", {"model": "base", "row": 0, "answer": "no", "reference": "yes"})
    append_line(paths.best / "answers.jsonl", {"model": "0003", "row": 0, "answer": "yes", "reference": "yes"})
    with edited(paths.best / "scores.json") as scores:
        scores["verdict"]["split"] = "validation"
    with edited(paths.summary) as summary:
        summary |= {"status": "interrupted", "winner": None, "verdict": None}
    story = read_story(paths)
    assert "interrupted" in headline_of(story.outcome)[0]
    assert any("winner chosen before: trial 0003" in text for text in lead_of(story))
    assert (story.winner, story.outcome.verdict, story.examples, story.winner_record) == (None, None, (), None)
    assert base_validation_loss(story) is None
    assert "base's validation loss" not in dict(facts_of(story))


def test_who_the_winner_is_stands_with_its_scores(paths: SweepPaths) -> None:
    with edited(paths.summary) as summary:
        summary["winner"] = "0000"
    assert read_story(paths).outcome.winner == "0003"


@pytest.mark.parametrize(("split", "expected"), [("test", None), ("validation", 2.5)])
def test_the_base_is_drawn_if_it_was_scored_on_the_trials_rows(
    paths: SweepPaths, split: str, expected: float | None
) -> None:
    with edited(paths.best / "scores.json") as scores:
        # A verdict that this version cannot read still says its split.
        scores["verdict"] = {"split": split}
        scores["base"]["loss"] = 2.5
    story = read_story(paths)
    assert story.outcome.verdict is None and any("cannot be read" in one for one in story.problems)
    assert base_validation_loss(story) == expected


@pytest.mark.parametrize(
    ("placement", "num_slots"),
    [
        ({"engine": "packed", "slots_per_device": 4, "packs_per_device": 2}, 2),
        ({"engine": "packed", "slots_per_device": 3}, 3),
        ({"engine": "single", "slots_per_device": 4}, 1),
    ],
)
def test_an_executor_without_a_trial_has_the_slots_of_the_plan(
    paths: SweepPaths, placement: dict[str, object], num_slots: int
) -> None:
    with edited(paths.manifest) as manifest:
        manifest["plan"] = {"placements": [placement]}
    append_line(paths.events, {"time": START + 1, "event": "executor_ready", "executor": 9, "hostname": "node"})
    timeline = read_story(paths).timeline
    assert timeline is not None
    assert sum("executor 9" in lane for lane in timeline.lanes) == num_slots


def test_further_figures_and_cut_answers_stand_with_the_verdict(paths: SweepPaths) -> None:
    with edited(paths.best / "scores.json") as scores:
        scores["winner"]["details"] = {"numeric_match": {"answered": 0.5, "r_squared": -4.3231}}
        scores["rescored"]["0000"]["num_cut_answers"] = 32
        scores["verdict"]["note"] = "32 of 40 were cut"
    story = read_story(paths)
    tables = [block for block in tell_verdict(story).blocks if isinstance(block, Table)]
    details = next(table for table in tables if table.header[0] == "numeric_match")
    assert (details.header[1:], details.rows) == (("answered", "r_squared"), (("winner", "0.500", "-4.323"),))
    assert "40 (32 cut)" in [cell for table in tables for row in table.rows for cell in row]
    assert "Note: 32 of 40 were cut." in lead_of(story)


def test_what_the_winners_heads_are_worth_stands_with_the_verdict(paths: SweepPaths) -> None:
    figures = {"accuracy": 0.75, "macro_f1": 0.5, "loss": 0.7, "majority": 0.25, "num_rows": 40, "class_f1": {"a": 0.5}}
    with edited(paths.best / "scores.json") as scores:
        scores["winner"]["heads"] = {"mood": figures, "act": {"accuracy": "much"}}
    tables = [block for block in tell_verdict(read_story(paths)).blocks if isinstance(block, Table)]
    heads = next(table for table in tables if "macro F1" in table.header)
    assert heads.rows[0][1:] == ("mood", "0.750", "0.500", "0.250", "40")
    assert heads.rows[1][1:3] == ("act", "-")
