"""One HTML page with plotly figures that opens from a file, without a network, in light and dark.

A figure takes its colours from the page: a plotly colour written as `var(--accent)` becomes the value that the
reader's colour scheme has for it, and changes with the scheme. `COLOURS` names them all.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Name: (light, dark). All text colours have a contrast of 4.5 or more against paper and panel (WCAG 2.2, 1.4.3).
COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14171b"),
    "panel": ("#f5f7f9", "#1d2126"),
    "ink": ("#1b1f24", "#e6e9ed"),
    "muted": ("#5a6370", "#a0a9b4"),
    "rule": ("#dde2e7", "#333a42"),
    "rest": ("#a3adb8", "#66707b"),  # figures only: everything that is not the point
    "accent": ("#0a63c2", "#6cb2ff"),  # the winner, the adapter
    "second": ("#a34a00", "#ffab62"),  # the merged model
    "good": ("#1a7034", "#5ecb7d"),
    "bad": ("#bf2626", "#ff8a80"),
    "warn": ("#855900", "#e7b94a"),
}

# Nothing but what stands in the file may be loaded or asked for; plotly's "download as png" needs data and blob.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def render_page(title: str, *, body_html: str, figures: Mapping[str, Figure], extra_css: str = "") -> str:
    """Returns the page as one self-contained HTML document; plotly.js is in it once if there is a figure.

    Args:
        title: The page's title, as plain text.
        body_html: What stands in `<main>`, its user texts escaped, with `figure_place(name)` for each figure. Wide
            tables belong into `<div class="scroll">`.
        figures: Each figure of the body by its name. A layout without a height gets 340 px.
        extra_css: Rules of the page's own, after those of this module.

    Raises:
        ValueError: a place without a figure, or a figure without a place.
    """
    places = set(re.findall(r'data-figure="([^"]*)"', body_html))
    if places != {html.escape(name) for name in figures}:
        raise ValueError(f"page: each figure must have a place, got places {sorted(places)} for {sorted(figures)}.")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{colour_css()}{_CSS}{extra_css}</style>\n</head>\n<body>\n"
        f"<main>\n{body_html}\n</main>\n{_scripts(figures)}</body>\n</html>\n"
    )


def figure_place(name: str, *, label: str, min_width_px: int = 0) -> str:
    """Returns the HTML of the place where a figure is drawn.

    Args:
        name: The figure's key in `render_page`.
        label: What the figure shows, in words, for readers who do not see it.
        min_width_px: Below this width the figure scrolls sideways in its own box.
    """
    style = f' style="min-width:{min_width_px}px"' if min_width_px else ""
    return (
        '<div class="scroll"><div class="plot" role="img" '
        f'data-figure="{html.escape(name)}" aria-label="{html.escape(label)}"{style}></div></div>'
    )


def figure_text(text: str) -> str:
    """Returns a user's text for use in a figure: plotly reads `<b>`, `<a href>` and the like in its labels."""
    return html.escape(text, quote=False)


def _scripts(figures: Mapping[str, Figure]) -> str:
    if not figures:
        return ""
    from plotly.io import to_json
    from plotly.offline import get_plotlyjs

    data = ",\n".join(f"{json.dumps(name)}: {to_json(figure, validate=False)}" for name, figure in figures.items())
    # Escaped so that no text of a figure can end the script element, or open a comment in it.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return (
        "<noscript><p>The figures need JavaScript; the tables do not.</p></noscript>\n"
        f'<script type="application/json" id="figures">{{{data}}}</script>\n'
        f"<script>{get_plotlyjs()}</script>\n<script>{_DRAW}</script>\n"
    )


def colour_css() -> str:
    """The colours as CSS variables, for both schemes."""
    light, dark = (" ".join(f"--{name}: {pair[at]};" for name, pair in COLOURS.items()) for at in (0, 1))
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


_CSS = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 40px 0 8px; }
h3 { font-size: 1rem; margin: 24px 0 4px; }
p { margin: 8px 0; max-width: 75ch; }
a { color: var(--accent); }
.muted, figcaption, caption { color: var(--muted); }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
figure { margin: 16px 0; }
figcaption { font-size: .9rem; max-width: 75ch; }
.scroll { overflow-x: auto; max-width: 100%; }
.plot { width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; padding: 4px 0; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
details { margin: 12px 0; }
summary { cursor: pointer; }
code, pre { font: .9em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--panel); padding: 10px 12px; border-radius: 6px; overflow-x: auto; white-space: pre-wrap; }
"""

_DRAW = """
(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const isObject = (value) => value !== null && typeof value === "object";
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const coloured = (value) => {
    if (typeof value === "string") return value.replace(/var\\((--[a-z0-9-]+)\\)/g, (_, name) => colour(name));
    if (Array.isArray(value)) return value.map(coloured);
    if (!isObject(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one)]));
  };
  // What the figure says for itself goes before what the page says.
  const merged = (ours, theirs) => {
    const all = { ...ours };
    for (const [key, value] of Object.entries(theirs ?? {}))
      all[key] = isObject(value) && !Array.isArray(value) && isObject(all[key]) ? merged(all[key], value) : value;
    return all;
  };
  const font = getComputedStyle(document.body).fontFamily;
  const layoutOf = (layout) => {
    const axis = { gridcolor: "var(--rule)", linecolor: "var(--rule)", zerolinecolor: "var(--rule)",
      tickfont: { color: "var(--muted)" }, automargin: true };
    const page = { autosize: true, height: 340, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 48, r: 12, t: 24, b: 44 }, font: { family: font, size: 13, color: "var(--ink)" },
      hoverlabel: { bgcolor: "var(--panel)", bordercolor: "var(--rule)", font: { color: "var(--ink)" } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, xaxis: axis, yaxis: axis };
    for (const key of Object.keys(layout ?? {})) if (/^[xy]axis\\d+$/.test(key)) page[key] = axis;
    const { template, width, ...theirs } = layout ?? {};
    return coloured(merged(page, theirs));
  };
  const draw = () => {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const figure = figures[place.dataset.figure];
      Plotly.react(place, coloured(figure.data), layoutOf(figure.layout),
        { responsive: true, displaylogo: false, displayModeBar: false });
    }
  };
  draw();
  scheme.addEventListener("change", draw);
})();
"""
