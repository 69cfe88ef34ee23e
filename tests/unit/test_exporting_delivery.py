"""An export from end to end, without a merge: what is checked before, what is told, and what the sweep remembers."""

from __future__ import annotations

import errno
import json
import os
import shlex
from pathlib import Path

import pytest

from qlora_ray.errors import RunError
from qlora_ray.export import make_parser
from qlora_ray.exporting import delivery
from qlora_ray.exporting.delivery import (
    check_place,
    deliver,
    deliver_winner,
    describe_bundle,
    export_command,
    next_commands,
    pick_trial,
)
from qlora_ray.exporting.inventory import Bundle
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.files import read_lines
from qlora_ray.runs.whole import whole_folder
from tests.exporting_fixtures import files_of, write_sweep

FILES = [
    {"path": "README.md", "bytes": 512},
    {"path": "adapter/adapter_model.safetensors", "bytes": 1024},
    {"path": "adapter/tokenizer.json", "bytes": 1024},
    {"path": "merged/model.safetensors", "bytes": 3 * 2**30},
]
BUNDLE = Bundle(Path("out/b"), {"name": "x_SFT_LoRa4_QLORA_w4_headfp32", "files": FILES}, notes=("look",))


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "it's")


@pytest.fixture
def lines():
    return []


@pytest.fixture
def no_merge(monkeypatch):
    """The winner's export as it is, but for the merge: the fixture's adapter holds no weights of its base."""
    monkeypatch.setattr(delivery, "MergeOptions", lambda: None)


def deliver_trial(sweep, to, lines, *, trial="best"):
    selection = pick_trial(sweep, trial=trial, overrides=(), tell=lines.append)
    return deliver(selection, to=to, merge=None, tell=lines.append)


def test_the_sweep_is_told_where_each_of_its_bundles_went(sweep, tmp_path, lines):
    for trial, name in (("best", "a"), ("2", "a/../b")):
        deliver_trial(sweep, tmp_path / name, lines, trial=trial)
    noted = read_lines(SweepPaths(sweep).exports)
    assert [(one["trial"], one["to"], one["merge"]) for one in noted] == [
        ("0001", str(tmp_path / "a"), None),
        ("0002", str(tmp_path / "b"), None),
    ]
    assert noted[0]["name"] == "embedded-classicmodels_SFT_LoRa4_QLORA_w4_headfp32"
    assert noted[0]["time"] == json.loads((tmp_path / "a" / "bundle.json").read_text())["created"]
    assert lines[0] == "trial 0001 of it's, the winner"


def test_a_sweep_that_cannot_be_written_is_exported_with_a_note(sweep, tmp_path, lines):
    # As on a disk that only others write to: whoever runs the tests may be allowed everything else.
    SweepPaths(sweep).exports.mkdir()
    bundle = deliver_trial(sweep, tmp_path / "b", lines)
    assert "bundle.json" in files_of(bundle.folder)
    assert [line for line in lines if "report will not show this export" in line]


@pytest.mark.parametrize(("verdict", "is_told"), [("worse", True), ("better", False), ("no different", False)])
def test_a_model_that_is_worse_than_its_base_is_said_to_be(tmp_path, lines, verdict, is_told):
    sweep = write_sweep(tmp_path / "s", verdict=verdict)
    deliver_trial(sweep, tmp_path / "b", lines)
    assert any("WORSE than its base" in line for line in lines) is is_told


def test_a_place_is_checked_without_a_trace_before_there_is_a_sweep(tmp_path):
    check_place(tmp_path / "new" / "b", sweep=tmp_path / "results" / "s", has_zip=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("file/b", "file is no folder"),
        ("file", "must be a folder, got a file"),
        ("link/b", "link is no folder"),
        ("n" * 300, "File name too long"),
        ("full", r"got one with mine\.txt"),
        ("results/s", "the sweep's own folder"),
        ("results/s/trials/b", "the sweep's own folder"),
        ("results", "the sweep's own folder"),
    ],
)
def test_a_place_that_no_bundle_can_have_is_refused(tmp_path, to, message):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(RunError, match=f"^--export .*{message}"):
        check_place(tmp_path / to, sweep=tmp_path / "results" / "s", option="--export")


def test_a_folder_of_others_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match=rf"{tmp_path} is a folder that this user cannot"):
        check_place(tmp_path / "deep" / "b", sweep=tmp_path / "s")


@pytest.mark.parametrize("to", ["private/b", "private/x/b"])
def test_another_users_private_folder_is_one_message(tmp_path, monkeypatch, to):
    private = tmp_path / "private"
    private.mkdir()
    for name in ("stat", "lstat"):
        # Whoever runs the tests may be allowed everything. Both, as the one may call the other.
        monkeypatch.setattr(Path, name, refusing_below(private, getattr(Path, name)))
    monkeypatch.setattr(os, "access", lambda path, mode: private not in (Path(path), *Path(path).parents))
    # Python before 3.13 says so when it is asked what is there; later ones say that nothing is.
    words = rf"--export \S+/{to}: (cannot be looked into: .* Permission denied|must be in a folder that can be written)"
    with pytest.raises(RunError, match=words):
        check_place(tmp_path / to, sweep=tmp_path / "s", option="--export")


def refusing_below(folder, ask):
    """A question to the disk that it does not answer for what lies in a folder."""

    def refuse(path, **settings):
        if folder in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return ask(path, **settings)

    return refuse


def test_a_zip_that_is_not_ours_is_found_before_the_work(tmp_path):
    (tmp_path / "b.zip").write_text("mine")
    with pytest.raises(RunError, match=r"--zip: .*b\.zip must be new"):
        check_place(tmp_path / "b", sweep=tmp_path / "s", has_zip=True)


def test_the_winner_is_exported_with_what_to_do_next(sweep, tmp_path, lines, no_merge):
    (sweep / "logs").mkdir()
    bundle = deliver_winner(SweepPaths(sweep), to=tmp_path / "b", tell=lines.append)
    assert bundle.inventory["is_winner"] and "bundle.json" in files_of(tmp_path / "b")
    assert lines[-1].endswith(f"qlora_ray.export {tmp_path / 'b'} --push USER/{bundle.name}")


def test_an_export_that_fails_says_that_the_sweep_is_whole_and_how_to_go_on(sweep, tmp_path, lines, no_merge):
    (sweep / "logs").mkdir()
    with whole_folder(tmp_path / "b"), pytest.raises(RunError, match="another export is writing there") as caught:
        deliver_winner(SweepPaths(sweep), to=tmp_path / "b", tell=lines.append)
    again = str(caught.value).partition("The sweep is whole; go on with: ")[2]
    assert shlex.split(again) == ["python", "-m", "qlora_ray.export", str(sweep), "--to", str(tmp_path / "b")]
    assert not SweepPaths(sweep).exports.exists()


@pytest.mark.parametrize(("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (KeyError("boom"), RunError)])
def test_an_export_that_is_stopped_or_breaks_says_how_to_go_on(sweep, tmp_path, lines, monkeypatch, error, raised):
    def fail(*args, **settings):
        raise error

    (sweep / "logs").mkdir()
    monkeypatch.setattr(delivery, "deliver", fail)
    with pytest.raises(raised) as caught:
        deliver_winner(SweepPaths(sweep), to=tmp_path / "b", tell=lines.append)
    told = f"{caught.value}{''.join(lines)}"
    assert f"go on with: {export_command(SweepPaths(sweep), to=tmp_path / 'b')}" in told
    if raised is RunError:
        assert "KeyError: 'boom'" in told and "KeyError: 'boom'" in (sweep / "logs" / "driver.log").read_text()


def test_the_command_to_go_on_with_has_the_rights_that_the_sweeps_config_gave(tmp_path):
    sweep = write_sweep(tmp_path / "it's", model={"trust_remote_code": True})
    words = shlex.split(export_command(SweepPaths(sweep), to=tmp_path / "a b"))
    assert words[:3] == ["python", "-m", "qlora_ray.export"]
    arguments = make_parser().parse_args(words[3:])
    assert (arguments.source, arguments.to) == (sweep, tmp_path / "a b")
    assert arguments.overrides == ["model.trust_remote_code=true"]
    # The command takes it, and it is what lets the base's own code run.
    selection = pick_trial(arguments.source, trial=arguments.trial, overrides=arguments.overrides, tell=print)
    assert selection.config.model.trust_remote_code
    plain = write_sweep(tmp_path / "plain")
    assert "--set" not in export_command(SweepPaths(plain), to=tmp_path / "b")


def test_folders_are_summed_and_notes_come_last():
    assert describe_bundle(BUNDLE) == [
        "bundle  out/b (3 GiB): x_SFT_LoRa4_QLORA_w4_headfp32",
        "  README.md               512 B",
        "  adapter/                2 KiB",
        "  merged/                 3 GiB",
        "note: look",
    ]


def test_the_next_commands_evaluate_and_push_and_can_be_typed():
    lines = next_commands(BUNDLE, is_pushed=False)
    assert lines[0].endswith("python -m qlora_ray.evaluate out/b")
    pushed = next(line for line in lines if "--push" in line).partition("qlora_ray.export ")[2]
    arguments = make_parser().parse_args(pushed.split())
    assert arguments.source == Path("out/b") and arguments.push == "USER/x_SFT_LoRa4_QLORA_w4_headfp32"
    assert not [line for line in next_commands(BUNDLE, is_pushed=True) if "--push" in line]
