"""The report in a real browser, from its file: drawn, silent, offline, and inside the window, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qlora_ray.reporting import write_report
from qlora_ray.runs import write_json
from qlora_ray.scoring.comparison import compare_rows
from tests.browsing import CUT_LABELS, TIMEOUT_MS, WINDOWS, open_chromium
from tests.sweep_folder import Sketch, usual_sketches, write_sweep

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Every figure's place: its size on the screen, its traces, and how many of them are drawn.
MEASURE = """
() => [...document.querySelectorAll("[data-figure]")].map((place) => {
  const box = place.querySelector("svg.main-svg")?.getBoundingClientRect();
  return {
    name: place.dataset.figure,
    isFolded: place.closest("details:not([open])") !== null,
    width: box?.width ?? 0,
    height: box?.height ?? 0,
    traces: place.data?.length ?? 0,
    drawn: place.querySelectorAll(".trace").length,
  };
})
"""
# Whether figures are as wide as their places.
FITS = """
(names) => names.every((name) => {
  const place = document.querySelector(`[data-figure=${name}]`);
  return Math.abs(place.clientWidth - place.querySelector("svg.main-svg").clientWidth) < 2;
})
"""
# The page's ground, and the labels of a figure's axis, which plotly draws in a colour of its own.
COLORS = """
() => [document.body, document.querySelector("[data-figure=curves] .xtick text")].map((one, index) =>
  getComputedStyle(one)[index ? "fill" : "backgroundColor"])
"""
SCHEMES = {
    "light": ["rgb(255, 255, 255)", "rgb(90, 99, 112)"],
    "dark": ["rgb(20, 23, 27)", "rgb(160, 169, 180)"],
}
# Of the other trials that have reported, best first; behind a line.
FOLDED = [f"losses{number:04d}" for number in (0, 2, 13, 12, 11, 10, 1, 9, 8, 7, 6, 4)]
FIGURES = [
    "verdict",
    "evaluation0",
    "curves",
    "losses",
    *FOLDED,
    "parallel",
    "importance",
    "slice0",
    "slice1",
    "timeline",
    "memory",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with all that a report can show: an evaluated winner, enough trials for importance, failures."""
    sketches = usual_sketches() + [
        Sketch([1.5 - index / 10], {"lora.r": 4, "training.learning_rate": 10**-4 * (index + 1)}, "pruned")
        for index in range(8)
    ]
    paths = write_sweep(tmp_path_factory.mktemp("browser") / "s", sketches, winner=3)
    (paths.root / "evaluation").mkdir()
    comparison = compare_rows("exact_match", [0.0] * 20, [1.0, 0.0] * 10, higher_is_better=True)
    write_json(
        paths.root / "evaluation" / "evaluation.json",
        {
            "rows": {"split": "test", "num_rows": 20},
            "scores": [{"model": name, "prompts": "0-shot", "loss": 1.0} for name in ("base", "adapter")],
            "comparisons": [
                {"prompts": "0-shot", "base_model": "base", "tuned_model": "adapter", **comparison.to_dict()}
            ],
        },
    )
    return write_report(paths)


@pytest.fixture
def opened(browser: Browser, report: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Page, list[str]]]:
    """The page in a window and a colour scheme, and what it complained of or asked the network for."""
    window, scheme = request.param
    width, height = WINDOWS[window]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("request", lambda asked: _note_request(asked.url, complaints))
    page.goto(report.resolve().as_uri(), wait_until="load")
    yield page, complaints
    context.close()


def _note_request(url: str, complaints: list[str]) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        complaints.append(f"request: {url}")


def check_drawn_inside(page: Page, *, folded: list[str]) -> None:
    """Every figure that is not folded is drawn with all its traces, and nothing is wider than the window."""
    figures = page.evaluate(MEASURE)
    assert [figure["name"] for figure in figures] == FIGURES
    assert [figure["name"] for figure in figures if figure["isFolded"]] == folded
    for figure in figures:
        if figure["isFolded"]:
            continue
        assert figure["width"] > 150 and figure["height"] > 50, figure
        assert figure["drawn"] == figure["traces"] > 0, figure
    assert page.evaluate(CUT_LABELS) == []
    width, window = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= window


@pytest.mark.parametrize(
    "opened", [("wide", "light"), ("phone", "dark")], indirect=True, ids=lambda pair: "-".join(pair)
)
def test_the_page_is_whole_silent_and_inside_its_window_in_both_schemes(opened: tuple[Page, list[str]]) -> None:
    page, complaints = opened
    check_drawn_inside(page, folded=FOLDED)
    first = page.evaluate(COLORS)
    assert first in SCHEMES.values()
    other = next(scheme for scheme, colors in SCHEMES.items() if colors != first)
    page.emulate_media(color_scheme=other)
    page.wait_for_function(f"(before) => ({COLORS})()[1] !== before[1]", arg=first)
    assert page.evaluate(COLORS) == SCHEMES[other]
    # What is folded in must fit too.
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    # A figure that had no room when it was drawn takes what it has now.
    page.wait_for_function(FITS, arg=FOLDED)
    check_drawn_inside(page, folded=[])
    assert complaints == []


@pytest.mark.parametrize("opened", [("wide", "light")], indirect=True, ids=["wide"])
def test_a_click_on_a_header_sorts_the_trials(opened: tuple[Page, list[str]]) -> None:
    page, complaints = opened
    losses = "() => [...document.querySelectorAll('[data-sortable] tbody tr')].map((row) => row.cells[3].innerText)"
    page.get_by_role("button", name="loss", exact=True).click()
    rising = page.evaluate(losses)
    assert rising[:3] == ["0.1000", "0.2000", "0.8000"]
    # The arrow is for the eye: the button is still called `loss`.
    page.get_by_role("button", name="loss", exact=True).click()
    falling = page.evaluate(losses)
    assert falling[:2] == ["3.0000", "1.5000"]
    # The trial without a loss goes last either way.
    assert rising[-1] == falling[-1] == "-"
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("loss")
    assert complaints == []
