"""What the doctor knows of a node. Collected on the node itself; a missing fact is None, never an error."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qlora_ray import __version__
from qlora_ray.hardware.device import DeviceProfile
from qlora_ray.hardware.precision import choose_precision
from qlora_ray.hardware.probe import list_driver_gpus, probe_node
from qlora_ray.modeling.quantized_step import try_quantized_step
from qlora_ray.orchestration.cluster.tokens import TOKEN_FILE
from qlora_ray.platforms import read_max_open_files, read_niceness

# Ray 2.60's own setting and default.
NICENESS_VARIABLE, DEFAULT_NICENESS = "RAY_worker_niceness", "15"


@dataclass(frozen=True)
class DeviceFacts:
    """A device, and how a real step on it went.

    Attributes:
        name: As torch has it.
        capability: Compute capability such as `8.0`; empty for a CPU.
        precision: The format that trials train in there, and why.
        problem: Why it cannot train, by the probe; None if it can.
        step_problem: What is wrong with a step of bitsandbytes there; None if nothing is.
    """

    name: str = ""
    kind: str = "cpu"
    capability: str = ""
    precision: str = ""
    problem: str | None = None
    step_problem: str | None = None


@dataclass(frozen=True)
class NodeFacts:
    """One node. Bytes and seconds; None where there is nothing to be known.

    Attributes:
        name: For people.
        problem: Why the node could not be asked; then nothing else is known.
        torch_cuda: The CUDA version that torch was built for; None for a CPU build.
        driver: Version of NVIDIA's driver.
        driver_gpus: The GPUs that the driver lists, whether torch sees them or not.
        sees_marker: Whether the file that was put into the shared folder is there; None where it was not asked for.
        is_writable: Whether the shared folder can be written.
        hub_cache: The folder of huggingface_hub's cache.
        has_hub_token: Whether huggingface_hub finds a token; the token itself is never read out.
        free_bytes: By folder, what is left on its disk.
        shm_bytes: Of /dev/shm in all.
        open_files: The limit that a process may raise its own to.
        clock_s: Unix time there, minus the asking process's; positive if the node is ahead.
        clock_error_s: How far that may be off: half the time that the question took.
        niceness: Of Ray's workers.
        load: Processes that want to run, averaged over a minute.
        ray_token: `environment`, `file`, `file that others may read`, or `none`.
    """

    name: str = ""
    problem: str | None = None
    python: str = ""
    package: str = ""
    packages: Mapping[str, str | None] = field(default_factory=dict)
    torch_cuda: str | None = None
    driver: str | None = None
    driver_gpus: tuple[str, ...] = ()
    devices: tuple[DeviceFacts, ...] = ()
    sees_marker: bool | None = None
    is_writable: bool | None = None
    hub_cache: str = ""
    has_hub_token: bool | None = None
    free_bytes: Mapping[str, int] = field(default_factory=dict)
    shm_bytes: int | None = None
    open_files: int | None = None
    clock_s: float | None = None
    clock_error_s: float | None = None
    niceness: int | None = None
    num_cpus: int | None = None
    load: float | None = None
    ray_token: str | None = None


def collect_facts(*, name: str = "", shared: Path | None = None, marker: Path | None = None) -> NodeFacts:
    """Looks at the machine that this runs on; takes a few seconds, most of them to import torch.

    Args:
        name: For people.
        shared: The folder for results.
        marker: A file in it that another node has made.
    """
    # It tells every process that a CPU kernel which is not needed was not loaded.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    node = probe_node()
    cache = _find_hub_cache()
    folders = [Path(tempfile.gettempdir()), cache, *([shared] if shared is not None else [])]
    return NodeFacts(
        name=name or node.hostname,
        python=node.python_version,
        package=__version__,
        packages=node.packages,
        torch_cuda=node.cuda_version if node.has_gpu else _find_torch_cuda(),
        driver=node.driver_version,
        driver_gpus=tuple(list_driver_gpus()),
        devices=tuple(_try_device(device, torch_device(device)) for device in node.devices),
        sees_marker=None if marker is None else marker.exists(),
        is_writable=None if shared is None else _can_write(shared),
        hub_cache=str(cache),
        has_hub_token=_has_hub_token(),
        free_bytes={str(folder): free for folder in folders if (free := _find_free(folder)) is not None},
        shm_bytes=_find_total(Path("/dev/shm")),
        open_files=read_max_open_files(),
        niceness=_read_niceness(),
        num_cpus=node.num_cpus,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        ray_token=find_ray_token(),
    )


def torch_device(device: DeviceProfile) -> str:
    """`cpu`, or `cuda:0`."""
    return "cpu" if device.kind == "cpu" else f"cuda:{device.index}"


def find_ray_token() -> str:
    """Where Ray's token is found: see NodeFacts.ray_token. It is not read out."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "environment"
    with contextlib.suppress(OSError, RuntimeError):
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).expanduser()
        if path.stat().st_size:
            is_open = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
            return "file that others may read" if is_open else "file"
    return "none"


def measure_clock() -> float:
    """Unix time here."""
    return time.time()


def _try_device(device: DeviceProfile, name: str) -> DeviceFacts:
    from qlora_ray.errors import PlacementError

    try:
        choice = choose_precision(device)
        precision, step_problem = choice.reason, None
        if device.problem is None:
            step_problem = try_quantized_step(name, compute_dtype=choice.name)
    except PlacementError as error:
        precision, step_problem = "", str(error)
    capability = "" if device.kind == "cpu" else device.capability_text
    return DeviceFacts(device.name, device.kind, capability, precision, device.problem, step_problem)


def _find_torch_cuda() -> str | None:
    # The steps on the devices have imported it.
    import torch

    version: str | None = torch.version.cuda
    return version


def _find_hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _has_hub_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _can_write(folder: Path) -> bool:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-"):
            return True
    except OSError:
        return False


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))


def _find_free(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(_existing(folder.absolute())).free
    return None


def _find_total(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).total
    return None


def _read_niceness() -> int | None:
    """Of this process, where Ray started it; else what Ray would give its workers."""
    import ray

    if ray.is_initialized():
        return read_niceness()
    with contextlib.suppress(ValueError):
        return int(os.environ.get(NICENESS_VARIABLE, DEFAULT_NICENESS))
    return None
