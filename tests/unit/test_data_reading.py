"""Files are read row by row, and every row knows its place."""

import io
import json

import pytest

from qlora_ray.data.reading import read_rows
from qlora_ray.errors import DataError

WITHOUT_ROWS = [("a.json", b"[]"), ("a.jsonl", b"\n\n"), ("a.csv", b"q,a\n"), ("a.csv", b"")]


def test_jsonl_rows_carry_the_lines_of_the_file_though_blank_lines_are_skipped():
    rows = read_rows("a.jsonl", b'{"q": 1}\n\n   \n{"q": 2}\r\n{"q": 3}')
    assert [(row.where, row.values["q"]) for row in rows] == [("a.jsonl:1", 1), ("a.jsonl:4", 2), ("a.jsonl:5", 3)]


def test_jsonl_strings_may_hold_unicode_line_separators():
    rows = read_rows("a.jsonl", '{"q": "a\u2028b\u0085c"}\n{"q": "d"}\n'.encode())
    assert [(row.where, row.values["q"]) for row in rows] == [("a.jsonl:1", "a\u2028b\u0085c"), ("a.jsonl:2", "d")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"q": ', "broken JSON at column"),
        (b"[1, 2]", "must be a JSON object, got a list; a file that is one JSON list ends in .json"),
        (b"null", "must be a JSON object, got null"),
    ],
)
def test_a_broken_jsonl_line_becomes_a_row_with_a_problem_and_the_rest_is_read(line, problem):
    first, second = read_rows("a.jsonl", line + b'\n{"q": 1}\n')
    assert first.where == "a.jsonl:1"
    assert problem in str(first.problem)
    assert second.problem is None


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(name):
    text = {"a.json": '[{"q": "x"}]', "a.jsonl": '{"q": "x"}', "a.csv": "q,a\nx,y\n"}[name]
    assert read_rows(name, text.encode("utf-8-sig"))[0].values["q"] == "x"


@pytest.mark.parametrize(
    "text", ['[{"q": "x"}, {"q": "y"}]', '{"data": [{"q": "x"}, {"q": "y"}]}', '{"q": "x"}\n{"q": "y"}\n']
)
def test_json_is_a_list_or_an_object_with_data_or_lines(text):
    assert [row.values["q"] for row in read_rows("a.json", text.encode())] == ["x", "y"]


def test_json_rows_are_named_by_number():
    assert [row.where for row in read_rows("a.json", b'[{"q": 1}, {"q": 2}]')] == ["a.json row 1", "a.json row 2"]


def test_csv_rows_carry_the_line_they_start_on_across_quoted_newlines():
    rows = read_rows("a.csv", b'q,a\n"one\ntwo",1\n\nthree,3\n')
    assert [(row.where, row.values["q"]) for row in rows] == [("a.csv:2", "one\ntwo"), ("a.csv:5", "three")]


def test_a_csv_row_with_a_field_too_many_becomes_a_row_with_a_problem():
    rows = read_rows("a.csv", b"q,a\n1,2,3\n4,5\n")
    assert "2 fields like the header, got 3" in rows[0].problem
    assert rows[1].values == {"q": "4", "a": "5"}


def test_a_csv_answer_may_be_longer_than_the_csv_module_allows_by_default():
    rows = read_rows("a.csv", b"q,a\nx," + b"y" * 200_000 + b"\n")
    assert len(str(rows[0].values["a"])) == 200_000


def test_parquet_rows_are_named_by_number():
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"q": ["x", None], "a": [1, 2]}), buffer)
    rows = read_rows("a.parquet", buffer.getvalue())
    assert [(row.where, dict(row.values)) for row in rows] == [
        ("a.parquet row 1", {"q": "x", "a": 1}),
        ("a.parquet row 2", {"q": None, "a": 2}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'{"rows": [],\n "n": 0}', r"a\.json: must be a list of objects.* keys rows, n"),
        ("a.json", b'[{"q": 1},\n {"q": }]', r"a\.json:2: .* broken JSON at column"),
        ("a.jsonl", b'{"q": 1}\n{"q": "caf\xe9"}', r"a\.jsonl:2: text must be UTF-8, got byte 0xe9"),
        ("a.csv", b"q;a\n1;2\n", r"a\.csv:1: csv fields must be separated by commas, got 'q;a'"),
        ("a.csv", b"q,q\n1,2\n", r"a\.csv:1: csv columns must differ in name, got q twice"),
        ("a.csv", b'q,a\n1,2\n3,"4\n', r"a\.csv:3: must be csv"),
        ("a.parquet", b"not parquet", r"a\.parquet: must be a parquet file"),
        ("a.tsv", b"", r"must end in \.csv, \.json, \.jsonl, \.parquet, got \.tsv"),
        *((name, text, f"{name}: a dataset must hold at least one row") for name, text in WITHOUT_ROWS),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_its_place(name, content, words):
    with pytest.raises(DataError, match=words):
        read_rows(name, content)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_limit_takes_the_first_rows(name):
    objects = [{"q": str(number)} for number in range(9)]
    text = {
        "a.jsonl": "\n".join(map(json.dumps, objects)),
        "a.json": json.dumps(objects),
        "a.csv": "q\n" + "\n".join(row["q"] for row in objects),
    }[name]
    assert [row.values["q"] for row in read_rows(name, text.encode(), limit=3)] == ["0", "1", "2"]
