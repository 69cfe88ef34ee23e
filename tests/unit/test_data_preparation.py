"""prepare_data, from a config section and files to splits and a report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_ray import embedded
from qlora_ray.config.schema import Data
from qlora_ray.data import prepare_data, render_preview
from qlora_ray.errors import DataError
from tests.unit.data_tokenizer import build_byte_level


@pytest.fixture(scope="module")
def tokenizer():
    return build_byte_level()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(numbers, *, answer="answer", **more):
    return [{"question": f"question {number}", "answer": f"{answer} {number}", **more} for number in numbers]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(tokenizer, *, data_seed=7, **data):
    return prepare_data(Data(**data), tokenizer=tokenizer, data_seed=data_seed, cache_dir=Path("cache"))


def is_warned(report, *words):
    """Whether one warning has all the words."""
    return any(all(word in warning for word in words) for warning in report.warnings)


def test_a_fraction_is_held_out_and_the_report_says_where_from(folder, tokenizer):
    write_rows(folder / "a.jsonl", rows_of(range(30)))
    prepared = prepare(tokenizer, train="a.jsonl")
    assert (len(prepared.train), len(prepared.validation), prepared.test) == (27, 3, None)
    assert prepared.report.sources["validation"].startswith("0.1 of a.jsonl, by data_seed 7")
    assert prepared.report.overlap == {"train/validation": 0}
    assert prepared.report.overlap_verdict == "pass"
    assert prepared.report.warnings == []


def test_validation_and_test_files_are_used_as_they_are(folder, tokenizer):
    for name, numbers in (("a", range(5)), ("b", range(5, 8)), ("c", range(8, 10))):
        write_rows(folder / f"{name}.jsonl", rows_of(numbers))
    prepared = prepare(tokenizer, train="a.jsonl", validation="b.jsonl", test="c.jsonl")
    assert {name: len(split) for name, split in prepared.splits.items()} == {"train": 5, "validation": 3, "test": 2}
    assert prepared.test.references == ["answer 8", "answer 9"]


def test_rows_that_splits_share_are_a_warning_and_a_failed_check_and_stay(folder, tokenizer):
    write_rows(folder / "a.jsonl", rows_of(range(5)))
    write_rows(folder / "b.jsonl", rows_of([3]) + rows_of([4], answer="other") + rows_of([9]))
    report = prepare(tokenizer, train="a.jsonl", validation="b.jsonl").report
    assert report.overlap == {"train/validation": 2}
    assert report.overlap_answers == {"train/validation": 1}
    assert report.overlap_verdict == "fail"
    assert report.num_rows["validation"] == 3
    assert is_warned(report, "2 of 3 validation rows", "in train too (1 with")


def test_rows_of_one_prompt_are_kept_together_and_counted(folder, tokenizer):
    write_rows(folder / "a.jsonl", rows_of(range(10)) + rows_of(range(10), answer="other"))
    report = prepare(tokenizer, train="a.jsonl", validation=0.2).report
    assert report.overlap_verdict == "pass"
    assert is_warned(report, "20 rows of a.jsonl share their prompt")


@pytest.mark.parametrize("row_choice", ["sample", "first"])
def test_rows_are_chosen_before_the_split_and_the_same_ones_each_time(row_choice, folder, tokenizer):
    write_rows(folder / "a.jsonl", rows_of(range(100)))
    write_rows(folder / "b.jsonl", rows_of(range(100, 200)))
    settings = {"max_train_rows": 20, "validation": 0.5, "max_validation_rows": 4, "max_test_rows": 6}
    prepared = prepare(tokenizer, train="a.jsonl", test="b.jsonl", row_choice=row_choice, **settings)
    assert (len(prepared.train), len(prepared.validation), len(prepared.test)) == (10, 4, 6)
    numbers = {split: [int(answer.split()[1]) for answer in rows.references] for split, rows in prepared.splits.items()}
    are_sorted = [found == sorted(found) for found in numbers.values()]
    assert are_sorted == ([True] * 3 if row_choice == "first" else [True, False, False])
    are_first = max(numbers["train"] + numbers["validation"]) < 20, max(numbers["test"]) < 106
    assert are_first == ((True, True) if row_choice == "first" else (False, False))
    again = prepare(tokenizer, train="a.jsonl", test="b.jsonl", row_choice=row_choice, **settings)
    assert again.splits == prepared.splits


def test_the_first_rows_of_a_sorted_test_file_are_a_sample_of_it(folder, tokenizer):
    write_rows(folder / "a.jsonl", rows_of(range(10)))
    write_rows(folder / "b.jsonl", rows_of(range(100, 200)))
    asked = prepare(tokenizer, train="a.jsonl", test="b.jsonl").test.references
    assert sorted(asked) == [f"answer {number}" for number in range(100, 200)]
    # All from one half would be a chance of one in a million, and 3 or fewer of one in a thousand.
    halves = sum(int(answer.split()[1]) < 150 for answer in asked[:20])
    assert 3 < halves < 17


def test_truncation_and_drops_are_counted_per_split_with_the_lengths(folder, tokenizer):
    long_row = {"question": "name " * 200, "answer": "x"}
    cut_row = {"question": "q", "answer": "name " * 200}
    write_rows(folder / "a.jsonl", [*rows_of(range(5)), long_row, cut_row])
    write_rows(folder / "b.jsonl", rows_of([7]))
    report = prepare(tokenizer, train="a.jsonl", validation="b.jsonl", max_length=100).report
    assert report.num_truncated == {"train": 2, "validation": 0}
    assert report.num_dropped == {"train": {"answer beyond max_length 100": 1}, "validation": {}}
    assert report.num_rows["train"] == 6
    assert report.lengths["train"].max > 200
    assert is_warned(report, "2 of 7 rows were longer", "data.max_length 100")
    assert is_warned(report, "1 of 7 rows were dropped", "max_length 100")


def test_the_system_prompt_goes_to_rows_that_have_none(folder, tokenizer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    own = [{"role": "system", "content": "Mine."}, *turns]
    write_rows(folder / "a.jsonl", [{"messages": turns}, {"messages": own}])
    write_rows(folder / "b.jsonl", [{"messages": turns}])
    prepared = prepare(tokenizer, train="a.jsonl", validation="b.jsonl", system_prompt="Be brief.")
    first, second = (tokenizer.decode(ids) for ids in prepared.train.prompt_ids)
    assert first.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert second.startswith("<|im_start|>system\nMine.<|im_end|>")
    assert is_warned(prepared.report, "not used for 1 rows", "system turn")


def test_numbers_as_answers_become_text_and_are_a_counted_warning(folder, tokenizer):
    write_rows(folder / "a.jsonl", [{"question": "1+1", "answer": 2}, {"question": "half", "answer": 0.5}])
    prepared = prepare(tokenizer, train="a.jsonl", validation="a.jsonl")
    assert prepared.train.references == ["2", "0.5"]
    assert is_warned(prepared.report, "train: 2 values of 'answer' written as a number")


def test_options_that_plain_text_cannot_use_are_warnings(folder, tokenizer):
    write_rows(folder / "a.jsonl", [{"text": f"line {number}"} for number in range(4)])
    prepared = prepare(tokenizer, train="a.jsonl", template="instruction", system_prompt="Be brief.")
    assert prepared.report.template == "none"
    assert is_warned(prepared.report, "data.template 'instruction' is not used")
    assert is_warned(prepared.report, "data.system_prompt was not used for 3 rows", "plain text")
    assert prepared.train.references == ["", "", ""]


def test_a_validation_file_of_another_format_is_said(folder, tokenizer):
    write_rows(folder / "a.jsonl", rows_of(range(4)))
    write_rows(folder / "b.jsonl", [{"prompt": "hi", "completion": "ho"}])
    report = prepare(tokenizer, train="a.jsonl", validation="b.jsonl").report
    assert is_warned(report, "validation: the format is prompt-completion, not columns")


def test_plain_text_among_answers_is_refused(folder, tokenizer):
    write_rows(folder / "a.jsonl", rows_of(range(4)))
    write_rows(folder / "b.jsonl", [{"text": "hi"}])
    with pytest.raises(DataError, match=r"b\.jsonl: must have questions and answers .* got plain text"):
        prepare(tokenizer, train="a.jsonl", validation="b.jsonl")


def test_the_embedded_task_brings_its_own_splits(folder, tokenizer, monkeypatch):
    for name, numbers in (("train", range(5)), ("validation", range(5, 8)), ("test", range(8, 10))):
        rows = [{"question": f"question {number}", "sql": f"SELECT {number};", "kind": "x"} for number in numbers]
        write_rows(folder / f"shipped_{name}.jsonl", rows)
        monkeypatch.setattr(embedded, f"{name}_path", lambda name=name: folder / f"shipped_{name}.jsonl")
    prepared = prepare(tokenizer)
    assert {name: len(split) for name, split in prepared.splits.items()} == {"train": 5, "validation": 3, "test": 2}
    assert prepared.report.sources["train"] == "embedded/shipped_train.jsonl"

    write_rows(folder / "a.jsonl", [{"nlq": "hi", "query": "ho"}])
    columns = {"prompt": "nlq", "completion": "query"}
    mixed = prepare(tokenizer, train="a.jsonl", validation="embedded", columns=columns)
    assert mixed.validation.references == prepared.validation.references
    assert mixed.test is None


def test_the_report_is_json(folder, tokenizer):
    write_rows(folder / "a.jsonl", rows_of(range(10)))
    report = prepare(tokenizer, train="a.jsonl").report
    assert type(report).from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_the_preview_marks_the_trained_tokens_and_counts_them(folder, tokenizer):
    write_rows(folder / "a.jsonl", rows_of(range(10)))
    write_rows(folder / "b.jsonl", rows_of([11]))
    prepared = prepare(tokenizer, train="a.jsonl", validation="b.jsonl")
    text = render_preview(prepared, tokenizer, index=2)
    assert "user\nquestion 2<|im_end|>\n" in text and "«answer 2<|im_end|>»\n" in text
    num_trained = sum(prepared.train.completion_mask[2])
    assert f"train sample 2 of 10: {len(prepared.train.input_ids[2])} tokens, {num_trained} trained" in text
    assert "format columns (columns question + answer" in text
    assert "overlap check pass: train/validation 0" in text


def test_a_preview_beyond_the_rows_is_refused(folder, tokenizer):
    write_rows(folder / "a.jsonl", rows_of(range(10)))
    with pytest.raises(DataError, match=r"preview: index must be in 0\.\.8, .* got 9"):
        render_preview(prepare(tokenizer, train="a.jsonl"), tokenizer, index=9)


def test_importing_data_loads_no_heavy_library():
    heavy = ("torch", "transformers", "datasets", "pyarrow", "ray")
    code = f"import sys, qlora_ray.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
