"""What a node is: its devices, processors, memory, driver and package versions.

Runs on the node itself (in a Ray task, or in `plan` where no cluster is named). torch is imported inside the
functions only.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from qlora_ray import platforms
from qlora_ray.errors import first_line
from qlora_ray.hardware.cpu_bf16 import name_processor, read_bf16_flags, read_held_precision, read_speedups
from qlora_ray.hardware.device import DeviceProfile, NodeProfile

# Whose versions a trial's numbers can depend on.
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "ray", "optuna", "datasets")
NVIDIA_SMI_TIMEOUT_S = 20.0
# One of them is there where CUDA can find a device: a GPU, a container's, WSL's, a Jetson's.
DRIVER_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu")
# A cgroup without a limit reports a number near 2^63 (v1) or the word max (v2).
CGROUP_NO_LIMIT_BYTES = 2**60


def probe_node() -> NodeProfile:
    """Look at this machine. Never raises for what is absent: no GPU, no driver, no package."""
    ram_bytes, available_ram_bytes = read_ram()
    cpu_name, num_cpus = _read_cpu_name(), count_cpus()
    gpus, cuda_version = _find_gpus()
    held_precision = read_held_precision()
    bf16_flags = () if gpus else read_bf16_flags()
    cpu = DeviceProfile(
        index=0,
        kind="cpu",
        name=f"{cpu_name}, {num_cpus} CPU{'s' if num_cpus > 1 else ''}",
        compute_capability=None,
        total_memory_bytes=ram_bytes,
        free_memory_bytes=available_ram_bytes,
        bf16_flags=bf16_flags,
        bf16_speedups=read_speedups(name_processor(cpu_name, bf16_flags)) if bf16_flags else {},
    )
    return NodeProfile(
        hostname=socket.gethostname(),
        devices=tuple(replace(device, held_precision=held_precision) for device in gpus or (cpu,)),
        cpu_name=cpu_name,
        num_cpus=num_cpus,
        ram_bytes=ram_bytes,
        available_ram_bytes=available_ram_bytes,
        driver_version=_ask_nvidia_smi("driver_version") if gpus else None,
        cuda_version=cuda_version,
        python_version=platform.python_version(),
        platform=platform.platform(),
        packages=find_versions(),
    )


def _find_gpus() -> tuple[list[DeviceProfile], str | None]:
    """The CUDA devices that this process may use, and the CUDA version torch was built for."""
    if "torch" not in sys.modules and not _has_driver():
        return [], None
    try:
        import torch
    except ImportError:
        return [], None
    cuda_version: str | None = torch.version.cuda
    if cuda_version is None or not torch.cuda.is_available():
        return [], cuda_version
    return [_read_gpu(torch, index) for index in range(torch.cuda.device_count())], cuda_version


def _has_driver() -> bool:
    """Whether this machine may have a CUDA device: where it has none, torch need not be imported (3 CPU seconds)."""
    return sys.platform != "linux" or any(Path(path).exists() for path in DRIVER_FILES)


def _read_gpu(torch: Any, index: int) -> DeviceProfile:
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    problem = _find_kernel_problem(capability, torch.cuda.get_arch_list())
    free_bytes = properties.total_memory
    try:
        free_bytes = torch.cuda.mem_get_info(index)[0]
    except RuntimeError as error:  # another process holds the device exclusively, or it is broken
        problem = problem or f"cannot be opened: {first_line(error)}"
    uuid = getattr(properties, "uuid", None)
    return DeviceProfile(
        index=index,
        kind="cuda",
        name=properties.name,
        compute_capability=capability,
        total_memory_bytes=properties.total_memory,
        free_memory_bytes=free_bytes,
        uuid=None if uuid is None else str(uuid),
        problem=problem,
    )


def _find_kernel_problem(capability: tuple[int, int], built_for: list[str]) -> str | None:
    """Why torch has no kernels for a device, or None.

    Binary kernels (sm_XY) run on their own major version from that minor on; PTX (compute_XY) on all later ones.
    """
    major, minor = capability
    runs = [
        (arch.startswith("compute_") and (int(digits[:-1]), int(digits[-1])) <= capability)
        or (arch.startswith("sm_") and int(digits[:-1]) == major and int(digits[-1]) <= minor)
        for arch in built_for
        if (digits := arch.partition("_")[2].rstrip("af")).isdigit()
    ]
    if not runs or any(runs):
        return None
    return f"this torch has no kernels for compute capability {major}.{minor} (it has {', '.join(built_for)})"


def list_driver_gpus() -> list[str]:
    """The names of the GPUs that the driver lists, also of those that torch does not see; empty without a driver."""
    return _ask_nvidia_smi_all("name")


def _ask_nvidia_smi(query: str) -> str | None:
    """The first line that nvidia-smi answers, or None where there is none."""
    return next(iter(_ask_nvidia_smi_all(query)), None)


def _ask_nvidia_smi_all(query: str) -> list[str]:
    """What nvidia-smi answers for each GPU; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.split("\n") if line.strip()]


def count_cpus() -> int:
    """Processors this process may run on: affinity, then the cgroup's CPU quota, rounded down."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _read_words("/sys/fs/cgroup/cpu.max")
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        count = min(count, int(quota[0]) // int(quota[1]))
    return max(1, count)


def read_ram() -> tuple[int, int]:
    """(total, available) bytes of RAM, no more than the cgroup allows."""
    total, available = platforms.read_ram()
    for limit_path, usage_path in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit = _read_number(limit_path)
        if limit is None or limit >= CGROUP_NO_LIMIT_BYTES:
            continue
        total = min(total, limit)
        used = (_read_number(usage_path) or 0) - _read_file_cache(Path(usage_path).parent)
        available = min(available, max(0, limit - used))
    return total, min(total, available)


def _read_file_cache(cgroup: Path) -> int:
    """Bytes that a cgroup counts as used but gives back on demand: files read a while ago."""
    words = _read_words(str(cgroup / "memory.stat"))
    counts = dict(zip(words[::2], words[1::2], strict=False))
    return int(counts.get("total_inactive_file", counts.get("inactive_file", "0")))


def _read_cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].replace("(R)", "").replace("(TM)", "").split())
    return platform.processor() or platform.machine() or "CPU"


def _read_words(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:
        return []


def _read_number(path: str) -> int | None:
    words = _read_words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def find_versions() -> dict[str, str | None]:
    """The installed version of each of PACKAGES, or None."""
    return {name: _find_version(name) for name in PACKAGES}


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
