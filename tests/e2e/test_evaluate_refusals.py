"""What the evaluate command refuses, in one message each, before a model is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qlora_ray.evaluate import main
from tests.e2e.untrained_sweep import FAST, sweep

__all__ = ["sweep"]


def test_references_that_cannot_be_scored_are_found_before_a_model_is_loaded(
    sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_ray.evaluation.run.models.open_models", lambda *_: 1 / 0)
    assert main([str(sweep), *FAST, "--set", "evaluate.metrics=[numeric]", "--to", str(tmp_path / "to")]) == 2
    assert "numeric" in capfd.readouterr().err
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models", "base,merged"], "--models merged: .* must have such a model"),
        (["--models", "basis"], "--models: must be of base, adapter, merged, got basis"),
        (["--trial", "7"], "--trial 7: no such trial"),
        (["--shots", "three"], "--shots: must be numbers like 0,3, got 'three'"),
        (["--split", "none"], "--split none: leaves nothing to evaluate"),
        (["--lm-eval-shots", "3"], "--lm-eval-shots 3: needs --lm-eval tasks, got none"),
        (["--max-prompts", "3"], "--max-prompts 3: needs --prompts files, got none"),
        (["--metric", "gone.py:X"], r"metric gone.py:X: must name a Python file"),
        (["--set", "evaluate.shot=3"], "evaluate.shot is not a known key"),
        (["--prompts", "red_team", "--set", "evaluate.metrics=[token_f1]"], "metrics need a reference in every row"),
        (["--prompts", "gone.jsonl"], "prompts: must be a file or one of"),
        (["--set", "model.name=/gone"], r"its base must be there, got /gone"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    to = tmp_path / "to"
    assert main([str(sweep), "--to", str(to), *options]) == 2
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    assert re.search(words, captured.err), captured.err
    assert not to.exists()


@pytest.mark.parametrize("text", ["abc", "0", "-1", "1_000", "2.5"])
def test_rows_must_be_a_whole_number(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["embedded", f"--rows={text}"])
    assert f"argument --rows: must be a whole number above 0, got {text}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--max-prompts=0", "argument --max-prompts: must be a whole number above 0, got 0"),
        ("--max-prompts=ten", "argument --max-prompts: must be a whole number above 0, got ten"),
        ("--lm-eval-shots=-1", "argument --lm-eval-shots: must be a whole number, 0 or more, got -1"),
        ("--lm-eval-shots=1.5", "argument --lm-eval-shots: must be a whole number, 0 or more, got 1.5"),
    ],
)
def test_other_counts_must_be_whole_numbers_too(option: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["embedded", option])
    assert words in capfd.readouterr().err
