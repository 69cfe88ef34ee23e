"""Whether a sweep's folder is the user's own: its manifest bears a mark that only this user's key can make.

A folder that came from elsewhere can be read and resumed, but its manifest alone lets no code run and names no cluster
to join. File owners would not tell: what is copied or unpacked belongs to who copied it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qlora_ray.runs.files import to_plain_json
from qlora_ray.runs.records import Manifest

KEY_BYTES = 32


def sign(manifest: Manifest) -> Manifest:
    """Returns the manifest with this user's mark; without one where the user has no folder to keep a key in."""
    key = _read_key(makes=True)
    return replace(manifest, owner_mark=None if key is None else _mark(manifest, key))


def is_own(manifest: Manifest) -> bool:
    """Whether this user's key marked the manifest, and its config, folder and base are what they were then."""
    key = _read_key(makes=False)
    if key is None or manifest.owner_mark is None:
        return False
    return hmac.compare_digest(manifest.owner_mark.encode(), _mark(manifest, key).encode())


def key_path() -> Path:
    """Where the user's key is: in the XDG state folder, which is never shared with a sweep's results.

    Raises:
        RuntimeError: The user has no home.
    """
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "qlora_ray" / "owner_key"


def _mark(manifest: Manifest, key: bytes) -> str:
    # What decides which code and which hosts a resume meets; the rest may be written anew by any run.
    signed = to_plain_json([dict(manifest.config), manifest.folder, manifest.base.name, manifest.base.hash])
    return hmac.new(key, json.dumps(signed, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _read_key(*, makes: bool) -> bytes | None:
    try:
        path = key_path()
        if makes and not path.exists():
            _make_key(path)
        return bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, RuntimeError, ValueError):
        return None


def _make_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Linked and not renamed: of two commands that start together one makes the key, and both use it.
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(KEY_BYTES))
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
