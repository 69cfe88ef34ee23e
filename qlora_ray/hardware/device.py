"""What a device and a node are, in typed records: as the probe finds them, or as they are written down."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from qlora_ray.formats import format_gib


@dataclass(frozen=True)
class DeviceProfile:
    """One GPU, or the CPU of a node that has none. On a CPU, memory is RAM.

    Free memory is what is left beside the probe's own CUDA context, so it is low by one context rather than high.
    `problem` says in words why a device cannot train, e.g. that the installed torch has no kernels for it.
    `is_simulated`: there is no such device; hardware.simulation puts it where a node claims one.
    `held_precision`: what its node's environment holds it to (cpu_bf16.HELD_PRECISION_VARIABLE), as written there.
    `bf16_flags`, `bf16_speedups`: of a CPU, its flags for bf16 and what was measured there, see cpu_bf16.
    """

    index: int
    kind: Literal["cuda", "cpu"]
    name: str
    compute_capability: tuple[int, int] | None
    total_memory_bytes: int
    free_memory_bytes: int
    uuid: str | None = None
    problem: str | None = None
    is_simulated: bool = False
    held_precision: str | None = None
    bf16_flags: tuple[str, ...] = ()
    bf16_speedups: dict[str, float] = field(default_factory=dict)

    @property
    def capability_text(self) -> str:
        """`7.5`, or `unknown`."""
        return "unknown" if self.compute_capability is None else ".".join(map(str, self.compute_capability))

    @property
    def class_key(self) -> str:
        """Equal for devices that get the same placement, e.g. `Tesla T4 14.6 GiB cc7.5`."""
        text = f"{self.shown_name} {format_gib(self.total_memory_bytes)}"
        if self.held_precision is not None:
            text += f" held to {self.held_precision}"
        return text if self.kind == "cpu" else f"{text} cc{self.capability_text}"

    @property
    def shown_name(self) -> str:
        """Its name wherever one is read: what is simulated says so."""
        return f"{self.name} (simulated)" if self.is_simulated else self.name

    @property
    def short_name(self) -> str:
        """The name people use: `T4`, `A100-SXM4-80GB`, `GTX 1650`."""
        name = self.name
        for prefix in ("NVIDIA ", "Tesla ", "GeForce ", "Quadro "):
            name = name.removeprefix(prefix)
        return name or self.name

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DeviceProfile:
        capability = values.get("compute_capability")
        flags = tuple(values.get("bf16_flags", ()))
        capability = None if capability is None else tuple(capability)
        return cls(**{**values, "compute_capability": capability, "bf16_flags": flags})


@dataclass(frozen=True)
class GpuClaims:
    """GPUs that a Ray node says it has, by Ray's own names, whether they are there or not."""

    gpu_class: str
    num_gpus: int


@dataclass(frozen=True)
class NodeProfile:
    """One machine as a trial process would find it: affinity and cgroup limits are already applied.

    On a cluster, `ray_node_id` and `address` (an IP address) are the names that Ray has for it.
    """

    hostname: str
    devices: tuple[DeviceProfile, ...]
    cpu_name: str
    num_cpus: int
    ram_bytes: int
    available_ram_bytes: int
    driver_version: str | None = None
    cuda_version: str | None = None
    python_version: str = ""
    platform: str = ""
    packages: dict[str, str | None] = field(default_factory=dict)
    ray_node_id: str | None = None
    address: str | None = None
    claims: GpuClaims | None = None

    @property
    def has_gpu(self) -> bool:
        return any(device.kind == "cuda" for device in self.devices)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "devices": [device.to_dict() for device in self.devices]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NodeProfile:
        claims = values.get("claims")
        return cls(
            **{
                **values,
                "devices": tuple(DeviceProfile.from_dict(item) for item in values["devices"]),
                "claims": None if claims is None else GpuClaims(**claims),
            }
        )
