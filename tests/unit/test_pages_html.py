"""Pages open from a file, load nothing, and let no user text become markup."""

from __future__ import annotations

import json
import math

import pytest
from plotly.graph_objects import Figure

from qlora_ray.pages.html import COLOURS, figure_place, figure_text, render_page
from tests.unit.page_reader import PageReader

EVIL = "</script><script>alert(1)</script><!--<b>&"


def _page(figure: Figure, name: str = "curve") -> PageReader:
    return PageReader(render_page("A page", body_html=figure_place(name, label="A curve"), figures={name: figure}))


def test_a_page_loads_nothing_and_holds_plotly_once() -> None:
    figures = {"one": Figure(), "two": Figure()}
    body = "".join(figure_place(name, label=name) for name in figures)
    page = PageReader(render_page("Two", body_html=body, figures=figures))
    links = [attrs.get(key) for _, attrs in page.elements for key in ("src", "href") if key in attrs]
    assert links == ["data:,"]
    assert sum("plotly.js v" in script for script in page.texts["script"]) == 1


def test_a_page_without_figures_holds_no_script() -> None:
    assert not PageReader(render_page("Text", body_html="<p>Nothing ran.</p>", figures={})).texts["script"]


def test_texts_of_users_stay_texts() -> None:
    figure = Figure()
    figure.add_scatter(x=[1], y=[2], name=EVIL)
    page = PageReader(render_page(EVIL, body_html=figure_place(EVIL, label=f'"{EVIL}'), figures={EVIL: figure}))
    assert page.texts["title"] == [EVIL]
    assert len(page.texts["script"]) == 3
    assert json.loads(page.texts["script"][0])[EVIL]["data"][0]["name"] == EVIL
    place = next(attrs for _, attrs in page.elements if "data-figure" in attrs)
    assert (place["data-figure"], place["aria-label"]) == (EVIL, f'"{EVIL}')


def test_numbers_that_are_not_finite_are_gaps() -> None:
    figure = Figure()
    figure.add_scatter(x=[1, 2, 3], y=[1.0, math.nan, math.inf])
    data = json.loads(_page(figure).texts["script"][0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["curve"]["data"][0]["y"] == [1.0, None, None]


def test_markup_in_a_label_is_shown_as_text() -> None:
    assert figure_text('<a href="x">&</a>') == '&lt;a href="x"&gt;&amp;&lt;/a&gt;'


def test_a_figure_without_a_place_and_a_place_without_a_figure_are_refused() -> None:
    with pytest.raises(ValueError, match="each figure must have a place"):
        render_page("A page", body_html="", figures={"curve": Figure()})
    with pytest.raises(ValueError, match="each figure must have a place"):
        render_page("A page", body_html=figure_place("curve", label=""), figures={})


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "accent", "second", "good", "bad", "warn"])
def test_text_can_be_read_on_paper_and_panel(name: str, scheme: int) -> None:
    for ground in ("paper", "panel"):
        assert _contrast(COLOURS[name][scheme], COLOURS[ground][scheme]) >= 4.5


def test_contrast_is_that_of_wcag() -> None:
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    assert _contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)  # WebAIM's grey that just passes


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
