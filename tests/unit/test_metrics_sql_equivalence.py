"""sql_equivalent: which texts are one query. What is called the same must also return the same rows in SQLite."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from qlora_ray.config.schema import Evaluate
from qlora_ray.errors import ConfigError, DataError
from qlora_ray.scoring.metrics.choice import resolve_metrics
from qlora_ray.scoring.metrics.sql_equivalence import MAX_SIMPLIFIED_NODES, SqlEquivalent, normalize_sql

TABLES = """
CREATE TABLE shops (id INTEGER, name TEXT, city TEXT, size INTEGER);
CREATE TABLE sales (shop INTEGER, item TEXT, price REAL);
INSERT INTO shops VALUES (1, 'A', 'Rome', 3), (2, 'B', 'Oslo', 5), (3, 'C', 'Rome', 8), (4, 'D', NULL, 5);
INSERT INTO sales VALUES (1, 'pen', 2.5), (1, 'ink', 7.0), (2, 'pen', 3.0), (3, 'cup', 9.0), (9, 'pen', 1.0);
"""

SAME = [
    ("select NAME from Shops", "SELECT name FROM shops;"),
    ('SELECT "name" FROM "shops"', "SELECT\n\tname\nFROM shops -- all of them"),
    ("SELECT T1.name FROM shops AS T1 WHERE T1.size = 5", "SELECT name FROM shops WHERE size = 5"),
    (
        "SELECT T1.name, T2.item FROM shops AS T1 JOIN sales AS T2 ON T1.id = T2.shop",
        "SELECT shops.name, sales.item FROM shops INNER JOIN sales ON sales.shop = shops.id",
    ),
    (
        "SELECT a.* FROM shops a JOIN sales b ON a.id = b.shop",
        "SELECT s.* FROM shops s JOIN sales ON s.id = sales.shop",
    ),
    ("SELECT name FROM shops WHERE size = 5 AND city = 'Oslo'", "SELECT name FROM shops WHERE city='Oslo' AND size=5"),
    (
        "SELECT name FROM shops WHERE size = 3 OR (size = 5 AND city = 'Oslo')",
        "SELECT name FROM shops WHERE city = 'Oslo' AND size = 5 OR size = 3",
    ),
    ("SELECT name FROM shops WHERE NOT size = 5", "SELECT name FROM shops WHERE size <> 5"),
    ("SELECT name FROM shops WHERE size != 5", "SELECT name FROM shops WHERE 5 <> size"),
    ("SELECT name FROM shops WHERE size BETWEEN 3 AND 5", "SELECT name FROM shops WHERE size >= 3 AND size <= 5"),
    ("SELECT name FROM shops ORDER BY size, id ASC", "SELECT s.name FROM shops s ORDER BY s.size, s.id"),
    (
        "SELECT city, COUNT(*) AS n FROM shops GROUP BY city ORDER BY n DESC",
        "SELECT city, count(*) FROM shops GROUP BY city ORDER BY COUNT(*) DESC",
    ),
    (
        "SELECT name FROM shops WHERE id IN (SELECT shop FROM sales WHERE price > 5)",
        "SELECT t.name FROM shops t WHERE t.id IN (SELECT u.shop FROM sales u WHERE 5 < u.price)",
    ),
    (
        "WITH big AS (SELECT * FROM shops) SELECT name FROM big",
        "WITH big AS (SELECT * FROM shops) SELECT b.name FROM big b",
    ),
    (
        "SELECT city FROM shops UNION SELECT item FROM sales",
        "select x.city from shops x union select y.item from sales y",
    ),
]
OTHER = [
    ("SELECT name FROM shops WHERE city = 'Rome'", "SELECT name FROM shops WHERE city = 'rome'"),
    ("SELECT name, city FROM shops", "SELECT city, name FROM shops"),
    ("SELECT name FROM shops ORDER BY size DESC", "SELECT name FROM shops ORDER BY size"),
    ("SELECT DISTINCT city FROM shops", "SELECT city FROM shops"),
    (
        "SELECT name FROM shops WHERE size = 3 OR size = 5 AND city = 'Oslo'",
        "SELECT name FROM shops WHERE (size = 3 OR size = 5) AND city = 'Oslo'",
    ),
    ("SELECT name FROM shops LIMIT 1", "SELECT name FROM shops LIMIT 2"),
    (
        "SELECT T1.name FROM shops T1 JOIN sales T2 ON T1.id = T2.shop",
        "SELECT T1.name FROM shops T1 LEFT JOIN sales T2 ON T1.id = T2.shop",
    ),
]
NO_QUERIES = [
    "",
    ";",
    "I cannot answer that.",
    "SELECT name FROM",
    "SELECT '",
    "SELECT " + "(" * 2000,
    "SELECT 1; SELECT 1",
]


def rows_of(sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(TABLES)
        return connection.execute(sql).fetchall()


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_query_in_other_words_is_the_same_and_returns_the_same_rows(one: str, other: str) -> None:
    assert SqlEquivalent().score([one, other], [other, one]) == [1.0, 1.0]
    assert SqlEquivalent("sqlite").score([one], [other]) == [1.0]
    assert sorted(map(str, rows_of(one))) == sorted(map(str, rows_of(other)))


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_another_query_is_not_the_same(one: str, other: str) -> None:
    assert SqlEquivalent().score([one, one], [other, one]) == [0.0, 1.0]
    assert rows_of(one) != rows_of(other)


def test_no_two_of_these_queries_are_the_same_but_the_pairs() -> None:
    forms = [normalize_sql(one) for one, _ in SAME]
    # The first two are one query, and so are `NOT size = 5` and `size != 5`.
    assert len(set(forms)) == len(SAME) - 2


@pytest.mark.parametrize("text", NO_QUERIES)
def test_what_is_not_one_statement_is_wrong_and_no_error(text: str) -> None:
    assert SqlEquivalent().score([text], ["SELECT name FROM shops"]) == [0.0]


def test_a_reference_that_does_not_parse_is_named() -> None:
    with pytest.raises(
        DataError, match=r"sql_equivalent: the reference of row 1 must be one SQL statement in mysql, got"
    ):
        SqlEquivalent("mysql").score(["SELECT 1", "SELECT 1"], ["SELECT 1", "no query at all"])


def test_the_dialect_says_what_is_read_and_whether_case_counts_in_quotes() -> None:
    # Backticks are MySQL's quotes, and SQLite folds the case of quoted names, which PostgreSQL does not.
    assert normalize_sql("SELECT `a` FROM `t`", dialect="mysql") == normalize_sql("SELECT a FROM t", dialect="mysql")
    assert SqlEquivalent("sqlite").score(['SELECT "A" FROM t'], ["SELECT a FROM t"]) == [1.0]
    assert SqlEquivalent("postgres").score(['SELECT "A" FROM t'], ["SELECT a FROM t"]) == [0.0]


def test_an_unknown_dialect_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"evaluate.sql_dialect must be one of .*sqlite.*, got sqlserver\."):
        resolve_metrics(
            Evaluate(metrics=["sql_equivalent"], sql_dialect="sqlserver"), trains_on_embedded=False, has_references=True
        )


def test_a_query_beyond_what_is_simplified_is_still_compared() -> None:
    conditions = [f"size = {number}" for number in range(MAX_SIMPLIFIED_NODES // 2)]
    query = "SELECT name FROM shops WHERE " + " OR ".join(conditions)
    turned = "SELECT name FROM shops WHERE " + " OR ".join(reversed(conditions))
    assert SqlEquivalent().score([query.lower(), turned], [query, query]) == [1.0, 0.0]
