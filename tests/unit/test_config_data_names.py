"""Parts of rows in names of sources are those of `datasets`' own split slices."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from qlora_ray.config.data_names import RowPart, SourceName, parse_source_name, split_brackets

SLICES = ["[:10%]", "[10%:20%]", "[-5%:]", "[50%:]", "[:1000]", "[2:5]", "[-3:]", "[:-2]", "[5:3]", "[3:3]", "[:100%]"]


@pytest.mark.parametrize("words", SLICES)
@pytest.mark.parametrize("num_rows", [1, 5, 7, 15, 999, 1234])
def test_a_part_has_the_rows_that_datasets_gives(words: str, num_rows: int) -> None:
    (expected,) = datasets.ReadInstruction.from_spec(f"train{words}").to_absolute({"train": num_rows})
    part = parse_source_name(f"a.jsonl{words}").part
    assert part is not None and str(part) == words
    assert list(part.of(num_rows)) == list(range(expected.from_, expected.to))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", SourceName("a.jsonl")),
        ("owner/name:config", SourceName("owner/name:config")),
        ("owner/name[test]", SourceName("owner/name", "[test]", "test")),
        ("a.jsonl[:9]", SourceName("a.jsonl", "[:9]", None, RowPart(None, 9))),
        ("o/n:c[train[:10%]]", SourceName("o/n:c", "[train[:10%]]", "train", RowPart(None, 10, True))),
        ("o/n:c[train:10%]", SourceName("o/n:c", "[train:10%]", "train", RowPart(None, 10, True))),
        ("o/n[train_sft[-5%:]]", SourceName("o/n", "[train_sft[-5%:]]", "train_sft", RowPart(-5, None, True))),
    ],
)
def test_a_name_has_a_place_a_split_and_a_part(name: str, expected: SourceName) -> None:
    assert parse_source_name(name) == expected
    assert split_brackets(name) == (expected.place, expected.brackets)


@pytest.mark.parametrize(
    "brackets", ["[]", "[:]", "[10%:20]", "[:120%]", "[a b]", "[1]", "[x[y]]", "[:5", "[:5]x", "[1:2:3]"]
)
def test_other_brackets_are_refused(brackets: str) -> None:
    with pytest.raises(ValueError, match=r"brackets must hold a split, rows or both, .* got a\.jsonl"):
        parse_source_name(f"a.jsonl{brackets}")
    assert split_brackets(f"a.jsonl{brackets}") == (f"a.jsonl{brackets}", "")


def test_a_file_that_is_called_so_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows[:5].jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert parse_source_name("rows[:5].jsonl") == SourceName("rows[:5].jsonl")
    monkeypatch.chdir("/")
    assert split_brackets("rows[:5].jsonl", tmp_path) == ("rows[:5].jsonl", "")
