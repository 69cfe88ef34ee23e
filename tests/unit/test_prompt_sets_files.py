"""Prompt files of several layouts become the same rows, and broken ones are refused by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_ray.data.examples import Turn
from qlora_ray.errors import DataError
from qlora_ray.evaluation.prompt_sets.files import find_prompt_file, read_prompts, shipped_prompt_sets
from qlora_ray.scoring.metrics.eq_bench import holds_ratings, read_ratings


def _write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _turns(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns]


TWO_ANSWERS = _turns(("human", "q"), ("model", "a"), ("gpt", "b"))
ANSWERED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_shipped_sets_are_read_by_name() -> None:
    assert shipped_prompt_sets() == ["eqbench", "qualitative", "red_team"]
    for name in ("qualitative", "red_team"):
        rows = read_prompts(name)
        assert len(rows) == 8
        assert all(row.reference is None and row.turns[-1].role == "user" for row in rows)


def test_the_shipped_eqbench_prompts_ask_for_the_emotions_that_their_references_rate() -> None:
    rows = read_prompts("eqbench")
    assert 12 <= len(rows) == len({row.prompt for row in rows}) <= 20
    for row in rows:
        assert holds_ratings(row.reference or "") and not row.is_partial
        asked, [*_, lines] = row.prompt.split("\n\n")[0], row.prompt.split("\n\n")
        assert "from 0 (not at all) to 10" in asked
        assert lines.splitlines() == [f"{emotion}: <0-10>" for emotion in read_ratings(row.reference or "")]


@pytest.mark.parametrize("name", ["redteam", "red-team", "red_team", "RedTeam"])
def test_a_shipped_set_is_found_by_other_spellings_of_its_name(name: str) -> None:
    assert find_prompt_file(name).name == "red_team.jsonl"


def test_several_sets_in_one_option_are_told_apart() -> None:
    with pytest.raises(DataError, match="Give --prompts once for each set"):
        find_prompt_file("qualitative,redteam")


def test_a_prompt_has_its_id_or_its_place(tmp_path: Path) -> None:
    asked = {"question_id": 81, "prompt": "Feel?"}
    alpaca = {"instruction": "Add", "input": "2 and 3", "reference": 5}
    written = [{"prompt": "One?"}, {"id": "x", "question": "Two?"}, alpaca, asked]
    assert [(row.id, row.prompt, row.reference) for row in read_prompts(_write(tmp_path / "p.jsonl", *written))] == [
        ("0", "One?", None),
        ("x", "Two?", None),
        ("2", "Add\n\n2 and 3", "5"),
        ("81", "Feel?", None),
    ]


def test_eq_bench_files_are_read_as_they_are(tmp_path: Path) -> None:
    # The layout of EQ-Bench's data/eq_bench_v2_questions_171.json.
    path = tmp_path / "eq.json"
    answers = {"reference_answer": {"emotion1": "Annoyed"}}
    path.write_text(json.dumps({"1": {"prompt": "\nYour task", **answers}, "7": {"prompt": "Next"}}), encoding="utf-8")
    found = [(row.id, row.prompt, row.reference) for row in read_prompts(path)]
    assert found == [("1", "\nYour task", None), ("7", "Next", None)]


def test_eq_bench_files_have_their_full_scale_ratings_as_reference(tmp_path: Path) -> None:
    names = ("Remorseful", "Indifferent", "Affectionate", "Annoyed")
    emotions = {f"emotion{place}": name for place, name in enumerate(names, start=1)}
    # Its file has numbers and texts side by side.
    ratings = {f"emotion{place}_score": rating for place, rating in enumerate((0, "6", 0, "7"), start=1)}
    path = tmp_path / "eq.json"
    rows = {
        "1": {"prompt": "a", "reference_answer_fullscale": {**emotions, **ratings}},
        "2": {"prompt": "b", "reference_answer_fullscale": str({**emotions, **ratings})},
    }
    path.write_text(json.dumps(rows), encoding="utf-8")
    expected = "Remorseful: 0\nIndifferent: 6\nAffectionate: 0\nAnnoyed: 7"
    assert [(row.reference, row.is_partial) for row in read_prompts(path)] == [(expected, True)] * 2
    rows["2"]["reference_answer_fullscale"] = emotions
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(
        DataError, match="row 2: 'reference_answer_fullscale' must have four emotions rated from 0 to 10"
    ):
        read_prompts(path)


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
    found = [(row.id, row.prompt, row.where) for row in read_prompts(path)]
    assert found == [("0", "One?", f"{path}:1"), ("1", "Two?", f"{path}:3")]


def test_csv_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("id,prompt,reference\na,One?,\nb,Two?,2\n", encoding="utf-8")
    assert [(row.id, row.reference) for row in read_prompts(path)] == [("a", None), ("b", "2")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": " "}], r"p\.jsonl:1: 'prompt' must hold text, got blanks only"),
        ([{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}], r"jsonl:2: an id must .* once, got '1' as in .*:1"),
        ([{"id": "1", "prompt": "a"}, {"prompt": "b"}], r"jsonl:2: an id must be there once, got '1'"),
        ([{"text": "a", "category": "b"}], r"jsonl:1: a row must have one of prompt, .*, got text, category"),
        ([{"prompt": "a", "reference": {"score": 1}}], r"'reference' must hold text, got a dict"),
        ([{"prompt": "a", "id": [1]}], r"'id' must be text or a whole number, got a list"),
        ([{"messages": [{"role": "user", "content": ""}]}], r"turn 1 \(user\) must hold text"),
        ([{"messages": []}], r"'messages' must hold a list of turns"),
        ([["a"]], r"jsonl:1: a row must be a JSON object, got a list"),
        ([{"conversations": TWO_ANSWERS}], r"jsonl:1: a user turn must come between .* turns 2 and 3"),
        ([{"messages": ANSWERED, "reference": "b"}], "the reference must be in one place"),
        ([{"prompt": ""}] * 5, r"\.\.\. and 2 more\.\nCorrect those rows of p\.jsonl\."),
    ],
)
def test_a_bad_row_is_refused_by_its_line(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_prompts(_write(tmp_path / "p.jsonl", *rows))


@pytest.mark.parametrize("role", ["assistant", "gpt", "chatgpt", "model", "bot", " Model"])
def test_every_name_of_the_model_gives_the_reference(tmp_path: Path, role: str) -> None:
    (row,) = read_prompts(_write(tmp_path / "p.jsonl", {"conversations": _turns(("human", "q"), (role, "a"))}))
    assert (row.turns, row.reference) == ((Turn("user", "q"),), "a")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "\ud83d hi"}, "prompt"),
        ({"instruction": "hi", "input": "a\udc00"}, "input"),
        ({"conversations": _turns(("human", "q"), ("gpt", "a"), ("human", "b\ud83d"))}, "conversations.3.value"),
        ({"prompt": "q", "reference": "\ud83d"}, "reference"),
        ({"prompt": "q", "id": "\ud83d"}, "id"),
    ],
)
def test_half_a_character_is_refused_by_its_line(tmp_path: Path, row: dict[str, object], what: str) -> None:
    with pytest.raises(DataError, match=rf"p\.jsonl:2: {what} must be Unicode text, .* .u[d8]"):
        read_prompts(_write(tmp_path / "p.jsonl", {"prompt": "fine"}, row))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, r"must not end in \.losses") for name in ("0-shot.losses.jsonl", "mine.LOSSES.txt")),
        *((name, "results can be called by, got") for name in ("a|b.jsonl", "a\nb.jsonl", "what?.jsonl", "c:d.jsonl")),
        ("3-shot.jsonl", "3-shot is what the split's own rows are called"),
    ],
)
def test_a_file_whose_name_results_cannot_have_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"{words}.*Rename the file"):
        read_prompts(_write(tmp_path / name, {"prompt": "a"}))


def test_a_name_that_is_no_file_says_which_sets_there_are() -> None:
    with pytest.raises(DataError, match=r"qualitative, red_team, got 'red_taem'.* mean red_team\?"):
        read_prompts("red_taem")


@pytest.mark.parametrize(("content", "message"), [(b"", "at least one prompt, got none"), (b"a\xff", "must be UTF-8")])
def test_a_text_file_without_prompts_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(path)
