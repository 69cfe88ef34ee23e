"""Runs `qlora_ray.sweep` in forks of one process that has imported everything: a driver starts in a second.

`python -m tests.driver_forks` reads an order per line from its input, as JSON, and answers each with two lines: when
the driver has begun, and when it has ended. The drivers are real, with Ray, pool and executor processes of their own;
only what an executor trains is a formula. A driver can be ordered to kill itself (SIGKILL) at one of its operations on
the sweep's folder, which are counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What a process does to files, as Python's audit events name it; each comes before the operation.
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


@dataclass(frozen=True)
class DriverEnd:
    """How a driver ended.

    Attributes:
        exit_code: What the command returned; None where the driver was killed.
        num_operations: Operations on the sweep's folder up to its end.
    """

    exit_code: int | None
    num_operations: int

    @property
    def was_killed(self) -> bool:
        """Whether it killed itself, as it was ordered to."""
        return self.exit_code is None


class DriverForks:
    """The process whose forks are drivers.

    Args:
        environment: Its environment.
        executor_class: What the executors are, `module:name`.
    """

    def __init__(self, environment: dict[str, str], *, executor_class: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.driver_forks", executor_class],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._driver: int | None = None

    def start(self, arguments: Sequence[object], *, folder: Path, kill_at: int | None = None) -> int:
        """Starts a sweep's command; returns the driver's process id.

        Args:
            arguments: Of the command.
            folder: The sweep's folder, whose operations are counted.
            kill_at: At which operation the driver kills itself; None: it runs to its end.
        """
        self._end_driver()
        assert self._process.stdin is not None
        order = {"arguments": [str(argument) for argument in arguments], "folder": str(folder), "kill_at": kill_at}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        self._driver = int(self._read())
        return self._driver

    def wait(self) -> DriverEnd:
        """Waits for the end of the driver that was started."""
        end = DriverEnd(**json.loads(self._read()))
        self._driver = None
        return end

    def run(self, arguments: Sequence[object], *, folder: Path, kill_at: int | None = None) -> DriverEnd:
        """Runs a sweep's command to its end, see `start`."""
        self.start(arguments, folder=folder, kill_at=kill_at)
        return self.wait()

    def _end_driver(self) -> None:
        """Ends a driver that nobody waited for: its test has failed."""
        if self._driver is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._driver, signal.SIGKILL)
            self.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that forks drivers has ended"
        return line

    def close(self) -> None:
        """Ends it, and a driver that is still there."""
        self._end_driver()
        self._process.kill()
        self._process.communicate()


@contextmanager
def driver_forks(environment: dict[str, str], *, executor_class: str) -> Iterator[DriverForks]:
    """The process whose forks are drivers, for the length of the block."""
    forks = DriverForks(environment, executor_class=executor_class)
    try:
        yield forks
    finally:
        forks.close()


class OperationCounter:
    """Counts this process's operations on a folder's files, and kills the process before one of them.

    Args:
        folder: The folder.
        kill_at: Before which operation, counted from 1; None: before none.
        tell: A descriptor that the count is written to.
    """

    def __init__(self, folder: Path, *, kill_at: int | None, tell: int) -> None:
        self._folder = str(folder.resolve())
        self._kill_at = kill_at
        self._tell = tell
        self._count = 0
        self._lock = threading.Lock()
        self._write_all = os.write

    def install(self) -> None:
        """Begins; it cannot be taken back."""
        sys.addaudithook(self._hear)
        # The study's journal is opened once: its lines are operations too.
        os.write = self._write  # type: ignore[assignment]

    def tell_count(self) -> None:
        """Writes how many there were."""
        with self._lock:
            self._write_all(self._tell, str(self._count).encode())

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and arguments and self._is_inside(arguments[0]):
            self._enter()

    def _write(self, descriptor: int, content: Any) -> int:
        with contextlib.suppress(OSError):
            if self._is_inside(Path(f"/proc/self/fd/{descriptor}").readlink()):
                self._enter()
        return self._write_all(descriptor, content)

    def _is_inside(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self._folder)  # noqa: PTH100

    def _enter(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == self._kill_at:
                self._write_all(self._tell, str(self._count).encode())
                os.kill(os.getpid(), signal.SIGKILL)
                # Until the kernel has ended all threads.
                signal.pause()


def main() -> None:
    """Serves orders until its input ends."""
    module, _, name = sys.argv[1].partition(":")
    _prepare(getattr(__import__(module, fromlist=[name]), name))
    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os._exit(_drive(order, writer))
        _answer(str(pid))
        os.close(writer)
        with os.fdopen(reader) as stream:
            count = stream.read()
        _, status = os.waitpid(pid, 0)
        was_killed = os.WIFSIGNALED(status)
        end = DriverEnd(None if was_killed else os.WEXITSTATUS(status), int(count or 0))
        _answer(json.dumps(asdict(end)))


def _answer(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _prepare(executor_class: type) -> None:
    """Imports what a driver imports, and gives its executors their class."""
    from qlora_ray import reporting, sweep  # noqa: F401
    from qlora_ray.config import load_config
    from qlora_ray.orchestration import driver  # noqa: F401
    from qlora_ray.orchestration.executor import launcher
    from qlora_ray.orchestration.pool import starting  # noqa: F401
    from qlora_ray.preflight.checks import check_sweep
    from qlora_ray.search.parsing import load_space

    config = load_config(Path("configs/quickstart.yaml"), overrides=["data.max_train_rows=64"])
    check_sweep(config, load_space(config))
    launcher.RayLauncher = partial(launcher.RayLauncher, executor_class=executor_class)  # type: ignore


def _drive(order: dict[str, Any], tell: int) -> int:
    """A driver, in a fork; returns the command's exit code."""
    from qlora_ray import sweep

    folder = Path(order["folder"])
    log = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    counter = OperationCounter(folder, kill_at=order["kill_at"], tell=tell)
    counter.install()
    try:
        code = sweep.main(order["arguments"])
    except BaseException:
        traceback.print_exc()
        code = 99
    counter.tell_count()
    return code


if __name__ == "__main__":
    main()
