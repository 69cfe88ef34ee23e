from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from qlora_ray.errors import DataError
from qlora_ray.scoring.metrics import sql_judge
from qlora_ray.scoring.metrics.sql import SQLITE_MAGIC, TIMEOUT_S, ExecutionOutcome, SqlProcess, has_top_level_order
from qlora_ray.scoring.metrics.sql_judge import MAX_ROWS, QueryResult, QueryRunner, SqlFailure
from tests.unit.evaluation_fixtures import make_database

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    # A name that a URI would misread if it were not quoted.
    folder = tmp_path / "a shop? 100%#1"
    folder.mkdir()
    return make_database(folder / "shop.sqlite")


def fingerprint(database: Path) -> tuple[str, list[str]]:
    content = hashlib.sha256(database.read_bytes()).hexdigest()
    return content, sorted(path.name for path in database.parent.iterdir())


def run_query(database: Path, sql: str, *, max_rows: int = MAX_ROWS) -> QueryResult:
    with closing(QueryRunner(database.as_uri(), timeout_s=TIMEOUT_S, max_rows=max_rows)) as runner:
        return runner.run(sql)


def execution_match(
    database: Path, predicted: str, reference: str, *, timeout_s: float = TIMEOUT_S
) -> ExecutionOutcome:
    with SqlProcess(database, timeout_s=timeout_s) as process:
        return process.match(predicted, reference)


def is_correct(database: Path, predicted: str, reference: str) -> bool:
    outcome = execution_match(database, predicted, reference)
    assert outcome.valid, outcome.error
    return outcome.correct


def test_a_query_returns_its_columns_and_rows(database: Path) -> None:
    result = run_query(database, "SELECT name, price AS cost, note FROM products WHERE stock > 2; -- done")
    assert result.columns == ("name", "cost", "note")
    assert result.rows == [("car", 10.5, None), ("plane", 30.1, None)]


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE products",
        "DELETE FROM products",
        "INSERT INTO products VALUES ('x', 1, 1, '')",
        "UPDATE products SET price = 0",
        "CREATE TABLE x (y)",
        "CREATE TEMP TABLE x (y)",
        "ALTER TABLE products RENAME TO x",
        "ATTACH DATABASE 'other.sqlite' AS other",
        "ATTACH DATABASE ':memory:' AS other",
        "REPLACE INTO products VALUES ('x', 1, 1, '')",
        "DELETE FROM products RETURNING name",
        "DROP TABLE IF EXISTS products; SELECT 1",
        "CREATE TRIGGER t AFTER INSERT ON products BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE v USING fts5(x)",
        "PRAGMA journal_mode = WAL",
        "SAVEPOINT s",
        "VACUUM",
        "VACUUM INTO 'copy.sqlite'",
        "DETACH main",
        "PRAGMA writable_schema = ON",
        "PRAGMA query_only = OFF",
        "SELECT * FROM pragma_table_info('products')",
        "BEGIN",
        "REINDEX",
        "ANALYZE",
        "EXPLAIN DELETE FROM products",
        "SELECT load_extension('evil.so')",
        "SELECT Load_Extension('evil.so', 'main')",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('stolen.txt', 'x')",
        ".shell touch stolen.txt",
        "SELECT 1; DROP TABLE products",
        "SELECT name FROM products; SELECT 1",
        "WITH x AS (SELECT 1) DELETE FROM products",
        "SELECT name FROM nowhere",
        "SELECT FROM WHERE",
        "The answer is 42.",
        "SELECT ?",
        "SELECT '\x00'",
        "SELECT '\ud800'",
        "",
        "   ",
        "-- nothing but a comment",
        "SELECT 1 WHERE 1 = " + "(" * 5000,
        "SELECT " + "1 + " * 50_000 + "1",
        # Too much to build.
        "SELECT zeroblob(2000000000)",
        "SELECT randomblob(1000000000)",
        "SELECT replace(hex(zeroblob(400000)), '0', hex(zeroblob(400000)))",
        "SELECT printf('%.*c', 2000000000, 'x')",
        "SELECT format('%2000000000d', 1)",
        "SELECT PRINTF('%' || '-.' || '2000000000' || 'c', 'x')",
        f"{ENDLESS} SELECT x FROM n",
        "SELECT a.* FROM " + ", ".join(f"products p{at}" for at in range(10)) + ", products a",
        f"{ENDLESS} SELECT hex(zeroblob(400000)) FROM n",
    ],
)
def test_a_query_that_is_not_one_sound_select_fails_and_harms_nothing(
    database: Path, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(database.parent)
    before = fingerprint(database)
    with pytest.raises(SqlFailure, match=r"^sql: "):
        run_query(database, query)
    outcome = execution_match(database, query, "SELECT 1")
    assert (outcome.valid, outcome.correct) == (False, False)
    assert outcome.error
    assert fingerprint(database) == before


@pytest.mark.parametrize(
    "query",
    [
        f"{ENDLESS} SELECT count(*) FROM n",
        f"{ENDLESS} SELECT x FROM n WHERE x < 0",
        f"{ENDLESS} SELECT group_concat(x) FROM n",
        "SELECT count(*) FROM " + ", ".join(f"products p{at}" for at in range(30)),
        "SELECT DISTINCT p1.name FROM " + ", ".join(f"products p{at}" for at in range(30)),
    ],
)
def test_a_query_without_end_is_stopped_by_the_time_limit(database: Path, query: str) -> None:
    before = fingerprint(database)
    outcome = execution_match(database, query, "SELECT 1", timeout_s=0.1)
    assert (outcome.valid, outcome.correct) == (False, False)
    assert "took over 0.1 s" in str(outcome.error)
    assert fingerprint(database) == before


@pytest.mark.slow
@pytest.mark.parametrize(("num_layers", "num_uses"), [(25, 2), (10, 8), (60, 3)])
def test_a_query_that_grows_while_it_is_compiled_runs_out_of_its_own_memory_only(
    database: Path, num_layers: int, num_uses: int
) -> None:
    layers = ["a0 AS (SELECT 1 AS x)"]
    for at in range(1, num_layers):
        layers.append(f"a{at} AS ({' UNION ALL '.join([f'SELECT x FROM a{at - 1}'] * num_uses)})")
    with pytest.raises(SqlFailure, match="out of memory"):
        run_query(database, f"WITH {', '.join(layers)} SELECT count(*) FROM a{num_layers - 1}")
    assert len(run_query(database, "SELECT * FROM products").rows) == 4


@pytest.mark.slow
def test_a_query_that_sorts_too_much_writes_nothing_and_fails(database: Path) -> None:
    query = f"{ENDLESS} SELECT x FROM (SELECT x, hex(randomblob(100000)) AS big FROM n LIMIT 5000) ORDER BY big"
    with pytest.raises(SqlFailure, match=r"out of memory|took over"):
        run_query(database, query)


def test_results_are_limited_in_rows_and_bytes(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run_query(database, "SELECT * FROM products", max_rows=4).rows) == 4
    with pytest.raises(SqlFailure, match="at most 3 rows"):
        run_query(database, "SELECT * FROM products", max_rows=3)
    monkeypatch.setattr(sql_judge, "MAX_RESULT_BYTES", 2**20)
    with pytest.raises(SqlFailure, match="at most 1 MiB"):
        run_query(database, "SELECT zeroblob(500000) FROM products")


def test_ordinary_printf_still_works(database: Path) -> None:
    rows = run_query(database, "SELECT printf('%.2f|%5d|100%%', price, stock), printf(NULL) FROM products LIMIT 1").rows
    assert rows == [("10.50|    3|100%", None)]


def test_a_file_that_is_no_database_is_nobodys_wrong_answer(tmp_path: Path) -> None:
    text = tmp_path / "shop.csv"
    text.write_text("name,price\n" * 100)
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(SQLITE_MAGIC + b"\x01" * 5000)
    for path in (tmp_path / "missing.sqlite", tmp_path, text, broken):
        with pytest.raises(DataError, match=r"database must be .*evaluate\.database"):
            execution_match(path, "SELECT 1", "SELECT 1")
    assert not (tmp_path / "missing.sqlite").exists()


def test_text_that_is_not_utf8_can_be_read(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE products SET note = CAST(x'ff41' AS TEXT) WHERE name = 'car'")
        connection.commit()
    assert run_query(database, "SELECT note FROM products WHERE name = 'car'").rows == [("\ufffdA",)]


def test_a_reference_that_does_not_run_is_a_data_error_that_names_it(database: Path) -> None:
    with pytest.raises(DataError, match=r"must run on shop\.sqlite.*no such table.*FROM orders"):
        execution_match(database, "SELECT 1", "SELECT count(*) FROM orders")


@pytest.mark.parametrize(
    ("predicted", "reference", "correct"),
    [
        ("SELECT name FROM products", "select NAME from products;", True),
        ("SELECT name FROM products ORDER BY name DESC", "SELECT name FROM products", True),
        ("SELECT name FROM products", "SELECT name FROM products ORDER BY name", False),
        ("SELECT name FROM products ORDER BY 1", "SELECT name FROM products ORDER BY name", True),
        ("SELECT DISTINCT price FROM products", "SELECT price FROM products", False),
        ("SELECT price AS p FROM products", "SELECT price FROM products", True),
        ("SELECT price, name FROM products", "SELECT name, price FROM products", False),
        ("SELECT name, price FROM products", "SELECT name FROM products", False),
        ("SELECT name, price FROM products WHERE 0", "SELECT name FROM products WHERE 0", False),
        ("SELECT name FROM products WHERE 0", "SELECT price FROM products WHERE 0", True),
        ("SELECT 3.0", "SELECT 3", True),
        ("SELECT 3.0000001", "SELECT 3", True),
        ("SELECT 3.0001", "SELECT 3.0", False),
        ("SELECT 1700000001", "SELECT 1700000000", False),
        ("SELECT '3'", "SELECT 3", False),
        ("SELECT NULL", "SELECT 0", False),
        ("SELECT ''", "SELECT NULL", False),
        ("SELECT x'41'", "SELECT 'A'", False),
        ("SELECT 9e999", "SELECT 9e999", True),
        ("SELECT note, name FROM products ORDER BY 2", "SELECT note, name FROM products", True),
        ("SELECT price + 1e-9, name FROM products ORDER BY name DESC", "SELECT price - 1e-9, name FROM products", True),
        ("SELECT name FROM products WHERE price = 10.5", "SELECT name FROM products WHERE price = 20.25", False),
    ],
)
def test_rows_decide_whether_a_query_is_correct(database: Path, predicted: str, reference: str, correct: bool) -> None:
    assert is_correct(database, predicted, reference) is correct


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t\n order\t by a limit 1", True),
        ("WITH x AS (SELECT 1) SELECT * FROM x ORDER BY 1", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT a FROM t WHERE b = 'order by'", False),
        ("SELECT a FROM t WHERE b = 'it''s (' ORDER BY a", True),
        ('SELECT "order by" FROM [order by] -- order by', False),
        ("SELECT a /* order by */ FROM `order by` WHERE b = ')'", False),
        ("SELECT a FROM t", False),
        ("SELECT border by1 FROM t", False),
    ],
)
def test_only_an_order_of_the_statement_itself_counts(query: str, ordered: bool) -> None:
    assert has_top_level_order(query) is ordered
