"""SQL that nobody has read, run in a process of its own (sql_judge.py), which is ended where a query keeps it busy.

One process takes many pairs, and another its place when it has died. It sees the database, no descriptor and no
environment of this process, and ends when its standard input does, so with this process too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from qlora_ray.errors import DataError
from qlora_ray.platforms import OVER_CPU_LIMIT, without_ctrl_c
from qlora_ray.regular_files import open_regular
from qlora_ray.scoring.metrics import sql_judge

TIMEOUT_S = 5.0
# Ours: how much longer than its time a query may take before the process is ended: what counts the time inside ends it
# first wherever it can, and comparing rows takes time too.
KILL_GRACE_S = 1.0
# Ours: it takes 0.03 s on an idle machine.
START_LIMIT_S = 60.0
# Of a process that does not start, in characters.
MAX_LAST_WORDS = 500
SQLITE_MAGIC = b"SQLite format 3\x00"
# What an interpreter may need to start: libraries beside it, and on Windows the system's folder.
KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")

_QUOTED_OR_COMMENT = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|$)""", re.DOTALL
)
_STRUCTURE = re.compile(r"[()]|\border\s+by\b", re.IGNORECASE)


@dataclass(frozen=True)
class ExecutionOutcome:
    """How a predicted query did against its reference.

    Attributes:
        valid: It ran.
        correct: It ran and returned the reference's rows.
        error: Why it did not run, else None.
    """

    valid: bool
    correct: bool
    error: str | None = None


class SqlProcess:
    """A process that runs queries on one SQLite file, from the first pair on until `close` or the end of the `with`.

    Args:
        database: An SQLite file, opened read-only.
        timeout_s: Seconds that a query may run.
    """

    def __init__(self, database: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._database = database
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def match(self, predicted: str, reference: str) -> ExecutionOutcome:
        """Returns whether `predicted` gives the same rows as `reference`.

        Rows are compared in order if the reference has an ORDER BY at its top level (not in a subquery or window), else
        as multisets. Columns are compared by position; their names do not matter. Numbers are equal by value, 3 and 3.0
        alike; where one is a float, within 1e-6 relative (or 1e-9). Text never equals a number. As multisets, rows are
        paired after sorting with float columns last, so rows that differ in two float columns only, one of them by
        less than the tolerance, can be judged different.

        A query that takes too long is wrong. One at which the process has died otherwise is asked once more, since
        something else may have killed it, and is wrong then too.

        Args:
            predicted: The query that the model answered.
            reference: The query it should be.

        Raises:
            DataError: the reference does not run, so that nothing can be held against it; or the file cannot be read.
            RuntimeError: the process does not start.
        """
        try:
            return self._match(predicted, reference, is_last_try=False)
        except _Ended:
            return self._match(predicted, reference, is_last_try=True)

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _match(self, predicted: str, reference: str, *, is_last_try: bool) -> ExecutionOutcome:
        if self._process is None or self._process.poll() is not None:
            self._start()
        held = self._run(reference, ask=[reference, predicted, has_top_level_order(reference)], is_last_try=is_last_try)
        if held["error"] is not None:
            raise DataError(
                f"evaluation: a reference query must run on {self._database.name}, got {held['error']}. "
                "Correct or drop its row, or check evaluate.database."
            )
        return ExecutionOutcome(**self._run(predicted, is_last_try=is_last_try))

    def _run(self, sql: str, *, ask: list[object] | None = None, is_last_try: bool) -> dict[str, Any]:
        """Returns what the process says of a query; raises _Ended where it has died at it and may be asked again."""
        try:
            return self._exchange(ask, limit_s=self._timeout_s + KILL_GRACE_S)
        except _Ended as end:
            if not (end.is_over_time or is_last_try):
                raise
            reason = f"took over {self._timeout_s:g} s" if end.is_over_time else "ended the process that ran it"
            return {"valid": False, "correct": False, "error": f"sql: {reason}, in {sql_judge.shorten(sql)}"}

    def _start(self) -> None:
        self.close()
        if not is_database(self._database):
            raise DataError(
                f"evaluation: the database must be an SQLite file, got {self._database}. Check evaluate.database."
            )
        # -I, -S: nothing of the user's environment or site packages is imported.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", sql_judge.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
            **without_ctrl_c(),
        )
        settings = {"uri": self._database.absolute().as_uri(), "timeout_s": self._timeout_s}
        try:
            error = self._exchange(settings, limit_s=START_LIMIT_S)["error"]
        except _Ended as end:
            raise RuntimeError(f"the process that runs SQL does not start: {end}") from None
        if error is not None:
            raise DataError(
                f"evaluation: the database must be readable, got {error} from {self._database}. "
                "Check evaluate.database."
            )

    def _exchange(self, message: object, *, limit_s: float) -> dict[str, Any]:
        """Returns the next line of the process, to which a message is sent first, if there is one.

        Raises:
            _Ended: the process has ended, or was ended after `limit_s`.
        """
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        # A thread, and not a wait with a limit, which pipes have on no system alike.
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        line = b""
        with suppress(OSError):
            if message is not None:
                process.stdin.write(json.dumps(message).encode() + b"\n")
                process.stdin.flush()
            line = process.stdout.readline()
        is_late = not timer.is_alive()
        timer.cancel()
        if line.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process = None
        process.kill()
        _, last_words = process.communicate()
        raise _Ended(last_words.decode(errors="replace"), is_over_time=is_late or process.returncode == OVER_CPU_LIMIT)


class _Ended(Exception):
    """The process has ended."""

    def __init__(self, last_words: str, *, is_over_time: bool) -> None:
        super().__init__(last_words.strip()[-MAX_LAST_WORDS:])
        self.is_over_time = is_over_time


def has_top_level_order(sql: str) -> bool:
    """Returns whether the statement itself is ordered, rather than a subquery, a CTE or a window in it."""
    depth = 0
    for token in _STRUCTURE.findall(_QUOTED_OR_COMMENT.sub(" ", sql)):
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
        elif depth == 0:
            return True
    return False


def is_database(path: Path) -> bool:
    """Returns whether `path` is an SQLite file, by its first bytes."""
    try:
        with open_regular(path) as file:
            return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except (OSError, ValueError):
        return False
