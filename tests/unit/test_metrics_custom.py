from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qlora_ray.errors import ConfigError
from qlora_ray.scoring.metrics import custom
from qlora_ray.scoring.metrics.custom import load_metric
from qlora_ray.scoring.metrics.metric import measure, needs_references


def write(folder: Path, text: str) -> Path:
    path = folder / "my metric.py"
    path.write_text(text)
    return path


def test_the_class_of_the_docstring_is_a_metric(tmp_path: Path) -> None:
    assert custom.__doc__ is not None
    example = custom.__doc__[custom.__doc__.index("    class") :]
    path = write(tmp_path, "\n".join(line[4:] for line in example.splitlines()))
    metric = load_metric(f"{path}:AnswerLength")
    assert (metric.name, metric.higher_is_better) == ("answer_length", False)
    assert measure(metric, ["a", "abc"], ["", ""]).row_scores == [1.0, 3.0]
    assert not needs_references(metric)


def test_a_metric_needs_references_unless_it_says_otherwise(tmp_path: Path) -> None:
    text = "class Mine:\n    name, higher_is_better = 'mine', True\n    def score(self, *both): return []\n"
    assert needs_references(load_metric(f"{write(tmp_path, text)}:Mine"))
    path = write(tmp_path, text + "    needs_references = 'no'\n")
    with pytest.raises(ConfigError, match="needs_references must be True or False, got 'no'"):
        load_metric(f"{path}:Mine")


def test_a_dataclass_works_and_hides_no_module_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Mine:\n    name: str = 'mine'\n    higher_is_better: bool = True\n"
        "    def score(self, predictions, references): return [1.0] * len(predictions)\n"
    )
    import json

    assert load_metric(f"{tmp_path / 'json.py'}:Mine").name == "mine"
    assert sys.modules["json"] is json


@pytest.mark.parametrize("place", ["metric.py", ":", "metric.py:", "metric.py:not a name", "C:\\metric.py"])
def test_a_place_without_a_class_is_a_config_error(place: str) -> None:
    with pytest.raises(ConfigError, match=r"must be path/to/file\.py:ClassName, got "):
        load_metric(place)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("none.py:One", r"must name a Python file, got .*none\.py"),
        ("metric.py:Other", r"must name a class of the file, got Other\. It has: One\."),
        ("metric.py:Two", r"must name a class of the file, got Two\. It has: One\."),
        ("metric.txt:One", r"Give it the ending \.py"),
    ],
)
def test_a_missing_file_or_class_is_a_config_error(tmp_path: Path, place: str, words: str) -> None:
    for name in ("metric.py", "metric.txt"):
        (tmp_path / name).write_text("import json\nclass One: pass\nTwo = 2\n")
    with pytest.raises(ConfigError, match=words):
        load_metric(str(tmp_path / place))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nimport no_such_module_here", r"the file must run, got ModuleNotFoundError: .* \(line 2\)"),
        ("class Mine(:\n", r"the file must run, got SyntaxError: .*line 1\)"),
        ("raise SystemExit('bye')", "the file must run, got SystemExit: bye"),
        (
            "class Mine:\n    def __init__(self, path): pass",
            r"Mine\(\) must need no argument, got TypeError: [^()]*\(\)[^()]*'path'\. Corr",
        ),
        (
            "class Mine:\n    def __init__(self):\n        raise RuntimeError('no model')",
            r"must need no argument, got RuntimeError: no model \(line 3\)",
        ),
    ],
)
def test_what_the_file_raises_becomes_one_message_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_metric(f"{write(tmp_path, text)}:Mine")


def test_a_line_is_named_for_a_relative_path_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "class Mine:\n    def __init__(self):\n        1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"got ZeroDivisionError: division by zero \(line 3\)"):
        load_metric(f"{path.name}:Mine")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("name = 'two words'; higher_is_better = 'yes'", "'two words'; higher_is_better must be .*, got 'yes'; score"),
        ("pass", "name must be a word, got None; higher_is_better .*, got None; score.* none"),
    ],
)
def test_all_that_a_class_lacks_is_said_at_once(tmp_path: Path, body: str, words: str) -> None:
    path = write(tmp_path, f"class Mine: {body}\n")
    with pytest.raises(ConfigError, match=words):
        load_metric(f"{path}:Mine")


def test_a_class_that_ends_the_process_is_a_failure_as_any_other(tmp_path: Path) -> None:
    path = write(tmp_path, "import sys\nclass Mine:\n    def __init__(self):\n        sys.exit(0)\n")
    with pytest.raises(ConfigError, match=r"need no argument, got SystemExit: 0 \(line 4\)"):
        load_metric(f"{path}:Mine")
