"""A report as one HTML file: qlora_ray.pages.html' page, filled with sections."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from qlora_ray.pages.blocks import Block, Bullets, Code, Document, Drawing, Grid, Section, SideBySide, Table, Words
from qlora_ray.pages.html import figure_place, render_page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Trials of a longer leaderboard scroll in a box of their own.
TALL_ROWS = 25
# A cell with more characters is broken into lines.
LONG_CELL = 48


def write_page(document: Document) -> str:
    """The report as HTML; every text in it is escaped."""
    figures: dict[str, Figure] = {}
    tone = f' class="{document.tone}"' if document.tone else ""
    parts = [
        f'<p class="muted kind">{html.escape(document.title)}</p>',
        f"<h1{tone}>{html.escape(document.headline)}</h1>",
        *(f'<p class="lead">{html.escape(text)}</p>' for text in document.lead),
        _facts(document.facts),
        _contents(document),
        *(_section(section, number, figures) for number, section in enumerate(document.sections)),
        f"<script>{_SORT}{_UNFOLD}</script>",
    ]
    return render_page(
        f"{document.title}: {document.headline}", body_html="\n".join(parts), figures=figures, extra_css=_CSS
    )


def _facts(facts: tuple[tuple[str, str], ...]) -> str:
    if not facts:
        return ""
    items = "".join(f"<div><dd>{html.escape(value)}</dd><dt>{html.escape(label)}</dt></div>" for label, value in facts)
    return f'<dl class="facts">{items}</dl>'


def _contents(document: Document) -> str:
    links = "".join(
        f'<a href="#section{number}">{html.escape(section.title)}</a> '
        for number, section in enumerate(document.sections)
    )
    return f'<nav aria-label="Contents">{links}</nav>'


def _section(section: Section, number: int, figures: dict[str, Figure]) -> str:
    blocks = "\n".join(_block(block, figures) for block in section.blocks)
    return (
        f'<section aria-labelledby="section{number}"><h2 id="section{number}">{html.escape(section.title)}</h2>\n'
        f"{blocks}\n</section>"
    )


def _block(block: Block, figures: dict[str, Figure]) -> str:
    if isinstance(block, Words):
        return f"<p{_class(block.tone)}>{html.escape(block.text)}</p>"
    if isinstance(block, Bullets):
        items = "".join(f"<li>{html.escape(item)}</li>" for item in block.items)
        return f"<ul{_class(block.tone)}>{items}</ul>"
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Drawing):
        return _drawing(block, figures)
    if isinstance(block, Grid):
        places = []
        for drawing in block.drawings:
            figures[drawing.name] = drawing.figure
            places.append(figure_place(drawing.name, label=drawing.caption))
        return f'<figure><div class="grid">{"".join(places)}</div>{_caption(block.caption)}</figure>'
    if isinstance(block, SideBySide):
        return _side_by_side(block)
    inner = "\n".join(_block(part, figures) for part in block.blocks)
    is_open = " open" if block.is_open else ""
    return f"<details{is_open}><summary>{html.escape(block.summary)}</summary>\n{inner}\n</details>"


def _drawing(drawing: Drawing, figures: dict[str, Figure]) -> str:
    figures[drawing.name] = drawing.figure
    place = figure_place(drawing.name, label=drawing.caption, min_width_px=drawing.min_width_px)
    return f"<figure>{place}{_caption(drawing.caption)}</figure>"


def _side_by_side(block: SideBySide) -> str:
    texts = "".join(f"<div><h4>{html.escape(name)}</h4><p>{html.escape(text)}</p></div>" for name, text in block.texts)
    return (
        f'<div class="prompt"><p><code>{html.escape(block.key)}</code> {html.escape(block.prompt)}</p>'
        f'<div class="texts">{texts}</div></div>'
    )


def _caption(text: str) -> str:
    return f"<figcaption>{html.escape(text)}</figcaption>"


def _class(tone: str) -> str:
    return f' class="{tone}"' if tone else ""


def _table(table: Table) -> str:
    head = "".join(_header_cell(text, index, table) for index, text in enumerate(table.header))
    rows = []
    for number, row in enumerate(table.rows):
        cells = "".join(
            f"<td{_cell_class(text, is_number=index in table.numeric)}>{html.escape(text)}</td>"
            for index, text in enumerate(row)
        )
        rows.append(f'<tr class="marked">{cells}</tr>' if number == table.marked else f"<tr>{cells}</tr>")
    is_tall = table.is_sortable and len(table.rows) > TALL_ROWS
    return (
        f'<div class="scroll{" tall" if is_tall else ""}" tabindex="0">'
        f"<table{' data-sortable' if table.is_sortable else ''}>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def _cell_class(text: str, *, is_number: bool) -> str:
    return _class("number" if is_number else "long" if len(text) > LONG_CELL else "")


def _header_cell(text: str, index: int, table: Table) -> str:
    kind = ' class="number"' if index in table.numeric else ""
    inner = html.escape(text)
    if table.is_sortable and text:
        inner = f'<button type="button">{inner}</button>'
    return f'<th scope="col"{kind}>{inner}</th>'


_CSS = """
figcaption { margin-top: 10px; }
figure { margin: 16px 0 32px; }
main { max-width: 1160px; }
td { white-space: nowrap; }
td.long { white-space: normal; min-width: 36ch; overflow-wrap: anywhere; }
.kind { margin: 0 0 4px; }
h1.good, h1.bad, h1.warn { font-size: 1.9rem; }
.lead { font-size: 1.05rem; }
nav { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: .9rem; margin: 20px 0 0; }
nav a { color: var(--muted); text-decoration: none; border-bottom: 1px solid var(--rule); }
nav a:hover { color: var(--accent); }
.facts { display: flex; flex-wrap: wrap; gap: 12px 40px; margin: 24px 0 8px; }
.facts div { display: flex; flex-direction: column; }
.facts dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts dt { color: var(--muted); font-size: .85rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(236px, 100%), 1fr)); gap: 8px 24px; }
.prompt { margin: 20px 0; border-top: 1px solid var(--rule); padding-top: 12px; }
.prompt > p { white-space: pre-wrap; max-width: none; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); gap: 8px; }
.texts > div { background: var(--panel); border-radius: 6px; padding: 8px 12px; min-width: 0; }
.texts h4 { margin: 0; font-size: .8rem; color: var(--muted); font-weight: 600; }
.texts p { margin: 4px 0 0; white-space: pre-wrap; }
.tall { max-height: 560px; overflow-y: auto; }
.tall thead th { position: sticky; top: 0; background: var(--paper); }
tr.marked td { color: var(--accent); font-weight: 600; }
th button { all: unset; cursor: pointer; font: inherit; color: inherit; }
th button:hover { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th[aria-sort="ascending"] button::after { content: " ↑"; content: " ↑" / ""; }
th[aria-sort="descending"] button::after { content: " ↓"; content: " ↓" / ""; }
th.number button { text-align: right; }
ul { padding-left: 1.2em; max-width: 75ch; }
section > details { border-bottom: 1px solid var(--rule); margin: 0; padding: 8px 0; }
@media print { details > * { display: block; } }
"""

_SORT = """
(() => {
  "use strict";
  const number = (text) => parseFloat(text.replace(/,/g, "").replace("−", "-"));
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const isNumber = head.classList.contains("number");
      const compare = (a, b) => {
        const [one, two] = [a, b].map((row) => row.cells[column].textContent);
        if (!isNumber) return sign * one.localeCompare(two);
        // A cell without a number goes last either way.
        const [x, y] = [number(one), number(two)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y);
      };
      body.append(...[...body.rows].sort(compare));
    }));
  }
})();
"""

# A figure behind a closed line has no width when it is drawn.
_UNFOLD = """
(() => {
  "use strict";
  for (const folded of document.querySelectorAll("details"))
    folded.addEventListener("toggle", () => {
      if (folded.open) for (const place of folded.querySelectorAll("[data-figure]")) Plotly.Plots.resize(place);
    });
})();
"""
