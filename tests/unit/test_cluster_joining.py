"""Which cluster is joined or started, with which token, and what is said where that fails."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config.schema import Cluster
from qlora_ray.errors import PlacementError
from qlora_ray.orchestration.cluster import answering as answers
from qlora_ray.orchestration.cluster import joining, tokens
from qlora_ray.orchestration.cluster.joining import find_address, ray_cluster

# As gRPC answers: its settings, and HTTP's status 200 for the first call (RFC 9113, 7541).
SETTINGS_FRAME, HEADERS_FRAME = bytes.fromhex("000000040000000000"), bytes.fromhex("00000101040000000188")
NOT_FOUND_FRAME = HEADERS_FRAME[:-1] + b"\x8d"


@contextmanager
def answering(words: bytes | None) -> Iterator[int]:
    """A port that says this to whoever connects, or nothing; None: nothing, and the line is cut."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    kept.append(connection)
                    if words is None:
                        connection.close()
                    else:
                        connection.sendall(words)

        kept: list[socket.socket] = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in kept:
            connection.close()


class FakeRay:
    """Ray's doors.

    Attributes:
        starts: What each call of `init` was given, with the token that the environment had then.
        is_up: Whether it was called and not shut down since.
        problems: What the next calls raise.
    """

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.is_up = False
        self.problems: list[Exception] = []

    def init(self, **options: Any) -> None:
        self.starts.append(
            {**options, "token": os.environ.get("RAY_AUTH_TOKEN"), "mode": os.environ.get("RAY_AUTH_MODE")}
        )
        if self.problems:
            raise self.problems.pop(0)
        self.is_up = True

    def shutdown(self) -> None:
        self.is_up = False


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRay]:
    """Puts a FakeRay in Ray's place, and a home without a token in the user's."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        # Set first, so that what the code sets is taken back at the end.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    ray = FakeRay()
    monkeypatch.setattr(joining, "ray", ray)
    for module in (joining, tokens):
        monkeypatch.setattr(module, "read_auth_settings", lambda: None)
    # A listener that is no GCS is asked for a minute; tests/ray/test_joining.py asks real ones.
    monkeypatch.setattr(joining, "find_auth_mode", lambda address: "token")
    yield ray


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of something that answers as a GCS does."""
    with answering(SETTINGS_FRAME + HEADERS_FRAME) as port:
        yield f"127.0.0.1:{port}"


def write_token(home: Path) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("t0ken\n")


@pytest.mark.parametrize(
    ("configured", "environment", "found"),
    [
        (None, None, None),  # a private one, whatever runs on this machine
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.1:6379", "auto"),
        (None, "", None),
        (None, "local", None),  # Ray's word for a private one
    ],
)
def test_the_config_names_the_cluster_before_the_environment_does(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch, configured: str | None, environment: str | None, found: str
) -> None:
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert find_address(Cluster(address=configured)) == found


def test_a_private_ray_is_local_and_asks_for_a_token_that_no_file_holds(fake_ray: FakeRay, tmp_path: Path) -> None:
    with ray_cluster(Cluster()):
        (start,) = fake_ray.starts
    assert start["address"] == "local"
    assert start["mode"] == "token" and len(bytes.fromhex(start["token"])) == 32
    assert not list(tmp_path.rglob("*"))
    assert not fake_ray.is_up


def test_what_a_private_ray_was_given_is_forgotten_at_the_next_clusters_door(fake_ray: FakeRay, listening: str) -> None:
    for address in (None, listening):
        with ray_cluster(Cluster(address=address)):
            pass
    private, joined = fake_ray.starts
    assert private["token"] and private["mode"]
    assert (joined["token"], joined["mode"]) == (None, None)


def test_a_users_own_token_and_mode_stay(fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_token(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ray_cluster(Cluster()):
        assert (fake_ray.starts[0]["mode"], fake_ray.starts[0]["token"]) == ("disabled", None)


@pytest.mark.parametrize("place", ["variable", "named file", "home", "nowhere"])
def test_a_cluster_is_joined_with_the_token_wherever_the_user_has_it(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listening: str, place: str
) -> None:
    if place == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    elif place == "named file":
        (tmp_path / "elsewhere").write_text("t0ken")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "elsewhere"))
    elif place == "home":
        write_token(tmp_path)
    with ray_cluster(Cluster(address=listening)):
        (start,) = fake_ray.starts
    assert start["address"] == listening
    assert start["mode"] == (None if place == "nowhere" else "token")


@pytest.mark.parametrize(("has_token", "got"), [(False, "got none"), (True, "got a token that it does not know")])
def test_a_token_that_is_missing_or_wrong_is_named_as_the_cause(
    fake_ray: FakeRay, tmp_path: Path, listening: str, has_token: bool, got: str
) -> None:
    if has_token:
        write_token(tmp_path)
    error = ConnectionError("Failed to connect to Ray cluster")
    error.__cause__ = RuntimeError("rpc error\nUnauthenticated: InvalidAuthToken: is missing or incorrect")
    fake_ray.problems = [error]
    with (
        pytest.raises(PlacementError, match=rf"joined with its token, {got}\. Copy ~/\.ray/auth_token") as caught,
        ray_cluster(Cluster(address=listening)),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert "t0ken" not in str(caught.value)


@pytest.mark.parametrize("kind", [ConnectionError, ValueError, RuntimeError])
def test_a_cluster_that_cannot_be_joined_is_refused_in_one_line(
    fake_ray: FakeRay, listening: str, kind: type[Exception]
) -> None:
    fake_ray.problems = [kind("no GCS at this port.\nat gcs_utils.py:12")]
    with (
        pytest.raises(
            PlacementError, match=rf"^cluster\.address: .* {listening}: no GCS at this port\. Start"
        ) as caught,
        ray_cluster(Cluster(address=listening)),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_cluster_of_other_machines_is_refused_where_ray_makes_none(
    fake_ray: FakeRay, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with (
        pytest.raises(
            PlacementError, match=r"^RAY_ADDRESS: .* on Linux only, got 10\.0\.0\.1:6379 on Windows\. "
        ) as caught,
        ray_cluster(Cluster(address="10.0.0.1:6379"), where="RAY_ADDRESS"),
    ):
        pass
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1" in str(caught.value) and "\n" not in str(caught.value)
    assert not fake_ray.starts
    # The machine's own Ray is no other machine's.
    with ray_cluster(Cluster(address=listening)):
        assert fake_ray.is_up


def test_an_address_at_which_nothing_listens_is_refused_without_waiting_for_ray(fake_ray: FakeRay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(PlacementError, match="refused"), ray_cluster(Cluster(address=f"127.0.0.1:{port}")):
        pass
    assert not fake_ray.starts


def test_the_cluster_is_left_when_the_sweep_breaks(fake_ray: FakeRay) -> None:
    with pytest.raises(OSError, match="disk"), ray_cluster(Cluster()):
        assert fake_ray.is_up
        raise OSError("disk")
    assert not fake_ray.is_up


def test_a_start_that_was_too_slow_is_tried_once_more(fake_ray: FakeRay) -> None:
    fake_ray.problems = [Exception("The current node timed out during startup. This could happen")]
    with ray_cluster(Cluster()):
        assert fake_ray.is_up
    assert len(fake_ray.starts) == 2
    fake_ray.problems = [Exception("The current node timed out during startup.")] * 2
    with pytest.raises(PlacementError, match="got two starts that took longer"), ray_cluster(Cluster()):
        pass


def test_another_problem_of_a_start_is_not_tried_again(fake_ray: FakeRay) -> None:
    fake_ray.problems = [Exception("no space left")]
    with pytest.raises(Exception, match="no space left"), ray_cluster(Cluster()):
        pass
    assert len(fake_ray.starts) == 1


@pytest.mark.parametrize(
    "address", [":6379", "nonsense", "ray://head:10001", "http://head:8265", "head:99999", "head:0", "a b:1", "head:"]
)
@pytest.mark.parametrize("where", ["cluster.address", "RAY_ADDRESS"])
def test_what_is_no_address_of_a_cluster_is_refused_by_where_it_stands(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch, address: str, where: str
) -> None:
    if where == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    cluster = Cluster(address=address if where == "cluster.address" else None)
    with pytest.raises(PlacementError, match=rf"^{where}: must be auto or HOST:PORT, .* got '"), ray_cluster(cluster):
        pass
    assert not fake_ray.starts


def test_a_dead_ray_that_auto_finds_is_refused_without_waiting_for_it(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(joining.services, "canonicalize_bootstrap_address", lambda _: dead)
    with (
        pytest.raises(PlacementError, match=r"must run on this machine, got none"),
        ray_cluster(Cluster(address="auto")),
    ):
        pass
    assert not fake_ray.starts


def test_rays_dashboard_is_off_unless_asked_for_and_then_has_a_token_that_only_the_user_reads(
    fake_ray: FakeRay, tmp_path: Path
) -> None:
    with ray_cluster(Cluster()):
        pass
    assert fake_ray.starts[-1]["include_dashboard"] is False and not (tmp_path / ".ray").exists()
    with ray_cluster(Cluster(ray_dashboard=True)):
        pass
    path = tmp_path / ".ray" / "auth_token"
    assert fake_ray.starts[-1]["include_dashboard"] is True
    # Ray reads it from its file.
    assert fake_ray.starts[-1]["token"] is None and fake_ray.starts[-1]["mode"] == "token"
    assert len(path.read_text()) == 2 * tokens.TOKEN_BYTES
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_token_that_the_user_has_is_the_dashboards_too(fake_ray: FakeRay, tmp_path: Path) -> None:
    write_token(tmp_path)
    with ray_cluster(Cluster(ray_dashboard=True)):
        pass
    assert (tmp_path / ".ray" / "auth_token").read_text() == "t0ken\n"


def test_a_dashboard_whose_token_cannot_be_kept_is_refused(fake_ray: FakeRay, tmp_path: Path) -> None:
    (tmp_path / ".ray").write_text("not a folder")
    words = r"cluster\.ray_dashboard: its token must be kept in ~/\.ray/auth_token"
    with pytest.raises(PlacementError, match=words), ray_cluster(Cluster(ray_dashboard=True)):
        pass


def test_a_cluster_that_does_not_say_whether_it_asks_for_a_token_is_named_in_one_line(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "ASK_TIMEOUT_S", 0.0)
    with pytest.raises(PlacementError, match=rf"^{listening}: .*RAY_AUTH_MODE"):
        tokens.find_auth_mode(listening)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (b"", r"nothing answers within 1 s"),
        (SETTINGS_FRAME, r"nothing answers within 1 s"),
        (None, r"(what answers there is not Ray|Connection reset by peer)"),
        (SETTINGS_FRAME + NOT_FOUND_FRAME, r"what answers there is not Ray"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"what answers there is not Ray"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", r"what answers there is not Ray"),
    ],
)
def test_an_address_where_ray_does_not_answer_is_one_line_in_seconds(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch, words: bytes | None, said: str
) -> None:
    monkeypatch.setattr(answers, "LIMIT_S", 1.0)
    with (
        answering(words) as port,
        pytest.raises(
            PlacementError, match=rf"no Ray cluster can be joined at 127\.0\.0\.1:\d+: (\[.*\] )?{said}\. Start one"
        ),
        ray_cluster(Cluster(address=f"127.0.0.1:{port}")),
    ):
        pass
    assert fake_ray.starts == []


def test_a_private_ray_that_does_not_start_is_one_line(fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ray.problems = [RuntimeError("no space left. More of it.\nA second line")]
    with pytest.raises(PlacementError, match="must start on this machine, got no space left"), ray_cluster(Cluster()):
        pass
    fake_ray.problems = [RuntimeError("Timed out waiting for file /tmp/ray/x/gcs_server_port")]
    with ray_cluster(Cluster()):
        assert fake_ray.is_up


def test_a_private_ray_is_not_started_with_too_few_open_files(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "read_max_open_files", lambda: 40)
    with pytest.raises(PlacementError, match="must be allowed 128 open files, got 40"), ray_cluster(Cluster()):
        pass
    assert fake_ray.starts == []
