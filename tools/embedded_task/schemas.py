"""What a schema is to the question writer, and a maker of random ones.

A column knows its identifier and how people say it. In a random schema the identifier follows from the words
and the schema's naming style, so that a model that has read many schemas has learnt the rule, and has to
guess only the style.
"""

from dataclasses import dataclass
from random import Random
from typing import Literal

from tools.embedded_task import values, words

# What may be asked of a column: a category is grouped by; `shown` is a key or a phone number, never compared.
ColumnKind = Literal["category", "text", "number", "date", "shown"]

# Snake case is the most common, so that it is what the base guesses; classicmodels is in another style.
STYLE_WEIGHTS = {"snake": 4, "camel": 2, "pascal": 2, "joined": 2}
SPLIT_STYLE_SHARE = 0.3  # of the schemas name tables in one style and columns in another
PLURAL_TABLE_SHARE = 0.6  # of the schemas call a table by its plural
INVENTED_SHARE = 0.07  # of the words are no English words
NUM_CONSTANTS = 4  # values a random column offers to the questions


@dataclass(frozen=True)
class Column:
    """A column: its identifier, the phrases that mean it, and constants for questions (literals, unquoted).

    `equal_forms` are ways to say that it equals {value} without naming it: "from {value}" for a country.
    """

    name: str
    phrases: tuple[str, ...]
    kind: ColumnKind
    constants: tuple[str, ...] = ()
    nullable: bool = False
    equal_forms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table: its identifier, (singular, plural) phrases for its rows, and its columns, the key first."""

    name: str
    phrases: tuple[tuple[str, str], ...]
    columns: tuple[Column, ...]

    def of_kind(self, *kinds: ColumnKind) -> list[Column]:
        return [column for column in self.columns if column.kind in kinds]


@dataclass(frozen=True)
class Link:
    """A foreign key from child.column to parent.parent_column. `roles`: the child's words for the parent."""

    child: Table
    column: str
    parent: Table
    parent_column: str
    roles: tuple[tuple[str, str], ...] = ()

    def sql(self) -> str:
        return f"{self.child.name}.{self.column} = {self.parent.name}.{self.parent_column}"


@dataclass(frozen=True)
class Schema:
    """Tables and the foreign keys between them."""

    tables: tuple[Table, ...]
    links: tuple[Link, ...]


def spell(phrase: str, style: str) -> str:
    """Returns the identifier for a phrase: spell("credit limit", "camel") is "creditLimit"."""
    parts = phrase.split()
    if style == "snake":
        return "_".join(parts)
    if style == "joined":
        return "".join(parts)
    capitals = "".join(part.capitalize() for part in parts)
    return capitals if style == "pascal" else capitals[0].lower() + capitals[1:]


def pluralize(noun: str) -> str:
    """Returns the regular English plural of a noun phrase."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def make_random_schema(rng: Random) -> Schema:
    """Returns a made-up schema of 3 to 5 linked tables."""
    style = rng.choices(list(STYLE_WEIGHTS), list(STYLE_WEIGHTS.values()))[0]
    table_style = style
    if rng.random() < SPLIT_STYLE_SHARE:
        table_style = rng.choice(list(STYLE_WEIGHTS))
    plural_names = rng.random() < PLURAL_TABLE_SHARE
    key_word = rng.choice(words.KEY_WORDS)
    bare_key = rng.random() < 0.25  # the key is then `id` in its own table, and `team_id` where it is referred to
    tables: list[Table] = []
    links: list[Link] = []
    seen: set[str] = set()
    for _ in range(rng.randint(3, 5)):
        noun = _make_noun(rng)
        if noun in seen:
            continue
        seen.add(noun)
        key = Column(spell(key_word if bare_key else f"{noun} {key_word}", style), (f"{noun} {key_word}",), "shown")
        parents = rng.sample(tables, min(len(tables), rng.choice((1, 1, 2))))
        references = []
        for parent in parents:
            parent_noun = parent.phrases[0][0]
            references.append(
                Column(spell(f"{parent_noun} {key_word}", style), (f"{parent_noun} {key_word}",), "shown")
            )
        columns = _make_columns(rng, noun=noun, style=style, taken={c.name for c in (key, *references)})
        plural = pluralize(noun)
        table = Table(
            spell(plural if plural_names else noun, table_style),
            ((noun, plural),),
            (key, *columns, *references),
        )
        for parent, reference in zip(parents, references, strict=True):
            links.append(Link(table, reference.name, parent, parent.columns[0].name))
        tables.append(table)
    return Schema(tuple(tables), tuple(links))


def _make_noun(rng: Random) -> str:
    noun = values.invent_word(rng) if rng.random() < INVENTED_SHARE else rng.choice(words.ENTITIES)
    return f"{rng.choice(words.MODIFIERS)} {noun}" if rng.random() < 0.25 else noun


def _make_columns(rng: Random, *, noun: str, style: str, taken: set[str]) -> list[Column]:
    kinds: list[ColumnKind] = [
        "category",
        "text",
        "number",
        *rng.choices(("category", "number", "date", "text"), k=3),
    ]
    columns = []
    for kind in kinds:
        phrase = _make_phrase(rng, kind, noun)
        name = spell(phrase, style)
        if name in taken:
            continue
        taken.add(name)
        constants = tuple(values.make_constant(rng, kind) for _ in range(NUM_CONSTANTS))
        columns.append(Column(name, (phrase,), kind, constants, nullable=rng.random() < 0.3))
    rng.shuffle(columns)
    return columns


def _make_phrase(rng: Random, kind: ColumnKind, noun: str) -> str:
    if rng.random() < INVENTED_SHARE:
        return values.invent_word(rng)
    if kind == "date":
        return f"{rng.choice(words.DATE_ATTRIBUTES)} {rng.choice(('date', 'date', 'day', 'time'))}"
    if kind == "number":
        phrase = rng.choice(words.NUMBER_ATTRIBUTES)
        return f"{rng.choice(words.NUMBER_MODIFIERS)} {phrase}" if rng.random() < 0.5 else phrase
    phrase = rng.choice(words.CATEGORY_ATTRIBUTES if kind == "category" else words.TEXT_ATTRIBUTES)
    before = rng.random()
    if before < 0.25:
        return f"{noun} {phrase}"
    return f"{rng.choice(words.MODIFIERS)} {phrase}" if before < 0.5 else phrase
