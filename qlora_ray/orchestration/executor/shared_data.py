"""Prepared data as executors get it: mapped from the driver's folder where their node sees it, else from a copy.

A copy is made once per node, into the node's own cache, where a later sweep over the same data finds it.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from qlora_ray.data.cache import folder_name, map_prepared
from qlora_ray.errors import DataError
from qlora_ray.orchestration.cluster.nodes import on_node, own_node_id
from qlora_ray.runs.locks import waited_for
from qlora_ray.runs.modes import share_tree
from qlora_ray.runs.paths import default_cache_dir

if TYPE_CHECKING:
    from qlora_ray.data import PreparedData

Answer = TypeVar("Answer")

# Of a file at once: what Ray's object stores of both nodes hold meanwhile.
PART_BYTES = 32 * 1024**2


@dataclass(frozen=True)
class SharedData:
    """Where executors have the prepared data from.

    Attributes:
        folder: Where it lies, as the driver's node sees it.
        fingerprint: Of the data.
        node_id: The driver's node.
    """

    folder: Path
    fingerprint: str
    node_id: str

    @classmethod
    def of(cls, data: PreparedData) -> SharedData:
        """The driver's own data, of which there are files."""
        assert data.folder is not None, "prepare_data writes its data to a folder"
        return cls(data.folder.resolve(), data.report.fingerprint, own_node_id())

    def map(self) -> PreparedData:
        """The data, mapped into this process; its node gets a copy first where it does not see the driver's folder.

        Raises:
            DataError: If it is gone from the driver's node, or cannot be written here.
        """
        own = default_cache_dir() / folder_name(self.fingerprint)
        found = self._map_one_of(self.folder, own)
        if found is not None:
            return found
        try:
            own.parent.mkdir(parents=True, exist_ok=True)
            with waited_for(own.with_name(f".{own.name}.lock")):
                # Another executor of the node may have been faster.
                found = self._map_one_of(own)
                if found is None:
                    copy_folder(self, own)
                    found = map_prepared(own, self.fingerprint)
        except OSError as error:
            raise DataError(
                f"prepared data: node {platform.node()} does not see {self.folder} and must write a copy to "
                f"{own.parent}, got: {error.strerror or error}. Set QLORA_RAY_CACHE there to a folder that has room, "
                "or for all nodes to one that all of them see."
            ) from None
        return found

    def _map_one_of(self, *folders: Path) -> PreparedData | None:
        for folder in folders:
            # What is not whole here is another process's affair: it may be under way.
            with suppress(Exception):
                return map_prepared(folder, self.fingerprint)
        return None


def copy_folder(source: SharedData, to: Path) -> None:
    """Copies the data's folder from the driver's node, part by part, to a temporary name, and renames it.

    Args:
        source: What is copied.
        to: The folder that it becomes; what is there, which is not whole, goes.

    Raises:
        DataError: If it is not there any more.
        OSError: If it cannot be written.
    """
    sizes = _ask(source, _list_files, source.folder)
    if not sizes:
        raise DataError(
            f"prepared data: {source.folder} must stay on the driver's node while a sweep runs, got no such folder. "
            "Resume the sweep, which prepares it again."
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    try:
        for name, size in sizes.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            with (temporary / name).open("wb") as stream:
                for start in range(0, size, PART_BYTES):
                    stream.write(_ask(source, _read_part, source.folder / name, start, PART_BYTES))
        share_tree(temporary)
        shutil.rmtree(to, ignore_errors=True)
        temporary.rename(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _ask(source: SharedData, function: Callable[..., Answer], *args: Any) -> Answer:
    """What a function returns on the driver's node."""
    task = ray.remote(function).options(num_cpus=0, **on_node(source.node_id))
    answer: Answer = ray.get(task.remote(*args))
    return answer


def _list_files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _read_part(path: Path, start: int, num_bytes: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read(num_bytes)
