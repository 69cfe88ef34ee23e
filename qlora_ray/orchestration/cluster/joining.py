"""The Ray cluster: joined where the config or the environment names one, else a private one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import services

from qlora_ray.config.schema import Cluster
from qlora_ray.errors import PlacementError, first_line
from qlora_ray.orchestration.cluster.answering import check_answering
from qlora_ray.orchestration.cluster.tokens import (
    TOKEN_FILE,
    ensure_private_token,
    find_auth_mode,
    forget_private_token,
    has_token,
    keep_token,
    read_auth_settings,
)
from qlora_ray.platforms import read_max_open_files

# Measured on 2 CPUs: with 128 a sweep runs to its end, with 64 Ray does not start and does not say why (ray 2.60).
LEAST_OPEN_FILES = 128
OBJECT_STORE_BYTES = 256 * 1024**2
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_PORT, MAX_PORT_DIGITS = 65_535, 5
START_OR_NAME = "Start one with `ray start --head`, or name one by its HOST:PORT."
# How Ray 2.60 says that a token is missing or wrong; it stands in the cause of the exception.
TOKEN_WORDS = ("InvalidAuthToken", "Unauthenticated", "authentication token")
# How Ray says that a start took longer than its fixed 30 s.
SLOW_START_WORDS = ("timed out during startup", "Timed out waiting for file")
# How Ray says that no raylet of the cluster runs on this machine.
NO_NODE_WORDS = ("No node info", "Can't find a", "not found in the cluster")


@contextmanager
def ray_cluster(cluster: Cluster, *, where: str | None = None) -> Iterator[None]:
    """Joins the cluster the config names, or starts a private one on this machine, for the length of the block.

    Args:
        cluster: The config's section.
        where: What named the address; null for `cluster.address`, or RAY_ADDRESS.

    Raises:
        PlacementError: If the named cluster cannot be joined, or a private one does not start.
    """
    # Ray reports usage to the internet unless told otherwise; a user's own setting stays.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray frees the accelerators of zero-GPU workers by hiding them; executors on CPU nodes want none anyway.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = find_address(cluster)
    if address is None:
        _start_private(has_dashboard=cluster.ray_dashboard)
    else:
        _join(address, where=where or ("cluster.address" if cluster.address else "RAY_ADDRESS"))
    try:
        yield
    finally:
        ray.shutdown()


def find_address(cluster: Cluster) -> str | None:
    """The cluster that a sweep would join: the config's, then that of RAY_ADDRESS; None for a private one."""
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    # Ray's word for a Ray of its own.
    return None if address == "local" else address or None


def find_dashboard_link() -> str | None:
    """The address of the dashboard of the Ray that this process has joined or started; None if it has none."""
    from ray._private.worker import get_dashboard_url

    url = get_dashboard_url()
    return f"http://{url}" if url else None


def _start_private(*, has_dashboard: bool) -> None:
    """Starts a Ray that only this machine can reach, and that asks for a token."""
    limit = read_max_open_files()
    if limit is not None and 0 <= limit < LEAST_OPEN_FILES:
        raise PlacementError(
            f"cluster: Ray must be allowed {LEAST_OPEN_FILES} open files, got {limit}. Raise it with `ulimit -n`."
        )
    if has_dashboard:
        keep_token()
    ensure_private_token()
    for is_last in (False, True):
        try:
            with _on_loopback():
                # `local` never joins a cluster that happens to run here. The data is small: tokens, once.
                ray.init(
                    address="local",
                    include_dashboard=has_dashboard,
                    log_to_driver=True,
                    logging_level=logging.ERROR,
                    object_store_memory=OBJECT_STORE_BYTES,
                )
            return
        except Exception as error:
            # Ray raises a bare Exception here. A busy machine is often quicker the second time: files are cached.
            if not any(words in str(error) for words in SLOW_START_WORDS):
                raise PlacementError(
                    f"cluster: Ray must start on this machine, got {first_line(error).rstrip('.')}. "
                    "`python -m qlora_ray.cluster doctor` looks for the cause."
                ) from None
            with contextlib.suppress(Exception):
                ray.shutdown()
            if is_last:
                raise PlacementError(
                    "cluster: Ray must start within its limit of 30 s, got two starts that took longer. "
                    "This machine is too busy: wait until it is not, or join a cluster with cluster.address."
                ) from None


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Has a Ray that is started in the block listen on 127.0.0.1 only.

    Ray 2.60 turns every loopback address that it is given into the machine's outer one, unless it was told that it
    starts no cluster of several machines, as it is on macOS and Windows (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, read when
    ray is imported).
    """
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _join(address: str, *, where: str) -> None:
    _check_form(address, where=where)
    _check_system(address, where=where)
    forget_private_token()
    try:
        _check_answering(address)
        if has_token() and "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = find_auth_mode(address)
            read_auth_settings()
        ray.init(address=address, log_to_driver=True, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise PlacementError(_explain(address, error, where=where)) from None


def _check_system(address: str, *, where: str) -> None:
    """Raises PlacementError for other machines where Ray makes no cluster of several: on macOS and Windows."""
    from ray._private import ray_constants

    host = address.rpartition(":")[0]
    if ray_constants.ENABLE_RAY_CLUSTER or address == "auto" or host in LOOPBACK_HOSTS:
        return
    raise PlacementError(
        f"{where}: Ray joins machines to a cluster on Linux only, got {address} on {platform.system()}. Start it on "
        f"a machine of the cluster, or set {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR}=1 to try it all the same."
    )


def _check_form(address: str, *, where: str) -> None:
    """Raises PlacementError for what is neither `auto` nor `HOST:PORT`.

    Ray logs a traceback of some of them, waits 30 s at a Ray Client's (`ray://`), and then says what it was not asked.
    The driver is a process of a node: a client's would not do.
    """
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < len(port) <= MAX_PORT_DIGITS and 0 < int(port) <= MAX_PORT
    if address == "auto" or (is_port and re.fullmatch(r"[\w.%-]+|\[[\w.:%]+\]|[\da-fA-F:]+", host)):
        return
    raise PlacementError(
        f"{where}: must be auto or HOST:PORT, the address that `ray start --head` prints, got {address!r}. Write it so."
    )


def _check_answering(address: str) -> None:
    """Raises OSError if Ray does not answer at a `host:port`.

    `auto` may be what a Ray that died has left written down; Ray would try that for minutes.
    """
    resolved = services.canonicalize_bootstrap_address(address) if address == "auto" else address
    host, _, port = (resolved or "").rpartition(":")
    if port:
        check_answering(host.strip("[]"), int(port))


def _explain(address: str, error: Exception, *, where: str) -> str:
    """One line of why a cluster cannot be joined, and what to do."""
    words = _all_words(error)
    if any(word in words for word in TOKEN_WORDS):
        found = "a token that it does not know" if has_token() else "none"
        return (
            f"{where}: the Ray cluster at {address} must be joined with its token, got {found}. "
            f"Copy {TOKEN_FILE} from the head node to this one, or set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
        )
    if any(word in words for word in NO_NODE_WORDS):
        return (
            f"{where}: this machine must be a node of the Ray cluster at {address}, got none here. "
            f"Run `ray start --address={address}` on it, or start the sweep on a node."
        )
    if address == "auto":
        return f"{where}: a node of a Ray cluster must run on this machine, got none. {START_OR_NAME}"
    return (
        f"{where}: no Ray cluster can be joined at {address}: {first_line(error).rstrip('.')}. "
        f"Start one there with `ray start --head`, or name another."
    )


def _all_words(error: BaseException | None) -> str:
    """What an error says, and what the errors say that it comes from."""
    texts: list[Any] = []
    while error is not None and len(texts) < 10:
        texts.append(error)
        error = error.__cause__ or error.__context__
    return "\n".join(map(str, texts))
