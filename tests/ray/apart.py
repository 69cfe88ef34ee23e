"""Commands in a process namespace of their own: `ray stop` in there ends no other Ray of this machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.ray.real_nodes import clean_environment

APART = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


@cache
def can_be_apart() -> bool:
    try:
        return subprocess.run([*APART, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_namespaces = pytest.mark.skipif(
    not can_be_apart(), reason="`ray stop` would end other tests' Ray: no process namespace can be made here"
)


@contextmanager
def started_apart(script: str, *, home: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A bash script in a namespace of its own; all that it has started ends with the block.

    Args:
        script: The script; $APART in it makes another namespace, for a second Ray node.
        home: Its home, and its folder.
        **environment: What it gets beside a user's plain environment.
    """
    # The path of a socket may have 107 characters: pytest's folders are too long.
    with tempfile.TemporaryDirectory(prefix="qr", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [*APART, "bash", "-euo", "pipefail", "-c", script],
            cwd=home,
            env={
                **clean_environment(home),
                "RAY_TMPDIR": folder,
                "RAY_worker_niceness": "0",
                "APART": " ".join(APART),
                "PYTHONUNBUFFERED": "1",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def run_apart(script: str, *, home: Path, **environment: str) -> tuple[int, str]:
    """The exit code and the output of such a script."""
    with started_apart(script, home=home, **environment) as process:
        output, _ = process.communicate()
        return process.returncode, output


def path_with(*folders: Path) -> str:
    """PATH, with folders before it."""
    return os.pathsep.join([*map(str, folders), os.environ["PATH"]])
