"""The page of answers draws in a real browser, from a file, and shows what was answered."""

from __future__ import annotations

import html
import shutil
from pathlib import Path

import pytest

from qlora_ray.evaluation.answers.figures import draw_lengths, draw_refusals
from qlora_ray.evaluation.answers.files import AnswerRow
from qlora_ray.evaluation.answers.page import MAX_PROMPTS_SHOWN, compose_answers
from qlora_ray.evaluation.answers.statistics import AnsweredSet, summarize
from qlora_ray.pages.markdown import write_markdown
from qlora_ray.pages.page import write_page
from tests.browsing import CUT_LABELS

EVIL = "</script><img src=x onerror=alert(1)>"
REFUSAL = "I can't help with that."
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip

TITLE_COLOUR = "getComputedStyle(document.querySelector('.xtitle')).fill"
# A change of the scheme is told to a page before its next frame. (wait_for_function evaluates in the page, which the
# page's policy forbids.)
NEXT_FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
UNBROKEN = "word" * 100


def _row(key: str, answer: str, *, num_tokens: int | None = 3, reference: str | None = None) -> AnswerRow:
    return AnswerRow(key, f"ask {key}", answer, reference, num_tokens, is_cut=False)


def _sets() -> list[AnsweredSet]:
    red = {
        "base": [_row("a", REFUSAL), _row("b", REFUSAL)],
        "adapter": [_row("a", REFUSAL), _row("b", EVIL + UNBROKEN)],
    }
    split = {model: [_row(str(at), "SELECT 1", reference="SELECT 2") for at in range(80)] for model in red}
    return [summarize("0-shot", split), summarize("red <team> of a long name", red)]


def test_lengths_are_in_tokens_only_if_every_file_counts_them() -> None:
    counted = summarize("s", {"base": [_row("a", "one two", num_tokens=7)]})
    uncounted = summarize("s", {"base": [_row("a", "one two", num_tokens=None)]})
    assert list(draw_lengths([counted]).data[0].x) == [7]
    assert list(draw_lengths([uncounted]).data[0].x) == [2]
    assert [list(box.x) for box in draw_lengths([counted, uncounted]).data] == [[2], [2]]


def test_refusals_are_shares_with_their_counts() -> None:
    bars = draw_refusals(_sets()[1:]).data
    assert [(bar.y, bar.x, bar.text) for bar in bars] == [
        (("base",), (100.0,), ("2 of 2",)),
        (("adapter",), (50.0,), ("1 of 2",)),
    ]


def test_a_page_says_when_nothing_declines() -> None:
    page = write_page(compose_answers(_sets()[:1], warnings=[]))
    assert "No answer begins by declining." in page
    assert "every prompt was answered by every model" in page


def test_texts_of_prompts_answers_and_warnings_are_escaped() -> None:
    page = write_page(compose_answers(_sets(), warnings=[f"adapter: {EVIL}"]))
    assert EVIL not in page
    assert page.count(html.escape(EVIL)) == 2


def test_the_answers_can_be_read_as_markdown_too() -> None:
    text = write_markdown(compose_answers(_sets(), warnings=["look"]))
    assert f"**a** ask a\n\n- base: {REFUSAL}\n- adapter: {REFUSAL}" in text
    assert "<img" not in text.replace("\\<img", "")


def test_a_large_set_shows_the_prompts_whose_answers_differ_first() -> None:
    base = [_row(str(at), "same") for at in range(100)]
    tuned = [*base[:99], _row("99", "other")]
    page = write_page(compose_answers([summarize("s", {"base": base, "adapter": tuned})], warnings=[]))
    assert f"Answers: {MAX_PROMPTS_SHOWN} of 100, those that differ first" in page
    assert page.index("<code>99</code>") < page.index("<code>0</code>")


def test_a_page_without_any_answer_is_still_a_page() -> None:
    page = write_page(compose_answers([summarize("s", {"base": [], "adapter": []})], warnings=["base/s.jsonl: empty"]))
    assert "base/s.jsonl: empty" in page
    assert "data-figure=" not in page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: Chromium or Google Chrome on the PATH")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_is_whole_silent_and_inside_its_window_in_a_browser(tmp_path: Path, width: int, scheme: str) -> None:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs a browser: playwright, which is in the extra `test`"
    )
    path = tmp_path / "answers.html"
    path.write_text(write_page(compose_answers(_sets(), warnings=[])), encoding="utf-8")
    noise: list[str] = []
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", lambda request: None if request.url == path.as_uri() else noise.append(request.url))
        page.goto(path.as_uri())
        drawn = page.evaluate(
            "[...document.querySelectorAll('[data-figure]')].map(place => place.querySelectorAll('.trace').length)"
        )
        before = page.evaluate(TITLE_COLOUR)
        page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        page.evaluate(NEXT_FRAME)
        after = page.evaluate(TITLE_COLOUR)
        cut = page.evaluate(CUT_LABELS)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        browser.close()
    assert noise == []
    assert drawn == [4, 2]
    assert before != after
    assert cut == []
    assert overflow <= 0
