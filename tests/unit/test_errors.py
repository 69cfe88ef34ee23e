"""Every exception survives the way between two processes."""

from __future__ import annotations

import pickle

import pytest

from qlora_ray import errors
from qlora_ray.errors import (
    ConfigError,
    ExecutorsLost,
    ModelError,
    QloraRayError,
    SweepFailed,
    SweepInterrupted,
    as_message,
    first_line,
    shorten_problems,
)

# Those of the module: in a run with Ray, Ray derives classes of its own from them.
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QloraRayError)]


def test_the_family_is_known():
    assert len(CLASSES) == 13


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(kind, protocol):
    error = pickle.loads(pickle.dumps(kind("where: rule, got value."), protocol))
    assert type(error) is kind
    assert str(error) == "where: rule, got value."
    assert error.exit_code == {SweepFailed: 1, ExecutorsLost: 1, SweepInterrupted: 130}.get(kind, 2)


def test_all_problems_of_a_config_survive_pickling():
    error = pickle.loads(pickle.dumps(ConfigError(["a.yaml:1: one", "a.yaml:2: two"])))
    assert error.problems == ["a.yaml:1: one", "a.yaml:2: two"]
    assert str(error) == "a.yaml:1: one\na.yaml:2: two"


def test_one_problem_may_be_given_as_text():
    assert ConfigError("one").problems == ["one"]


def test_the_list_of_problems_is_a_copy():
    problems = ["one"]
    error = ConfigError(problems)
    problems.append("two")
    assert error.problems == ["one"]


def test_every_error_is_caught_by_the_family_name():
    with pytest.raises(QloraRayError, match="no base"):
        raise ModelError("no base")


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("one\ntwo"), "one"), (ValueError("\n one"), "one"), (MemoryError(), "MemoryError")]
)
def test_the_first_line_of_an_error_is_never_empty(error, line):
    assert first_line(error) == line


def test_a_message_is_cut_to_what_a_terminal_can_show():
    lines = [f"a.yaml:{at}: wrong" for at in range(1000)]
    assert as_message(ConfigError(lines)).splitlines()[399:] == ["a.yaml:399: wrong", "... and 600 lines more"]
    assert shorten_problems(lines)[10:] == ["a.yaml:10: wrong", "... and 989 more"]
    assert shorten_problems(lines[:11]) == lines[:11]
    shown = as_message(ConfigError(f"model.name: {'x' * 10_000} is not there. Correct it."))
    assert len(shown) < 1_100 and shown.startswith("model.name: xxx") and shown.endswith("is not there. Correct it.")
    assert "(10,038 letters)" in shown
    assert as_message(ConfigError("a\x1b[2Jb\0c\nd")) == "a\\x1b[2Jb\\x00c\nd"
