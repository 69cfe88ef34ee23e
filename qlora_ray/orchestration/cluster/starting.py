"""Ray started, or joined, on a thread, while the sweep is still being checked: both take seconds, and neither waits for
the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qlora_ray.config.schema import Cluster


class RayStart:
    """One Ray for one command: begun early, waited for where it is needed, ended at the end.

    The thread that starts Ray stays until Ray is to end: Ray 2.60 has the kernel end its processes together with the
    thread that started them (PR_SET_PDEATHSIG), which also ends them where this process is killed.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._is_up = threading.Event()
        self._is_over = threading.Event()
        self._error: BaseException | None = None

    def begin(self, cluster: Cluster) -> None:
        """Begins to start Ray, or to join the cluster that the config names; does nothing the second time."""
        if self._thread is None:
            # A daemon: a process that ends meanwhile waits for nobody, and takes Ray with it.
            self._thread = threading.Thread(target=self._run, args=(cluster,), name="ray-start", daemon=True)
            self._thread.start()

    @contextmanager
    def running(self, cluster: Cluster) -> Iterator[None]:
        """Ray, for the length of the block.

        Raises:
            PlacementError: If the named cluster cannot be joined, or a private one does not start.
        """
        self.begin(cluster)
        self._is_up.wait()
        if self._error is not None:
            raise self._error
        try:
            yield
        finally:
            self.end()

    def end(self, timeout_s: float | None = None) -> None:
        """Ends Ray, or leaves the cluster, once it is up; does nothing where it was never begun.

        Args:
            timeout_s: How long this waits for it; None: to its end.
        """
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, cluster: Cluster) -> None:
        # Here: importing ray takes a third of a second.
        from qlora_ray.orchestration.cluster.joining import ray_cluster

        try:
            with ray_cluster(cluster):
                self._is_up.set()
                self._is_over.wait()
        except BaseException as error:
            self._error = error
        finally:
            self._is_up.set()
