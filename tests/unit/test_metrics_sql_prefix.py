from __future__ import annotations

import json

import pytest

from qlora_ray import embedded
from qlora_ray.scoring.metrics.sql_prefix import can_become_statement


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-- a note ",
        "SELECT a FROM t; ",
        "SELECT a FROM t; -- done with it",
        "SELECT a FROM t;; ",
        "; SELECT a ",
        "SELECT a, a, a, a, ",
        "SELECT 'two words",
        "SELECT 'it''s a ; b ; c' ",
        "SELECT x'00f",
        "SELECT [a ; b] FROM ",
        "SELECT sum(x) OVER ",
        "EXPLAIN SELECT 1 ",
        "WITH x AS (SELECT 1) ",
        # Not yet a word of its own.
        "SELECT a FROM t WHERE WHERE",
    ],
)
def test_what_may_still_become_a_statement_is_left_open(text: str) -> None:
    assert can_become_statement(text)


@pytest.mark.parametrize(
    "text",
    [
        "The query is ",
        "```sql\nSELECT 1",
        "'SELECT 1",
        "SELECT a FROM t; SELECT b ",
        "SELECT a FROM t; Question: ",
        "SELECT a FROM WHERE b ",
        "SELECT a FROM t AS u Question: ",
        "SELECT a FROM t WHERE WHERE ",
        "SELECT count(*) FROM t GROUP BY ) ",
        "# SELECT 1 FROM ) ",
    ],
)
def test_what_no_statement_begins_with_is_refused(text: str) -> None:
    assert not can_become_statement(text)


def test_no_beginning_of_a_real_query_is_refused() -> None:
    lines = embedded.test_path().read_text(encoding="utf-8").splitlines()[::10]
    queries = [json.loads(line)["sql"] for line in lines]
    assert len(queries) > 10
    for query in queries:
        refused = [end for end in range(len(query) + 1) if not can_become_statement(query[:end])]
        assert refused == [], query[: refused[0]]
