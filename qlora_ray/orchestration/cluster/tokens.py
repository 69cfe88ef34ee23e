"""Ray's token: where it is found, what a private Ray is given, and whether a cluster asks for one."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from ray._private import services

from qlora_ray.errors import PlacementError
from qlora_ray.platforms import keep_private

# Ray is imported and one call is made; that takes less than a second on a machine that is not busy.
ASK_TIMEOUT_S = 60.0
ASK_WITHOUT_TOKEN = """
import os
from ray._raylet import GcsClient
GcsClient(address=os.environ["RAY_ADDRESS"]).get_all_node_info(timeout=5)
"""
TOKEN_BYTES = 32
TOKEN_FILE = Path("~/.ray/auth_token")
# What a private Ray of this process was given, by variable.
_private_settings: dict[str, str] = {}


def has_token() -> bool:
    """Whether Ray will find a token, in the order in which it looks."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    with contextlib.suppress(OSError, RuntimeError):
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        return bool(Path(named or TOKEN_FILE).expanduser().read_text().strip())
    return False


def ensure_private_token() -> None:
    """Gives this process and what it starts a token, where the user has none.

    Ray would write one into the user's home instead, readable for all. A user's own mode and token stay.
    """
    if not has_token():
        _set_for_private("RAY_AUTH_TOKEN", secrets.token_hex(TOKEN_BYTES))
    if "RAY_AUTH_MODE" not in os.environ:
        _set_for_private("RAY_AUTH_MODE", "token")
    read_auth_settings()


def keep_token() -> None:
    """Writes a token where Ray looks for one, if the user has none: a person has to give it to the dashboard.

    Ray would write it readable for all.

    Raises:
        PlacementError: If it cannot be written.
    """
    forget_private_token()
    if has_token():
        return
    try:
        path = TOKEN_FILE.expanduser()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            # One that was there, and empty, may have been readable for others.
            keep_private(stream.fileno())
            stream.write(secrets.token_hex(TOKEN_BYTES))
    except (OSError, RuntimeError) as error:
        raise PlacementError(
            f"cluster.ray_dashboard: its token must be kept in {TOKEN_FILE}, which cannot be written: {error}. "
            "Set RAY_AUTH_TOKEN_PATH to a file with a token, or leave the dashboard off."
        ) from None


def forget_private_token() -> None:
    """Takes back what a private Ray was given before in this process: another cluster knows nothing of it."""
    for name, value in _private_settings.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _private_settings.clear()


def find_auth_mode(address: str) -> str:
    """Whether a cluster asks for a token, as RAY_AUTH_MODE says it: `token` or `disabled`.

    A driver must be in the mode of its cluster. One that has a token and is in the mode `token` joins a cluster without
    one, but then refuses the calls of its GCS, which carry none, and its actors are destroyed as they are created
    (ray 2.60). So the GCS is asked without a token, in a process of its own: Ray's C++ writes a refusal to stderr.

    Raises:
        PlacementError: If that process does not end.
    """
    try:
        resolved = services.canonicalize_bootstrap_address(address)
    except Exception:
        resolved = None
    if resolved is None:
        return "token"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": resolved}
    command = [sys.executable, "-c", ASK_WITHOUT_TOKEN]
    try:
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise PlacementError(
            f"{address}: must say within {ASK_TIMEOUT_S:.0f} s whether it asks for a token, got no answer. "
            "Try again when this machine is less busy, or set RAY_AUTH_MODE to token or disabled."
        ) from None
    return "token" if answer.returncode else "disabled"


def read_auth_settings() -> None:
    """Has Ray read mode and token again: it did when it was imported, perhaps before they were set."""
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _set_for_private(name: str, value: str) -> None:
    os.environ[name] = _private_settings[name] = value
