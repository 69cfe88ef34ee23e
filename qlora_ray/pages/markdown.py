"""A report as Markdown: the same sections, with captions in place of figures."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from qlora_ray.pages.blocks import Block, Bullets, Code, Document, Drawing, Grid, SideBySide, Table, Words

# Rows of a long table; the page and trials.csv have them all.
MAX_ROWS = 30
# Underscores inside words are safe in GitHub's Markdown, and names are full of them.
SPECIAL = re.compile(r"([\\`*\[\]<>|#])")


def write_markdown(document: Document) -> str:
    """The report as GitHub-flavoured Markdown; texts in it cannot become markup."""
    parts = [f"# {escape(document.title)}: {escape(document.headline)}"]
    parts += [escape(text) for text in document.lead]
    if document.facts:
        parts.append("\n".join(f"- {escape(label)}: {escape(value)}" for label, value in document.facts))
    for section in document.sections:
        parts.append(f"## {escape(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text on one line whose special characters are taken as they are."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _block(block: Block) -> str:
    if isinstance(block, Words):
        return escape(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {escape(item)}" for item in block.items)
    if isinstance(block, Code):
        # Indented code cannot be closed by anything that stands in it.
        return "\n".join(f"    {line}" for line in block.text.splitlines())
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Drawing | Grid):
        return f"Figure: {escape(block.caption)}"
    if isinstance(block, SideBySide):
        texts = "\n".join(f"- {escape(name)}: {escape(text)}" for name, text in block.texts)
        return f"**{escape(block.key)}** {escape(block.prompt)}\n\n{texts}"
    return "\n\n".join([f"### {escape(block.summary)}", *(_block(inner) for inner in block.blocks)])


def _table(table: Table) -> str:
    rows = [[escape(cell) for cell in row] for row in table.rows[:MAX_ROWS]]
    if table.marked is not None and table.marked < len(rows):
        rows[table.marked] = [f"**{cell}**" if cell else cell for cell in rows[table.marked]]
    hidden = len(table.rows) - MAX_ROWS
    more = f"\n\n... and {hidden} more rows in report.html" if hidden > 0 else ""
    return _join([[escape(cell) for cell in table.header], *rows], right=table.numeric) + more


def write_table(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Returns a table of cells that may hold Markdown; bars and line breaks in them do not end a cell.

    Args:
        rows: Cells, all rows of one length; the first row is the header.
        right: Indices of columns set flush right.
    """
    return _join([[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows], right=right)


def _join(rows: Sequence[Sequence[str]], *, right: Collection[int]) -> str:
    rule = ["---:" if column in right else "---" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [rows[0], rule, *rows[1:]])
