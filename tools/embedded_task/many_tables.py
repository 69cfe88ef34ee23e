"""Questions that need several tables: joins of two and three, joins with aggregates, subqueries.

Same shape as single_table.py. A join always runs from the child (which holds the foreign key) to the parent.
Columns are written without their table, so only columns whose name is unique among the joined tables are
asked for.
"""

from tools.embedded_task.conditions import SHORT_FORMS, Condition, make_condition, maybe_condition
from tools.embedded_task.schemas import Column, ColumnKind, Link, Schema, Table
from tools.embedded_task.single_table import QuestionAndSql, choose_columns, pick_function, pick_table
from tools.embedded_task.speaker import Speaker


def join_list(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    drawn = _draw_link(speaker, schema)
    if drawn is None:
        return None
    link, said = drawn
    col = _pick_plain(speaker, link.child, (link.child, link.parent), "category", "text", "number", "date")
    other = _pick_plain(speaker, link.parent, (link.child, link.parent), "category", "text", "number", "date")
    if col is None or other is None:
        return None
    question = speaker.ask("join", col=_say(speaker, col), other=_say(speaker, other), **said)
    return question, f"SELECT {col.name}, {other.name} FROM {_joined(link)}"


def join_filter(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    drawn = _draw_link(speaker, schema)
    if drawn is None:
        return None
    link, said = drawn
    col = _pick_plain(speaker, link.child, (link.child, link.parent), "category", "text", "number", "date")
    condition = _plain_condition(speaker, link.parent, (link.child, link.parent))
    if col is None or condition is None:
        return None
    question = speaker.ask("join_filter", col=_say(speaker, col), where=condition.words, **said)
    return question, f"SELECT {col.name} FROM {_joined(link)}{condition.where()}"


def join_aggregate(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    drawn = _draw_link(speaker, schema)
    if drawn is None:
        return None
    link, said = drawn
    condition = _plain_condition(speaker, link.parent, (link.child, link.parent))
    if condition is None:
        return None
    col = _pick_plain(speaker, link.child, (link.child, link.parent), "number")
    if col is None or speaker.chance(0.4):
        question, selected = speaker.ask("join_count", where=condition.words, **said), "COUNT(*)"
    else:
        function = pick_function(speaker)
        question = speaker.ask(
            "join_aggregate",
            agg=speaker.aggregate(function),
            col=_say(speaker, col),
            where=condition.words,
            **said,
        )
        selected = f"{function}({col.name})"
    return question, f"SELECT {selected} FROM {_joined(link)}{condition.where()}"


def join_group(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    drawn = _draw_link(speaker, schema)
    if drawn is None:
        return None
    link, said = drawn
    other = _pick_plain(speaker, link.parent, (link.child, link.parent), "category", "text")
    if other is None:
        return None
    col = _pick_plain(speaker, link.child, (link.child, link.parent), "number")
    if col is None or speaker.chance(0.4):
        question, selected = speaker.ask("join_group_count", other=_say(speaker, other), **said), "COUNT(*)"
    else:
        function = pick_function(speaker)
        question = speaker.ask(
            "join_group_aggregate",
            agg=speaker.aggregate(function),
            col=_say(speaker, col),
            other=_say(speaker, other),
            **said,
        )
        selected = f"{function}({col.name})"
    return question, f"SELECT {other.name}, {selected} FROM {_joined(link)} GROUP BY {other.name}"


def join_three(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    drawn = _draw_link(speaker, schema)
    if drawn is None:
        return None
    link, said = drawn
    onward = [other for other in schema.links if other.child is link.parent and other.parent is not link.child]
    beside = [other for other in schema.links if other.child is link.child and other.parent is not link.parent]
    if beside and (not onward or speaker.chance(0.3)):
        return _bridge(speaker, link, speaker.pick(beside), said)
    return _chain(speaker, link, speaker.pick(onward), said) if onward else None


def most_children(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    drawn = _draw_link(speaker, schema)
    if drawn is None:
        return None
    link, said = drawn
    other = _pick_plain(speaker, link.parent, (link.child, link.parent), "category", "text")
    if other is None:
        return None
    question = speaker.ask("most_children", other=_say(speaker, other), **said)
    ordered = f"GROUP BY {other.name} ORDER BY COUNT(*) DESC LIMIT 1"
    return question, f"SELECT {other.name} FROM {_joined(link)} {ordered}"


def subquery_in(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    return _children_subquery(speaker, schema, form="has_children", operator="IN", condition_share=0.8)


def subquery_not_in(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    return _children_subquery(speaker, schema, form="has_no_children", operator="NOT IN", condition_share=0.6)


def subquery_average(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    form, sign = speaker.pick((("above_average", ">"), ("below_average", "<")))
    return _own_subquery(speaker, schema, form=form, sign=sign, function="AVG")


def subquery_extreme(speaker: Speaker, schema: Schema) -> QuestionAndSql | None:
    form, function = speaker.pick((("is_maximum", "MAX"), ("is_minimum", "MIN")))
    return _own_subquery(speaker, schema, form=form, sign="=", function=function)


def _children_subquery(
    speaker: Speaker, schema: Schema, *, form: str, operator: str, condition_share: float
) -> QuestionAndSql | None:
    drawn = _draw_link(speaker, schema)
    if drawn is None:
        return None
    link, said = drawn
    cols, sql = choose_columns(speaker, link.parent.of_kind("category", "text", "number"), most=2)
    condition = maybe_condition(speaker, link.child, share=condition_share)
    question = speaker.ask(form, cols=cols, where=condition.words, **said)
    inner = f"SELECT {link.column} FROM {link.child.name}{condition.where()}"
    return question, f"SELECT {sql} FROM {link.parent.name} WHERE {link.parent_column} {operator} ({inner})"


def _own_subquery(speaker: Speaker, schema: Schema, *, form: str, sign: str, function: str) -> QuestionAndSql | None:
    table, _, rows = pick_table(speaker, schema)
    numbers = table.of_kind("number")
    if not numbers:
        return None
    col = speaker.pick(numbers)
    cols, sql = choose_columns(speaker, [column for column in table.columns if column is not col], most=2)
    question = speaker.ask(form, cols=cols, rows=rows, col=_say(speaker, col))
    inner = f"SELECT {function}({col.name}) FROM {table.name}"
    return question, f"SELECT {sql} FROM {table.name} WHERE {col.name} {sign} ({inner})"


def _chain(speaker: Speaker, link: Link, onward: Link, said: dict[str, str]) -> QuestionAndSql | None:
    tables = (link.child, link.parent, onward.parent)
    top, tops = speaker.name(onward.parent.phrases)
    words = {**said, "mid": said["parent"], "mids": said["parents"], "top": top, "tops": tops}
    joined = f"{_joined(link)} JOIN {onward.parent.name} ON {onward.sql()}"
    col = _pick_plain(speaker, link.child, tables, "number", "text", "category")
    other = _pick_plain(speaker, onward.parent, tables, "category", "text")
    number = _pick_plain(speaker, link.child, tables, "number")
    form = speaker.pick(("chain", "chain_filter", "chain_group"))
    if form == "chain_group" and number and other:
        function = pick_function(speaker)
        question = speaker.ask(
            form,
            agg=speaker.aggregate(function),
            col=_say(speaker, number),
            other=_say(speaker, other),
            **words,
        )
        return question, f"SELECT {other.name}, {function}({number.name}) FROM {joined} GROUP BY {other.name}"
    condition = _plain_condition(speaker, onward.parent, tables)
    if form == "chain_filter" and col and condition:
        question = speaker.ask(form, col=_say(speaker, col), where=condition.words, **words)
        return question, f"SELECT {col.name} FROM {joined}{condition.where()}"
    if col is None or other is None:
        return None
    question = speaker.ask("chain", col=_say(speaker, col), other=_say(speaker, other), **words)
    return question, f"SELECT {col.name}, {other.name} FROM {joined}"


def _bridge(speaker: Speaker, link: Link, beside: Link, said: dict[str, str]) -> QuestionAndSql | None:
    tables = (link.child, link.parent, beside.parent)
    col = _pick_plain(speaker, link.parent, tables, "category", "text")
    other = _pick_plain(speaker, beside.parent, tables, "category", "text")
    if col is None or other is None:
        return None
    second = speaker.name(beside.parent.phrases)[0]
    question = speaker.ask("bridge", col=_say(speaker, col), other=_say(speaker, other), second=second, **said)
    return (
        question,
        f"SELECT {col.name}, {other.name} FROM {_joined(link)} JOIN {beside.parent.name} ON {beside.sql()}",
    )


def _draw_link(speaker: Speaker, schema: Schema) -> tuple[Link, dict[str, str]] | None:
    """Returns a foreign key and the words for its two ends."""
    if not schema.links:
        return None
    link = speaker.pick(schema.links)
    child, children = speaker.name(link.child.phrases)
    parent, parents = speaker.name(link.roles + link.parent.phrases)
    return link, {"child": child, "children": children, "parent": parent, "parents": parents}


def _joined(link: Link) -> str:
    return f"{link.child.name} JOIN {link.parent.name} ON {link.sql()}"


def _pick_plain(speaker: Speaker, table: Table, joined: tuple[Table, ...], *kinds: ColumnKind) -> Column | None:
    """Returns a column of these kinds whose name no other joined table has."""
    others = {column.name for other in joined if other is not table for column in other.columns}
    columns = [column for column in table.of_kind(*kinds) if column.name not in others]
    return speaker.pick(columns) if columns else None


def _plain_condition(speaker: Speaker, table: Table, joined: tuple[Table, ...]) -> Condition | None:
    others = [column.name for other in joined if other is not table for column in other.columns]
    return make_condition(speaker, table, forms=SHORT_FORMS, without=others)


def _say(speaker: Speaker, column: Column) -> str:
    return speaker.name(column.phrases)
