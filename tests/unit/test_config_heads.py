"""What the config of auxiliary heads takes, on both sides of each bound."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from qlora_ray.config.heads import Head
from qlora_ray.config.schema import SweepConfig


def head_of(name: str = "emotion", **keys: Any) -> Head:
    """The head of a config that has this one."""
    return SweepConfig.model_validate({"heads": {name: {"column": "emotion", **keys}}}).heads[name]


def test_a_head_needs_no_more_than_its_column() -> None:
    head = head_of()
    assert (head.column, head.classes, head.weight, head.pooling) == ("emotion", "auto", 1.0, "prompt")
    with pytest.raises(ValidationError, match="column"):
        SweepConfig.model_validate({"heads": {"emotion": {}}})


@pytest.mark.parametrize(
    ("key", "last_good", "first_bad"),
    [
        ("weight", 0, -0.1),
        ("pooling", "mean", "max"),
        ("classes", ["joy", "anger"], ["joy"]),
        ("classes", ["joy", "anger"], ["joy", "joy"]),
        ("classes", "auto", "all"),
    ],
)
def test_a_bound_holds_on_both_of_its_sides(key: str, last_good: Any, first_bad: Any) -> None:
    assert getattr(head_of(**{key: last_good}), key) == last_good
    with pytest.raises(ValidationError, match=key):
        head_of(**{key: first_bad})


def test_labels_that_are_numbers_are_texts() -> None:
    assert head_of(classes=[0, 1]).classes == ["0", "1"]


@pytest.mark.parametrize("name", ["1st", "a b", "", "lora_emotion"])
def test_a_name_is_a_modules_and_not_the_adapters(name: str) -> None:
    with pytest.raises(ValidationError):
        head_of(name)
