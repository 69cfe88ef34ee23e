"""The question writer on made-up schemas: every query is valid SQL for its schema, every style is spelled."""

import sqlite3
from contextlib import closing
from random import Random

import pytest

from tools.embedded_task.grammar import KINDS, write_pair, write_pairs
from tools.embedded_task.schemas import Schema, make_random_schema, pluralize, spell

NUM_SCHEMAS = 60


def create_tables(connection: sqlite3.Connection, schema: Schema) -> None:
    for table in schema.tables:
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        connection.execute(f'CREATE TABLE "{table.name}" ({names})')


def test_every_query_is_valid_for_its_schema() -> None:
    rng = Random(3)
    seen = set()
    for _ in range(NUM_SCHEMAS):
        schema = make_random_schema(rng)
        with closing(sqlite3.connect(":memory:")) as connection:
            create_tables(connection, schema)
            for kind in KINDS:
                pair = write_pair(rng, schema, kind=kind)
                if pair is not None:
                    seen.add(pair.kind)
                    connection.execute(pair.sql)
    assert seen == set(KINDS)


def test_questions_are_whole_sentences_and_the_same_for_the_same_seed() -> None:
    first, second = Random("a"), Random("a")
    for _ in range(NUM_SCHEMAS):
        pairs = write_pairs(first, make_random_schema(first), num=10)
        assert pairs == write_pairs(second, make_random_schema(second), num=10)
        for pair in pairs:
            assert pair.question[0] == pair.question[0].upper()
            assert pair.question[-1] in ".?"
            assert "{" not in pair.question
            assert "  " not in pair.question


@pytest.mark.parametrize(
    ("style", "name"),
    [("snake", "credit_limit"), ("camel", "creditLimit"), ("pascal", "CreditLimit"), ("joined", "creditlimit")],
)
def test_a_phrase_is_spelled_in_each_style(style: str, name: str) -> None:
    assert spell("credit limit", style) == name


@pytest.mark.parametrize(("noun", "plural"), [("city", "cities"), ("day", "days"), ("bus", "buses"), ("car", "cars")])
def test_nouns_have_regular_plurals(noun: str, plural: str) -> None:
    assert pluralize(noun) == plural
