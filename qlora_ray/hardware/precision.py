"""The number format a device trains in, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

from qlora_ray.config.schema import Precision
from qlora_ray.errors import PlacementError
from qlora_ray.hardware.cpu_bf16 import HELD_PRECISION_VARIABLE, LEAST_SPEEDUP
from qlora_ray.hardware.device import DeviceProfile

# NVIDIA CUDA programming guide, arithmetic table: bf16 units exist from Ampere on. torch.cuda.is_bf16_supported()
# is not asked: it counts emulation and says True on a T4 (torch 2.13).
BF16_COMPUTE_CAPABILITY = (8, 0)
# The same table: a multiprocessor of 6.1 (P4, GTX 10) does 2 fp16 operations a clock, a 64th of its fp32. One of 6.0
# (P100) does twice its fp32, but torch sums halves in fp32 (cublasGemmEx, CUBLAS_COMPUTE_32F), at fp32's rate there. So
# on Pascal fp16 gains no time, and costs a loss scale. Volta has tensor cores, and Turing at least twice fp32's rate.
FP16_COMPUTE_CAPABILITY = (7, 0)


@dataclass(frozen=True)
class PrecisionChoice:
    """A number format and the words for choosing it."""

    name: Precision
    reason: str

    @property
    def bf16(self) -> bool:
        """For TrainingArguments(bf16=...)."""
        return self.name == "bf16"

    @property
    def fp16(self) -> bool:
        """For TrainingArguments(fp16=...)."""
        return self.name == "fp16"

    @property
    def num_bytes(self) -> int:
        """Bytes per element of the compute dtype."""
        return 4 if self.name == "fp32" else 2

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PrecisionChoice:
        return cls(**values)


def choose_precision(device: DeviceProfile, *, requested: str = "auto", step: str | None = None) -> PrecisionChoice:
    """Choose bf16 where the silicon has it, else fp16 where it gains time; else fp32. On a CPU bf16 where it was
    measured to gain enough.

    Args:
        device: The device, as the probe found it.
        requested: `auto`, or the format that the config insists on.
        step: Of a CPU: which of its measurements counts, from cpu_bf16.name_step.

    Raises:
        PlacementError: The requested format is one that this device only emulates or trains badly in, or another than
            its node is held to.
    """
    if requested != "auto" and requested not in get_args(Precision):
        raise PlacementError(f"training.precision must be auto, bf16, fp16 or fp32, got {requested!r}. Use auto.")
    held, words = device.held_precision, "the config asks for it"
    if held is not None:
        if held not in get_args(Precision):
            raise PlacementError(
                f"{HELD_PRECISION_VARIABLE} of a node must be bf16, fp16 or fp32, got {held!r} ({device.name}). "
                "Set it right where Ray is started there."
            )
        if requested not in ("auto", held):
            raise PlacementError(
                f"training.precision must be auto or {held} on {device.name}, which {HELD_PRECISION_VARIABLE} there "
                f"holds to {held}, got {requested}. Set training.precision: auto."
            )
        requested, words = held, f"{HELD_PRECISION_VARIABLE} holds its node to it"
    asked = BY_CONFIG if held is None else BY_NODE
    if requested == "fp32":
        return PrecisionChoice("fp32", f"fp32: {words}")
    if device.kind == "cpu":
        return _choose_on_cpu(device, requested, step=step, words=words, asked=asked)
    return _choose_on_gpu(device, requested, words=words, asked=asked)


@dataclass(frozen=True)
class _Asked:
    """Where a format is asked for, what else than a format may stand there, and what to do where it cannot be."""

    where: str
    also: tuple[str, ...]
    remedy: str

    def refuse(self, got: str, why: str, *, allowed: tuple[str, ...], device: str) -> PlacementError:
        *most, last = (*self.also, *allowed)
        words = f"{', '.join(most)} or {last}" if most else last
        return PlacementError(f"{self.where} must be {words} on {device}, got {got}{why}. {self.remedy}")


BY_CONFIG = _Asked("training.precision", ("auto",), "Set training.precision: auto.")
BY_NODE = _Asked(f"{HELD_PRECISION_VARIABLE} of a node", (), "Set it right where Ray is started there.")


def _choose_on_cpu(
    device: DeviceProfile, requested: str, *, step: str | None, words: str, asked: _Asked
) -> PrecisionChoice:
    if requested == "fp16" or (requested == "bf16" and not device.bf16_flags):
        allowed = ("bf16", "fp32") if device.bf16_flags else ("fp32",)
        where = "a CPU" if device.bf16_flags else "a CPU without bf16 units"
        raise asked.refuse(requested, f" ({device.name})", allowed=allowed, device=where)
    if requested == "bf16":
        return PrecisionChoice("bf16", f"bf16: {words}")
    if not device.bf16_flags:
        return PrecisionChoice("fp32", f"fp32: {device.name} is a CPU without bf16 units")
    speedup = None if step is None else device.bf16_speedups.get(step)
    if speedup is None:
        return PrecisionChoice("fp32", f"fp32: {device.name} is a CPU, on which bf16 is not yet measured")
    measured = f"{speedup:.2f}x fp32 on this processor at this base's widths"
    if speedup >= LEAST_SPEEDUP:
        return PrecisionChoice("bf16", f"bf16: measured {measured}")
    return PrecisionChoice("fp32", f"fp32: bf16 measured {measured}, and {LEAST_SPEEDUP}x is asked for")


def _choose_on_gpu(device: DeviceProfile, requested: str, *, words: str, asked: _Asked) -> PrecisionChoice:
    capability = device.capability_text
    has_bf16 = device.compute_capability is not None and device.compute_capability >= BF16_COMPUTE_CAPABILITY
    if requested == "bf16" and not has_bf16:
        why = f": compute capability {capability} only emulates it (8.0 has it)"
        raise asked.refuse(requested, why, allowed=("fp16", "fp32"), device=device.name)
    if requested == "auto":
        if has_bf16:
            return PrecisionChoice("bf16", f"bf16: compute capability {capability} of {device.name} has it")
        if device.compute_capability is not None and device.compute_capability < FP16_COMPUTE_CAPABILITY:
            why = f"fp32: compute capability {capability} of {device.name} gains nothing in fp16 (7.0 does)"
            return PrecisionChoice("fp32", why)
        return PrecisionChoice(
            "fp16", f"fp16: compute capability {capability} of {device.name} lacks bf16 (8.0 has it)"
        )
    return PrecisionChoice(cast(Precision, requested), f"{requested}: {words}")
