"""Serves a live page of a sweep on 127.0.0.1, also of one that has ended or was killed, or of a folder of sweeps."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.commands import CommandParser, Result, add_json_option, as_place, run_command

if TYPE_CHECKING:
    from qlora_ray.dashboard.server import Server

LARGEST_PORT = 65_535


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(prog="python -m qlora_ray.dashboard", description=__doc__)
    parser.add_argument(
        "folder", type=as_place, metavar="DIR", help="a sweep's folder, e.g. results/quickstart, or one of sweeps"
    )
    parser.add_argument("--port", type=_as_port, default=0, help="of the page (default: any that is free)")
    parser.add_argument(
        "--open", choices=("yes", "no"), default="no", help="open the page in a browser (default: no, it is printed)"
    )
    parser.add_argument(
        "--control", action="store_true", help="give the page buttons: stop a trial, pause the sweep, finish it"
    )
    # Of `sweep --dashboard`: the folder may not be there yet, and the end of stdin is the sweep's.
    parser.add_argument("--of-sweep", action="store_true", help=argparse.SUPPRESS)
    add_json_option(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0 when Ctrl-C or SIGTERM ends it, or 2 for a folder that is no sweep's."""
    arguments = make_parser().parse_args(argv)
    return run_command(lambda: _run(arguments), json_of="dashboard" if arguments.json else None)


def _as_port(text: str) -> int:
    if not text.isdecimal() or int(text) > LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to {LARGEST_PORT}, got {text}")
    return int(text)


def _run(arguments: argparse.Namespace) -> Result:
    import asyncio

    from qlora_ray.dashboard.server import Server, Sweeps

    folder: Path = arguments.folder
    sweeps = Sweeps(folder, is_awaited=arguments.of_sweep, has_control=arguments.control)
    server = Server(sweeps, port=arguments.port)
    # Ctrl-C and SIGTERM are its ends.
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(server, is_opened=arguments.open == "yes", is_of_sweep=arguments.of_sweep))
    return Result({"folder": str(folder), "url": server.url})


async def _serve(server: Server, *, is_opened: bool, is_of_sweep: bool) -> None:
    import asyncio

    await server.start()
    try:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        if is_opened:
            import webbrowser

            webbrowser.open(server.url)
        if is_of_sweep:
            # Its end comes however the sweep ends, by SIGKILL too.
            await _end_of_stdin()
        else:
            sys.stdout.write("Ctrl-C ends it.\n")
            sys.stdout.flush()
            await asyncio.Event().wait()
    finally:
        await server.end()


async def _end_of_stdin() -> None:
    import asyncio

    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    descriptor = sys.stdin.fileno()

    def read() -> None:
        while os.read(descriptor, 4096):
            pass
        # A loop that is closed by then has ended for another reason.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set)

    # A thread, since Windows has no loop that reads pipes.
    threading.Thread(target=read, daemon=True).start()
    await ended.wait()
