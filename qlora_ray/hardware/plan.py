"""What the planner answers: placements, and the classes that it refused. Numbers for Ray, words for people."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qlora_ray.formats import format_gib, format_table, plural
from qlora_ray.hardware.memory import MemoryEstimate
from qlora_ray.hardware.precision import PrecisionChoice
from qlora_ray.hardware.workload import EngineName, Workload

TABLE_COLUMNS = 110
DEVICE_COLUMNS = 28


@dataclass(frozen=True)
class Placement:
    """What runs on every device of one class, and why.

    A `single` executor has one slot, and a device has as many executors as slots. A `packed` one has all of its
    device's slots; only a CPU node has several, where the base is so narrow that more threads would bring little.

    Args:
        devices: `host:index` of each device.
        slots_per_device: Trials at once on one device, in however many executors.
        num_gpus: Ray's request per executor; 0 on a CPU.
        num_cpus: Ray's request per executor. A little below the node's, so that Ray's own small tasks have room too.
        num_threads: Of one executor, for OMP_NUM_THREADS and torch.set_num_threads.
        memory_cap_fraction: For torch.cuda.set_per_process_memory_fraction; None on a CPU.
        max_micro_batch: Most rows of the longest length that fit through the device at once in one executor.
        micro_batch: The rows that the effective batch of the demand is cut into.
        gradient_accumulation_steps: Micro-batches per optimizer step of the demand.
        eval_batch: Validation rows at once, within the memory that training takes.
        estimate: Of one executor with all of its slots, at the most rows or tokens at once.
        needed_bytes: The estimate with the config's safety factor: what an executor is given.
        slot_bytes: What one more trial in the same executor adds to the estimate; a single executor takes none.
        available_bytes: Free memory of the class's fullest device.
        max_tokens_per_micro_batch: Padded tokens (rows x longest) of one forward and backward of a pack; None for
            single.
        hold_dequantized: Whether the base's linears are also kept in the compute dtype.
        packs_per_device: Packed executors on one device, each with a base of its own: one on a GPU.
        gradient_checkpointing: Whether trials that leave it open recompute activations.
        workload: What `estimate` is of: one executor at its fullest.
        gpu_class: The catalogue's name of the GPU; None on a CPU, and where the catalogue lacks it.
        simulates: The same of a GPU that a node without one claims; None for a real device.
        is_preferred: Whether the class is one of `cluster.prefer_gpu_classes`.
    """

    device_class: str
    device_kind: Literal["cuda", "cpu"]
    device_name: str
    devices: tuple[str, ...]
    engine: EngineName
    slots_per_device: int
    num_gpus: float
    num_cpus: float
    num_threads: int
    memory_cap_fraction: float | None
    precision: PrecisionChoice
    max_micro_batch: int
    micro_batch: int
    gradient_accumulation_steps: int
    eval_batch: int
    estimate: MemoryEstimate
    needed_bytes: int
    available_bytes: int
    reason: str
    slot_bytes: int = 0
    max_tokens_per_micro_batch: int | None = None
    hold_dequantized: bool = False
    packs_per_device: int = 1
    gradient_checkpointing: bool = False
    workload: Workload | None = None
    gpu_class: str | None = None
    simulates: str | None = None
    is_preferred: bool = False

    @property
    def executors_per_device(self) -> int:
        """Processes on one device."""
        return self.packs_per_device if self.engine == "packed" else self.slots_per_device

    @property
    def slots_per_executor(self) -> int:
        """Trials at once in one process."""
        return self.slots_per_device // self.executors_per_device

    @property
    def num_devices(self) -> int:
        return len(self.devices)

    @property
    def num_slots(self) -> int:
        return self.slots_per_device * self.num_devices

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "num_devices": self.num_devices, "devices": list(self.devices)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Placement:
        fields = {key: value for key, value in values.items() if key != "num_devices"}
        fields["devices"] = tuple(values["devices"])
        fields["precision"] = PrecisionChoice.from_dict(values["precision"])
        fields["estimate"] = MemoryEstimate.from_dict(values["estimate"])
        if values.get("workload") is not None:
            fields["workload"] = Workload.from_dict(values["workload"])
        return cls(**fields)


@dataclass(frozen=True)
class RefusedClass:
    """A class of devices that trains nothing, and what would change that.

    Args:
        devices: `host:index` of each device.
        words: Why.
        needed_bytes: What one trial needs, with the safety factor; None where memory is not the reason.
        available_bytes: What its emptiest device has free.
        remedies: Changes of the config that would make one trial fit, by the memory model: each is enough.
        num_together: So many of these GPUs would hold one trial together; None where even 8 would not.
    """

    device_class: str
    device_kind: Literal["cuda", "cpu"]
    device_name: str
    devices: tuple[str, ...]
    words: str
    needed_bytes: int | None
    available_bytes: int
    remedies: tuple[str, ...] = ()
    num_together: int | None = None

    @property
    def verdict(self) -> Literal["cannot train", "several GPUs", "does not fit"]:
        """In a word or two."""
        if self.needed_bytes is None:
            return "cannot train"
        return "does not fit" if self.num_together is None else "several GPUs"

    def describe(self) -> str:
        """Why it trains nothing, and what would make a trial fit."""
        words = self.words
        if self.remedies:
            words += f"; it would fit with {', or with '.join(self.remedies)}"
        if self.num_together is not None:
            words += f"; {self.num_together} such GPUs would hold it together, which this version does not use"
        return words

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "devices": list(self.devices), "verdict": self.verdict}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RefusedClass:
        fields = {key: value for key, value in values.items() if key != "verdict"}
        return cls(**{**fields, "devices": tuple(values["devices"]), "remedies": tuple(values["remedies"])})


@dataclass(frozen=True)
class Plan:
    """Placements, largest device first; what is worth knowing; and which devices stay idle, each with its reason.

    `total_slots` are the trials at once: of all devices, or the fewer that the config or the sweep has. `refused` are
    the classes that train nothing, and `skipped` the same in words.
    """

    placements: tuple[Placement, ...]
    notes: tuple[str, ...]
    skipped: tuple[str, ...]
    total_slots: int
    refused: tuple[RefusedClass, ...] = ()

    def placement_for(self, device_class: str) -> Placement | None:
        """The placement of a device, by its DeviceProfile.class_key."""
        return next((item for item in self.placements if item.device_class == device_class), None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "placements": [placement.to_dict() for placement in self.placements],
            "notes": list(self.notes),
            "skipped": list(self.skipped),
            "total_slots": self.total_slots,
            "refused": [item.to_dict() for item in self.refused],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        return cls(
            placements=tuple(Placement.from_dict(item) for item in values["placements"]),
            notes=tuple(values["notes"]),
            skipped=tuple(values["skipped"]),
            total_slots=values["total_slots"],
            refused=tuple(RefusedClass.from_dict(item) for item in values.get("refused", ())),
        )

    def render(self) -> str:
        """A table for the terminal, at most 110 columns wide, with the reasons below it."""
        header = ("device", "count", "slots", "num_gpus", "engine", "precision", "micro x accum", "need / free")
        rows = [_render_row(placement) for placement in self.placements]
        rule = ["-" * max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [*format_table([header, rule, *rows]).splitlines(), "", f"{plural(self.total_slots, 'trial')} at once"]
        words = [f"{placement.device_name}: {placement.reason}" for placement in self.placements]
        words += [f"skipped: {text}" for text in self.skipped]
        words += [f"note: {text}" for text in self.notes]
        for text in words:
            lines += textwrap.wrap(text, TABLE_COLUMNS, initial_indent="- ", subsequent_indent="  ")
        return "\n".join(lines)


def largest_divisor(number: int, *, at_most: int) -> int:
    """The largest divisor of `number` that is <= `at_most`."""
    return max(divisor for divisor in range(1, min(number, at_most) + 1) if number % divisor == 0)


def _render_row(placement: Placement) -> tuple[str, ...]:
    return (
        textwrap.shorten(placement.device_name.removeprefix("NVIDIA "), DEVICE_COLUMNS, placeholder=" ..."),
        str(placement.num_devices),
        str(placement.slots_per_device),
        f"{placement.num_gpus:g}",
        placement.engine,
        placement.precision.name,
        f"{placement.micro_batch} x {placement.gradient_accumulation_steps}",
        f"{format_gib(placement.needed_bytes)} / {format_gib(placement.available_bytes)}",
    )
