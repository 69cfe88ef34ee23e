"""SQL in a process of its own: what keeps SQLite busy ends with it, and the next row is right."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from qlora_ray.errors import DataError
from qlora_ray.scoring.metrics.execution import SqlExecution
from qlora_ray.scoring.metrics.sql import ExecutionOutcome, SqlProcess
from tests.unit.evaluation_fixtures import make_database

NAMES = "SELECT name FROM products"
TIMEOUT_S = 0.2
# One instr of these takes over a second, in which SQLite looks at no clock.
_INSTR = "instr(hex(zeroblob(400000)), hex(zeroblob(200000)) || '{}')"
SLOW = f"SELECT {_INSTR.format(1)}"
FOUR_INSTR = f"SELECT {' + '.join(_INSTR.format(at) for at in range(1, 5))}"
NOT_IN = f"SELECT {', '.join(f'({_INSTR.format(at)} NOT IN (1))' for at in range(1000))}"
BUSY = {
    # Refused at once, since it is too long; without that limit it is the time that ends it.
    "a long pattern": (f"SELECT replace(hex(zeroblob(400000)), '0', 'a') LIKE '%{'a' * 24_990}b'", "too complex"),
    "four instr": (FOUR_INSTR, f"took over {TIMEOUT_S} s"),
    "a thousand not in": (NOT_IN, f"took over {TIMEOUT_S} s"),
}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return make_database(tmp_path / "shop.sqlite")


@pytest.fixture
def process(database: Path) -> Iterator[SqlProcess]:
    with SqlProcess(database, timeout_s=TIMEOUT_S) as made:
        yield made


@pytest.mark.parametrize("name", BUSY)
def test_a_query_that_keeps_sqlite_busy_is_wrong_in_time_and_the_next_row_is_right(
    process: SqlProcess, name: str
) -> None:
    query, reason = BUSY[name]
    outcome = process.match(query, NAMES)
    assert (outcome.valid, outcome.correct) == (False, False)
    assert reason in str(outcome.error)
    assert process.match(NAMES, NAMES).correct


@pytest.mark.slow
def test_a_result_that_asks_for_all_memory_is_wrong_and_the_next_row_is_right(database: Path) -> None:
    # 20 million cells, none of which is a text or a blob.
    columns = ", ".join(f"x + {at}.5" for at in range(1990))
    numbers = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 10000)"
    with SqlProcess(database, timeout_s=60) as process:
        outcome = process.match(f"{numbers} SELECT {columns} FROM n", NAMES)
        assert "out of memory" in str(outcome.error)
        assert process.match(NAMES, NAMES).correct


def test_one_process_takes_many_rows_and_ends_with_them(database: Path) -> None:
    with SqlProcess(database) as process:
        process.match(NAMES, NAMES)
        first = judges()
        for _ in range(20):
            process.match("SELECT 1; SELECT 2", NAMES)
        assert len(first) == 1 and judges() == first
    assert judges() == []
    SqlExecution(database).score([NAMES, "SELECT"], [NAMES, NAMES])
    assert judges() == []


@pytest.mark.slow
def test_a_query_whose_process_is_killed_is_asked_once_more(database: Path) -> None:
    with SqlProcess(database, timeout_s=60) as process, killing_in_mid_query(1) as killed:
        outcome = process.match(SLOW, "SELECT 0")
    assert len(killed) == 1
    assert outcome == ExecutionOutcome(valid=True, correct=True)


@pytest.mark.slow
def test_a_query_whose_process_is_killed_twice_is_wrong_and_the_next_row_is_right(database: Path) -> None:
    with SqlProcess(database, timeout_s=60) as process, killing_in_mid_query(2) as killed:
        outcome = process.match(SLOW, "SELECT 0")
        assert process.match(NAMES, NAMES).correct
    assert len(killed) == 2
    assert not outcome.valid and "ended the process that ran it" in str(outcome.error)


def test_a_process_killed_between_two_rows_is_replaced(process: SqlProcess) -> None:
    assert process.match(NAMES, NAMES).correct
    (child,) = judges()
    child.kill()
    child.wait()
    assert process.match(NAMES, NAMES).correct


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_reference_that_takes_too_long_is_a_data_error(process: SqlProcess, is_stopped: bool) -> None:
    if is_stopped:
        process.match(NAMES, NAMES)
        (child,) = judges()
        child.suspend()
    with pytest.raises(DataError, match=rf"must run on shop\.sqlite, got sql: took over {TIMEOUT_S} s"):
        process.match(NAMES, NAMES if is_stopped else FOUR_INSTR)


def test_the_process_has_no_descriptor_and_no_environment_of_its_parents(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with (tmp_path / "opened").open("w") as opened, SqlProcess(database) as process:
        os.set_inheritable(opened.fileno(), True)
        process.match(NAMES, NAMES)
        (child,) = judges()
        assert not child.environ().keys() & {"HF_TOKEN", "PATH", "HOME"}
        assert [Path(file.path).name for file in child.open_files()] == [database.name]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of CPU seconds is the system's")
def test_a_process_in_mid_query_ends_after_its_parent(database: Path) -> None:
    script = f"""
        from pathlib import Path
        from qlora_ray.scoring.metrics.sql import SqlProcess
        SqlProcess(Path({str(database)!r})).match({NOT_IN!r}, "SELECT 0")
        """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    (child,) = wait_for(lambda: [child for child in judges(parent.pid) if is_busy(child)])
    parent.kill()
    parent.wait()
    # SIGXCPU, for nobody else is left to end it.
    wait_for(lambda: [child] if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE else [])


@contextmanager
def killing_in_mid_query(num_kills: int) -> Iterator[list[int]]:
    """Kills the processes of this one that run SQL, each once it is in the middle of a query."""
    killed: list[int] = []

    def kill() -> None:
        for _ in range(num_kills):
            (child,) = wait_for(lambda: [child for child in judges() if is_busy(child)])
            child.kill()
            child.wait()
            killed.append(child.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    yield killed
    thread.join()


def judges(parent: int | None = None) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.Error):
            found += [child] if any("sql_judge" in word for word in child.cmdline()) else []
    return found


def is_busy(child: psutil.Process) -> bool:
    # Starting takes a tenth of it.
    with suppress(psutil.Error):
        return bool(child.cpu_times().user > 0.2)
    return False


def wait_for(find: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    while not (found := find()):
        time.sleep(0.01)
    return found
