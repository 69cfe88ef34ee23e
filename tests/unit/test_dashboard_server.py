"""The server: who is let in, what it hands out, and that pages get everything first and then what is new."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from qlora_ray.dashboard import main
from qlora_ray.dashboard.channel import MAX_WAITING, Page
from qlora_ray.dashboard.security import HEADERS
from qlora_ray.dashboard.server import ASSETS, Server, Sweeps, make_app
from qlora_ray.dashboard.sweep_view import SweepView
from qlora_ray.errors import RunError
from qlora_ray.runs import EventLog, SweepPaths
from qlora_ray.runs.control import ControlAction, take_requests
from tests.sweep_folder import Sketch, usual_sketches, write_sweep

TOKEN = "a token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """A finished sweep beside a running one's folder."""
    root = tmp_path_factory.mktemp("results")
    write_sweep(root / "other", usual_sketches()[:2])
    return write_sweep(root / "mine", usual_sketches(), winner=3)


def ask(
    folder: Path, path: str, *, method: str = "GET", has_control: bool = False, **options: Any
) -> tuple[int, str, dict[str, str]]:
    """The answer of a server that shows the folder: status, text and headers."""

    async def run(client: TestClient) -> tuple[int, str, dict[str, str]]:
        async with client.request(method, path, **options) as response:
            return response.status, await response.text(), dict(response.headers)

    return serve(folder, run, has_control=has_control)


def serve(folder: Path, work: Callable[[TestClient], Awaitable[Any]], *, has_control: bool = False) -> Any:
    """What `work` returns with a client of a server that shows the folder."""

    async def run() -> Any:
        app = make_app(Sweeps(folder, has_control=has_control), TOKEN)
        async with TestClient(TestServer(app)) as client:
            return await work(client)

    return asyncio.run(run())


async def read_messages(response: ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The stream's messages as they come; the end as `{"event": "end"}`."""
    async for line in response.content:
        if line.startswith(b"data: ") and line != b"data: {}\n":
            yield json.loads(line[6:])
        elif line == b"event: end\n":
            yield {"event": "end"}


@pytest.mark.parametrize("path", ["/", "/api/stream", "/api/trials/0003", "/api/log", "/nothing"])
@pytest.mark.parametrize("token", ["", "?token=", "?token=another", "?token=a%20toke", "?token=%C3%A4"])
def test_nobody_is_let_in_without_the_token(finished: SweepPaths, path: str, token: str) -> None:
    status, text, headers = ask(finished.root, path + token)
    assert (status, "0003" in text) == (403, False)
    assert set(HEADERS) <= set(headers)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1].evil", ""])
def test_a_request_under_a_name_of_another_site_is_refused_with_the_token_too(finished: SweepPaths, host: str) -> None:
    status, _, _ = ask(finished.root, "/api/trials/0003", headers={**BEARER, "Host": host})
    # aiohttp refuses an empty one itself.
    assert status in (400, 403)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9999", "LOCALHOST", "[::1]:80"])
def test_this_machine_has_several_names(finished: SweepPaths, host: str) -> None:
    status, _, _ = ask(finished.root, "/api/trials/0003", headers={**BEARER, "Host": host})
    assert status == 200


def test_the_page_loads_only_files_of_the_package_and_runs_no_script_of_its_own(finished: SweepPaths) -> None:
    status, text, headers = ask(finished.root, "/?token=a token")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "<script>" not in text and "onclick" not in text and " style=" not in text
    assert "http://" not in text and "https://" not in text
    assert headers["Referrer-Policy"] == "no-referrer"


def test_every_asset_is_served_and_nothing_else(finished: SweepPaths) -> None:
    for asset in ASSETS.iterdir():
        status, text, headers = ask(finished.root, f"/assets/{asset.name}")
        assert (status, text) == (200, asset.read_text())
        assert headers["Content-Type"].startswith("text/")
    assert "--accent" in ask(finished.root, "/assets/colours.css")[1]
    for path in ("/assets/../server.py", "/assets/%2e%2e/server.py", "/assets/..%2fserver.py", "/assets/.lock"):
        assert ask(finished.root, path)[0] in (403, 404)


def test_no_script_of_the_page_takes_text_for_markup() -> None:
    for script in ASSETS.glob("*.js"):
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
            assert word not in script.read_text(), script.name


def test_a_trial_s_files_are_one_request_away(finished: SweepPaths) -> None:
    status, text, headers = ask(finished.root, "/api/trials/0004", headers=BEARER)
    files = json.loads(text)
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert json.loads(files["record"])["cause"] == "oom"
    assert files["error"].startswith("Traceback\nCUDA out of memory: <script>")
    names = [event["event"] for event in files["events"]]
    assert names == ["trial_opened", "trial_leased", "trial_reported", "trial_released"]
    assert files["train_losses"][-1] == [75, pytest.approx(3.0 * 0.9)]
    assert [line["eval_loss"] for line in files["metrics"]] == [3.0]


@pytest.mark.parametrize("trial", ["0099", "..", "%2e%2e", "..%2f..%2fmine", "0003%2f..%2f0004", "x", "٠٠٠٣", "%00"])
def test_what_is_no_trial_is_not_found(finished: SweepPaths, trial: str) -> None:
    assert ask(finished.root, f"/api/trials/{trial}", headers=BEARER)[0] == 404


def test_links_that_lead_out_of_the_sweep_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret words")
    paths = write_sweep(tmp_path / "results" / "s", usual_sketches())
    paths.logs.mkdir()
    for link in (paths.trial("0000").error, paths.logs / "driver.log"):
        link.symlink_to(secret)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "error.txt").write_text("secret words")
    paths.trial("0009").root.symlink_to(outside)
    for path in ("/api/trials/0000", "/api/trials/0009", "/api/log"):
        assert "secret words" not in ask(paths.root, path, headers=BEARER)[1]


@pytest.mark.parametrize("name", ["..", "results", "/etc", "mine/trials", "nothing"])
def test_only_sweeps_of_the_folder_can_be_asked_for(finished: SweepPaths, name: str) -> None:
    status, _, _ = ask(finished.root, "/api/trials/0000", params={"sweep": name}, headers=BEARER)
    assert status == 404
    assert ask(finished.root, "/api/trials/0000", params={"sweep": "other"}, headers=BEARER)[0] == 200


STOP = {"action": "stop_trial", "trial": "0006"}


def post(paths: SweepPaths, asked: Any, *, has_control: bool = True, **options: Any) -> int:
    """The status of a request of the page's buttons."""
    options = {"json": asked, "headers": BEARER, **options}
    return ask(paths.root, "/api/control", method="POST", has_control=has_control, **options)[0]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[SweepPaths]:
    """A sweep whose driver runs."""
    sketches = [*usual_sketches(), Sketch([0.8], state="running")]
    paths = write_sweep(tmp_path / "results" / "s", sketches, status=None)
    with paths.lock():
        yield paths


def test_what_a_button_asks_lies_in_the_sweeps_folder_till_the_driver_takes_it(running: SweepPaths) -> None:
    assert post(running, STOP) == 202
    [request] = take_requests(running)
    assert (request.action, request.trial) == (ControlAction.STOP_TRIAL, "0006")
    assert [post(running, {"action": action}) for action in ("pause", "continue", "finish")] == [202] * 3
    assert [request.action for request in take_requests(running)] == ["pause", "continue", "finish"]


def test_a_folder_that_cannot_be_written_is_told_to_who_presses_a_button(running: SweepPaths) -> None:
    running.control.write_text("in the way")
    options = {"json": STOP, "headers": BEARER}
    status, text, _ = ask(running.root, "/api/control", method="POST", has_control=True, **options)
    assert status == 409 and "cannot be written" in text


def test_a_clone_is_asked_for_with_its_other_values(running: SweepPaths) -> None:
    params = {"training.learning_rate": 2e-3, "lora.lora_dropout": 0}
    assert post(running, {"action": "clone", "trial": "0006", "params": params}) == 202
    [request] = take_requests(running)
    assert (request.action, request.trial, request.params) == (ControlAction.CLONE, "0006", params)


def test_a_server_without_control_asks_nothing(running: SweepPaths) -> None:
    assert post(running, STOP, has_control=False) == 403
    assert take_requests(running) == []


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {}},
        {"headers": {"Authorization": "Bearer another"}},
        # A form of another site could send these.
        {"headers": {}, "params": {"token": TOKEN}},
        {"json": None, "data": json.dumps(STOP), "headers": {**BEARER, "Content-Type": "text/plain"}},
        {"json": None, "data": STOP},
        {"headers": {**BEARER, "Origin": "http://evil.example"}},
        {"headers": {**BEARER, "Origin": "null"}},
        {"headers": {**BEARER, "Sec-Fetch-Site": "cross-site"}},
    ],
)
def test_nobody_but_the_page_itself_asks_anything(running: SweepPaths, options: dict[str, Any]) -> None:
    assert post(running, STOP, **options) == 403
    assert take_requests(running) == []


@pytest.mark.parametrize(
    "asked",
    [
        *({}, [], "pause", {"action": "copy"}, {"action": None}, {**STOP, "trial": "../x"}, {**STOP, "trial": 6}),
        {"action": "clone", "trial": "0006"},
        {"action": "clone", "trial": "0006", "params": [1]},
        {"action": "clone", "params": {"training.learning_rate": 1e-3}},
        {**STOP, "params": {"training.learning_rate": 1e-3}},
    ],
)
def test_what_is_no_request_is_refused(running: SweepPaths, asked: Any) -> None:
    assert post(running, asked) == 400
    assert take_requests(running) == []


def test_a_body_of_brackets_is_refused_as_any_other(running: SweepPaths) -> None:
    headers = {**BEARER, "Content-Type": "application/json"}
    assert post(running, None, json=None, data="[" * 4000, headers=headers) == 400


def test_a_request_cannot_be_large_and_needs_a_sweep_that_runs(running: SweepPaths, finished: SweepPaths) -> None:
    assert post(running, {**STOP, "more": "x" * 10_000}) in (400, 413)
    assert post(finished, STOP) == 409
    assert take_requests(running) == []


def test_a_page_gets_everything_first_and_then_what_is_new(tmp_path: Path) -> None:
    sketches = [*usual_sketches(), Sketch([0.8], state="running")]
    paths = write_sweep(tmp_path / "results" / "s", sketches, status=None)

    async def run(client: TestClient) -> None:
        async with client.get("/api/stream", params={"token": TOKEN}) as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            messages = read_messages(response)
            first = await anext(messages)
            assert first["is_whole"] and len(first["trials"]) == 7
            assert first["head"]["counts"]["running"] == 1
            EventLog(paths.events).write("trial_pruned", trial="0006", reason="stopped by asha at report 1", metrics={})
            while "trials" not in (message := await anext(messages)):
                pass
            assert not message["is_whole"]
            assert [(trial["id"], trial["state"]) for trial in message["trials"]] == [("0006", "pruned")]
            assert "spans" not in message

    with paths.lock():
        serve(paths.root, run)


def test_a_page_that_is_open_when_the_server_ends_gets_the_last_news_and_is_told(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "results" / "s", usual_sketches(), status=None)

    async def run() -> list[dict[str, Any]]:
        sweeps = Sweeps(paths.root)
        page = sweeps.channel(paths).open_page()
        messages = [json.loads(await page.messages.get() or b"{}")]
        EventLog(paths.events).write("trial_opened", trial="0006", params={})
        await sweeps.end()
        while (message := page.messages.get_nowait()) is not None:
            messages.append(json.loads(message))
        return messages

    messages = asyncio.run(run())
    assert messages[0]["is_whole"]
    assert [trial["id"] for message in messages[1:] for trial in message.get("trials", [])] == ["0006"]


def test_a_folder_that_breaks_the_reader_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qlora_ray.dashboard.channel.AFTER_ERROR_S", 0.001)
    paths = write_sweep(tmp_path / "results" / "s", usual_sketches(), status=None)
    poll = SweepView.poll
    monkeypatch.setattr(SweepView, "poll", lambda view: 1 / 0)

    async def run() -> dict[str, Any]:
        sweeps = Sweeps(paths.root)
        page = sweeps.channel(paths).open_page()
        while "ZeroDivisionError" not in capsys.readouterr().err:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(SweepView, "poll", poll)
        message = await page.messages.get()
        await sweeps.end()
        return json.loads(message or b"{}")

    assert asyncio.run(run())["is_whole"]


def test_a_folder_that_is_made_again_is_told_anew(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "results" / "s", usual_sketches(), status=None)

    async def run() -> list[int]:
        sweeps = Sweeps(paths.root)
        page = sweeps.channel(paths).open_page()
        counts = []
        for _ in range(2):
            while not (message := json.loads(await page.messages.get() or b"{}"))["is_whole"]:
                pass
            counts.append(len(message["trials"]))
            if len(counts) == 1:
                paths.root.rename(tmp_path / "old")
                write_sweep(paths.root, usual_sketches()[:2], status=None)
        await sweeps.end()
        return counts

    first, second = asyncio.run(run())
    # It may be read while it is being written.
    assert first == 6 and second <= 2


def test_a_page_that_lags_behind_gets_everything_anew() -> None:
    page = Page()
    page.needs_all = False
    for number in range(MAX_WAITING):
        page.send(str(number).encode())
    assert (page.messages.qsize(), page.needs_all) == (MAX_WAITING, False)
    page.send(b"one more")
    assert (page.messages.qsize(), page.needs_all) == (0, True)


def test_a_folder_of_sweeps_shows_the_one_that_was_begun_last(finished: SweepPaths) -> None:
    assert Sweeps(finished.root.parent).find(None).name == "mine"
    assert Sweeps(finished.root.parent).find("other").name == "other"
    assert Sweeps(finished.root.parent / "other").find(None).name == "other"


def test_a_folder_without_a_sweep_is_refused_unless_one_is_awaited(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        Sweeps(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="must be a sweep's folder or hold some"):
        Sweeps(tmp_path / "empty")
    assert Sweeps(tmp_path / "nothing", is_awaited=True).find(None).root == tmp_path / "nothing"


def test_a_taken_port_is_said(finished: SweepPaths) -> None:
    async def run() -> None:
        first = Server(Sweeps(finished.root))
        await first.start()
        try:
            port = urlsplit(first.url).port
            assert port is not None
            with pytest.raises(RunError, match=f"--port {port}: cannot be used"):
                await Server(Sweeps(finished.root), port=port).start()
        finally:
            await first.end()

    asyncio.run(run())


def test_a_folder_that_may_not_be_read_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_sweep(folder: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    # Root, as which tests may run, reads everything.
    monkeypatch.setattr("qlora_ray.dashboard.server.is_sweep", is_sweep)
    with pytest.raises(RunError, match="cannot be read: Permission denied"):
        Sweeps(tmp_path)


def test_the_command_refuses_what_is_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_command_prints_its_address_and_ends_with_the_sweep_that_it_is_of(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qlora_ray.dashboard", str(tmp_path / "soon"), "--of-sweep"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        url = urlsplit(server.stdout.readline().strip())
        assert (url.scheme, url.hostname) == ("http", "127.0.0.1")
        assert len(parse_qs(url.query)["token"][0]) >= 32
        server.stdin.close()
        assert server.wait(timeout=30) == 0


def test_the_server_starts_without_torch_ray_and_numpy() -> None:
    code = (
        "import sys, qlora_ray.dashboard.server\n"
        "print([name for name in ('torch', 'ray', 'numpy', 'optuna', 'plotly') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_follows_a_sweep_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, qlora_ray.dashboard.sweep_view\n"
        "print([name for name in ('torch', 'ray', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
