"""The process in which SQL that nobody has read runs on an SQLite file: read-only, limited, and compared by its rows.

Queries come as JSON lines, verdicts go out; rows stay here. sql.py runs this file as a script, without site packages
and without this project, so that it starts in the time of a bare interpreter.

What keeps a query from doing harm: the file is opened read-only, an authorizer allows nothing but reading, and the
limits below bound what one step can build. A progress handler ends a query between steps. Within a step, and while a
query is compiled, SQLite cannot be interrupted (`instr` of two half-megabyte strings takes seconds): there sql.py ends
the process, and where that is dead or stopped itself the system does, by the limit of CPU seconds.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, NamedTuple

MAX_ROWS = 10_000
# Ours: of all values of a result together, as they come to Python.
MAX_RESULT_BYTES = 64 * 2**20
# Ours: without it, 25 nested CTEs that each use the one before twice took 20 GB while being compiled, before any clock
# is looked at; with it they fail in 0.2 s (SQLite 3.40). Sorting and grouping must fit too: nothing spills to disk.
MAX_HEAP_BYTES = 256 * 2**20
# Ours, of the whole process: two results beside SQLite's heap. A million cells that are numbers take 32 MiB.
MAX_MEMORY_BYTES = 512 * 2**20
# Ours: CPU seconds beyond a query's own time, after which the system ends the process. sql.py is earlier.
CPU_GRACE_S = 3
# SQLite's virtual-machine instructions between two looks at the clock: well under a millisecond.
STEPS_PER_CLOCK_CHECK = 1_000
# https://sqlite.org/limits.html; the defaults are a thousand times larger, of patterns fifty times. A pattern takes as
# long as its length times the text's: 25,000 characters took minutes.
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
ALLOWED_ACTIONS = frozenset(
    (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
)
DENIED_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer"))
# SQLite builds a padded string one character at a time, past its own length limit: 1e9 characters took 4 s in
# one step (SQLite 3.40). Widths of four digits, and widths from arguments, are refused.
UNBOUNDED_WIDTH = re.compile(r"%[-+ 0#,!.\d]*(?:\*|\d{4})")
# Floats are equal within this: sums in another order differ in the last bits.
RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-9

Cell = int | float | str | bytes | None
Row = tuple[Cell, ...]


class SqlFailure(Exception):
    """A query that is not one readable, allowed statement, or that went over a limit."""


class QueryResult(NamedTuple):
    """What a query returned."""

    columns: tuple[str, ...]
    rows: list[Row]


class QueryRunner:
    """Runs queries on one SQLite file, having changed nothing.

    Args:
        uri: The file, as an URI.
        timeout_s: Seconds after which a query is stopped.
        max_rows: Rows after which it is stopped.

    Raises:
        sqlite3.Error: the file cannot be read.
    """

    def __init__(self, uri: str, *, timeout_s: float, max_rows: int = MAX_ROWS) -> None:
        self._timeout_s = timeout_s
        self._max_rows = max_rows
        self._deadline = math.inf
        self._scratch = sqlite3.connect(":memory:", isolation_level=None)
        self._connection = sqlite3.connect(
            f"{uri}?mode=ro", uri=True, timeout=timeout_s, isolation_level=None, cached_statements=0
        )
        try:
            self._prepare()
        except sqlite3.Error:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()
        self._scratch.close()

    def run(self, sql: str) -> QueryResult:
        """Returns the rows of one SELECT.

        Raises:
            SqlFailure: the statement is not allowed, does not run, or exceeds a limit of time or size.
        """
        self._deadline = time.monotonic() + self._timeout_s
        try:
            with closing(self._connection.execute(sql)) as cursor:
                if cursor.description is None:
                    raise SqlFailure(f"sql: must be one SELECT, got {shorten(sql)}")
                columns = tuple(column[0] for column in cursor.description)
                return QueryResult(columns=columns, rows=_fetch(cursor, max_rows=self._max_rows))
        except sqlite3.OperationalError as error:
            reason = f"took over {self._timeout_s:g} s" if str(error) == "interrupted" else str(error)
            raise SqlFailure(f"sql: {reason}, in {shorten(sql)}") from None
        # Warning: several statements (Python 3.11). ValueError: a null character, or text that is not UTF-8.
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
            raise SqlFailure(f"sql: {str(error) or 'out of memory'}, in {shorten(sql)}") from None

    def _prepare(self) -> None:
        connection = self._connection
        # Text that is not UTF-8 is read with replacement characters.
        connection.text_factory = lambda text: text.decode("utf-8", errors="replace")
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA hard_heap_limit = {MAX_HEAP_BYTES}")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        for name in ("printf", "format"):
            connection.create_function(name, -1, _bounded_printf(self._scratch), deterministic=True)
        for limit, value in LIMITS.items():
            connection.setlimit(limit, value)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: int(time.monotonic() > self._deadline), STEPS_PER_CLOCK_CHECK)


def main() -> None:
    """Reads {"uri", "timeout_s"} and then [reference, predicted, ordered], a line each, from stdin.

    `ordered` says whether the order of rows counts. Each is answered with {"error"}: null where the file can be read,
    or the reference has run. Where it has, a line with the fields of `sql.ExecutionOutcome` follows.
    """
    settings = json.loads(sys.stdin.readline())
    _limit_process()
    try:
        runner = QueryRunner(settings["uri"], timeout_s=settings["timeout_s"])
    except sqlite3.Error as error:
        _say(error=str(error))
        return
    _say(error=None)
    for line in sys.stdin:
        reference, predicted, ordered = json.loads(line)
        _limit_cpu(settings["timeout_s"])
        try:
            expected = runner.run(reference)
        except SqlFailure as error:
            _say(error=str(error))
            continue
        _say(error=None)
        _limit_cpu(settings["timeout_s"])
        _say(**judge(runner, predicted, expected, ordered=ordered))


def judge(runner: QueryRunner, predicted: str, expected: QueryResult, *, ordered: bool) -> dict[str, Any]:
    """Returns whether `predicted` runs (`valid`) and gives the expected rows (`correct`), and else its `error`.

    Args:
        runner: Has the file.
        predicted: The query that the model answered.
        expected: What the reference returned.
        ordered: Whether the order of the rows counts.
    """
    try:
        got = runner.run(predicted)
        correct = len(got.columns) == len(expected.columns) and _same_rows(got.rows, expected.rows, ordered=ordered)
        return {"valid": True, "correct": correct, "error": None}
    except SqlFailure as error:
        return {"valid": False, "correct": False, "error": str(error)}
    except MemoryError:
        return {"valid": False, "correct": False, "error": f"sql: out of memory, in {shorten(predicted)}"}


def shorten(sql: str, *, max_characters: int = 200) -> str:
    """Returns the query for a message: on one line, in quotes, its middle left out if it is long."""
    line = " ".join(sql.split())
    if len(line) > max_characters:
        line = f"{line[: max_characters // 2]} ... {line[-max_characters // 2 :]}"
    return repr(line)


def _authorize(action: int, first: str | None, second: str | None, _database: str | None, _view: str | None) -> int:
    """Returns SQLITE_OK for reading only; for a function, SQLite passes its name as the second text."""
    if action not in ALLOWED_ACTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in DENIED_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _bounded_printf(scratch: sqlite3.Connection) -> Callable[..., Cell]:
    """Returns SQLite's own printf, evaluated in `scratch`, that refuses a width of unbounded cost."""

    def printf(*arguments: Cell) -> Cell:
        if arguments and UNBOUNDED_WIDTH.search(str(arguments[0])):
            raise ValueError("a width in printf is over 999")
        row = scratch.execute(f"SELECT printf({', '.join('?' * len(arguments))})", arguments).fetchone()
        value: Cell = row[0]
        return value

    return printf


def _fetch(cursor: sqlite3.Cursor, *, max_rows: int) -> list[Row]:
    """Returns all rows, or raises SqlFailure as soon as they are too many or too large."""
    rows: list[Row] = []
    size_bytes = 0
    for row in cursor:
        size_bytes += sum(len(cell) for cell in row if isinstance(cell, str | bytes))
        if len(rows) == max_rows:
            raise SqlFailure(f"sql: must return at most {max_rows:,} rows, got more")
        if size_bytes > MAX_RESULT_BYTES:
            raise SqlFailure(f"sql: must return at most {MAX_RESULT_BYTES // 2**20} MiB, got more")
        rows.append(row)
    return rows


def _same_rows(got: list[Row], expected: list[Row], *, ordered: bool) -> bool:
    if len(got) != len(expected):
        return False
    if not ordered:
        num_columns = len(expected[0]) if expected else 0
        is_float = [any(isinstance(row[at], float) for row in (*got, *expected)) for at in range(num_columns)]
        exact_first = sorted(range(num_columns), key=lambda at: is_float[at])
        got, expected = (
            sorted(rows, key=lambda row: [_rank(row[at]) for at in exact_first]) for rows in (got, expected)
        )
    return all(
        _same_cell(a, b) for row, other in zip(got, expected, strict=True) for a, b in zip(row, other, strict=True)
    )


def _rank(cell: Cell) -> tuple[int, int | float | str | bytes]:
    """Returns a key that sorts cells of any type: nulls, numbers, text, bytes."""
    if cell is None:
        return (0, 0)
    if isinstance(cell, int | float):
        return (1, cell)
    return (2, cell) if isinstance(cell, str) else (3, cell)


def _same_cell(cell: Cell, other: Cell) -> bool:
    if isinstance(cell, int | float) and isinstance(other, int | float) and float in (type(cell), type(other)):
        return math.isclose(cell, other, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    return cell == other


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _limit_process() -> None:
    # Windows has no such limits, and macOS none of memory; there sql.py alone ends a query.
    with suppress(ImportError, OSError, ValueError):
        import resource

        # The system ends a process over its CPU seconds with a core file.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


def _limit_cpu(query_s: float) -> None:
    """Lets the process take the CPU seconds of one more query."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + query_s) + CPU_GRACE_S, hard))


if __name__ == "__main__":
    main()
