"""The live page in a real browser: drawn, silent, inside its window, light and dark, by keyboard, and live."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qlora_ray.runs import EventLog, SweepPaths, append_line
from qlora_ray.runs.control import ControlAction, take_requests
from qlora_ray.runs.live import LiveExecutor, LiveFigures, LivePhase, LiveTrial, LiveTrialState, write_live
from tests.browsing import TIMEOUT_MS, WINDOWS, open_chromium
from tests.sweep_folder import Sketch, usual_sketches, write_sweep

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCRIPT = "<script>window.wasRun = true</script><img src=x onerror='window.wasRun = true'>"
SCHEMES = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}
# Whether something is drawn on each figure: pixels that are not clear.
ALL_DRAWN = """
() => [...document.querySelectorAll("main canvas")].every((canvas) => {
  // A copy: a browser warns of a canvas that is read again and again.
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const pixels = copy.getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let at = 3; at < pixels.length; at += 4) if (pixels[at]) count += 1;
  return count > 200;
})
"""
IDS = "() => [...document.querySelectorAll('#trial-table tbody tr')].map((row) => row.dataset.trial)"
FITS = "() => document.documentElement.scrollWidth <= window.innerWidth"
GROUND = "() => getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_chromium() as opened:
        yield opened


@contextmanager
def held(paths: SweepPaths) -> Iterator[None]:
    """A sweep that runs: its driver holds it, and has written what there is since."""
    with paths.lock():
        paths.live.touch()
        paths.events.touch()
        yield


def write_running(root: Path) -> SweepPaths:
    """A sweep with a running trial, enough others for importance, and texts that would be markup."""
    sketches = usual_sketches() + [
        Sketch([1.5 - index / 10], {"lora.r": 4, "training.learning_rate": 10**-4 * (index + 1)}, "pruned", SCRIPT)
        for index in range(8)
    ]
    paths = write_sweep(root, [*sketches, Sketch([0.9, 0.6], state="running")], status=None)
    trial = LiveTrial(state=LiveTrialState.TRAINING, step=77, num_steps=300, train_loss=0.5, executor=0)
    executor = LiveExecutor(device=SCRIPT, hostname="node", state="ready", slots=2, trials=("0014",), busy_share=0.9)
    figures = LiveFigures(
        time=time.time(),
        phase=LivePhase.SEARCH,
        eta_s=65.0,
        num_planned=20,
        slots=2,
        slots_used=1,
        trials={"0014": trial},
        executors=(executor,),
    )
    write_live(paths, figures)
    return paths


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a page of the folder, and its server."""
    command = [sys.executable, "-m", "qlora_ray.dashboard", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip(), server
        finally:
            server.terminate()


@contextmanager
def opened(
    browser: Browser, url: str, *, window: str = "wide", scheme: str = "light", may_complain: bool = False
) -> Iterator[Page]:
    """The page, which must not complain of anything, ask another server, or run a script that a sweep brought."""
    width, height = WINDOWS[window]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_selector("#trial-table tbody tr")
    yield page
    assert page.evaluate("() => window.wasRun") is None
    own = url.partition("?")[0]
    assert [one for one in asked if not one.startswith((own, "data:"))] == []
    assert may_complain or complaints == []
    context.close()


def look_at_all(page: Page) -> None:
    """Brings every figure into sight, which draws it."""
    for name in ("curve-figure", "slot-figure", "parallel-figure"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
    page.wait_for_function(ALL_DRAWN)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running sweep's page, which has a finished sweep beside it."""
    paths = write_running(tmp_path_factory.mktemp("results") / "s")
    won = write_sweep(paths.root.with_name("won"), usual_sketches(), winner=3)
    for model in ("base", "0003"):
        append_line(won.best / "answers.jsonl", {"model": model, "row": 1, "answer": SCRIPT, "reference": SCRIPT})
    with held(paths), served(paths.root) as (url, _):
        yield url


@pytest.mark.parametrize(("window", "scheme"), [("wide", "light"), ("phone", "dark")])
def test_the_page_is_whole_silent_and_inside_its_window_in_both_schemes(
    browser: Browser, running: str, window: str, scheme: str
) -> None:
    with opened(browser, running, window=window, scheme=scheme) as page:
        look_at_all(page)
        assert page.evaluate(FITS)
        assert page.locator("h1").inner_text() == "This sweep is running"
        # It was started without --control.
        assert page.locator("#control").is_hidden()
        facts = page.locator("#facts").inner_text()
        assert "searching" in facts and "1:05" in facts and "14 of 20 trials done" in facts
        page.wait_for_selector("#importance .bar")
        # What a sweep says stays text.
        assert page.locator("#device-table tbody td").nth(1).inner_text() == SCRIPT
        assert SCRIPT in page.locator("tr[data-trial='0006']").inner_text()
        row = page.locator("tr[data-trial='0014']").inner_text()
        assert "running, training" in row and "77/300" in row
        assert page.evaluate(GROUND) == SCHEMES[scheme]
        other = next(one for one in SCHEMES if one != scheme)
        page.emulate_media(color_scheme=other)
        page.wait_for_function(f"(ground) => ({GROUND})() === ground", arg=SCHEMES[other])
        look_at_all(page)


def test_ticks_of_values_that_differ_in_their_last_digit_only_are_few(browser: Browser, running: str) -> None:
    with opened(browser, running) as page:
        counts = page.evaluate(
            """async () => {
              const { linearTicks } = await import("./assets/canvas.js");
              const ends = [[0, 10], [0.5, 0.5 + 1.2e-16], [1e300, 1.1e300]];
              return ends.map(([low, high]) => linearTicks(low, high).length);
            }"""
        )
    assert counts[0] == 6 and all(0 < count <= 13 for count in counts)


def test_trials_are_sorted_filtered_and_opened_by_keyboard(browser: Browser, running: str) -> None:
    with opened(browser, running) as page:
        assert page.evaluate(IDS)[:2] == ["0003", "0000"]
        page.get_by_role("button", name="loss", exact=True).focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        # The trial without a loss goes last either way.
        assert [page.evaluate(IDS)[at] for at in (0, -1)] == ["0004", "0005"]
        page.get_by_role("button", name="failed 2").focus()
        page.keyboard.press("Space")
        assert page.evaluate(IDS) == ["0004", "0005"]
        page.get_by_role("button", name="0004", exact=True).focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#detail[open] pre")
        assert "<script>alert('x')</script>" in page.locator("#detail-body pre").first.inner_text()
        page.keyboard.press("Escape")
        page.wait_for_selector("#detail", state="hidden")
        assert page.evaluate("() => document.activeElement.textContent") == "0004"


def test_another_sweep_s_page_is_a_click_away_and_its_answers_stay_text(browser: Browser, running: str) -> None:
    with opened(browser, running, window="phone") as page:
        row = page.locator("#other-table tbody tr")
        assert "complete" in row.inner_text() and "better" in row.inner_text()
        page.get_by_role("link", name="won").click()
        page.wait_for_selector("h1:text-is('Trial 0003 is better than its base')")
        assert page.locator("#answer-list .texts p").all_inner_texts() == [SCRIPT] * 3
        assert page.locator("#answer-list script, #answer-list img").count() == 0
        assert page.evaluate(FITS)


def test_buttons_ask_the_driver_and_show_its_answer(browser: Browser, tmp_path: Path) -> None:
    paths = write_running(tmp_path / "results" / "s")
    with held(paths), served(paths.root, "--control") as (url, _), opened(browser, url) as page:
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="0014", exact=True).click()
        page.get_by_role("button", name="Stop this trial").click()
        page.wait_for_selector("#control-note:has-text('takes it within')")
        [request] = take_requests(paths)
        assert (request.action, request.trial) == (ControlAction.STOP_TRIAL, "0014")
        page.keyboard.press("Escape")
        EventLog(paths.events).write("request_done", action="pause", reason="no new trials, as asked")
        page.wait_for_selector("#control-note:text-is('no new trials, as asked')")
        page.get_by_role("button", name="Continue").click()
        page.wait_for_selector("#control-note:has-text('takes it within')")
        assert [request.action for request in take_requests(paths)] == [ControlAction.CONTINUE]


def test_a_clone_is_asked_for_by_keyboard_in_a_narrow_window_and_a_report_takes_nothing_typed_away(
    browser: Browser, tmp_path: Path
) -> None:
    paths = write_running(tmp_path / "results" / "s")
    with held(paths), served(paths.root, "--control") as (url, _), opened(browser, url, window="phone") as page:
        page.get_by_role("button", name="0014", exact=True).click()
        page.locator("summary", has_text="Clone this trial").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("0.003")
        append_line(paths.trial("0014").metrics, {"report_index": 3, "samples_seen": 1800, "eval_loss": 0.0123})
        EventLog(paths.events).write("trial_reported", trial="0014", report_index=3)
        page.wait_for_selector("#detail-body td:text-is('0.0123')")
        assert page.evaluate(FITS)
        page.keyboard.press("Enter")
        page.wait_for_selector(".clone p:has-text('takes it within')")
        [request] = take_requests(paths)
        assert (request.action, request.trial) == (ControlAction.CLONE, "0014")
        assert request.params == {"training.learning_rate": 0.003}
        EventLog(paths.events).write("request_refused", action="clone", trial="0014", reason="no state")
        page.wait_for_selector(".clone p:text-is('Refused: no state')")


def test_what_a_sweep_writes_is_seen_and_so_is_the_end_of_its_driver_and_of_the_server(
    browser: Browser, tmp_path: Path
) -> None:
    paths = write_running(tmp_path / "results" / "s")
    with served(paths.root) as (url, server):
        with held(paths), opened(browser, url) as page:
            append_line(paths.trial("0014").metrics, {"report_index": 3, "samples_seen": 1800, "eval_loss": 0.0123})
            EventLog(paths.events).write("trial_reported", trial="0014", report_index=3)
            page.wait_for_selector("tr[data-trial='0014'] td:text-is('0.0123')")
            EventLog(paths.events).write("trial_pruned", trial="0014", reason="stopped by asha at report 3", metrics={})
            page.wait_for_selector("tr[data-trial='0014'] td.pruned")
        # The browser itself says that the connection was refused.
        with opened(browser, url, may_complain=True) as page:
            page.wait_for_selector("#resume:not([hidden])")
            assert page.locator("#resume").inner_text() == paths.resume_command
            assert "Its driver is gone; resume with:" in page.locator("#lead").inner_text()
            server.terminate()
            page.wait_for_selector("#connection:not([hidden])")
            assert page.locator("tr[data-trial='0014']").is_visible()
            page.click("tr[data-trial='0014'] button")
            page.wait_for_selector("#detail-body :text-is('This trial cannot be read.')")
