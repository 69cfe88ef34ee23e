"""The exceptions that commands turn into one message and an exit code.

Messages have the form `where: rule, got value. What to do.` Every class survives pickling between Ray
actors, because its only state is the message.
"""

from __future__ import annotations

import errno
import re

# Of a message: a value that it quotes may have a million letters, and a file as many mistakes.
MAX_LINE_LETTERS, MAX_LINES = 1_000, 400
MAX_PROBLEMS = 11
# Quoted from a file, some would move the cursor or rename the window.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
# A disk, or what a user may have of it, takes no more.
DISK_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# As Linux and macOS have it; Windows has no words of its own for the second.
DISK_FULL_WORDS = ("No space left on device", "Disk quota exceeded")


class QloraRayError(Exception):
    """An error whose message is written for the user; commands print it and exit with `exit_code`."""

    exit_code = 2


class ConfigError(QloraRayError):
    """A config, search space or `--set` value that breaks a rule. May carry several problems, a line each."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return (type(self), (self.problems,))


class DataError(QloraRayError):
    """A dataset that cannot be trained on: missing, empty, or with a row that breaks the format."""


class ModelError(QloraRayError):
    """A base or tokenizer that cannot be loaded, or that lacks what the config asks of it."""


class PlacementError(QloraRayError):
    """No device of the cluster has room for one trial."""


class NoExecutors(QloraRayError):
    """Every executor of the plan is gone for good: no trial can run any more."""


class PoolLost(QloraRayError):
    """The pool's actor is gone, or Ray with it: the search ends, and its running trials are interrupted."""


class NoFittingDevice(QloraRayError):
    """There are executors, but none has what one trial needs: a larger device, or a whole one."""


class RunError(QloraRayError):
    """A results folder that cannot be used: taken, not writable, full, or not a sweep."""


class TrialDiverged(QloraRayError):
    """A trial's loss or gradient norm became NaN or infinite."""


class SweepFailed(QloraRayError):
    """The sweep ran and found no winner."""

    exit_code = 1


class ExecutorsLost(SweepFailed):
    """No executor is left to train or to score on: what ran is interrupted, and the sweep can be resumed."""


class SweepInterrupted(QloraRayError):
    """Ray or the pool died under a sweep, or a disk is full: what ran is interrupted, and it can be resumed."""

    # As a sweep that Ctrl-C ended.
    exit_code = 130


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk takes no more, by its number, or in the words of a library that has none."""
    if getattr(error, "errno", None) in DISK_FULL_NUMBERS:
        return True
    return any(words in str(error) for words in DISK_FULL_WORDS)


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says; its type's name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shorten_problems(problems: list[str]) -> list[str]:
    """Returns the first MAX_PROBLEMS, and how many more there are."""
    more = len(problems) - MAX_PROBLEMS
    return problems if more <= 0 else [*problems[:MAX_PROBLEMS], f"... and {more:,} more"]


def as_message(error: BaseException) -> str:
    """Returns what an error says as a terminal can show it: long lines cut, many lines counted, no control codes."""
    lines = str(error).split("\n")
    shown = [_cut(_CONTROL.sub(lambda found: repr(found[0])[1:-1], line)) for line in lines[:MAX_LINES]]
    return "\n".join(shown + ([f"... and {len(lines) - MAX_LINES:,} lines more"] if len(lines) > MAX_LINES else []))


def _cut(line: str) -> str:
    if len(line) <= MAX_LINE_LETTERS:
        return line
    # The end has what to do.
    half = MAX_LINE_LETTERS // 2
    return f"{line[:half]} ... ({len(line):,} letters) ... {line[-half:]}"
