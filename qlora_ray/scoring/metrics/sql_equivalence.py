"""Whether two SQL texts say the same, where there is no database to run them on.

sqlglot (the extra `metrics`) parses both and brings them into one form: its optimizer's rules fold the case of names as
the dialect does, quote all names, number the tables in place of their aliases, drop words that change nothing (INNER,
OUTER, ASC), and sort and simplify conditions (`simplify`: AND and OR in any order, `NOT a = 1`, BETWEEN, `1 + 1`). Ours
is the rest: a column without a table belongs to the only table there is, and names of the result's columns do not
count, as in `sql_execution`. The same form is the same query; two queries of one meaning may have different forms, as a
join and the subquery that does the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlora_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sqlglot import exp

# `simplify` takes time by the square of the conditions: 0.1 s at 250 nodes, 1.7 s at 1,000 (sqlglot 30.30). Larger
# trees are compared without it; the queries of Spider and BIRD have fewer.
MAX_SIMPLIFIED_NODES = 250
# Of a reference in an error message.
NUM_QUOTED_CHARACTERS = 60


class SqlEquivalent:
    """1 where the answer is the reference's query in other words (see the module), else 0.

    An answer that does not parse, or is not one statement, is wrong.

    Args:
        dialect: sqlglot's name of the SQL dialect; None: sqlglot's own, which takes most of what the others have.

    Raises:
        ConfigError: sqlglot knows no such dialect.
    """

    name = "sql_equivalent"
    higher_is_better = True
    settles_in_loops = True

    def __init__(self, dialect: str | None = None) -> None:
        from sqlglot.dialects import Dialect

        if dialect is not None and Dialect.get(dialect) is None:
            known = ", ".join(sorted(name for name in Dialect.classes if name))
            raise ConfigError(
                f"evaluate.sql_dialect must be one of {known}, got {dialect}. Correct it, or leave it out."
            )
        # It warns of each statement that it takes as it is, which answers of small models are full of.
        logging.getLogger("sqlglot").setLevel(logging.ERROR)
        self.dialect = dialect
        self._forms: dict[str, str | None] = {}

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row.

        Raises:
            DataError: a reference is not one SQL statement.
        """
        return [
            float(self._form(prediction) == self._expected(reference, row))
            for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True))
        ]

    def is_settled(self, prediction: str, reference: str) -> bool:
        """Returns False: what can follow is the dialect's own, and a rule may take it away again."""
        return False

    def _expected(self, reference: str, row: int) -> str:
        form = self._form(reference)
        if form is None:
            raise DataError(
                f"sql_equivalent: the reference of row {row} must be one SQL statement"
                f"{f' in {self.dialect}' if self.dialect else ''}, got {reference[:NUM_QUOTED_CHARACTERS]!r}. Correct "
                "the row, name its dialect in evaluate.sql_dialect, or drop sql_equivalent from evaluate.metrics."
            )
        return form

    def _form(self, text: str) -> str | None:
        if text not in self._forms:
            self._forms[text] = normalize_sql(text, dialect=self.dialect)
        return self._forms[text]


def normalize_sql(text: str, *, dialect: str | None = None) -> str | None:
    """Returns the form of one SQL statement, in sqlglot's own dialect; None where the text is not one.

    Args:
        text: What a model wrote.
        dialect: What it is parsed as, by sqlglot's name.
    """
    import sqlglot
    from sqlglot import exp

    try:
        trees = [tree for tree in sqlglot.parse(text, dialect=dialect) if tree is not None]
        # A comment behind the last semicolon.
        statements = [tree for tree in trees if not isinstance(tree, exp.Semicolon)]
        return _normalize(statements[0], dialect).sql(comments=False) if len(statements) == 1 else None
    except Exception:
        # Parse errors, and whatever else parser and rules raise on a text that nobody has read, as on 500 brackets.
        return None


def _normalize(tree: exp.Expr, dialect: str | None) -> exp.Expr:
    from sqlglot import exp
    from sqlglot.optimizer.normalize_identifiers import normalize_identifiers
    from sqlglot.optimizer.optimize_joins import normalize as drop_join_words
    from sqlglot.optimizer.qualify_columns import quote_identifiers
    from sqlglot.optimizer.qualify_tables import qualify_tables
    from sqlglot.optimizer.simplify import simplify

    tree = normalize_identifiers(tree, dialect=dialect)
    for star in list(tree.find_all(exp.Star)):
        # sqlglot 30.30 numbers the table of `a.id`, and not that of `a.*`.
        if isinstance(star.parent, exp.Column):
            star.replace(exp.to_identifier("*", quoted=True))
    tree = qualify_tables(tree, dialect=dialect, canonicalize_table_aliases=True)
    if isinstance(tree, exp.Select):
        _drop_names(tree)
    if isinstance(tree, exp.Query):
        _qualify(tree)
    for ordered in tree.find_all(exp.Ordered):
        ordered.set("desc", bool(ordered.args.get("desc")))
    tree = drop_join_words(quote_identifiers(tree, dialect=dialect, identify=True))
    _drop_brackets(tree)
    if sum(1 for _ in tree.walk()) <= MAX_SIMPLIFIED_NODES:
        tree = simplify(tree, dialect=dialect)
        # It puts them where it sorts.
        _drop_brackets(tree)
    return tree


def _drop_brackets(tree: exp.Expr) -> None:
    """Drops those of an AND within an OR, which binds closer without them too."""
    from sqlglot import exp

    for paren in list(tree.find_all(exp.Paren)):
        if isinstance(paren.this, exp.And) and isinstance(paren.parent, exp.Or):
            paren.replace(paren.this)


def _drop_names(select: exp.Select) -> None:
    """Takes the result's columns their names, and has ORDER BY say what they name."""
    from sqlglot import exp

    named = {column.alias: column.this for column in select.expressions if isinstance(column, exp.Alias)}
    order = select.args.get("order")
    for column in list(order.find_all(exp.Column)) if order is not None else []:
        if not column.table and column.name in named:
            column.replace(named[column.name].copy())
    select.set("expressions", [column.unalias() for column in select.expressions])


def _qualify(query: exp.Query) -> None:
    """Numbers all tables, and gives columns without one the table of their SELECT, where it has only one."""
    from sqlglot import exp
    from sqlglot.optimizer.scope import traverse_scope

    # Inner ones first, so that a name which an outer one uses too is another's by then.
    for depth, scope in enumerate(traverse_scope(query)):
        sources = list(scope.selected_sources.items())
        for place, (name, (source, _)) in enumerate(sources):
            # `qualify_tables` leaves aliases of CTEs (sqlglot 30.30).
            number = exp.to_identifier(f"_{depth}_{place}", quoted=True)
            source.set("alias", exp.TableAlias(this=number))
            for column in scope.expression.find_all(exp.Column):
                if column.table == name or (len(sources) == 1 and not column.table):
                    column.set("table", number.copy())
