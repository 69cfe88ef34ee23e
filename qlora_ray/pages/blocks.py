"""What a report is made of, whatever it is written in: sections of words, tables and figures, as plain text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Tone = Literal["", "good", "bad", "warn", "muted"]


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]
    tone: Tone = ""


@dataclass(frozen=True)
class Code:
    """Text to copy, as it stands."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        numeric: Columns set flush right, and sorted as numbers.
        marked: The row that stands out.
        is_sortable: Whether a click on a header sorts it.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    marked: int | None = None
    is_sortable: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure with what it shows in words, which stand for it where it cannot be drawn or seen.

    Attributes:
        name: The figure's key on the page; unique, in ASCII.
        min_width_px: Below this the figure scrolls in its own box.
    """

    name: str
    figure: Figure
    caption: str
    min_width_px: int = 0


@dataclass(frozen=True)
class Grid:
    """Small figures side by side, as many as fit, under one caption."""

    drawings: tuple[Drawing, ...]
    caption: str


@dataclass(frozen=True)
class SideBySide:
    """Texts to compare, under what they answer.

    Attributes:
        key: Which one it is, to find it again.
        prompt: What they answer.
        texts: Whose each is, and the text.
    """

    key: str
    prompt: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Folded:
    """Blocks behind one line that opens them."""

    summary: str
    blocks: tuple[Block, ...]
    is_open: bool = False


Block = Words | Bullets | Code | Table | Drawing | Grid | SideBySide | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """The whole report.

    Attributes:
        headline: The verdict, as large as it is important.
        facts: What one wants to know at a glance: label and value.
    """

    title: str
    headline: str
    tone: Tone
    lead: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
