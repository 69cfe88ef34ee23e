"""What every command does around its work: common options, the token of .env, one message and an exit code for bad
input and stops, and one JSON object where a script asks for it."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from qlora_ray.env_file import load_token
from qlora_ray.errors import QloraRayError, RunError, as_message
from qlora_ray.platforms import SIGPIPE_NUMBER, has_lost_reader
from qlora_ray.regular_files import resolve_path

# As shells have it: 128 and the signal's number.
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
READER_GONE = 128 + SIGPIPE_NUMBER


# Of the object that --json prints. It changes when a key changes its meaning or goes; new keys may come without.
JSON_SCHEMA_VERSION = 1
# What `sweep` and `plan` read where they are given no config.
DEFAULT_CONFIG = Path("configs/quickstart.yaml")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it: what is half written goes away as on Ctrl-C."""


@dataclass(frozen=True)
class Result:
    """What a command's work came to.

    Attributes:
        facts: What `--json` prints of it; see docs/commands.md.
        exit_code: The command's.
    """

    facts: Mapping[str, Any]
    exit_code: int = 0


@dataclass(frozen=True)
class _End:
    """How a command ended: `error` is what ended it, by its class and message, and `facts` what it found before."""

    exit_code: int
    facts: Mapping[str, Any] | None = None
    error: Mapping[str, str] | None = None


class CommandParser(argparse.ArgumentParser):
    """A command line whose refusals are cut as all messages are."""

    def error(self, message: str) -> NoReturn:
        """Prints usage and message, and exits with 2."""
        super().error(as_message(QloraRayError(message)))


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Gives a command its `--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (docs/commands.md); all else goes to stderr"
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Gives a command what a sweep's config is made of: `--config`, `--preset` and `--set`."""
    parser.add_argument("--config", type=Path, help=f"sweep YAML (default: {DEFAULT_CONFIG})")
    parser.add_argument("--preset", metavar="NAME", help="one of configs/presets, under --config and --set")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override one config value"
    )


def find_config(arguments: argparse.Namespace) -> Path | None:
    """The file that `add_config_options` asks for; None where a preset alone is named."""
    return arguments.config if arguments.config or arguments.preset else DEFAULT_CONFIG


def run_command(
    run: Callable[[], Result], *, json_of: str | None = None, stopped: str = "stopped", has_own_signals: bool = False
) -> int:
    """Runs a command's work; returns its exit code, or that of the error that ended it.

    Args:
        run: Does the command's work.
        json_of: The command's name, where its end is printed as JSON; None where it is not.
        stopped: What is said after Ctrl-C or SIGTERM.
        has_own_signals: The work handles SIGTERM itself.
    """
    ensure_output()
    try:
        exit_code = _run_and_tell(run, json_of=json_of, stopped=stopped, has_own_signals=has_own_signals)
        sys.stdout.flush()
    except BrokenPipeError:
        if not has_lost_reader(1):
            raise
        # As every program of a pipe: `plan | head` is no failure with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return READER_GONE
    except OSError as error:
        if not _is_stdout_full():
            raise
        # Else the interpreter tries once more as it ends, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stderr.write(f"stdout: cannot be written: {error.strerror}. Free some space, or send it elsewhere.\n")
        return RunError.exit_code
    return exit_code


def end_with(run: Callable[[], int]) -> None:
    """Ends this process with the exit code that `run` returns, once all who asked to be told of its end have been.

    The interpreter would then free all that torch and Ray hold, object by object: up to 15 s on a busy machine, after
    everything has been said.
    """
    codes: list[int] = []

    def leave() -> None:
        if codes:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(codes[0])

    # Registered before those of libraries that are imported in `run`, it is called after them.
    atexit.register(leave)
    codes.append(run())
    sys.exit(codes[0])


def _is_stdout_full() -> bool:
    """Whether stdout leads to a file that takes no more, on a full disk for one."""
    try:
        os.write(1, b"\n")
    except OSError:
        return True
    return False


def ensure_output() -> None:
    """Gives a process that was started without stdout or stderr (`>&-`) ones that lead nowhere.

    Else the next file or socket that it opens gets the number, and whatever a library prints.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _run_and_tell(run: Callable[[], Result], *, json_of: str | None, stopped: str, has_own_signals: bool) -> int:
    if json_of is None:
        return _run_to_end(run, stopped=stopped, has_own_signals=has_own_signals).exit_code
    with _stdout_to_stderr():
        end = _run_to_end(run, stopped=stopped, has_own_signals=has_own_signals)
    answer = {
        "command": json_of,
        "schema_version": JSON_SCHEMA_VERSION,
        "exit_code": end.exit_code,
        "error": end.error,
        "result": end.facts,
    }
    # A figure that is not finite is null: NaN is no JSON, and stricter readers than Python's refuse it.
    plain = json.loads(json.dumps(answer, default=str), parse_constant=lambda _: None)
    sys.stdout.write(json.dumps(plain, indent=2) + "\n")
    sys.stdout.flush()
    return end.exit_code


def _run_to_end(run: Callable[[], Result], *, stopped: str, has_own_signals: bool) -> _End:
    try:
        _check_folder()
        load_token()
        if has_own_signals:
            result = run()
        else:
            with sigterm_as_stop():
                result = run()
        return _End(result.exit_code, result.facts)
    except QloraRayError as error:
        message = as_message(error)
        sys.stderr.write(f"{message}\n")
        return _End(error.exit_code, error={"type": type(error).__name__, "message": message})
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{stopped}\n")
        code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
        return _End(code, error={"type": "Stopped", "message": stopped})


def _check_folder() -> None:
    """Raises RunError if the folder that the process works in is gone: no relative path leads anywhere."""
    try:
        Path.cwd()
    except OSError as error:
        raise RunError(f"the current folder cannot be used: {error.strerror}. Change to one that is there.") from None


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Sends all that is printed in the block to stderr; by the descriptor too, since libraries in C++ print."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def sigterm_as_stop() -> Iterator[None]:
    """Raises Terminated where SIGTERM finds the work; Python takes signals in its main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def as_place(text: str) -> Path:
    """A folder as it was typed, `~` expanded; one without a name of its own, as `.`, by its whole path."""
    path = Path(text)
    try:
        path = path.expanduser()
    except RuntimeError:
        # Of a user that is not there: a name as any other.
        return path
    # Others are not resolved: a link is to be seen as one, and messages have what was typed.
    return path if path.name not in ("", "..") else resolve_path(path)
