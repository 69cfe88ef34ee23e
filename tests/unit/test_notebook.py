"""The notebook of docs/: its cells are what Jupyter reads, and its commands and its config are taken as they stand."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from qlora_ray.config.schema import SweepConfig

NOTEBOOK: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[2] / "docs" / "notebook.ipynb").read_text(encoding="utf-8")
)
COMMAND = "!python -m "
FILE = "%%writefile "


def sources(kind: str) -> list[str]:
    """The texts of the cells of a kind."""
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == kind]


def test_cells_have_what_the_format_asks_for_and_nobodys_output() -> None:
    """By nbformat 4.5's schema: https://nbformat.readthedocs.io."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        assert set(cell) - {"id", "cell_type", "metadata", "source"} == (
            {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        )
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_every_command_of_the_notebook_is_taken_by_its_parser() -> None:
    lines = [line for source in sources("code") for line in source.splitlines() if line.startswith(COMMAND)]
    assert {line.split()[2] for line in lines} == {
        f"qlora_ray.{name}" for name in ("plan", "sweep", "evaluate", "export")
    }
    for line in lines:
        module, *words = shlex.split(line.removeprefix(COMMAND))
        importlib.import_module(module).make_parser().parse_args(words)


def test_the_config_that_a_cell_writes_is_one() -> None:
    (text,) = [source for source in sources("code") if source.startswith(FILE)]
    first, _, content = text.partition("\n")
    SweepConfig.model_validate(yaml.safe_load(content))
    assert any(f"--config {first.removeprefix(FILE)}" in source for source in sources("code"))


def test_the_other_cells_are_python() -> None:
    for source in sources("code"):
        if not source.startswith(FILE):
            compile("\n".join(line for line in source.splitlines() if not line.startswith("!")), "cell", "exec")
