"""The browser in which tests look at a page, and what they ask of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Of one step; a page of 5 MB is drawn in 2 s.
TIMEOUT_MS = 20_000
WINDOWS = {"wide": (1280, 900), "phone": (390, 844)}
# Labels that the edge of their figure cuts off, of the figures that are drawn.
CUT_LABELS = """
() => [...document.querySelectorAll('[data-figure] svg.main-svg')].flatMap((svg) => {
  const edge = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter((text) => {
    const box = text.getBoundingClientRect();
    return box.width && (box.left < edge.left - 1 || box.right > edge.right + 1 || box.bottom > edge.bottom + 1);
  }).map((text) => text.textContent);
})
"""


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """A Chromium without a window; the test is skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs a browser: playwright, which is in the extra `test`"
    )
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)} on the PATH")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield opened
        opened.close()
