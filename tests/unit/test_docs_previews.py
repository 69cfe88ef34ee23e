"""The previews of docs/data.md against what the product makes of the same rows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from qlora_ray.config.choices import FORMATS
from qlora_ray.config.schema import Data
from qlora_ray.data import prepare_data, render_preview
from tests.unit.data_tokenizer import build_byte_level

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
PREVIEW = re.compile(
    r"^### `([\w-]+)`(?:, `data\.template: ([^\n]+)`)?\n\n```json\n([^\n]+)\n```\n\n```text\n(.+?)\n```$",
    re.MULTILINE | re.DOTALL,
)
PREVIEWS = PREVIEW.findall(PAGE.read_text(encoding="utf-8"))
RULER = "-" * 80 + "\n"


def test_every_format_has_a_preview() -> None:
    assert {name for name, *_ in PREVIEWS} == set(FORMATS)


@pytest.mark.parametrize(("name", "template", "row", "shown"), PREVIEWS, ids=[preview[0] for preview in PREVIEWS])
def test_a_preview_is_what_is_trained(
    name: str, template: str, row: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, text in (("train.jsonl", row), ("validation.jsonl", row)):
        Path(path).write_text(f"{text}\n", encoding="utf-8")
    chosen = {"template": json.loads(template) if template.startswith('"') else template} if template else {}
    data = Data(train="train.jsonl", validation="validation.jsonl", **chosen)
    tokenizer = build_byte_level()
    prepared = prepare_data(data, tokenizer=tokenizer, data_seed=7, cache_dir=tmp_path / "cache")
    assert prepared.report.format == name
    assert render_preview(prepared, tokenizer).split(RULER)[1].strip() == shown
