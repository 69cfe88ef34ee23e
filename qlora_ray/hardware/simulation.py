"""Nodes planned as if they had the GPUs that they claim: a mixed cluster on machines that have none.

A claim is what Ray counts on a node, so that its scheduler treats the node as the real one. Only `cluster.simulate`
lets a claim count, and never beside a GPU of the node's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qlora_ray.errors import ConfigError
from qlora_ray.hardware.catalogue import find_class
from qlora_ray.hardware.device import DeviceProfile, GpuClaims, NodeProfile
from qlora_ray.hardware.precision import PrecisionChoice

# How Ray names the kind of a node's GPUs (ray 2.60): a resource `accelerator_type:T4`, and since 2.49 a label.
RESOURCE_PREFIX = "accelerator_type:"
ACCELERATOR_LABEL = "ray.io/accelerator-type"
GPU_RESOURCE = "GPU"


def read_claims(resources: Mapping[str, float], labels: Mapping[str, str]) -> GpuClaims | None:
    """What GPUs a Ray node says it has; None if none, or none of a named kind.

    Args:
        resources: What Ray counts there.
        labels: The node's labels.
    """
    num_gpus = int(resources.get(GPU_RESOURCE, 0))
    named = [name.removeprefix(RESOURCE_PREFIX) for name in resources if name.startswith(RESOURCE_PREFIX)]
    gpu_class = labels.get(ACCELERATOR_LABEL) or (sorted(named)[0] if named else None)
    return GpuClaims(gpu_class, num_gpus) if gpu_class and num_gpus else None


def as_if(profile: NodeProfile, claims: GpuClaims | None) -> NodeProfile:
    """The node with the GPUs that it claims in place of its CPU; as it is if it has real ones, or claims nothing.

    Args:
        profile: What the probe found.
        claims: What it claims.
    """
    if claims is None or profile.has_gpu:
        return profile
    try:
        gpu = find_class(claims.gpu_class)
    except ConfigError as error:
        (device, *_) = profile.devices
        return replace(profile, devices=(replace(device, problem=f"it claims what the catalogue lacks: {error}"),))
    devices = tuple(gpu.to_device(index=index, is_simulated=True) for index in range(claims.num_gpus))
    return replace(profile, devices=devices)


def choose_arithmetic(device: DeviceProfile, planned: PrecisionChoice) -> PrecisionChoice:
    """What is computed in: as planned on a real device, and fp32 on a CPU that stands for another.

    Args:
        device: The device, real or simulated.
        planned: What its class computes in.
    """
    if not device.is_simulated:
        return planned
    return PrecisionChoice("fp32", f"fp32: {device.shown_name} would compute in {planned.name}")
