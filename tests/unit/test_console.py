"""What the user sees: plain lines in a file, a live last line on a terminal, and no noise of others."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qlora_ray.console import Console, noise_to

ERASE = "\r\x1b[2K"


@pytest.fixture(autouse=True)
def common_terminal(monkeypatch):
    """As on a terminal of today, whatever runs the tests."""
    monkeypatch.setenv("TERM", "xterm-256color")


class Terminal:
    """A pseudo-terminal: a stream to write to, and what has been shown."""

    def __init__(self, columns=40):
        self.reader, writer = os.openpty()
        if columns:
            termios.tcsetwinsize(writer, (24, columns))
        self.stream = os.fdopen(writer, "w")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stream.close()
        os.close(self.reader)

    def shown(self):
        """Everything written; ends the terminal, because only its end says that nothing more is on its way."""
        self.stream.close()
        shown = b""
        with contextlib.suppress(OSError):  # Linux says EIO where a file would say that it ends
            while part := os.read(self.reader, 100_000):
                shown += part
        return shown.decode().replace("\r\n", "\n")


def test_lines_off_a_terminal_carry_no_escape_codes_and_no_progress():
    stream = io.StringIO()
    console = Console(stream)
    console.progress("3 of 12")
    console.line("first")
    console.progress("4 of 12")
    console.event("trial 3 ended")
    console.end_progress()
    assert re.fullmatch(r"first\n   \d:\d\d  trial 3 ended\n", stream.getvalue())


def test_on_a_terminal_the_progress_line_stays_below_the_lines():
    with Terminal() as terminal:
        console = Console(terminal.stream)
        console.progress("3 of 12")
        console.line("first")
        console.progress("4 of 12")
        console.end_progress()
        console.line("last")
        shown = terminal.shown()
    assert shown == f"3 of 12{ERASE}first\n3 of 12{ERASE}4 of 12{ERASE}last\n"


def test_a_block_of_several_lines_is_replaced_as_a_whole_and_lines_come_above_it():
    with Terminal() as terminal:
        console = Console(terminal.stream)
        console.show(["a", "b", "c"])
        console.line("first")
        console.show(["d"])
        console.show(["d"])
        console.end_progress()
        shown = terminal.shown()
    up = "\x1b[1A\x1b[2K"
    assert shown == f"a\nb\nc{ERASE}{up}{up}first\na\nb\nc{ERASE}{up}{up}d{ERASE}"


@pytest.mark.parametrize("name", ["dumb", "unknown", "DUMB"])
def test_a_terminal_that_moves_no_cursor_gets_lines_only(monkeypatch, name):
    monkeypatch.setenv("TERM", name)
    with Terminal() as terminal:
        console = Console(terminal.stream)
        console.show(["a", "b"])
        console.progress("3 of 12")
        console.line("first")
        console.end_progress()
        assert not console.is_live
        assert terminal.shown() == "first\n"


def test_the_size_is_the_terminals_own_and_80_by_24_where_there_is_none():
    with Terminal(50) as terminal:
        assert Console(terminal.stream).size == (50, 24)
    assert Console(io.StringIO()).size == (80, 24)


def test_threads_that_write_at_once_tear_no_line():
    with Terminal(80) as terminal:
        console = Console(terminal.stream)
        with ThreadPoolExecutor(3) as threads:
            for number in range(20):
                threads.submit(console.line, f"line {number}")
                threads.submit(console.show, [f"a{number}", f"b{number}"])
        console.end_progress()
        shown = terminal.shown()
    lines = re.split(r"\n|\r|\x1b\[\d+[AK]", shown)
    assert sorted(line for line in lines if line.startswith("line")) == sorted(f"line {number}" for number in range(20))


@pytest.mark.parametrize(("columns", "width"), [(20, 19), (0, 79)])  # of unknown width, it counts as 80 columns
def test_a_progress_line_never_wraps(columns, width):
    with Terminal(columns) as terminal:
        Console(terminal.stream).progress("x" * 200)
        assert terminal.shown() == "x" * width


@pytest.mark.parametrize("open_ends", [os.openpty, os.pipe])
def test_a_terminal_or_pipe_whose_reader_left_goes_quiet_and_its_stream_closes_quietly(open_ends):
    reader, writer = open_ends()
    with os.fdopen(writer, "w") as stream:
        console = Console(stream)
        console.progress("3 of 12")
        os.close(reader)
        console.line("nobody reads this")
        console.line("nor this")
        console.progress("nor that")
        console.end_progress()


@pytest.mark.parametrize(
    "body",
    [
        "console = Console(); [console.line('x') for _ in range(3)]",
        "with noise_to(log) as console:\n    [console.line('x') for _ in range(3)]; print('noise')",
    ],
    ids=["plain", "noise_to"],
)
def test_a_program_whose_reader_left_goes_on_and_ends_well(tmp_path, body):
    log = tmp_path / "log"
    code = (
        "import sys; from pathlib import Path; from qlora_ray.console import Console, noise_to\n"
        f"log = Path({str(log)!r}); sys.stdin.read()\n{body}\nprint('more')\nlog.open('a').write('end')"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        program.stdin.close()
        errors = program.stderr.read()
    if "noise_to" in body:
        assert log.read_text() == "noise\nend"
    assert log.read_text().endswith("end"), errors


def test_noise_of_every_kind_goes_to_the_log_and_the_console_to_the_old_output(tmp_path, capfd):
    log = tmp_path / "driver.log"
    with noise_to(log) as console:
        os.write(1, b"from C on 1\n")
        os.write(2, b"from C on 2\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        sys.__stdout__.flush()
        console.line("for the user")
    os.write(1, b"out again\n")
    os.write(2, b"err again\n")
    captured = capfd.readouterr()
    assert captured.out == "for the user\nout again\n"
    assert captured.err == "err again\n"
    assert log.read_text() == "from C on 1\nfrom C on 2\nfrom a child\n"


def test_what_was_printed_before_is_not_swallowed_by_the_log_which_is_appended_to(tmp_path, capfd):
    print("before", end="")  # noqa: T201 - an unflushed line of Python's own buffer
    for text in (b"one ", b"two"):
        with noise_to(tmp_path / "log"):
            os.write(1, text)
    assert capfd.readouterr().out == "before"
    assert (tmp_path / "log").read_text() == "one two"


def test_the_output_comes_back_after_an_exception_and_no_descriptor_leaks(tmp_path, capfd):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        with pytest.raises(ValueError, match="boom"), noise_to(tmp_path / "log"):
            raise ValueError("boom")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    os.write(1, b"here\n")
    assert capfd.readouterr().out == "here\n"


@pytest.mark.parametrize("log", [Path("/dev/full"), Path("/no/such/folder/log")])
def test_a_log_that_cannot_be_written_stops_nobody(capfd, log):
    with noise_to(log) as console:
        print("noise " * 10_000)  # noqa: T201 - what a library does
        print("noise", file=sys.stderr, flush=True)  # noqa: T201
        console.line("for the user")
    assert capfd.readouterr() == ("for the user\n", "")
