"""Questions that one table answers: projections, filters, order, counts, aggregates, groups.

Every function takes a speaker and a schema, and returns (question, SQL), or None where the table drawn cannot
be asked so. The SQL has one style: upper-case keywords, no aliases, no ASC, no semicolon.
"""

from collections.abc import Callable

from tools.embedded_task.conditions import Condition, make_condition, maybe_condition
from tools.embedded_task.schemas import Column, Schema, Table
from tools.embedded_task.speaker import Speaker

QuestionAndSql = tuple[str, str]
Writer = Callable[[Speaker, Schema], QuestionAndSql | None]

LIMITS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20)
GROUP_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)  # thresholds behind HAVING COUNT(*) >


def choose_columns(speaker: Speaker, columns: list[Column], *, most: int = 3) -> tuple[str, str]:
    """Returns 1 to `most` of the columns as words ("name and city") and as SQL ("name, city")."""
    num = min(len(columns), speaker.pick((1, 1, 2, 2, 3)[: 2 * most - 1]))
    chosen = speaker.rng.sample(columns, num)
    return join_words([speaker.name(column.phrases) for column in chosen]), ", ".join(c.name for c in chosen)


def join_words(phrases: list[str]) -> str:
    """Returns "a", "a and b" or "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def pick_table(speaker: Speaker, schema: Schema) -> tuple[Table, str, str]:
    """Returns a table with the words for one row and for several."""
    table = speaker.pick(schema.tables)
    row, rows = speaker.name(table.phrases)
    return table, row, rows


def projection(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    table, row, rows = pick_table(speaker, schema)
    cols, sql = choose_columns(speaker, list(table.columns))
    return speaker.ask("projection", cols=cols, row=row, rows=rows), f"SELECT {sql} FROM {table.name}"


def distinct(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    table, _, rows = pick_table(speaker, schema)
    columns = table.of_kind("category")
    if not columns:
        return None
    column = speaker.pick(columns)
    condition = maybe_condition(speaker, table, share=0.4, without=(column.name,))
    counted = speaker.chance(0.3)
    question = speaker.ask(
        "count_distinct" if counted else "distinct",
        cols=speaker.name(column.phrases),
        rows=rows,
        where=condition.words,
    )
    selected = f"COUNT(DISTINCT {column.name})" if counted else f"DISTINCT {column.name}"
    return question, f"SELECT {selected} FROM {table.name}{condition.where()}"


def order(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    table, _, rows = pick_table(speaker, schema)
    key = speaker.pick(list(table.columns))
    condition = maybe_condition(speaker, table, share=0.3, without=(key.name,))
    columns = _others(table, key.name, *condition.columns)
    if not columns:
        return None
    cols, sql = choose_columns(speaker, columns, most=2)
    down = speaker.chance(0.5)
    question = speaker.ask(
        "order_down" if down else "order_up",
        cols=cols,
        rows=rows,
        key=speaker.name(key.phrases),
        where=condition.words,
    )
    return (
        question,
        f"SELECT {sql} FROM {table.name}{condition.where()} ORDER BY {key.name}{' DESC' if down else ''}",
    )


def top(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    table, _, rows = pick_table(speaker, schema)
    keys = table.of_kind("number", "date")
    if not keys:
        return None
    key, limit, down = speaker.pick(keys), speaker.pick(LIMITS[1:]), speaker.chance(0.6)
    condition = maybe_condition(speaker, table, share=0.2, without=(key.name,))
    columns = _others(table, key.name, *condition.columns)
    if not columns:
        return None
    cols, sql = choose_columns(speaker, columns, most=2)
    question = speaker.ask(
        "top" if down else "bottom",
        cols=cols,
        n=limit,
        rows=rows,
        key=speaker.name(key.phrases),
        where=condition.words,
    )
    ordered = f"ORDER BY {key.name}{' DESC' if down else ''} LIMIT {limit}"
    return question, f"SELECT {sql} FROM {table.name}{condition.where()} {ordered}"


def filter_by(form: str) -> Writer:
    """Returns the writer of questions whose rows meet one condition of that form (see conditions.py)."""

    def write(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
        table, row, rows = pick_table(speaker, schema)
        condition = make_condition(speaker, table, forms=(form,))
        return _filtered(speaker, table, row, rows, condition)

    return write


def filter_two(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    table, row, rows = pick_table(speaker, schema)
    first = make_condition(speaker, table, forms=("equal", "compare"))
    if first is None:
        return None
    second = make_condition(speaker, table, forms=("equal", "compare"), without=first.columns)
    if second is None:
        return None
    word = speaker.pick(("and", "and", "or"))
    both = Condition(
        f"{first.words} {word}{second.words}",
        f"{first.sql} {word.upper()} {second.sql}",
        first.columns + second.columns,
    )
    return _filtered(speaker, table, row, rows, both)


def count(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    table, _, rows = pick_table(speaker, schema)
    condition = (make_condition(speaker, table) if speaker.chance(0.85) else Condition()) or Condition()
    question = speaker.ask("count", rows=rows, where=condition.words)
    return question, f"SELECT COUNT(*) FROM {table.name}{condition.where()}"


def aggregate(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    table, _, rows = pick_table(speaker, schema)
    columns = table.of_kind("number")
    if not columns:
        return None
    column, function = speaker.pick(columns), pick_function(speaker)
    condition = maybe_condition(speaker, table, share=0.7, without=(column.name,))
    question = speaker.ask(
        "aggregate",
        agg=speaker.aggregate(function),
        col=speaker.name(column.phrases),
        rows=rows,
        where=condition.words,
    )
    return question, f"SELECT {function}({column.name}) FROM {table.name}{condition.where()}"


def group(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    table, _, rows = pick_table(speaker, schema)
    keys, numbers = table.of_kind("category"), table.of_kind("number")
    if not keys:
        return None
    key = speaker.pick(keys)
    condition = maybe_condition(speaker, table, share=0.35, without=(key.name,))
    said = {"key": speaker.name(key.phrases), "rows": rows, "where": condition.words}
    if not numbers or speaker.chance(0.4):
        question, selected = speaker.ask("group_count", **said), "COUNT(*)"
    else:
        column, function = speaker.pick(numbers), pick_function(speaker)
        question = speaker.ask(
            "group_aggregate", agg=speaker.aggregate(function), col=speaker.name(column.phrases), **said
        )
        selected = f"{function}({column.name})"
    return question, f"SELECT {key.name}, {selected} FROM {table.name}{condition.where()} GROUP BY {key.name}"


def having(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    table, _, rows = pick_table(speaker, schema)
    keys, numbers = table.of_kind("category"), table.of_kind("number")
    if not keys:
        return None
    key = speaker.pick(keys)
    condition = maybe_condition(speaker, table, share=0.3, without=(key.name,))
    said = {"key": speaker.name(key.phrases), "rows": rows, "where": condition.words}
    if not numbers or speaker.chance(0.5):
        threshold = str(speaker.pick(GROUP_SIZES))
        question, tested = speaker.ask("having_more", n=threshold, **said), "COUNT(*)"
    else:
        column, function = speaker.pick(numbers), pick_function(speaker)
        threshold = speaker.pick(column.constants)
        question = speaker.ask(
            "having_aggregate",
            agg=speaker.aggregate(function),
            col=speaker.name(column.phrases),
            n=threshold,
            **said,
        )
        tested = f"{function}({column.name})"
    grouped = f"GROUP BY {key.name} HAVING {tested} > {threshold}"
    return question, f"SELECT {key.name} FROM {table.name}{condition.where()} {grouped}"


def most(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    table, _, rows = pick_table(speaker, schema)
    keys = table.of_kind("category")
    if not keys:
        return None
    key = speaker.pick(keys)
    condition = maybe_condition(speaker, table, share=0.5, without=(key.name,))
    question = speaker.ask("most", key=speaker.name(key.phrases), rows=rows, where=condition.words)
    ordered = f"GROUP BY {key.name} ORDER BY COUNT(*) DESC LIMIT 1"
    return question, f"SELECT {key.name} FROM {table.name}{condition.where()} {ordered}"


def pick_function(speaker: Speaker) -> str:
    return speaker.pick(("AVG", "SUM", "MAX", "MIN"))


def _filtered(
    speaker: Speaker, table: Table, row: str, rows: str, condition: Condition | None
) -> QuestionAndSql | None:
    if condition is None:
        return None
    columns = _others(table, *condition.columns)
    if not columns:
        return None
    cols, sql = choose_columns(speaker, columns, most=2)
    question = speaker.ask("filter", cols=cols, row=row, rows=rows, where=condition.words)
    return question, f"SELECT {sql} FROM {table.name}{condition.where()}"


def _others(table: Table, *names: str) -> list[Column]:
    return [column for column in table.columns if column.name not in names]
