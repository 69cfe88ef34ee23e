"""Question and SQL pairs over any schema: the entry to the writers of single_table.py and many_tables.py."""

from dataclasses import dataclass
from random import Random

from tools.embedded_task import many_tables, single_table
from tools.embedded_task.schemas import Schema
from tools.embedded_task.single_table import Writer
from tools.embedded_task.speaker import Speaker

WRITERS: dict[str, Writer] = {
    "projection": single_table.projection,
    "distinct": single_table.distinct,
    "order": single_table.order,
    "top": single_table.top,
    "filter_equal": single_table.filter_by("equal"),
    "filter_compare": single_table.filter_by("compare"),
    "filter_between": single_table.filter_by("between"),
    "filter_in": single_table.filter_by("in"),
    "filter_like": single_table.filter_by("like"),
    "filter_missing": single_table.filter_by("missing"),
    "filter_two": single_table.filter_two,
    "count": single_table.count,
    "aggregate": single_table.aggregate,
    "group": single_table.group,
    "having": single_table.having,
    "most": single_table.most,
    "join": many_tables.join_list,
    "join_filter": many_tables.join_filter,
    "join_aggregate": many_tables.join_aggregate,
    "join_group": many_tables.join_group,
    "join_three": many_tables.join_three,
    "most_children": many_tables.most_children,
    "subquery_in": many_tables.subquery_in,
    "subquery_not_in": many_tables.subquery_not_in,
    "subquery_average": many_tables.subquery_average,
    "subquery_extreme": many_tables.subquery_extreme,
}
KINDS = tuple(WRITERS)
MAX_ATTEMPTS = 50  # a kind that a schema cannot be asked comes up empty; others of its tables may do


@dataclass(frozen=True)
class Pair:
    """A question, the query that answers it, and the kind of query it is."""

    question: str
    sql: str
    kind: str


def write_pair(rng: Random, schema: Schema, *, kind: str) -> Pair | None:
    """Returns a pair of that kind, or None if the schema cannot be asked so."""
    speaker = Speaker(rng)
    for _ in range(MAX_ATTEMPTS):
        written = WRITERS[kind](speaker, schema)
        if written is not None:
            return Pair(*written, kind)
    return None


def write_pairs(rng: Random, schema: Schema, *, num: int) -> list[Pair]:
    """Returns about `num` pairs of random kinds over one schema: what pretraining reads."""
    pairs = [write_pair(rng, schema, kind=rng.choice(KINDS)) for _ in range(num)]
    return [pair for pair in pairs if pair is not None]
