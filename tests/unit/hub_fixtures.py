"""A hub to download from, on this machine: models whose main branch can move, and every request it was asked."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import qlora_ray.modeling.hub
from qlora_ray.modeling.hub import GAVE_UP
from tests.fake_hub import HubHandler, serving

FIRST, SECOND = "1" * 40, "2" * 40


@dataclass
class DownloadHub:
    """The models by id: what main is, and the folder of each commit; `requests` are method and path.

    Attributes:
        refusal: Status and headers of the answer to whatever is asked; None: as the models are.
    """

    main: dict[str, str] = field(default_factory=dict)
    commits: dict[tuple[str, str], Path] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    is_away: bool = False
    refusal: tuple[int, dict[str, str]] | None = None

    def publish(self, name: str, commit: str, folder: Path) -> None:
        """Makes a folder the newest commit of a model."""
        self.main[name] = commit
        self.commits[name, commit] = folder


@contextmanager
def serve_downloads() -> Iterator[tuple[DownloadHub, str]]:
    """A hub for the length of the block, and its address, for HF_ENDPOINT of another process."""
    hub = DownloadHub()
    with serving(_Handler, hub) as endpoint:
        yield hub, endpoint


@contextmanager
def use_download_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DownloadHub]:
    """A hub that the library asks for the length of the block, with a cache of its own; the library is online."""
    import transformers.utils.hub
    from huggingface_hub import constants

    with serve_downloads() as (hub, endpoint):
        use_endpoint(endpoint, cache, monkeypatch)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def use_endpoint(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points the library, which read its settings when it was imported, to a hub and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The code under test sets them; what they were comes back with the test's end.
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv(GAVE_UP, "")
    monkeypatch.setattr(qlora_ray.modeling.hub, "RETRY_WAITS_S", (0.0, 0.0))


@contextmanager
def use_modules_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets transformers keep the code of models in a folder of the test's own, and import it from there alone."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = _take_modules(dynamic_module_utils.TRANSFORMERS_DYNAMIC_MODULE_NAME)
    try:
        yield
    finally:
        _take_modules(dynamic_module_utils.TRANSFORMERS_DYNAMIC_MODULE_NAME)
        sys.modules.update(before)


def _take_modules(package: str) -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == package}


class _Handler(HubHandler):
    state: DownloadHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        if self.state.is_away:
            return self.hang_up()
        if self.state.refusal is not None:
            status, headers = self.state.refusal
            return self.send(status, b"{}", headers)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4:
            self._send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            # Whatever else the library asks of its hub.
            self.send(404, b"{}", {})
        return None

    def _describe(self, name: str, rest: list[str]) -> None:
        commit = self._commit(name, rest[1] if len(rest) > 1 else "main")
        if commit is None:
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if name in self.state.main else "RepoNotFound"})
        elif rest[:1] == ["tree"] and rest[2:]:
            # No model here has a folder that the library looks into.
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        elif rest[:1] == ["tree"]:
            folder = self.state.commits[name, commit]
            rows = [_describe_file(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
            self.send(200, json.dumps(rows).encode(), {})
        else:
            folder = self.state.commits[name, commit]
            siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in folder.rglob("*.*")]
            self.send(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode(), {})

    def _send_file(self, name: str, revision: str, file: str) -> None:
        commit = self._commit(name, revision)
        if commit is None:
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        path = self.state.commits[name, commit] / file
        if not path.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        return self.send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _commit(self, name: str, revision: str) -> str | None:
        if revision == "main":
            return self.state.main.get(name)
        return revision if (name, revision) in self.state.commits else None


def _describe_file(folder: Path, path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path.relative_to(folder).as_posix(), "size": len(content), "oid": oid}
