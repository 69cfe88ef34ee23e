"""A report as Markdown: the same sections, with captions in place of figures."""

from __future__ import annotations

import re

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
    rules = ["---:" if index in table.numeric else "---" for index in range(len(table.header))]
    lines = [_row(table.header), "| " + " | ".join(rules) + " |"]
    for number, row in enumerate(table.rows[:MAX_ROWS]):
        cells = tuple(f"**{escape(cell)}**" if number == table.marked and cell else escape(cell) for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    hidden = len(table.rows) - MAX_ROWS
    return "\n".join(lines) + (f"\n\n... and {hidden} more rows in report.html" if hidden > 0 else "")


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"
