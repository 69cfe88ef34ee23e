"""Machines that are only written down: GPUs of the catalogue in nodes of an ordinary size, for plans without any."""

from __future__ import annotations

from qlora_ray.formats import GIB
from qlora_ray.hardware.catalogue import parse_gpus
from qlora_ray.hardware.device import NodeProfile
from qlora_ray.hardware.probe import find_versions

# What clouds give with one GPU at least: g4dn.2xlarge (T4) and g5.2xlarge (A10G) have 8 CPUs and 32 GiB, larger ones
# more per GPU. A choice; the packed engine needs little of either.
CPUS_PER_GPU = 8
RAM_BYTES_PER_GPU = 32 * GIB


def describe_nodes(text: str) -> list[NodeProfile]:
    """One node per class of `T4:2,A100-40:1`, called as its class, with all GPUs of it free.

    Raises:
        ConfigError: A class is not known, or a number is not one.
    """
    return [
        NodeProfile(
            hostname=gpu.name,
            devices=tuple(gpu.to_device(index=index) for index in range(number)),
            cpu_name="not known",
            num_cpus=number * CPUS_PER_GPU,
            ram_bytes=number * RAM_BYTES_PER_GPU,
            available_ram_bytes=number * RAM_BYTES_PER_GPU,
            packages=find_versions(),
        )
        for gpu, number in parse_gpus(text)
    ]
