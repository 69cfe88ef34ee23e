"""The docs against the code: keys, defaults, choices, command lines, YAML examples and links."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from qlora_ray import embedded
from qlora_ray.config.aliases import ALIASES
from qlora_ray.config.choices import OneOf
from qlora_ray.config.documents import Document, parse_yaml_value
from qlora_ray.config.key_paths import NAME, known_paths
from qlora_ray.config.loading import load_config, parse_override, validate_document
from qlora_ray.config.schema import SweepConfig
from qlora_ray.search.parsing import parse_space
from qlora_ray.search.space import FIXED_PATHS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "cluster", "results", "configs", "search_spaces", "benchmarks")
# A sweep's own folder under results/ holds model cards that PEFT wrote.
PAGES = [page for folder in (ROOT, *(ROOT / name for name in FOLDERS)) for page in sorted(folder.glob("*.md"))]
CONFIGURATION = ROOT / "docs" / "configuration.md"
CLUSTER_FILES = [path for path in sorted((ROOT / "cluster").iterdir()) if path.suffix not in (".md", ".json")]
COMMANDED = [
    *PAGES,
    *sorted((ROOT / "configs").rglob("*.yaml")),
    *sorted((ROOT / "search_spaces").rglob("*.yaml")),
    *CLUSTER_FILES,
]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"python3? -m (qlora_ray[\w.]*)(.*)")
TABLE_ROW = re.compile(r"^\| `([\w.]+)` \| (.+?) \| (.*) \|$", re.MULTILINE)
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Files that the reader is to write.
USER_CONFIG = re.compile(r"^my_\w+\.yaml$")


def _fields() -> dict[str, Any]:
    """Every key that holds a value and not a section, with its pydantic field."""
    found: dict[str, Any] = {}

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, info in model.model_fields.items():
            sections = [
                part
                for part in (info.annotation, *get_args(info.annotation))
                if isinstance(part, type) and issubclass(part, BaseModel)
            ]
            if not sections or info.default is None:
                found[prefix + name] = info
            by_name = f"{NAME}." if get_origin(info.annotation) is dict else ""
            for section in sections:
                walk(section, f"{prefix}{name}.{by_name}")

    walk(SweepConfig, "")
    return found


FIELDS = _fields()


def _rows() -> dict[str, tuple[str, str]]:
    rows = {key: (default, meaning) for key, default, meaning in TABLE_ROW.findall(CONFIGURATION.read_text())}
    return {key: row for key, row in rows.items() if "." in key}


def _choices(info: Any) -> set[str]:
    """The names that a field allows: those of its Literals and of its tables."""
    return set().union(_literals(info.annotation), *(_literals(rule) for rule in info.metadata))


def _literals(annotation: Any) -> set[str]:
    if isinstance(annotation, OneOf):
        return set(annotation.names)
    if get_origin(annotation) is Literal:
        return {choice for choice in get_args(annotation) if isinstance(choice, str)}
    return {choice for part in get_args(annotation) for choice in _literals(part)}


def _commands() -> list[tuple[str, str, list[str]]]:
    """(where, module, arguments) of each `python -m qlora_ray...` in a fenced block or a file's comments."""
    found = []
    for path in COMMANDED:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            blocks = [body for language, body in FENCE.findall(text) if language in ("console", "sh", "bash")]
        elif path in CLUSTER_FILES:
            # Below the comments shells fill in variables.
            blocks = ["\n".join(re.findall(r"^# ?(.*)$", text, re.MULTILINE))]
        else:
            blocks = [re.sub(r"^# ?", "", text, flags=re.MULTILINE)]
        for line in "\n".join(blocks).replace("\\\n", " ").split("\n"):
            match = COMMAND.search(line)
            if match:
                # In YAML headers a remark in brackets may follow the command.
                rest = re.sub(r"\s{3,}\(.*\)$", "", match[2])
                found.append((f"{path.relative_to(ROOT)}: {line.strip()}", match[1], shlex.split(rest, comments=True)))
    return found


COMMANDS = _commands()


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_config_key_has_a_row_and_no_row_is_of_an_unknown_key() -> None:
    assert set(_rows()) == set(FIELDS)


def test_every_dotted_path_is_named_on_the_configuration_page() -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    sections = {path for path in known_paths(SweepConfig) if path not in FIELDS}
    missing = [path for path in known_paths(SweepConfig) if path not in sections and f"`{path}`" not in text]
    assert missing == []
    assert [name for name in sections if "." not in name and f"\n## {name}\n" not in text] == []


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_the_default_on_the_page_is_the_schemas(key: str) -> None:
    written, _ = _rows()[key]
    default = FIELDS[key].default
    if default is PydanticUndefined:
        assert written == "required"
    else:
        assert parse_yaml_value(written.strip("`")) == default


@pytest.mark.parametrize("key", sorted(key for key, info in FIELDS.items() if _choices(info)))
def test_every_choice_of_a_key_is_in_its_row(key: str) -> None:
    default, meaning = _rows()[key]
    named = set(re.findall(r"[\w-]+", f"{default} {meaning}"))
    assert _choices(FIELDS[key]) - named == set()


def test_the_page_says_what_cannot_be_searched_and_what_other_names_mean() -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    line = next(line for line in text.split("\n") if line.startswith("Not to be searched"))
    assert set(re.findall(r"`([\w.]+)`", line)) == set(FIXED_PATHS)
    assert [name for name in ALIASES if f"`{name}`" not in text] == []


def test_the_docs_hold_a_line_of_every_command() -> None:
    commands = {f"qlora_ray.{name}" for name in ("sweep", "plan", "evaluate", "export", "report")}
    assert commands <= {module for _, module, _ in COMMANDS}


@pytest.mark.parametrize(("where", "module", "arguments"), COMMANDS, ids=[where for where, _, _ in COMMANDS])
def test_a_command_line_parses_and_its_config_is_valid(
    where: str, module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert importlib.util.find_spec(module) is not None, where
    make_parser = getattr(importlib.import_module(module), "make_parser", None)
    if make_parser is None:
        return
    parsed: argparse.Namespace = make_parser().parse_args(arguments)
    known = set(known_paths(SweepConfig))
    assert [text for text in getattr(parsed, "overrides", ()) if parse_override(text)[0] not in known] == []
    if not hasattr(parsed, "config") or getattr(parsed, "resume", None):
        return
    monkeypatch.chdir(ROOT)
    config = parsed.config or Path("configs/quickstart.yaml")
    is_users = USER_CONFIG.match(str(config)) is not None
    assert is_users or config.is_file(), where
    loaded = load_config(None if is_users else config, overrides=parsed.overrides)
    if isinstance(loaded.search.space, str):
        assert Path(loaded.search.space).is_file(), where
    else:
        parse_space(Document("search.space", dict(loaded.search.space)), loaded)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_yaml_and_json_blocks_of_a_page_are_valid(page: Path) -> None:
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "json":
            json.loads(body)
        elif language == "python":
            compile(body, str(page), "exec")
        elif language == "yaml":
            data = yaml.safe_load(body)
            document = Document(page.name, data)
            if any("." in key for key in data):
                parse_space(document, SweepConfig())
            else:
                validate_document(document)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize(
    ("name", "header", "least"),
    [("faults.md", "| fault ", 30), ("reliability.md", "| promise ", 12), ("lineage.md", "| what it does ", 50)],
)
def test_every_row_names_a_test_and_every_named_test_is_there(name: str, header: str, least: int) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    rows = [line for line in text.split("\n") if line.startswith("| ") and not line.startswith(header)]
    assert len(rows) > least
    assert [row for row in rows if not NAMED_TEST.search(row) and "| not yet" not in row] == []
    functions = {
        path: {
            node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)
        }
        for path, _ in NAMED_TEST.findall(text)
    }
    assert [f"{path}::{test}" for path, test in NAMED_TEST.findall(text) if test not in functions[path]] == []


def test_the_code_that_contributing_shows_has_the_types_that_make_check_asks_for() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = [body for language, body in FENCE.findall(text) if language == "python"]
    functions = [node for body in blocks for node in ast.walk(ast.parse(body)) if isinstance(node, ast.FunctionDef)]
    assert {function.name for function in functions} == {"score", "make_halton"}
    for function in functions:
        untyped = [argument.arg for argument in function.args.args if argument.annotation is None]
        assert function.returns is not None and untyped in ([], ["self"])


def _make_targets() -> set[str]:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    return set(phony[1].split())


def test_the_make_targets_in_the_docs_are_in_the_makefile() -> None:
    used = {
        target
        for page in PAGES
        for language, body in FENCE.findall(page.read_text(encoding="utf-8"))
        if language == "console"
        for target in re.findall(r"^make ([a-z-]+)", body, re.MULTILINE)
    }
    assert used and used <= _make_targets()


def test_continuous_integration_runs_every_tier_and_the_tiers_leave_no_test_out() -> None:
    tiers = re.search(r"^for tier in (.*); do$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert tiers is not None and tiers[1].split() == ["check", "test", "test-all"]
    assert set(tiers[1].split()) <= _make_targets()
    recipes = re.findall(r"-m pytest .*$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    # What the one takes by its mark, the other leaves out; a GPU's tests are run by hand.
    assert [re.findall(r"-m (unit|'[^']*')", recipe) for recipe in recipes] == [["unit"], ["'not unit and not gpu'"]]


def test_the_readmes_plain_line_of_the_tests_is_what_make_test_runs() -> None:
    recipe = re.search(r"^test: .*\n\t(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    plain = re.sub(r" -r\w+", "", recipe[1].replace("$(BIN)", ".venv/bin").replace(" $(ARGS)", ""))
    assert f"\n{plain}\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_names_every_format_sampler_and_scheduler() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for key in ("search.sampler", "search.scheduler"):
        assert [choice for choice in _choices(FIELDS[key]) if f"| `{choice}` |" not in text] == []
    formats = _choices(FIELDS["data.format"]) - {"auto", "columns"}
    assert [name for name in formats if f"| {name} |" not in text] == []


def test_the_quickstart_counts_the_rows_that_ship() -> None:
    text = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    data = json.loads(embedded.manifest_path().read_text(encoding="utf-8"))["data"]
    pairs = data["pairs"]
    assert f"{pairs['train']:,} training, {pairs['validation']} validation and {pairs['test']} test rows" in text
    assert f"of {len(data['kinds']['train'])} kinds" in text
