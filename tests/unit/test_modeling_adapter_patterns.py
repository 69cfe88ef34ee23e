"""An adapter's patterns are tried where they can be stopped, before PEFT matches them."""

from __future__ import annotations

import pytest

from qlora_ray.errors import ModelError
from qlora_ray.modeling import adapter_patterns
from qlora_ray.modeling.adapter_patterns import check_patterns

NAMES = [f"model.layers.{at}.self_attn.{name}" for at in range(4) for name in ("q_proj", "v_proj", "o_proj")]
# Of the length of a module's path it takes 2^40 steps.
SLOW = r"(.*)*(.*)*(.*)*(.*)*(.*)*\1nope"
# As Unsloth writes it for models of text and images.
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|v_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|v_proj)))"
)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": UNSLOTH, "exclude_modules": r".*\.0\..*"},
        {"target_modules": ["q_proj"], "rank_pattern": {r"layers\.[01]\..*": 4}, "layers_pattern": "layers"},
        {"target_modules": "all-linear", "modules_to_save": None, "rank_pattern": {}, "layers_pattern": None},
    ],
)
def test_patterns_that_adapters_come_with_are_matched(config):
    check_patterns(config, NAMES, where="a")


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": SLOW},
        {"target_modules": ["q_proj"], "exclude_modules": SLOW},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", SLOW]},
        {"target_modules": ["q_proj"], "layers_pattern": [SLOW]},
        {"target_modules": ["q_proj"], "rank_pattern": {SLOW: 4}},
        {"target_modules": ["q_proj"], "alpha_pattern": {SLOW: 4}},
    ],
)
def test_one_that_takes_for_ever_is_stopped_wherever_it_stands(config, monkeypatch):
    monkeypatch.setattr(adapter_patterns, "LIMIT_S", 2.0)
    with pytest.raises(ModelError, match=r"^a: the patterns of adapter_config\.json must be matched .* within 2 s"):
        check_patterns(config, NAMES, where="a")


@pytest.mark.parametrize("pattern", ["(", "(" * 5000, "a{99999999999}"])
def test_one_that_is_no_pattern_is_named(pattern):
    with pytest.raises(ModelError, match=r"^a: adapter_config\.json must have patterns that are some, got "):
        check_patterns({"target_modules": pattern}, NAMES, where="a")
