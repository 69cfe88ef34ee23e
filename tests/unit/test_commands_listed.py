"""The list of commands, their `--json`, and docs/commands.md, against each other."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_ray import plan, report
from qlora_ray.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([\w -]+)` \| (.*) \|$", re.MULTILINE)
NAME = re.compile(r"`(\w+)`")


def parsers_of(name: str) -> list[tuple[str, argparse.ArgumentParser]]:
    """A command's parsers: those of its actions where it has some."""
    parser = importlib.import_module(f"qlora_ray.{name}").make_parser()
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    found = [(f"{name} {word}", one) for action in actions for word, one in action.choices.items()]
    return found or [(name, parser)]


def keys_in_page(command: str) -> set[str]:
    """The names that the page's table of results has for a command."""
    rows = dict(ROW.findall(PAGE.split("## `--json`")[1]))
    return set(NAME.findall(rows[command]))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module_with_json_and_stands_in_the_page(name: str) -> None:
    assert name in dict(ROW.findall(PAGE.split("## Exit codes")[0]))
    for words, parser in parsers_of(name):
        assert "--json" in parser.format_help(), words
        assert keys_in_page(words)


def test_the_keys_of_a_report_are_those_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "tests" / "assets" / "version_before" / "finished", tmp_path / "s")
    assert report.main([str(tmp_path / "s"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert set(result) == keys_in_page("report")
    assert Path(result["page"]).is_file() and Path(result["markdown"]).is_file()


def test_the_keys_of_a_plan_are_those_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--gpus", "T4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert plan.main(["--recommend", "--json"]) == 0
    recommendation = json.loads(capsys.readouterr().out)["result"]
    named = keys_in_page("plan")
    top = set(result) | set(recommendation)
    assert top <= named
    # The page names some of the deeper keys too; each is there.
    deeper = set(result["placements"][0]) | set(result["forecast"]) | set(recommendation["recommended"])
    assert named - top <= deeper


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "qlora_ray", *words], capture_output=True, text=True, check=False)


def test_without_a_word_the_commands_are_listed() -> None:
    done = run()
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_a_word_that_names_no_command_is_bad_input() -> None:
    done = run("sweeep")
    assert (done.returncode, done.stdout) == (2, "") and "sweeep" in done.stderr


def test_a_word_runs_its_command_with_its_own_options_and_exit_code() -> None:
    done = run("plan", "--gpus", "T44", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == 2
    assert "T44" in answer["error"]["message"] and answer["result"] is None
