"""Conditions: what stands behind WHERE, and the words for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from tools.embedded_task.schemas import Column, Table
from tools.embedded_task.speaker import Speaker

COMPARISONS = {"greater": ">", "less": "<", "at_least": ">=", "at_most": "<="}
DATE_COMPARISONS = {"after": ">", "before": "<"}
ALL_FORMS = ("equal", "equal", "compare", "compare", "between", "in", "like", "missing")
SHORT_FORMS = ("equal", "equal", "compare")  # for queries that are long without them


@dataclass(frozen=True)
class Condition:
    """A condition on a table's rows: words to follow the rows' name, a space first; SQL; columns used."""

    words: str = ""
    sql: str = ""
    columns: tuple[str, ...] = ()

    def where(self) -> str:
        """Returns the WHERE clause with a space before it, or nothing."""
        return f" WHERE {self.sql}" if self.sql else ""


def make_condition(
    speaker: Speaker, table: Table, *, forms: Sequence[str] = ALL_FORMS, without: Sequence[str] = ()
) -> Condition | None:
    """Returns a random condition on a table, or None where the table has no column for the form drawn.

    Args:
        forms: The forms to draw from; a form named twice is drawn twice as often.
        without: Names of columns that the condition must leave alone.
    """
    form = speaker.pick(tuple(forms))
    columns = [column for column in _columns_for(form, table) if column.name not in without]
    if not columns:
        return None
    column = speaker.pick(columns)
    words, sql = _BUILDERS[form](speaker, column)
    return Condition(f" {words}", sql, (column.name,))


def maybe_condition(speaker: Speaker, table: Table, *, share: float, without: Sequence[str] = ()) -> Condition:
    """Returns a short condition for that share of the calls, and an empty one for the others."""
    if not speaker.chance(share):
        return Condition()
    return make_condition(speaker, table, forms=SHORT_FORMS, without=without) or Condition()


def literal(column: Column, constant: str) -> str:
    """Returns the constant as SQL: numbers bare, anything else in quotes."""
    return constant if column.kind == "number" else f"'{constant}'"


def _columns_for(form: str, table: Table) -> list[Column]:
    if form == "missing":
        return [column for column in table.columns if column.nullable]
    kinds = {
        "equal": table.of_kind("category", "text"),
        "compare": table.of_kind("number", "date"),
        "between": table.of_kind("number", "date"),
        "in": table.of_kind("category"),
        "like": table.of_kind("text"),
    }
    return [column for column in kinds[form] if len(column.constants) > 1]


def _equal(speaker: Speaker, column: Column) -> tuple[str, str]:
    constant, phrase = speaker.pick(column.constants), speaker.name(column.phrases)
    if column.equal_forms and speaker.chance(0.5):
        return speaker.pick(column.equal_forms).format(value=constant), f"{column.name} = {literal(column, constant)}"
    form, sign = ("not_equal", "<>") if speaker.chance(0.1) else ("equal", "=")
    return speaker.condition(form, col=phrase, value=constant), f"{column.name} {sign} {literal(column, constant)}"


def _compare(speaker: Speaker, column: Column) -> tuple[str, str]:
    signs = DATE_COMPARISONS if column.kind == "date" else COMPARISONS
    form = speaker.pick(tuple(signs))
    constant = speaker.pick(column.constants)
    words = speaker.condition(form, col=speaker.name(column.phrases), value=constant)
    return words, f"{column.name} {signs[form]} {literal(column, constant)}"


def _between(speaker: Speaker, column: Column) -> tuple[str, str]:
    pair = speaker.rng.sample(column.constants, 2)
    low, high = sorted(pair, key=float) if column.kind == "number" else sorted(pair)
    words = speaker.condition("between", col=speaker.name(column.phrases), low=low, high=high)
    return words, f"{column.name} BETWEEN {literal(column, low)} AND {literal(column, high)}"


def _in(speaker: Speaker, column: Column) -> tuple[str, str]:
    distinct = sorted(set(column.constants))
    chosen = speaker.rng.sample(distinct, min(len(distinct), 3 if speaker.chance(0.3) else 2))
    said = f"{', '.join(chosen[:-1])} or {chosen[-1]}"
    words = speaker.condition("in", col=speaker.name(column.phrases), values=said)
    return words, f"{column.name} IN ({', '.join(literal(column, constant) for constant in chosen)})"


def _like(speaker: Speaker, column: Column) -> tuple[str, str]:
    constant = speaker.pick(column.constants)
    if speaker.chance(0.5):
        form, value = "starts", constant[: speaker.pick((1, 2, 3))].strip()
        pattern = f"{value}%"
    else:
        form, value = "contains", speaker.pick(constant.split())
        pattern = f"%{value}%"
    words = speaker.condition(form, col=speaker.name(column.phrases), value=value)
    return words, f"{column.name} LIKE '{pattern}'"


def _missing(speaker: Speaker, column: Column) -> tuple[str, str]:
    form, sql = ("missing", "IS NULL") if speaker.chance(0.7) else ("present", "IS NOT NULL")
    return speaker.condition(form, col=speaker.name(column.phrases)), f"{column.name} {sql}"


_BUILDERS = {
    "equal": _equal,
    "compare": _compare,
    "between": _between,
    "in": _in,
    "like": _like,
    "missing": _missing,
}
