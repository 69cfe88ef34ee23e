"""The soak's schedule comes from its seed, and its books find what was lost."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak_books import (
    EndedTrial,
    Losses,
    Outcome,
    check_folder,
    compare_moments,
    compare_with_undisturbed,
    read_outcome,
)
from benchmarks.soak_faults import AT_ANY_TIME, MAX_EVENTS, Fault, FaultKind, draw_faults
from benchmarks.soak_memory import describe_growth
from benchmarks.soak_sweep import SoakedSweep
from benchmarks.soak_table import Strike, format_losses, format_strikes
from qlora_ray.runs import SweepPaths

TRIALS = {
    "0000": EndedTrial('{"lr": 1}', "complete", {"1": 0.5, "2": 0.4}, "record 0"),
    "0001": EndedTrial('{"lr": 2}', "failed", {}, "record 1"),
}
UNDISTURBED = Outcome(TRIALS, "0000")


def draw(seed: int, count: int) -> list[Fault]:
    """The first faults of a seed."""
    return list(itertools.islice(draw_faults(seed), count))


def test_a_seed_draws_the_same_faults_and_another_one_others() -> None:
    assert draw(1, 50) == draw(1, 50) != draw(2, 50)


def test_every_kind_has_its_turn_and_only_those_that_need_a_driver_come_in_the_start() -> None:
    faults = draw(3, 20 * len(FaultKind))
    for begin in range(0, len(faults), len(FaultKind)):
        assert {fault.kind for fault in faults[begin : begin + len(FaultKind)]} == set(FaultKind)
    assert all(0 <= fault.after_events <= MAX_EVENTS and 0 <= fault.share < 1 for fault in faults)
    assert {fault.kind for fault in faults if fault.after_events == 0} == AT_ANY_TIME


def test_a_trial_that_had_ended_must_stay_as_it_was() -> None:
    assert compare_moments(UNDISTURBED, Outcome({**TRIALS, "0002": TRIALS["0000"]})).is_empty
    lost = compare_moments(UNDISTURBED, Outcome({"0001": TRIALS["0001"]}))
    assert len(lost.lost) == 1 and "0000" in lost.lost[0]
    changed = compare_moments(UNDISTURBED, Outcome({**TRIALS, "0001": replace(TRIALS["0001"], text="other")}))
    assert len(changed.changed) == 1 and "0001" in changed.changed[0]


def test_numbers_may_differ_from_the_undisturbed_sweep_and_values_by_rounding() -> None:
    again = replace(TRIALS["0000"], reports={"1": 0.5 * (1 + 1e-6), "2": 0.4}, text="other")
    assert compare_with_undisturbed(Outcome({"0005": again, "0001": TRIALS["0001"]}, "0005"), UNDISTURBED).is_empty


@pytest.mark.parametrize(
    ("trials", "winner", "kind"),
    [
        ({"0000": TRIALS["0000"]}, "0000", "lost"),
        ({**TRIALS, "0002": TRIALS["0000"]}, "0000", "repeated"),
        ({**TRIALS, "0002": replace(TRIALS["0000"], params='{"lr": 3}')}, "0000", "repeated"),
        ({**TRIALS, "0000": replace(TRIALS["0000"], reports={"1": 0.5, "2": 0.41})}, "0000", "changed"),
        ({**TRIALS, "0000": replace(TRIALS["0000"], reports={"2": 0.4})}, "0000", "changed"),
        ({**TRIALS, "0001": replace(TRIALS["0001"], state="complete")}, "0000", "changed"),
        (TRIALS, "0001", "winners"),
        (TRIALS, None, "winners"),
    ],
)
def test_what_differs_from_the_undisturbed_sweep_is_found(
    trials: dict[str, EndedTrial], winner: str | None, kind: str
) -> None:
    losses = compare_with_undisturbed(Outcome(trials, winner), UNDISTURBED)
    assert len(getattr(losses, kind)) == 1
    setattr(losses, kind, [])
    assert losses.is_empty


def make_folder(folder: Path) -> SweepPaths:
    """A complete sweep of one trial, and one that was interrupted."""
    paths = SweepPaths(folder / "s")
    for number, state in enumerate(("interrupted", "complete")):
        trial = paths.trial(f"{number:04d}")
        trial.root.mkdir(parents=True)
        record = {"trial": f"{number:04d}", "state": state, "params": {"lr": 1}, "reports": {"1": 0.5}}
        trial.record.write_text(json.dumps(record))
    paths.summary.write_text(json.dumps({"status": "complete", "winner": "0001"}))
    paths.events.write_text('{"event": "trial_opened", "trial": "0001"}\n')
    return paths


def test_a_folder_is_read_and_one_with_leftovers_or_torn_lines_is_found(tmp_path: Path) -> None:
    paths = make_folder(tmp_path)
    outcome = read_outcome(paths)
    assert list(outcome.trials) == ["0001"] and outcome.winner == "0001"
    assert check_folder(paths).is_empty
    paths.events.write_text('{"event": "trial_opened", "trial": "0001"}\n' * 2 + '{"ev\n')
    (paths.root / ".best.qlora_ray-abcd1234").mkdir()
    paths.trial("0000").state.mkdir()
    paths.summary.write_text(json.dumps({"status": "interrupted", "winner": None}))
    losses = check_folder(paths)
    assert (len(losses.repeated), len(losses.files), len(losses.endings)) == (1, 3, 1)


def test_a_line_is_torn_at_the_share_that_was_drawn_and_a_first_line_never(tmp_path: Path) -> None:
    sweep = SoakedSweep(tmp_path, "mark")
    sweep.paths.root.mkdir()
    fault = Fault(FaultKind.EVENTS_TORN, 1, 0.0, 0.5, False)
    assert not sweep.tear(fault)
    sweep.paths.events.write_text("first\n")
    assert not sweep.tear(fault)
    sweep.paths.events.write_text("first\n1234567\n")
    assert sweep.tear(fault)
    assert sweep.paths.events.read_text() == "first\n1234"


def test_growth_is_a_line_through_what_comes_after_the_warm_up() -> None:
    points = [(0, 100.0), (10, 300.0), *[(count, 500.0 + 0.02 * count) for count in range(50, 201, 10)]]
    assert describe_growth(points, 200) == {"first_mib": 100.0, "last_mib": 504.0, "mib_per_100_trials": 2.0}


def test_the_table_counts_faults_by_kind_and_how_drivers_ended() -> None:
    fault = draw(1, 1)[0]
    strikes = [Strike(fault, "packed-0", 0.0, 130, 4.0), Strike(fault, "packed-0", 9.0, 130, 6.0)]
    strikes.append(Strike(replace(fault, kind=FaultKind.EXECUTOR_KILLED), "packed-0", 12.0))
    text = format_strikes(strikes)
    assert f"{fault.kind}" in text and "130: 2" in text and "5.0 s, 6.0 s" in text and "went on: 1" in text
    assert "trials lost" in format_losses({"sweeps": 1}, Losses())
