"""Real Ray nodes as users start them: `ray start --block` in a session, home and temp folder of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_ray.orchestration.cluster.joining import SLOW_START_WORDS

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
# On a busy machine; a start takes 4 s.
START_TIMEOUT_S = 90.0
MAX_STARTS = 3
STOP_TIMEOUT_S = 45.0


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def clean_environment(home: Path) -> dict[str, str]:
    """The environment of a user who has set nothing of Ray's, whose home is `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}


def cluster_secret() -> dict[str, str]:
    """What another process needs in its environment to join the Ray that this one has started."""
    secret = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    token = Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" not in secret and token.exists():
        secret = {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_MODE": "token"}
    return secret


@contextmanager
def ray_node(home: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `ray start --block` with the options, and ends all that it started."""
    # The path of a socket may have 107 characters: pytest's folders are too long.
    with tempfile.TemporaryDirectory(prefix="qr", ignore_cleanup_errors=True) as folder:
        log = home / f"ray-start-{free_port()}.log"
        command = [str(RAY), "start", "--block", "--disable-usage-stats", *options]
        if "--head" in options:
            command += ["--temp-dir", folder, "--include-dashboard", "false"]
        process = _start(command, log, env={**clean_environment(home), **(environment or {})})
        try:
            yield process
        finally:
            end_session(process)


def _start(command: list[str], log: Path, *, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a node; again where Ray's own fixed 30 s were too short, as on a machine that runs other tests."""
    for _ in range(MAX_STARTS):
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if "will now block forever" in log.read_text():
                return process
            time.sleep(0.2)
        end_session(process)
        if not any(words in log.read_text() for words in SLOW_START_WORDS):
            break
    raise AssertionError(log.read_text())


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Ends a node as its user would, then whatever of its session is left."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
