"""What is known to be too large, from what failed and what fitted."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_ray.config import SweepConfig
from qlora_ray.config.documents import Document
from qlora_ray.search.memory_limits import WANTS_AT_LEAST, MemoryLimits
from qlora_ray.search.parsing import parse_space

SPACE: dict[str, Any] = {
    "lora.r": {"choices": [4, 8, 16, 32]},
    "lora.target_modules": {"choices": ["all-linear", "attention-qv", ["q_proj", "up_proj"]]},
    "lora.use_dora": {"choices": [True, False]},
    "training.learning_rate": {"low": 1e-4, "high": 1e-3},
}


def make_limits(space: dict[str, Any] = SPACE) -> MemoryLimits:
    return MemoryLimits(parse_space(Document("space", space), SweepConfig()))


def setting(r: int = 16, targets: Any = "attention-qv", dora: bool = False, rate: float = 1e-4) -> dict[str, Any]:
    return {"lora.r": r, "lora.target_modules": targets, "lora.use_dora": dora, "training.learning_rate": rate}


def test_what_wants_as_much_in_every_respect_is_too_large_and_nothing_else_is() -> None:
    limits = make_limits()
    assert not limits
    limits.add_failed(setting())
    assert limits
    for larger in (setting(rate=1e-3), setting(r=32), setting(targets="all-linear"), setting(dora=True)):
        assert limits.is_too_large(larger)
    for other in (setting(r=8, targets="all-linear", dora=True), setting(targets=["q_proj", "up_proj"])):
        assert not limits.is_too_large(other)


@pytest.mark.parametrize(
    ("path", "less", "more"),
    [
        ("lora.r", 8, 9),
        ("lora.target_modules", "attention-qv", "attention"),
        ("lora.target_modules", ["q_proj"], ["q_proj", "v_proj"]),
        ("lora.target_modules", ["q_proj", "up_proj"], "all-linear"),
        ("lora.modules_to_save", None, ["lm_head"]),
        ("lora.use_dora", False, True),
        ("lora.lora_dropout", 0.0, 0.1),
        ("training.optim", "adamw_8bit", "adamw_torch"),
        ("training.gradient_checkpointing", True, False),
    ],
)
def test_what_wants_more_memory_is_known_for_each_key(path: str, less: Any, more: Any) -> None:
    wants_at_least = WANTS_AT_LEAST[path]
    assert wants_at_least(more, less) and not wants_at_least(less, more)
    assert wants_at_least(less, less) and wants_at_least(more, more)


def test_lists_and_presets_that_nobody_can_compare_are_no_limit_for_each_other() -> None:
    wants_at_least = WANTS_AT_LEAST["lora.target_modules"]
    assert not wants_at_least(["q_proj", "up_proj"], "attention-qv")
    assert not wants_at_least("attention", ["up_proj"])


def test_a_setting_is_made_small_enough_and_keeps_the_rest() -> None:
    limits = make_limits()
    limits.add_failed(setting(r=16))
    assert limits.shrink(setting(r=32, dora=True, rate=5e-4)) == setting(r=8, dora=True, rate=5e-4)
    limits.add_failed(setting(r=4, targets="all-linear"))
    assert limits.shrink(setting(r=32, targets="all-linear")) == setting(r=8)
    assert limits.shrink(setting(r=8)) == setting(r=8)


@pytest.mark.parametrize(
    ("words", "failed", "expected"),
    [
        ({"low": 4, "high": 64, "log": True}, 32, 18),
        ({"low": 4, "high": 64, "step": 8}, 36, 20),
        ({"low": 4, "high": 64, "step": 8}, 12, 4),
        ({"low": 4, "high": 64, "step": 8}, 4, None),
    ],
)
def test_a_rank_of_a_range_is_halved_towards_what_fits(
    words: dict[str, Any], failed: int, expected: int | None
) -> None:
    limits = make_limits({"lora.r": words})
    limits.add_failed({"lora.r": failed})
    smaller = limits.shrink({"lora.r": 60})
    assert smaller == (None if expected is None else {"lora.r": expected})
    if failed == 32:
        limits.add_fitting({"lora.r": 28})
        assert limits.shrink({"lora.r": 60}) == {"lora.r": 30}
        limits.add_fitting({"lora.r": 31})
        assert limits.shrink({"lora.r": 60}) == {"lora.r": 31}


def test_what_has_fitted_outweighs_one_failure_and_not_two() -> None:
    limits = make_limits()
    limits.add_fitting(setting(r=32))
    # Another program had the memory for a moment.
    limits.add_failed(setting(r=8))
    assert not limits
    # The device that it fitted on is gone.
    limits.add_failed(setting(r=8))
    assert limits.is_too_large(setting(r=8)) and not limits.is_too_large(setting(r=4))
    # One that was under way all the same.
    limits.add_fitting(setting(r=16))
    assert not limits


def test_a_space_that_decides_no_memory_has_no_limits() -> None:
    limits = make_limits({"training.learning_rate": SPACE["training.learning_rate"]})
    limits.add_failed({"training.learning_rate": 1e-4})
    assert not limits and not limits.is_too_large({"training.learning_rate": 1e-3})
