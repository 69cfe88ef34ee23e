"""The layers on docs/structure.md are those that import-linter holds the code to, in the same order."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_layers_is_the_contract_of_the_linter() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    held = next(contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers")
    expected = [{name.strip().removeprefix("qlora_ray.") for name in layer.split("|")} for layer in held]
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8").split("## Layers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| [\w ]+ \| (`.*?) \|", page, re.MULTILINE)
    written = [set(re.findall(r"`([a-z]\w*)(?:\.py|/)`", row)) for row in rows]
    assert len(expected) > 8 and written == expected
