"""The files that a harness task of one's own is made of: found, hashed, and named where they cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ray.errors import ConfigError
from qlora_ray.evaluation.lm_eval.task_files import find_task_files, hash_task

TASK = """\
include: parts/common.yaml
task: sums
dataset_path: json
dataset_kwargs:
  data_files: {test: %s, train: hf://elsewhere/train.jsonl}
doc_to_text: !function code.scoring.ask
process_results: !function json.loads
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    for name, text in {
        "parts/common.yaml": "include: [deeper.yaml]\nfilter_list: !function own.pick\n",
        "parts/deeper.yaml": "output_type: generate_until\n",
        "parts/own.py": "def pick(rows): return rows\n",
        "code/scoring.py": "def ask(doc): return doc['q']\n",
        "rows.jsonl": '{"q": "1+1"}\n',
        "unrelated.yaml": "task: other\n",
        "sums.yaml": TASK % (tmp_path / "rows.jsonl"),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / "sums.yaml"


def test_a_task_is_its_yaml_and_the_files_that_it_names(task: Path) -> None:
    found = [str(path.relative_to(task.parent)) for path in find_task_files(task)]
    assert found == [
        "sums.yaml",
        "parts/common.yaml",
        "parts/deeper.yaml",
        "parts/own.py",
        "code/scoring.py",
        "rows.jsonl",
    ]


@pytest.mark.parametrize("name", ["sums.yaml", "parts/deeper.yaml", "parts/own.py", "code/scoring.py", "rows.jsonl"])
def test_a_change_of_any_of_its_files_is_another_task(task: Path, name: str) -> None:
    before = hash_task(task)
    (task.parent / "unrelated.yaml").write_text("task: changed\n", encoding="utf-8")
    assert hash_task(task) == before
    path = task.parent / name
    path.write_text(path.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    assert hash_task(task) != before


@pytest.mark.parametrize(
    "data",
    [
        "dataset_path: json\ndataset_kwargs: {data_files: {test: [%s/sets/*.jsonl]}}",
        "dataset_path: json\ndataset_kwargs: {data_files: %s/**/*.jsonl}",
        "dataset_path: json\ndataset_kwargs: {data_dir: %s/sets}",
        "dataset_path: %s/sets",
    ],
)
def test_rows_found_by_a_pattern_or_a_folder_are_the_tasks(tmp_path: Path, data: str) -> None:
    task, rows = tmp_path / "task.yaml", tmp_path / "sets" / "rows.jsonl"
    (tmp_path / "sets" / ".cache").mkdir(parents=True)
    task.write_text(f"task: sums\n{data % tmp_path}\n", encoding="utf-8")
    rows.write_text('{"q": "1+1"}\n', encoding="utf-8")
    assert find_task_files(task) == [task, rows]
    before = hash_task(task)
    (tmp_path / "sets" / ".cache" / "lock").write_text("held", encoding="utf-8")
    assert hash_task(task) == before
    (tmp_path / "sets" / "more.jsonl").write_text('{"q": "1+2"}\n', encoding="utf-8")
    more = hash_task(task)
    rows.write_text('{"q": "2+2"}\n', encoding="utf-8")
    assert len({before, more, hash_task(task)}) == 3


def test_a_group_is_all_tasks_and_code_of_its_folder(task: Path) -> None:
    group = task.parent / "group.yaml"
    group.write_text("group: all\ntask: [sums, other]\n", encoding="utf-8")
    before = hash_task(group)
    (task.parent / "unrelated.yaml").write_text("task: changed\n", encoding="utf-8")
    assert hash_task(group) != before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("parts/deeper.yaml", None, r"deeper\.yaml, which common\.yaml includes, cannot be read: No such file"),
        ("parts/deeper.yaml", "a: [", r"deeper\.yaml, which common\.yaml includes, must be a YAML file, got while"),
        ("parts/deeper.yaml", "include: ../sums.yaml", r"sums\.yaml must not include itself, got it by .*deeper\.yaml"),
        ("sums.yaml", "- task", r"sums\.yaml must have keys and values, got neither"),
    ],
)
def test_what_cannot_be_read_is_named(task: Path, name: str, text: str | None, message: str) -> None:
    path = task.parent / name
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        hash_task(task)
