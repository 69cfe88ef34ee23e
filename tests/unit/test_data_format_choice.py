"""Which columns of data sets that people know are read, and what is said of those that fit nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config.schema import Columns, Data
from qlora_ray.data.examples import Row, Turn
from qlora_ray.data.formats import Conversion
from qlora_ray.data.notes import describe_notes
from qlora_ray.data.sources import find_sources
from qlora_ray.data.splits import RowChoice
from qlora_ray.errors import DataError

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
ASKED, ANSWERED = (Turn("user", "Hi"), Turn("assistant", "Ho"))


def convert(*rows: dict[str, Any], **data: Any) -> tuple[list[tuple[Turn, ...]], Conversion]:
    conversion = Conversion("a.jsonl", Data(**data))
    examples = conversion.convert([Row(f"a.jsonl:{number}", row) for number, row in enumerate(rows, start=1)])
    return [example.turns for example in examples], conversion


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        # databricks-dolly-15k, sql-create-context, OpenOrca, OpenHermes-2.5.
        (
            {"instruction": "Hi", "context": "There.", "response": "Ho", "category": "open_qa"},
            (Turn("user", "Hi", "There."), ANSWERED),
        ),
        (
            {"question": "Hi", "context": "CREATE TABLE a (b)", "answer": "Ho"},
            (Turn("user", "Hi", "CREATE TABLE a (b)"), ANSWERED),
        ),
        (
            {"id": "1", "system_prompt": "Be.", "question": "Hi", "response": "Ho"},
            (Turn("system", "Be."), ASKED, ANSWERED),
        ),
        (
            {
                "system_prompt": "Be.",
                "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
            },
            (Turn("system", "Be."), ASKED, ANSWERED),
        ),
        ({"prompt": "Hi", "completion": "Ho", "system": "Be."}, (Turn("system", "Be."), ASKED, ANSWERED)),
        ({"prompt": TURNS[:1], "completion": TURNS[1:], "system": "Be."}, (Turn("system", "Be."), ASKED, ANSWERED)),
        ({"conversation": TURNS, "source": "x"}, (ASKED, ANSWERED)),
    ],
)
def test_columns_that_belong_to_a_question_are_read_with_it(row: dict[str, Any], turns: tuple[Turn, ...]) -> None:
    found, conversion = convert(row)
    assert found == [turns]
    assert not conversion.notes


def test_a_context_that_is_blank_or_no_text_is_no_part_of_a_question() -> None:
    blank = {"question": "Hi", "context": "", "answer": "Ho"}
    assert convert(blank, {**blank, "context": "There."})[0][0] == (ASKED, ANSWERED)
    turns, conversion = convert({**blank, "context": {"title": ["a"]}})
    assert turns == [(ASKED, ANSWERED)]
    assert describe_notes(conversion.notes) == ["1 row with a column 'context', which is not used"]


@pytest.mark.parametrize("column", ["system", "context", "tools", "history", "reasoning", "thinking"])
def test_a_column_without_which_a_row_means_something_else_is_counted_where_it_is_not_read(column: str) -> None:
    rows = [{"ask": "Hi", "say": "Ho", "id": "7", column: value} for value in ("x", "", None)]
    turns, conversion = convert(*rows, columns=Columns(prompt="ask", completion="say"))
    assert turns == [(ASKED, ANSWERED)] * 3
    assert describe_notes(conversion.notes) == [f"1 row with a column {column!r}, which is not used"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Hi", "chosen": "Ho", "rejected": "No"}, "Set data.columns: {prompt: prompt, completion: chosen}"),
        ({"chosen": TURNS, "rejected": TURNS}, "Save the column chosen as messages"),
        ({"messages": "hello"}, "'messages' holds no list of turns with role and content"),
        ({"messages": "[{'role': 'user', 'content': open('x')}]"}, "'messages' holds no list of turns"),
        ({"Q": "Hi", "A": "Ho"}, "data.columns: {prompt: Q, completion: A}"),
        ({"words": "Hi"}, "got words. A question and an answer are needed"),
    ],
)
def test_what_is_said_of_other_columns_can_be_done(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=r"^a\.jsonl: ") as raised:
        convert(row)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "document",
    [
        {"train": [{"question": "q", "answer": "a"}]},
        {"0": {"question": "q", "answer": "a"}, "1": {"question": "r", "answer": "b"}},
        {"question": {"0": "q", "1": "r"}, "answer": {"0": "a", "1": "b"}},
    ],
    ids=["splits", "pandas by rows", "pandas by columns"],
)
def test_an_object_that_is_a_table_is_not_taken_for_a_row(tmp_path: Path, document: object) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"must be a list of objects, .*Put the rows into a list"):
        list(find_sources(Data(train=str(path))).train.read(RowChoice(None, 0)))


def test_an_object_by_itself_is_a_row_also_with_turns_as_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"messages": {"role": ["user", "assistant"], "content": ["Hi", "Ho"]}}))
    rows = find_sources(Data(train=str(path))).train.read(RowChoice(None, 0))
    assert [example.turns for example in Conversion("a.json", Data()).convert(rows)] == [(ASKED, ANSWERED)]
