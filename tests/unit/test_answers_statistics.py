"""Answers on disk are checked, counted and shown; what is wrong with them is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_ray.errors import RunError
from qlora_ray.evaluation.answers.files import read_answers
from qlora_ray.evaluation.answers.page import export_answers
from qlora_ray.evaluation.answers.statistics import is_loop


def _line(key: str, answer: str, **others: Any) -> str:
    values = {"row": 0, "id": key, "prompt": f"ask {key}", "answer": answer, "reference": None, "num_tokens":
              len(answer.split()), "finish": "stop"}  # fmt: skip
    return json.dumps({**values, **others})


def _write(folder: Path, model: str, lines: list[str], *, name: str = "red_team") -> None:
    path = folder / model / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _export(folder: Path, *models: str) -> dict[str, Any]:
    return export_answers(folder, prompt_sets=["red_team"], models=models or ("base", "adapter"))


def test_clean_answers_give_no_warning_and_stats_are_written_as_they_are_returned(tmp_path: Path) -> None:
    for model in ("base", "adapter"):
        _write(tmp_path, model, [_line("a", "yes"), _line("b", "no")])
    stats = _export(tmp_path)
    assert stats["warnings"] == []
    assert json.loads((tmp_path / "stats.json").read_text()) == stats
    assert all((tmp_path / name).is_file() for name in stats["files"])


def test_lengths_are_those_of_numpy(tmp_path: Path) -> None:
    words = [1, 2, 3, 4, 10, 20]
    _write(tmp_path, "base", [_line(str(num), " ".join(["word"] * num)) for num in words])
    lengths = _export(tmp_path, "base")["prompt_sets"]["red_team"]["models"]["base"]
    for unit, counts in (("words", words), ("tokens", words), ("characters", [5 * num - 1 for num in words])):
        assert lengths[unit] == pytest.approx(
            {"mean": np.mean(counts), "median": np.median(counts), "p95": np.percentile(counts, 95), "max": max(counts)}
        )


def test_refusals_cuts_empties_and_loops_are_counted(tmp_path: Path) -> None:
    lines = [
        _line("a", "I can't help with that."),
        _line("b", "well " * 64, finish="length"),
        _line("c", " \n"),
        _line("d", "Here is how."),
    ]
    _write(tmp_path, "base", lines)
    stats = _export(tmp_path, "base")
    figures = stats["prompt_sets"]["red_team"]["models"]["base"]
    assert {key: figures[f"num_{key}"] for key in ("answers", "empty", "cut", "refusals", "loops")} == {
        "answers": 4, "empty": 1, "cut": 1, "refusals": 1, "loops": 1}  # fmt: skip
    assert figures["refusals"] == [{"id": "a", "phrase": "i can't help"}]
    empty, cut = stats["warnings"]
    assert empty.startswith("base/red_team.jsonl: 1 empty answer of 4") and empty.endswith(": c")
    assert cut.startswith("base/red_team.jsonl: 1 answer of 4 cut") and cut.endswith(": row b")


def test_identical_answers_are_counted_over_the_pairs(tmp_path: Path) -> None:
    _write(tmp_path, "base", [_line("a", "yes"), _line("b", "no"), _line("c", "only here")])
    _write(tmp_path, "adapter", [_line("b", "No"), _line("a", "yes ")])
    identical = _export(tmp_path)["prompt_sets"]["red_team"]["identical"]
    assert identical == [{"base": "base", "tuned": "adapter", "num_pairs": 2, "num_identical": 1}]


def test_ids_that_one_model_lacks_and_one_id_with_two_prompts_are_named(tmp_path: Path) -> None:
    _write(tmp_path, "base", [_line(str(number), "yes") for number in range(9)])
    _write(tmp_path, "adapter", [_line("0", "yes", prompt="something else"), _line("z", "yes")])
    base, adapter, prompts = _export(tmp_path)["warnings"]
    assert base.startswith("base/red_team.jsonl: lacks 1 id") and base.endswith(": z")
    assert adapter.startswith("adapter/red_team.jsonl: lacks 8 ids") and adapter.endswith(": 1, 2, 3, 4, 5 and 3 more")
    assert "different prompts under 1 id: 0" in prompts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "b", "answer": "cut of', "line 2 (not JSON)"),
        ('["b"]', "line 2 (not an object)"),
        (json.dumps({"id": "b", "prompt": "ask"}), "line 2 (no valid answer)"),
        (json.dumps({"id": "b", "prompt": 3, "answer": None}), "line 2 (no valid prompt, answer)"),
        (_line("a", "second"), "whose id came before: a"),
    ],
)
def test_a_broken_line_or_a_second_of_its_id_is_left_out_and_named(tmp_path: Path, line: str, reason: str) -> None:
    _write(tmp_path, "base", [_line("a", "yes"), line])
    rows, [warning] = read_answers(tmp_path / "base" / "red_team.jsonl")
    assert [(row.id, row.answer) for row in rows] == [("a", "yes")]
    assert warning.startswith("base/red_team.jsonl: 1 ") and warning.endswith(reason)


def test_a_missing_file_is_a_warning_and_the_page_is_still_written(tmp_path: Path) -> None:
    stats = _export(tmp_path)
    assert [warning.split(":")[0] for warning in stats["warnings"]] == ["base/red_team.jsonl", "adapter/red_team.jsonl"]
    assert stats["prompt_sets"]["red_team"]["models"]["base"]["words"]["mean"] is None
    assert (tmp_path / "answers.html").is_file()


def test_a_line_separator_inside_an_answer_splits_no_line(tmp_path: Path) -> None:
    path = tmp_path / "base" / "red_team.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"id": "a", "prompt": "p", "answer": "x\u2028y"}, ensure_ascii=False), encoding="utf-8")
    rows, warnings = read_answers(path)
    assert (rows[0].answer, rows[0].num_tokens, warnings) == ("x\u2028y", None, [])


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        _export(tmp_path / "missing")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("no " * 20, True),
        ("start here " + "SELECT a FROM b WHERE " * 4, True),
        ("no " * 19, False),
        (" ".join(map(str, range(40))), False),
        ("one two three four five six " * 4, False),
    ],
)
def test_a_loop_is_a_short_phrase_said_four_times(answer: str, expected: bool) -> None:
    assert is_loop(answer) is expected
