"""The small commands of docs/lineage.md, run as they stand there: what the five texts say is in their answers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from qlora_ray import plan, sweep
from qlora_ray.config.presets import list_presets

ROOT = Path(__file__).resolve().parents[2]
MAINS = {"qlora_ray.sweep": sweep.main, "qlora_ray.plan": plan.main}
# The base, and learning rate and epochs where the text names them.
RESOLVED: dict[str, tuple[str, float | None, float | None]] = {
    "classicmodels": ("meta-llama/Meta-Llama-3-8B-Instruct", 1e-4, 3),
    "qwen2.5-instruct": ("Qwen/Qwen2.5-1.5B-Instruct", 2e-4, 3),
    "low-vram": ("Qwen/Qwen2.5-3B-Instruct", None, None),
    "price": ("meta-llama/Llama-3.2-3B", None, None),
    "qwen3": ("Qwen/Qwen3-0.6B", None, None),
}
# Formats by device, and GB of memory: what NVIDIA publishes of the card of the 4 GB pipeline, and what the price model
# does on an A100 and a T4.
PLANNED = {"GTX1650": {"GTX 1650": ("fp16", 4)}, "T4:1,A100-40:1": {"A100": ("bf16", 40), "T4": ("fp16", 16)}}


def list_commands() -> list[str]:
    """The lines of the page's block of commands."""
    text = (ROOT / "docs" / "lineage.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("line", list_commands())
def test_a_small_command_of_the_page_says_what_its_text_says(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    _, _, module, *words = shlex.split(line)
    assert MAINS[module]([*words, "--json"]) == 0
    result: dict[str, Any] = json.loads(capfd.readouterr().out)["result"]
    if "--print-config" in words:
        config = result["config"]
        name, learning_rate, num_epochs = RESOLVED[words[words.index("--preset") + 1]]
        assert config["model"]["name"] == name
        assert learning_rate is None or config["training"]["learning_rate"] == learning_rate
        assert num_epochs is None or config["training"]["num_train_epochs"] == num_epochs
        return
    assert result["forecast"]["num_trials"] == 12 and result["total_slots"] >= 1
    expected = PLANNED[words[words.index("--gpus") + 1]] if "--gpus" in words else {}
    for device, (precision, num_gb) in expected.items():
        (placement,) = (one for one in result["placements"] if device in one["device_name"])
        assert placement["precision"]["name"] == precision
        assert placement["needed_bytes"] <= placement["available_bytes"] < num_gb * 1024**3


def test_every_preset_has_its_line() -> None:
    lines = list_commands()
    assert [name for name in list_presets() if not any(f"--preset {name} --print-config" in one for one in lines)] == []
    assert any("--plan" in line for line in lines) and any("--gpus" in line for line in lines)
