"""What a sweep says at its end."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.summary import print_next_steps, print_outcome, write_summary
from qlora_ray.orchestration.winner import Winner
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.files import read_json, write_json
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.scoring.comparison import compare_rows
from qlora_ray.scoring.scores import ScoredAnswer, Scores
from qlora_ray.scoring.verdict import Verdict
from qlora_ray.training.engine import UNEVALUATED, Failure

BASE = Scores(
    loss=10.2041,
    num_tokens=80,
    num_rows=8,
    metrics={"numeric_match": 0.0, "absolute_error": 212.167},
    row_metrics={},
    answers=[ScoredAnswer(0, "no idea", "#### 7")],
    num_cut_prompts=0,
    num_short_answers=0,
    details={"numeric_match": {"answered": 0.375, "r_squared": -4.3231}},
)
TUNED = replace(BASE, loss=3.5938, details={"numeric_match": {"answered": 1.0, "r_squared": 0.25}})
NOTE = "52 of 100 answers of the winner were cut at 96 tokens (base: 100)"


def test_the_end_shows_what_means_leave_out_and_what_weakens_the_verdict(tmp_path: Any) -> None:
    paths = SweepPaths(tmp_path)
    entry = SimpleNamespace(
        id="0003", number=3, state="complete", intermediate={}, params={}, tokens=0, train_s=0.0, value=3.5938
    )
    ledger: Any = SimpleNamespace(
        entries={"0003": entry},
        mode="min",
        objective="eval_loss",
        first_failure=None,
        value_of=lambda one: one.value,
        counts=lambda: {"complete": 1},
    )
    verdict = Verdict("test", compare_rows("loss", [10.0] * 8, [3.5] * 8, higher_is_better=False), [], note=NOTE)
    winner = Winner(ledger.entries["0003"], TUNED, BASE, {}, verdict)
    summary = write_summary(ledger, winner, paths=paths, interrupted=False)
    assert read_json(paths.summary)["verdict_note"] == NOTE
    text = io.StringIO()
    print_outcome(Console(text), summary, ledger=ledger, winner=winner, paths=paths, report=None)
    lines = text.getvalue().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("numeric_match"))
    assert [line.split() for line in lines[start : start + 3]] == [
        ["numeric_match", "answered", "r_squared"],
        ["base", "0.375", "-4.323"],
        ["winner", "0003", "1.000", "0.250"],
    ]
    assert f"          note: {NOTE}" in lines


@pytest.mark.parametrize(
    ("interrupted", "has_winner", "expected"),
    [
        (False, False, ["2 trials can go on: {resume}", "          0000, 0001: {cause}"]),
        (False, True, ["evaluate {evaluate}", "2 trials can go on: {resume}", "          0000, 0001: {cause}"]),
        (True, False, ["stopped. Go on with: {resume}"]),
    ],
)
def test_whatever_can_go_on_is_told_with_its_command_and_its_cause(
    tmp_path: Any, interrupted: bool, has_winner: bool, expected: list[str]
) -> None:
    paths, text = SweepPaths(tmp_path / "a b"), io.StringIO()
    paths.create()
    ledger = Ledger(SweepConfig(), paths=paths, console=Console(io.StringIO()), common=SweepFacts())
    result = {"report_index": 0, "is_final": True, "metrics": {}, "train_losses": [], "facts": {}, "waited_s": 0.0}
    for number in (0, 1):
        ledger.open(number, {})
        failure = Failure("unevaluated", UNEVALUATED)
        ledger.report({**result, "number": number, "failure": failure, "executor": 0, "num_retries": 0})
        ledger.close(number, crashed=False)
    winner: Any = SimpleNamespace(
        entry=SimpleNamespace(id="0002"), scores=BASE, verdict=SimpleNamespace(word="better", note=None)
    )
    chosen = winner if has_winner else None
    summary = write_summary(ledger, chosen, paths=paths, interrupted=interrupted)
    print_next_steps(Console(text), summary, ledger=ledger, winner=chosen, paths=paths, is_exported=True)
    root = f"'{paths.root}'"
    words = {
        "resume": f"python -m qlora_ray.sweep --resume {root}",
        "evaluate": f" python -m qlora_ray.evaluate {root} --shots 0,3",
        "cause": UNEVALUATED,
    }
    assert text.getvalue().splitlines() == [line.format(**words) for line in expected]


@pytest.mark.parametrize("is_exported", [False, True])
def test_how_to_export_is_told_unless_it_is_done_anyway(tmp_path: Any, is_exported: bool) -> None:
    ledger: Any = SimpleNamespace(
        resumable=lambda: [], counts=lambda: {"complete": 1}, objective="", first_failure=None
    )
    winner: Any = SimpleNamespace(
        entry=SimpleNamespace(id="0002"), scores=BASE, verdict=SimpleNamespace(word="better", note=None)
    )
    paths, text = SweepPaths(tmp_path), io.StringIO()
    write_json(paths.manifest, {"config": {"model": {"trust_remote_code": True}}})
    summary = write_summary(ledger, winner, paths=paths, interrupted=False)
    print_next_steps(Console(text), summary, ledger=ledger, winner=winner, paths=paths, is_exported=is_exported)
    # With the right that the sweep's own config gave: without it the command would be refused.
    assert ("--set model.trust_remote_code=true" in text.getvalue()) is not is_exported
    assert ("export    python -m qlora_ray.export" in text.getvalue()) is not is_exported
