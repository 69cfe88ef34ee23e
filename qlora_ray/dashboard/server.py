"""The server: the page, its files, and a stream of what is new, on 127.0.0.1."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from aiohttp import web

from qlora_ray.dashboard.channel import Channel
from qlora_ray.dashboard.others import find_sweeps, is_sweep
from qlora_ray.dashboard.security import LOOPBACK, TOKEN, guard, is_own_request, make_token, set_headers
from qlora_ray.dashboard.trial_files import read_end, read_trial_files
from qlora_ray.errors import RunError, first_line
from qlora_ray.pages.html import colour_css
from qlora_ray.runs.control import ControlAction, write_request
from qlora_ray.runs.live import is_running
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.typed_json import to_json

ASSETS = Path(__file__).parent / "assets"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
COLOURS = "colours.css"
# A stream that has nothing to say says so, so that a page notices when the server is gone.
QUIET_S = 10.0
# An end is not held up by a browser that does not read.
SHUTDOWN_S = 1.0
# What is asked of a sweep is an action and a trial.
MAX_BODY_BYTES = 4096


class Sweeps:
    """The sweeps that may be looked at: that of a folder and those beside it, or all sweeps of a folder.

    Args:
        folder: A sweep's folder, or a folder of sweeps.
        is_awaited: Whether the folder is a sweep's that is about to be made.
        has_control: Whether a page may ask something of a running sweep.

    Raises:
        RunError: If it is neither.
    """

    def __init__(self, folder: Path, *, is_awaited: bool = False, has_control: bool = False) -> None:
        self.has_control = has_control
        self._channels: dict[str, Channel] = {}
        self._own: str | None = None
        try:
            is_own = is_awaited or is_sweep(folder)
        except OSError as error:
            raise RunError(f"{folder}: cannot be read: {error.strerror}. Name a folder that you can read.") from None
        if is_own:
            self._folder, self._own = folder.parent, folder.name
        elif find_sweeps(folder):
            self._folder = folder
        elif folder.is_dir():
            raise RunError(
                f"{folder}: must be a sweep's folder or hold some, got none. Name one, e.g. results/quickstart."
            )
        else:
            raise RunError(f"{folder}: no such folder. Name a sweep's folder, e.g. results/quickstart.")

    def find(self, name: str | None) -> SweepPaths:
        """The sweep of a name; None: the folder's own, or the one that was begun last.

        Raises:
            web.HTTPNotFound: If there is none.
        """
        found = {path.name: path for path in find_sweeps(self._folder)}
        if self._own is not None:
            found[self._own] = self._folder / self._own
        chosen = found.get(name) if name else found[self._own] if self._own else next(iter(found.values()), None)
        if chosen is None:
            raise web.HTTPNotFound(reason="No such sweep.")
        return SweepPaths(chosen)

    def channel(self, paths: SweepPaths) -> Channel:
        """The channel of a sweep; one for all its pages."""
        return self._channels.setdefault(paths.name, Channel(paths, has_control=self.has_control))

    async def end(self, _app: web.Application | None = None) -> None:
        """Sends every page what is still new, and ends it."""
        await asyncio.gather(*(channel.end() for channel in self._channels.values()))


def make_app(sweeps: Sweeps, token: str) -> web.Application:
    """The application that shows these sweeps to whoever has the token."""
    app = web.Application(middlewares=[guard(token)], client_max_size=MAX_BODY_BYTES)
    pages = _Pages(sweeps, token)
    app.add_routes(
        [
            web.get("/", pages.index),
            web.get("/assets/{name}", pages.asset),
            web.get("/api/stream", pages.stream),
            web.get("/api/trials/{trial}", pages.trial),
            web.get("/api/log", pages.log),
            web.post("/api/control", pages.control),
        ]
    )
    app.on_response_prepare.append(set_headers)
    app.on_shutdown.append(sweeps.end)
    return app


class _Pages:
    def __init__(self, sweeps: Sweeps, token: str) -> None:
        self._sweeps = sweeps
        self._token = token
        self._files = _read_assets()

    async def index(self, _request: web.Request) -> web.Response:
        return _file_response("index.html", self._files["index.html"])

    async def asset(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound(reason="No such file.")
        return _file_response(name, self._files[name])

    async def stream(self, request: web.Request) -> web.StreamResponse:
        channel = self._sweeps.channel(self._find(request))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        page = channel.open_page()
        try:
            await response.write(b"retry: 1000\n\n")
            while True:
                try:
                    message = await asyncio.wait_for(page.messages.get(), QUIET_S)
                except TimeoutError:
                    await response.write(b": quiet\n\n")
                    continue
                if message is None:
                    await response.write(b"event: end\ndata: {}\n\n")
                    return response
                await response.write(b"data: " + message + b"\n\n")
        except ConnectionError:
            return response
        finally:
            channel.close_page(page)

    async def trial(self, request: web.Request) -> web.Response:
        paths, trial = self._find(request), request.match_info["trial"]
        found = await asyncio.to_thread(read_trial_files, paths, trial)
        if found is None:
            raise web.HTTPNotFound(reason="No such trial.")
        return web.json_response(to_json(found))

    async def log(self, request: web.Request) -> web.Response:
        paths = self._find(request)
        text = await asyncio.to_thread(read_end, paths.logs / "driver.log", paths.root)
        return web.Response(text=text or "")

    async def control(self, request: web.Request) -> web.Response:
        if not self._sweeps.has_control or not is_own_request(request, self._token):
            raise web.HTTPForbidden(reason="This page shows only. Start it with --control for its buttons.")
        paths = self._find(request)
        try:
            asked = json.loads(await request.text())
            action, trial, params = ControlAction(asked["action"]), asked.get("trial"), asked.get("params")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise web.HTTPBadRequest(reason="No such action.") from None
        if trial is not None and not (isinstance(trial, str) and trial.isascii() and trial.isdecimal()):
            raise web.HTTPBadRequest(reason="No such trial.")
        # What the values may be is the driver's to say.
        is_whole = trial and params if action is ControlAction.CLONE else params is None
        if not is_whole or not isinstance(params, dict | None):
            raise web.HTTPBadRequest(reason="No such values.")
        if not await asyncio.to_thread(is_running, paths):
            raise web.HTTPConflict(reason="The sweep does not run.")
        try:
            written = await asyncio.to_thread(write_request, paths, action, trial=trial, params=params)
        except RunError as error:
            raise web.HTTPConflict(reason=first_line(error)) from None
        return web.json_response({"request": written.id}, status=202)

    def _find(self, request: web.Request) -> SweepPaths:
        return self._sweeps.find(request.query.get("sweep"))


class Server:
    """The server of one command.

    Args:
        sweeps: What it shows.
        port: 0: any that is free.

    Attributes:
        url: Where the page is, with its token; empty until `start`.
    """

    def __init__(self, sweeps: Sweeps, *, port: int = 0) -> None:
        self._sweeps = sweeps
        self._port = port
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        """Begins to serve.

        Raises:
            RunError: If the port is taken.
        """
        token = make_token()
        # Without an access log: its lines would hold the token.
        self._runner = web.AppRunner(make_app(self._sweeps, token), access_log=None, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, self._port, shutdown_timeout=SHUTDOWN_S)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise RunError(
                f"--port {self._port}: cannot be used: {error.strerror}. Choose another one, or none."
            ) from None
        port = self._runner.addresses[0][1]
        self.url = f"http://{LOOPBACK}:{port}/?{urlencode({TOKEN: token})}"

    async def end(self) -> None:
        """Ends all pages, and serves no more."""
        if self._runner is not None:
            await self._runner.cleanup()


def _read_assets() -> Mapping[str, bytes]:
    found = {path.name: path.read_bytes() for path in ASSETS.iterdir() if path.suffix in TYPES}
    return {**found, COLOURS: colour_css().encode()}


def _file_response(name: str, content: bytes) -> web.Response:
    return web.Response(body=content, content_type=TYPES[Path(name).suffix], charset="utf-8")
