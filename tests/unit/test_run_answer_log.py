"""Rows on disk: appended, read back after a crash, and held against the settings they were made with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.errors import RunError
from qlora_ray.evaluation.run.answer_log import AnswerLog

ASKED = {"fingerprint": "f0", "num_rows": 4, "num_answered": 2}
SETTINGS: dict[str, Any] = {
    "path": "results/x",
    "target": {"trial": "0001", "adapter": "aa"},
    "evaluate": {"max_new_tokens": 96, "batch_size": 16},
    "models": {"base": {"base": "sha256:1"}},
    "prompts": {"0-shot": ASKED},
}


def make_answer_log(folder: Path, **changes: Any) -> AnswerLog:
    return AnswerLog(folder, {**SETTINGS, **changes})


def begin(folder: Path, **changes: Any) -> AnswerLog:
    answer_log = make_answer_log(folder, **changes)
    answer_log.check()
    with answer_log.hold():
        answer_log.write_settings()
    return answer_log


def test_rows_come_back_by_their_number(tmp_path: Path) -> None:
    answer_log = begin(tmp_path / "to")
    answer_log.add_answers("base", "0-shot", [{"row": 2, "answer": "b\u2028c"}, {"row": 0, "answer": "a"}])
    nothing = {"row": 0, "nll": math.nan, "tokens": 1}
    answer_log.add_losses("base", "0-shot", [{"row": 1, "nll": 2.5, "tokens": 3}, nothing])
    answers = answer_log.read_answers("base", "0-shot")
    assert {row: line["answer"] for row, line in answers.items()} == {0: "a", 2: "b\u2028c"}
    losses = answer_log.read_losses("base", "0-shot")
    assert losses[1] == (2.5, 3) and math.isnan(losses[0][0])
    assert answer_log.read_answers("adapter", "0-shot") == {}


def test_what_heads_answered_comes_back_by_head_and_row(tmp_path: Path) -> None:
    answer_log = begin(tmp_path / "to")
    lines = [
        {"row": 1, "nll": 2.5, "tokens": 3, "heads": {"mood": (2, 0.5), "act": (0, math.nan)}},
        {"row": 0, "nll": 1.0, "tokens": 1},
    ]
    answer_log.add_losses("adapter", "0-shot", lines)
    found = answer_log.read_heads("adapter", "0-shot")
    assert found["mood"] == {1: (2, 0.5)}
    assert found["act"][1][0] == 0 and math.isnan(found["act"][1][1])
    assert answer_log.read_losses("adapter", "0-shot") == {1: (2.5, 3), 0: (1.0, 1)}
    assert answer_log.read_heads("base", "0-shot") == {}


def test_a_line_cut_off_by_a_crash_loses_no_other(tmp_path: Path) -> None:
    answer_log = begin(tmp_path / "to")
    answer_log.add_answers("base", "0-shot", [{"row": 0, "answer": "a"}])
    path = tmp_path / "to" / "base" / "0-shot.jsonl"
    path.write_bytes(path.read_bytes() + b'{"row": 1, "ans')
    answer_log.add_answers("base", "0-shot", [{"row": 1, "answer": "b"}, {"row": 2, "answer": "c"}])
    assert sorted(answer_log.read_answers("base", "0-shot")) == [0, 1, 2]


def test_a_finished_set_is_put_in_order_and_the_first_line_of_a_row_counts(tmp_path: Path) -> None:
    answer_log = begin(tmp_path / "to")
    answer_log.add_answers("base", "0-shot", [{"row": 1, "answer": "b"}, {"row": 0, "answer": "a"}])
    answer_log.add_answers("base", "0-shot", [{"row": 1, "answer": "late"}])
    answer_log.tidy("base", "0-shot")
    lines = (tmp_path / "to" / "base" / "0-shot.jsonl").read_text().splitlines()
    assert lines == ['{"row": 0, "answer": "a"}', '{"row": 1, "answer": "b"}']


def test_the_same_settings_go_on_and_more_models_prompts_and_answers_may_join(tmp_path: Path) -> None:
    begin(tmp_path / "to")
    more = make_answer_log(
        tmp_path / "to",
        path="elsewhere/x",
        models={"merged": {"hash": "sha256:2"}},
        prompts={"3-shot": {"fingerprint": "f3", "num_rows": 4}},
    )
    more.check()
    assert set(more.settings["models"]) == {"base", "merged"}
    assert set(more.settings["prompts"]) == {"0-shot", "3-shot"}
    answers = {"0-shot": {**ASKED, "num_answered": 4}}
    assert begin(tmp_path / "to", prompts=answers).settings["prompts"] == answers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluate": {"max_new_tokens": 32, "batch_size": 16}}, r"max_new_tokens must stay .* \(96\), got 32"),
        ({"prompts": {"0-shot": {**ASKED, "fingerprint": "f9"}}}, "prompts.0-shot.fingerprint must stay"),
        ({"prompts": {"0-shot": {**ASKED, "num_answered": 1}}}, r"0-shot.num_answered must stay .* \(2\), got 1"),
        ({"models": {"base": {"base": "sha256:3"}}}, "models.base.base must stay"),
        ({"target": {"trial": "0002", "adapter": "bb"}}, r"belongs to another evaluation \(target.trial 0001\)"),
    ],
)
def test_a_changed_setting_is_named_with_both_values(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    begin(tmp_path / "to")
    with pytest.raises(RunError, match=words):
        make_answer_log(tmp_path / "to", **changes).check()


def write_tree(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read_tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "mine"},
        {"settings.json": '{"editor.tabSize": 4}', "merged/model.safetensors": "weights", "base/0-shot.jsonl": "mine"},
        {"settings.json": "[1]"},
        {"settings.json": "no json", "base/notes.txt": "mine"},
        {"settings.json": '{"format": 1, "target": {}, "models": [1]}'},
        # Rows without settings: what they were made with is not known.
        {".lock": "", "base/0-shot.jsonl": '{"row": 0, "answer": "old"}'},
    ],
)
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path, files: dict[str, str]) -> None:
    write_tree(tmp_path, files)
    for refused in (make_answer_log(tmp_path).check, make_answer_log(tmp_path).clear):
        with pytest.raises(RunError, match=r"must be empty or an evaluation, got other files"):
            refused()
    assert read_tree(tmp_path) == files


def test_starting_again_removes_what_an_evaluation_wrote_and_nothing_else(tmp_path: Path) -> None:
    to = tmp_path / "to"
    begin(to).add_answers("base", "0-shot", [{"row": 0, "answer": "a"}])
    begin(to).add_losses("adapter", "0-shot", [{"row": 0, "nll": 1.0, "tokens": 1}])
    mine = {"notes.txt": "mine", "merged/model.safetensors": "weights", "base/notes/a.txt": "mine"}
    write_tree(to, {**mine, "base/lm_eval.json": "{}", "evaluation.json": "{}"})
    answer_log = make_answer_log(to, target={"trial": "0002", "adapter": "bb"})
    answer_log.clear()
    assert read_tree(to).keys() == {*mine, ".lock", "settings.json"}
    assert not (to / "adapter").exists()
    answer_log.check()
    assert answer_log.read_answers("base", "0-shot") == {}


def test_rows_that_cannot_be_removed_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "base" / "0-shot.jsonl").mkdir(parents=True)
    changed = make_answer_log(tmp_path, target={"trial": "0002", "adapter": "bb"})
    with pytest.raises(RunError, match=r"0-shot\.jsonl: cannot be removed: .*Choose another --to"):
        changed.clear()
    with pytest.raises(RunError, match="belongs to another evaluation"):
        changed.check()


def test_old_results_are_gone_once_an_evaluation_begins(tmp_path: Path) -> None:
    answer_log = begin(tmp_path / "to")
    (tmp_path / "to" / "evaluation.json").write_text("{}")
    answer_log.write_settings()
    assert not (tmp_path / "to" / "evaluation.json").exists()


def test_two_evaluations_cannot_write_one_folder(tmp_path: Path) -> None:
    answer_log = begin(tmp_path / "to")
    other = make_answer_log(tmp_path / "to")
    with answer_log.hold(), pytest.raises(RunError, match="another evaluation runs there"), other.hold():
        pass
    with other.hold():
        pass


def test_a_folder_that_nothing_was_written_to_is_taken_away_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError), make_answer_log(tmp_path / "a" / "b").hold():
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with make_answer_log(tmp_path / "mine").hold():
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    blocked = make_answer_log(tmp_path / "file" / "to")
    with pytest.raises(RunError, match=r"--to .*to: cannot be written: Not a directory"), blocked.hold():
        pass
    answer_log = begin(tmp_path / "to")

    def fill(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fill)
    with pytest.raises(RunError, match=r"0-shot.jsonl: cannot be written: No space left"):
        answer_log.add_answers("base", "0-shot", [{"row": 0, "answer": "a"}])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(RunError, match="cannot be written: Permission denied"), answer_log.hold():
        pass


def test_what_a_kill_in_the_first_write_leaves_is_no_other_file(tmp_path: Path) -> None:
    left = {".lock": "", ".settings.json.ab12cd_9": '{"for', ".settings.json.qlora_ray-ab12cd_9": ""}
    write_tree(tmp_path, left)
    assert make_answer_log(tmp_path).check_folder() is None
    make_answer_log(tmp_path).clear()
    begin(tmp_path)
    assert read_tree(tmp_path).keys() == {".lock", "settings.json"}
