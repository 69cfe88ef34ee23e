"""What only some operating systems have is used in one place: the rest of the package can be imported on all."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import qlora_ray
from tests.portability import is_portable

PACKAGE = Path(qlora_ray.__file__).parent
# Not in Windows' standard library ("Availability: Unix" in Python's documentation).
UNIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
UNIX_NAMES = {
    "os": {
        *("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fchmod", "fork", "forkpty", "getpgid", "getuid"),
        *("geteuid", "getloadavg", "killpg", "mkfifo", "nice", "pread", "pwrite", "sched_getaffinity", "setsid"),
        *("statvfs", "sysconf", "uname", "wait3", "wait4"),
    },
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "alarm", "pthread_kill"},
    "select": {"epoll", "kqueue", "poll", "select"},  # `select` itself waits for sockets only
    "loop": {"add_reader", "add_signal_handler", "add_writer"},
}
# Where they may be used. The two judges are scripts of processes of their own, which import nothing of the package.
PLACES = {
    "platforms.py",
    "runs/locks.py",
    "data/template_judge.py",
    "scoring/metrics/math_judge.py",
    "scoring/metrics/sql_judge.py",
}
# Asked for by `hasattr` first.
GUARDED = {("orchestration/doctor/facts.py", "os.getloadavg"), ("hardware/probe.py", "os.sched_getaffinity")}

WORDS = {"dir_fd", "preexec_fn", "start_new_session"}
MENTIONED = re.compile(rf"\b(?:{'|'.join(UNIX_MODULES.union(WORDS, *UNIX_NAMES.values()))})\b")

SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def find_unix_uses(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] in UNIX_MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module.split(".")[0] in UNIX_MODULES:
                found.add(node.module)
            found |= {
                f"{node.module}.{name.name}" for name in node.names if name.name in UNIX_NAMES.get(node.module, ())
            }
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in UNIX_NAMES.get(node.value.id, ()):
                found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg in WORDS:
            found.add(node.arg)
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl", {"fcntl"}),
        ("def f():\n    from resource import getrusage", {"resource"}),
        ("from os import pread, path", {"os.pread"}),
        ("signal.signal(signal.SIGPIPE, h)", {"signal.SIGPIPE"}),
        ("os.open(name, flags, dir_fd=folder)", {"dir_fd"}),
        ("os.replace(a, b); signal.SIGTERM", set()),
    ],
)
def test_uses_are_found_however_they_are_written(source: str, found: set[str]) -> None:
    assert find_unix_uses(source) == found


def test_what_only_unix_has_is_used_in_its_places_alone() -> None:
    assert len(SOURCES) > 400 and set(SOURCES) >= PLACES
    texts = {path: (PACKAGE / path).read_text(encoding="utf-8") for path in SOURCES if path not in PLACES}
    # Parsing all of them takes seconds.
    uses = {(path, use) for path, text in texts.items() if MENTIONED.search(text) for use in find_unix_uses(text)}
    assert uses == GUARDED


@pytest.mark.parametrize("path", sorted(PLACES))
def test_in_these_places_unix_modules_are_imported_where_windows_can_do_without(path: str) -> None:
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    at_import = {
        name.name
        for node in tree.body
        if isinstance(node, ast.Import)
        for name in node.names
        if name.name in UNIX_MODULES
    }
    assert at_import == set()


@pytest.mark.parametrize(
    ("source", "portable"),
    [
        ("from qlora_ray.formats import format_count", True),
        ("def test_a(tmp_path):\n    (tmp_path / 'a').write_text('b')", True),
        ("signal.SIGTERM, 'SIGNATURE'", True),
        ("import ray", False),
        ("from ray.tune import Tuner", False),
        ("    os.kill(pid, 9)", False),
        ("link.symlink_to(file)", False),
        ('Path("/proc/cpuinfo")', False),
    ],
)
def test_which_unit_tests_need_no_unix_is_told_by_their_text(source: str, portable: bool) -> None:
    assert is_portable(source) is portable
