"""Prompt files of several layouts become the same rows, and broken ones are refused by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_ray.data.examples import Turn
from qlora_ray.errors import DataError
from qlora_ray.evaluation.prompt_sets.files import read_prompts, shipped_prompt_sets


def _write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_shipped_sets_are_read_by_name() -> None:
    assert shipped_prompt_sets() == ["qualitative", "red_team"]
    for name in shipped_prompt_sets():
        rows = read_prompts(name)
        assert len(rows) == 8
        assert all(row.reference is None and row.turns[-1].role == "user" for row in rows)


def test_a_prompt_has_its_id_or_its_place(tmp_path: Path) -> None:
    alpaca = {"instruction": "Add", "input": "2 and 3", "reference": 5}
    rows = read_prompts(_write(tmp_path / "p.jsonl", {"prompt": "One?"}, {"id": "x", "question": "Two?"}, alpaca))
    assert [row.id for row in rows] == ["0", "x", "2"]
    assert [row.prompt for row in rows] == ["One?", "Two?", "Add\n\n2 and 3"]
    assert [row.reference for row in rows] == [None, None, "5"]


def test_eq_bench_files_are_read_as_they_are(tmp_path: Path) -> None:
    # The layout of EQ-Bench's data/eq_bench_v2_questions_171.json.
    path = tmp_path / "eq.json"
    rows = {
        "1": {"prompt": "\nYour task", "reference_answer": {"emotion1": "Annoyed"}},
        "7": {"prompt": "Next", "reference_answer": {}},
    }
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert [(row.id, row.prompt, row.reference) for row in read_prompts(path)] == [
        ("1", "\nYour task", None),
        ("7", "Next", None),
    ]


def test_rows_with_question_id_are_read(tmp_path: Path) -> None:
    rows = read_prompts(_write(tmp_path / "eq.jsonl", {"question_id": 81, "prompt": "Feel?"}))
    assert rows[0].id == "81"


def test_conversations_keep_their_turns_and_a_last_answer_is_the_reference(tmp_path: Path) -> None:
    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    answered = [*asked, {"role": "assistant", "content": "See you"}]
    first, second = read_prompts(_write(tmp_path / "p.jsonl", {"messages": asked}, {"messages": answered}))
    assert first.turns == second.turns
    assert first.turns[-1] == Turn("user", "Bye")
    assert (first.reference, second.reference) == (None, "See you")
    assert second.example.turns[-1] == Turn("assistant", "See you")


def test_text_files_have_a_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\ufeffOne?\r\n\nTwo?\n", encoding="utf-8")
    assert [(row.id, row.prompt, row.where) for row in read_prompts(path)] == [
        ("0", "One?", f"{path}:1"),
        ("1", "Two?", f"{path}:3"),
    ]


def test_csv_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("id,prompt,reference\na,One?,\nb,Two?,2\n", encoding="utf-8")
    assert [(row.id, row.reference) for row in read_prompts(path)] == [("a", None), ("b", "2")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": " "}], r"p\.jsonl:1: 'prompt' must hold text, got blanks only"),
        (
            [{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}],
            r"jsonl:2: an id must be there once, got '1' as in .*:1",
        ),
        ([{"id": "1", "prompt": "a"}, {"prompt": "b"}], r"jsonl:2: an id must be there once, got '1'"),
        ([{"text": "a", "category": "b"}], r"jsonl:1: a row must have one of prompt, .*, got text, category"),
        ([{"prompt": "a", "reference": {"score": 1}}], r"'reference' must hold text, got a dict"),
        ([{"prompt": "a", "id": [1]}], r"'id' must be text or a whole number, got a list"),
        ([{"messages": [{"role": "user", "content": ""}]}], r"turn 1 \(user\) must hold text"),
        ([{"messages": []}], r"'messages' must hold a list of turns"),
        ([["a"]], r"jsonl:1: a row must be a JSON object, got a list"),
        ([{"prompt": ""}] * 5, r"\.\.\. and 2 more\.\nCorrect those rows of p\.jsonl\."),
    ],
)
def test_a_bad_row_is_refused_by_its_line(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_prompts(_write(tmp_path / "p.jsonl", *rows))


def _turns(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns]


@pytest.mark.parametrize("role", ["assistant", "gpt", "chatgpt", "model", "bot", " Model"])
def test_every_name_of_the_model_gives_the_reference(tmp_path: Path, role: str) -> None:
    (row,) = read_prompts(_write(tmp_path / "p.jsonl", {"conversations": _turns(("human", "q"), (role, "a"))}))
    assert (row.turns, row.reference) == ((Turn("user", "q"),), "a")


def test_two_answers_in_a_row_are_refused(tmp_path: Path) -> None:
    turns = _turns(("human", "q"), ("model", "a"), ("gpt", "b"))
    with pytest.raises(DataError, match=r"jsonl:1: a user turn must come between two answers, got turns 2 and 3"):
        read_prompts(_write(tmp_path / "p.jsonl", {"conversations": turns}))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "\ud83d hi"}, "the prompt"),
        ({"instruction": "hi", "input": "a\udc00"}, "the prompt"),
        ({"conversations": _turns(("human", "q"), ("gpt", "a"), ("human", "b\ud83d"))}, "turn 3"),
        ({"prompt": "q", "reference": "\ud83d"}, "the reference"),
        ({"prompt": "q", "id": "\ud83d"}, "the id"),
    ],
)
def test_half_a_character_is_refused_by_its_line(tmp_path: Path, row: dict[str, object], what: str) -> None:
    with pytest.raises(DataError, match=rf"p\.jsonl:2: {what} must be Unicode text, got half a character, .u[d8]"):
        read_prompts(_write(tmp_path / "p.jsonl", {"prompt": "fine"}, row))


@pytest.mark.parametrize("name", ["0-shot.losses.jsonl", "mine.losses.jsonl", "mine.LOSSES.txt"])
def test_a_file_called_like_a_file_of_losses_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"must not end in \.losses.*Rename the file"):
        read_prompts(_write(tmp_path / name, {"prompt": "a"}))


@pytest.mark.parametrize("name", ["a|b.jsonl", "a\nb.jsonl", "what?.jsonl", "c:d.jsonl"])
def test_a_name_that_results_cannot_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"must be one that results can be called by, got .*Rename the file"):
        read_prompts(_write(tmp_path / name, {"prompt": "a"}))


def test_an_answer_in_two_places_is_refused(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="the reference must be in one place"):
        read_prompts(_write(tmp_path / "p.jsonl", {"messages": turns, "reference": "b"}))


def test_a_name_that_is_no_file_says_which_sets_there_are() -> None:
    with pytest.raises(DataError, match=r"one of qualitative, red_team, got 'red_taem'.* Did you mean red_team\?"):
        read_prompts("red_taem")


def test_a_file_called_like_a_set_of_the_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3-shot is what the split's own rows are called. Rename the file"):
        read_prompts(_write(tmp_path / "3-shot.jsonl", {"prompt": "a"}))


@pytest.mark.parametrize(("content", "message"), [(b"", "at least one prompt, got none"), (b"a\xff", "must be UTF-8")])
def test_a_text_file_without_prompts_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(path)
