"""A Hugging Face hub on this machine: an HTTP server with the few routes that an upload uses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest


@dataclass
class FakeRepository:
    """Files by path, as the last commit of main has them, and of other branches by name; `messages` of all commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def on(self, branch: str) -> dict[str, bytes]:
        """The files of a branch."""
        return self.files if branch == "main" else self.branches[branch]


@dataclass
class FakeHub:
    """The hub's state, and what it was asked.

    Attributes:
        user: Whose tokens it knows.
        objects: Large files by sha256.
        requests: Every request: method, path, Authorization header.
        uploads: sha256 of each large file that was sent, one entry for each time.
        fail: Given method and path, the status to answer with in place of the real answer, `drop`, or `hang`.
        ends: Set when the hub ends; what hangs waits for it.
    """

    user: str = "ann"
    token: str = "hf_secretsecretsecret"
    role: str = "write"
    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    fail: Callable[[str, str], int | str | None] = lambda method, path: None
    endpoint: str = ""
    ends: threading.Event = field(default_factory=threading.Event)


@contextmanager
def running_hub(**settings: Any) -> Iterator[FakeHub]:
    """A hub that answers at `endpoint` for the length of the block."""
    hub = FakeHub(**settings)
    with serving(_Handler, hub) as hub.endpoint:
        try:
            yield hub
        finally:
            hub.ends.set()


def go_online(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets the library speak to this hub, from a folder of its own: there is no .env there, and no login."""
    # It reads its settings when it is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(folder)


@contextmanager
def serving(handler: type[HubHandler], hub: Any) -> Iterator[str]:
    """The address at which the handler answers for the length of the block; `hub` is its state."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"state": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class HubHandler(BaseHTTPRequestHandler):
    """What both hubs of the tests have in common."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet."""

    def hang_up(self) -> None:
        """Ends the connection without an answer."""
        self.close_connection = True
        self.connection.close()

    def send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        """Answers a request; one for the headers alone gets no content."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class _Handler(HubHandler):
    state: FakeHub

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization")
        self.state.requests.append((method, path, authorization))
        failure = self.state.fail(method, path)
        if failure == "hang":
            self.state.ends.wait()
        if failure in ("drop", "hang"):
            return self.hang_up()
        if failure is not None:
            return self._send(int(failure), {"error": "as the test wants it"})
        if method == "PUT":
            return self._store(path, body)
        if authorization != f"Bearer {self.state.token}":
            return self._send(401, {"error": "Invalid credentials in Authorization header"})
        for pattern, route in _ROUTES:
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                return route(self, body, *found.groups())
        return self._send(404, {"error": f"no route {method} {path}"})

    def _send(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _store(self, path: str, body: bytes) -> None:
        oid = path.rsplit("/", 1)[-1]
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send(400, {"error": "other bytes than announced"})
        self.state.objects[oid] = body
        self.state.uploads.append(oid)
        return self._send(200, {})

    def whoami(self, body: bytes) -> None:
        """Whose token it is."""
        auth = {"accessToken": {"role": self.state.role}}
        self._send(200, {"type": "user", "name": self.state.user, "orgs": [{"name": "team"}], "auth": auth})

    def validate_yaml(self, body: bytes) -> None:
        """Whether a model card's metadata is YAML between two lines of dashes."""
        content = json.loads(body)["content"]
        is_card = bool(re.match(r"---\n.+?\n---\n", content, re.DOTALL))
        self._send(200 if is_card else 400, {"errors": [] if is_card else [{"message": "no metadata"}], "warnings": []})

    def create(self, body: bytes) -> None:
        """Makes a repository of the user's own, or of a team's."""
        asked = json.loads(body)
        self.state.created.append(asked)
        owner = asked.get("organization") or self.state.user
        repo_id = f"{owner}/{asked['name']}"
        if owner not in (self.state.user, "team"):
            return self._send(403, {"error": f"You don't have the rights to create a model under {owner}"})
        if repo_id in self.state.repositories:
            return self._send(409, {"error": "You already created this model repo"})
        is_private = asked.get("visibility") == "private" or asked.get("private") is True
        self.state.repositories[repo_id] = FakeRepository(is_private)
        return self._send(200, {"url": f"{self.state.endpoint}/{repo_id}", "name": repo_id, "id": repo_id})

    def describe(self, body: bytes, repo_id: str) -> None:
        """A repository with its files."""
        repository = self.state.repositories.get(repo_id)
        if repository is None:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": name} for name in repository.files]
        return self._send(
            200, {"id": repo_id, "private": repository.private, "sha": "0" * 40, "siblings": siblings, "tags": []}
        )

    def branch(self, body: bytes, repo_id: str, branch: str) -> None:
        """Makes a branch that begins as main is."""
        repository = self.state.repositories[repo_id]
        if branch in repository.branches:
            return self._send(409, {"error": "Reference already exists"})
        repository.branches[branch] = dict(repository.files)
        return self._send(200, {})

    def list_tree(self, body: bytes, repo_id: str, branch: str) -> None:
        """A repository's files."""
        files = self.state.repositories[repo_id].on(branch)
        rows = [
            {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
            for path, content in files.items()
        ]
        self._send(200, rows)

    def preupload(self, body: bytes, repo_id: str, branch: str) -> None:
        """Which files are large, and which are there already."""
        files = self.state.repositories[repo_id].on(branch)
        answers = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            is_large = path.endswith(".safetensors")
            there = files.get(path)
            oid = None
            if there is not None:
                oid = hashlib.sha256(there).hexdigest() if is_large else _git_oid(there)
            mode = "lfs" if is_large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": answers})

    def lfs_batch(self, body: bytes, repo_id: str) -> None:
        """Where large files go; nowhere, if they are here."""
        objects = []
        for asked in json.loads(body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.state.objects:
                answer["actions"] = {"upload": {"href": f"{self.state.endpoint}/lfs/{asked['oid']}"}}
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects})

    def commit(self, body: bytes, repo_id: str, branch: str) -> None:
        """All operations at once."""
        repository = self.state.repositories[repo_id]
        files = repository.on(branch)
        for line in body.splitlines():
            operation = json.loads(line)
            key, values = operation["key"], operation["value"]
            if key == "file":
                files[values["path"]] = base64.b64decode(values["content"])
            elif key == "lfsFile":
                files[values["path"]] = self.state.objects[values["oid"]]
            elif key == "deletedFile":
                del files[values["path"]]
            elif key == "header":
                repository.messages.append(values["summary"])
        oid = hashlib.sha1(body).hexdigest()
        self._send(200, {"commitUrl": f"{self.state.endpoint}/{repo_id}/commit/{oid}", "commitOid": oid})


def _git_oid(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_REPO = r"([^/]+/[^/]+)"
_BRANCH = r"([^/]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("GET /api/whoami-v2", _Handler.whoami),
    ("POST /api/validate-yaml", _Handler.validate_yaml),
    ("POST /api/repos/create", _Handler.create),
    (f"GET /api/models/{_REPO}", _Handler.describe),
    (f"GET /api/models/{_REPO}/revision/main", _Handler.describe),
    (f"POST /api/models/{_REPO}/branch/{_BRANCH}", _Handler.branch),
    (f"GET /api/models/{_REPO}/tree/{_BRANCH}", _Handler.list_tree),
    (f"POST /api/models/{_REPO}/preupload/{_BRANCH}", _Handler.preupload),
    (f"POST /{_REPO}[.]git/info/lfs/objects/batch", _Handler.lfs_batch),
    (f"POST /api/models/{_REPO}/commit/{_BRANCH}", _Handler.commit),
]
