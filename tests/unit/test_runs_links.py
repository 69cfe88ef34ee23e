"""No command writes, locks or copies through a link that leads out of a stranger's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_ray import report, sweep
from qlora_ray.console import noise_to
from qlora_ray.errors import RunError
from qlora_ray.evaluation.target.finding import find_target
from qlora_ray.evaluation.target.target import Request
from qlora_ray.exporting.selection import select_trial
from qlora_ray.runs import SweepPaths, append_line
from qlora_ray.runs.control import ControlAction, write_request
from qlora_ray.runs.files import mend_lines
from qlora_ray.runs.links import check_links, find_link_out
from qlora_ray.runs.locks import locked_file
from qlora_ray.runs.ownership import sign
from qlora_ray.runs.paths import TrialPaths
from qlora_ray.runs.records import Manifest, read_record, write_record
from qlora_ray.search.journal import SweepJournal
from tests.sweep_folder import usual_sketches, write_sweep

FILES = {
    name: lambda paths, name=name: getattr(paths, name)
    for name, value in vars(SweepPaths).items()
    if isinstance(value, property) and not name.endswith(("name", "command"))
} | {
    f"trial.{name}": lambda paths, name=name: getattr(paths.trial("0000"), name)
    for name, value in vars(TrialPaths).items()
    if isinstance(value, property)
}


def resume(folder: Path) -> object:
    arguments = sweep.make_parser().parse_args(["--resume", str(folder)])
    return sweep._read_resumed(arguments, SweepPaths(folder))


def write_report(folder: Path) -> object:
    return report._run(report.make_parser().parse_args([str(folder)]))


COMMANDS: dict[str, Callable[[Path], object]] = {
    "resume": resume,
    "report": write_report,
    "evaluate": lambda folder: find_target(str(folder), Request()),
    "export": select_trial,
    "the page's buttons": lambda folder: write_request(SweepPaths(folder), ControlAction.PAUSE),
}


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return write_sweep(tmp_path / "sweep", usual_sketches(), winner=1, has_adapters=True)


def plant(path: Path) -> Path:
    """Puts a link to somewhere else in the place of a file or folder, with what was there."""
    outside = path.parents[len(path.parts) - path.parts.index("sweep") - 1] / f"outside-{path.name}"
    if path.exists():
        path.rename(outside)
    path.symlink_to(outside)
    return outside


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_a_strangers_folder_is_refused_in_one_line(paths: SweepPaths, name: str) -> None:
    planted = FILES[name](paths)
    outside = plant(planted)
    was = outside.exists()
    with pytest.raises(RunError, match="must have no links out of its folder") as caught:
        check_links(paths.root)
    assert str(caught.value).startswith(f"{planted}: ") and "\n" not in str(caught.value)
    assert outside.exists() == was


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_looks_for_links_before_it_does_anything(paths: SweepPaths, command: str) -> None:
    outside = plant(paths.events)
    content = outside.read_bytes()
    with pytest.raises(RunError, match="must have no links out of its folder"):
        COMMANDS[command](paths.root)
    assert outside.read_bytes() == content
    assert not (paths.root / "report.html").exists()


def test_a_hard_link_to_a_file_elsewhere_is_refused_and_one_within_the_folder_is_not(paths: SweepPaths) -> None:
    os.link(paths.events, paths.root / "again.jsonl")
    (paths.root / "latest").symlink_to("trials/0001")
    check_links(paths.root)
    os.link(paths.summary, paths.root.parent / "elsewhere.json")
    assert find_link_out(paths.root) == paths.summary
    with pytest.raises(RunError, match=r"summary\.json: .*links"):
        check_links(paths.root)


def test_a_users_own_folder_may_have_links_but_not_by_a_manifest_that_is_one(paths: SweepPaths) -> None:
    plant(paths.logs)
    write_record(paths.manifest, sign(replace(read_record(paths.manifest, Manifest))))
    check_links(paths.root)
    plant(paths.manifest)
    with pytest.raises(RunError, match="must have no links"):
        check_links(paths.root)


def test_a_stranger_s_folder_may_be_resumed_as_trusted(paths: SweepPaths) -> None:
    plant(paths.logs)
    arguments = sweep.make_parser().parse_args(["--resume", str(paths.root), "--trust-folder"])
    assert sweep._read_resumed(arguments, paths)


def append(path: Path) -> None:
    append_line(path, {"a": 1})


def take_lock(path: Path) -> None:
    with locked_file(path):
        pass


def print_to(path: Path) -> None:
    with noise_to(path):
        print("noise")  # noqa: T201
    raise RunError("what has no log is dropped")


@pytest.mark.skipif(os.name == "nt", reason="Windows opens what a link leads to")
@pytest.mark.parametrize("write", [append, mend_lines, take_lock, SweepJournal, print_to])
def test_what_is_appended_or_locked_is_never_what_a_link_leads_to(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    outside = tmp_path / "outside"
    outside.write_text('{"torn')
    link = tmp_path / "link"
    link.symlink_to(outside)
    with pytest.raises((OSError, RunError)):
        write(link)
    assert outside.read_text() == '{"torn'
