"""What every command does around its work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qlora_ray.commands import JSON_SCHEMA_VERSION, Result, as_place, run_command
from qlora_ray.errors import ConfigError, SweepFailed


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "code", "words"),
    [
        (lambda: Result({}), 0, ""),
        (lambda: Result({}, exit_code=1), 1, ""),
        (raising(ConfigError("a.yaml:1: wrong")), 2, "a.yaml:1: wrong\n"),
        (raising(SweepFailed("no executor")), 1, "no executor\n"),
        (raising(KeyboardInterrupt()), 130, "stopped; go on\n"),
    ],
)
def test_each_end_has_its_exit_code_and_one_message(run, code, words, capsys):
    assert run_command(run, stopped="stopped; go on") == code
    assert capsys.readouterr().err == words


def test_a_folder_that_is_gone_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_command(lambda: Result({})) == 2
    assert capsys.readouterr().err == (
        "the current folder cannot be used: No such file or directory. Change to one that is there.\n"
    )


def chattering() -> Result:
    sys.stdout.write("for people\n")
    # As a library in C++ does.
    os.write(1, b"from below\n")
    return Result({"folder": "results/x"}, exit_code=1)


@pytest.mark.parametrize(
    ("run", "code", "error", "result"),
    [
        (chattering, 1, None, {"folder": "results/x"}),
        (raising(ConfigError("a.yaml:1: wrong")), 2, {"type": "ConfigError", "message": "a.yaml:1: wrong"}, None),
        (raising(KeyboardInterrupt()), 130, {"type": "Stopped", "message": "stopped"}, None),
    ],
)
def test_as_json_stdout_has_one_object_whatever_else_is_printed(run, code, error, result, capfd):
    assert run_command(run, json_of="plan") == code
    out, err = capfd.readouterr()
    assert json.loads(out) == {
        "command": "plan",
        "schema_version": JSON_SCHEMA_VERSION,
        "exit_code": code,
        "error": error,
        "result": result,
    }
    if run is chattering:
        assert "for people" in err and "from below" in err


def test_as_json_a_figure_that_is_not_finite_is_null(capfd):
    facts = {"loss": float("nan"), "interval": (float("-inf"), 1.0), "folder": Path("results/x")}
    assert run_command(lambda: Result(facts), json_of="evaluate") == 0
    out, _ = capfd.readouterr()

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(out, parse_constant=refuse)["result"]
    assert found == {"loss": None, "interval": [None, 1.0], "folder": "results/x"}


def test_sigterm_lets_the_work_clean_up_and_the_old_handler_comes_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def run():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            # The handler runs between two instructions of this thread.
            while True:
                pass
        finally:
            cleaned.append(True)

    assert run_command(run) == 143
    assert (cleaned, capsys.readouterr().err) == ([True], "stopped\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_work_with_signals_of_its_own_and_other_threads_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        seen.append(signal.getsignal(signal.SIGTERM))
        return Result({})

    assert run_command(run, has_own_signals=True) == 0
    thread = threading.Thread(target=run_command, args=(run,))
    thread.start()
    thread.join()
    assert seen == [before, before]


def test_a_folder_is_taken_as_it_was_typed_unless_it_has_no_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for text, place in [
        ("a/b", "a/b"),
        ("link", "link"),
        ("~/b", f"{tmp_path}/home/b"),
        ("~nobody-has-this-name/b", "~nobody-has-this-name/b"),
        (".", f"{tmp_path}"),
        ("", f"{tmp_path}"),
        ("a/..", f"{tmp_path}"),
    ]:
        assert str(as_place(text)) == place


@pytest.mark.parametrize("options", ["", "--json"])
@pytest.mark.parametrize(("shell", "code"), [(">&-", 0), ("2>&- >&-", 0), ("| (exec <&-)", 141)])
def test_a_stdout_that_is_closed_or_not_read_breaks_no_command(shell, code, options):
    hosts = " ".join(f"host{number}" for number in range(400))
    command = f"sleep 0.05; exec {sys.executable} -m qlora_ray.cluster up-lines {options} {hosts}"
    done = subprocess.run(
        ["bash", "-c", f"({command}) {shell}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stdout_on_a_full_disk_is_one_line(unbuffered):
    code = (
        "import sys; from qlora_ray.commands import Result, run_command; "
        "sys.exit(run_command(lambda: Result({'n': sys.stdout.write('told')})))"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert ended.returncode == 2
    assert ended.stderr.startswith("stdout: cannot be written: No space left on device.")
    assert ended.stderr.count("\n") == 1


def test_an_option_of_thousands_of_digits_is_one_short_line(capsys: pytest.CaptureFixture[str]) -> None:
    from qlora_ray.evaluate import make_parser

    with pytest.raises(SystemExit):
        make_parser().parse_args(["s", "--rows", "9" * 6000])
    assert "must be a whole number above 0" in (said := capsys.readouterr().err)
    assert max(map(len, said.splitlines())) < 1_200


def test_a_process_ends_with_its_code_after_all_who_asked_to_be_told_and_frees_nothing_then() -> None:
    code = """
import atexit
from qlora_ray.commands import end_with
class Held:
    def __del__(self):
        print("freed")
held = Held()
def run():
    atexit.register(print, "told")
    print("done")
    return 7
end_with(run)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "done\ntold\n", "")
