"""Runs SQL that nobody has read on an SQLite file: read-only, limited in time and size, and compared by its rows.

What keeps a query from doing harm: the file is opened read-only, an authorizer allows nothing but reading, and the
limits below bound what one step can build. A progress handler ends a query between steps; within a step, and while a
query is compiled, it cannot be interrupted. With these limits the slowest found (instr and replace on half-megabyte
strings) takes about a second.

The limit on memory is SQLite's own and holds for every SQLite connection of this process, from the first query on
until it ends: SQLite has no limit per connection, and does not let this one be raised again.
"""

from __future__ import annotations

import math
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qlora_ray.errors import DataError, QloraRayError

TIMEOUT_S = 5.0
MAX_ROWS = 10_000
# Ours: of all values of a result together, as they come to Python.
MAX_RESULT_BYTES = 64 * 2**20
# Ours: without it, 25 nested CTEs that each use the one before twice took 20 GB while being compiled, before any clock
# is looked at; with it they fail in 0.2 s (SQLite 3.40). Sorting and grouping must fit too: nothing spills to disk.
MAX_HEAP_BYTES = 256 * 2**20
# SQLite's virtual-machine instructions between two looks at the clock: well under a millisecond.
STEPS_PER_CLOCK_CHECK = 1_000
SQLITE_MAGIC = b"SQLite format 3\x00"
# https://sqlite.org/limits.html; the defaults are a thousand times larger.
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
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

_QUOTED_OR_COMMENT = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|$)""", re.DOTALL
)
_STRUCTURE = re.compile(r"[()]|\border\s+by\b", re.IGNORECASE)


class SqlFailure(QloraRayError):
    """A query that is not one readable, allowed statement, or that went over a limit."""


@dataclass(frozen=True)
class QueryResult:
    """What a query returned."""

    columns: tuple[str, ...]
    rows: list[Row]


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


def run_query(database: Path, sql: str, *, timeout_s: float = TIMEOUT_S, max_rows: int = MAX_ROWS) -> QueryResult:
    """Returns the rows of one SELECT, having changed nothing.

    Args:
        database: An SQLite file, opened read-only.
        sql: The statement that is run.
        timeout_s: Seconds after which it is stopped.
        max_rows: Rows after which it is stopped.

    Raises:
        SqlFailure: the statement is not allowed, does not run, or exceeds `timeout_s`, `max_rows` or a size limit.
        DataError: `database` cannot be read; no query is to blame.
    """
    with closing(_open(database, timeout_s=timeout_s)) as connection, closing(sqlite3.connect(":memory:")) as scratch:
        deadline = time.monotonic() + timeout_s
        for name in ("printf", "format"):
            connection.create_function(name, -1, _bounded_printf(scratch), deterministic=True)
        for limit, value in LIMITS.items():
            connection.setlimit(limit, value)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: int(time.monotonic() > deadline), STEPS_PER_CLOCK_CHECK)
        try:
            cursor = connection.execute(sql)
            if cursor.description is None:
                raise SqlFailure(f"sql: must be one SELECT, got {_shorten(sql)}")
            columns = tuple(column[0] for column in cursor.description)
            return QueryResult(columns=columns, rows=_fetch(cursor, max_rows=max_rows))
        except sqlite3.OperationalError as error:
            reason = f"took over {timeout_s:g} s" if str(error) == "interrupted" else str(error)
            raise SqlFailure(f"sql: {reason}, in {_shorten(sql)}") from None
        # Warning: several statements (Python 3.11). ValueError: a null character, or text that is not UTF-8.
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
            raise SqlFailure(f"sql: {str(error) or 'out of memory'}, in {_shorten(sql)}") from None


def execution_match(
    database: Path, predicted: str, reference: str, *, timeout_s: float = TIMEOUT_S
) -> ExecutionOutcome:
    """Returns whether `predicted` gives the same rows as `reference`.

    Rows are compared in order if the reference has an ORDER BY at its top level (not in a subquery or window), else
    as multisets. Columns are compared by position; their names do not matter. Numbers are equal by value, 3 and 3.0
    alike; where one is a float, within 1e-6 relative (or 1e-9). Text never equals a number. As multisets, rows are
    paired after sorting with float columns last, so rows that differ in two float columns only, one of them by
    less than the tolerance, can be judged different.

    Args:
        database: An SQLite file, opened read-only.
        predicted: The query that the model answered.
        reference: The query it should be.
        timeout_s: Seconds that either may run.

    Raises:
        DataError: the reference does not run, so that nothing can be held against it.
    """
    try:
        expected = run_query(database, reference, timeout_s=timeout_s)
    except SqlFailure as error:
        raise DataError(
            f"evaluation: a reference query must run on {database.name}, got {error}. "
            "Correct or drop its row, or check evaluate.database."
        ) from None
    try:
        got = run_query(database, predicted, timeout_s=timeout_s)
    except SqlFailure as error:
        return ExecutionOutcome(valid=False, correct=False, error=str(error))
    correct = len(got.columns) == len(expected.columns) and _same_rows(
        got.rows, expected.rows, ordered=has_top_level_order(reference)
    )
    return ExecutionOutcome(valid=True, correct=correct)


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
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC


def _open(database: Path, *, timeout_s: float) -> sqlite3.Connection:
    """Returns a connection that cannot write; text that is not UTF-8 is read with replacement characters."""
    if not is_database(database):
        raise DataError(f"evaluation: the database must be an SQLite file, got {database}. Check evaluate.database.")
    uri = f"{database.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None)
    connection.text_factory = lambda text: text.decode("utf-8", errors="replace")
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA hard_heap_limit = {MAX_HEAP_BYTES}")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        connection.close()
        raise DataError(
            f"evaluation: the database must be readable, got {error} from {database}. Check evaluate.database."
        ) from None
    return connection


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


def _shorten(sql: str, *, max_characters: int = 200) -> str:
    """Returns the query for a message: on one line, in quotes, its middle left out if it is long."""
    line = " ".join(sql.split())
    if len(line) > max_characters:
        line = f"{line[: max_characters // 2]} ... {line[-max_characters // 2 :]}"
    return repr(line)
