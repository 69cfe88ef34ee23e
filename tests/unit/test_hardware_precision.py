"""bf16 only where the silicon has it, fp16 on older GPUs; on a CPU fp32, and bf16 where it was measured to gain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_ray.errors import PlacementError
from qlora_ray.hardware import DeviceProfile, choose_precision

CPU = DeviceProfile(0, "cpu", "AMD EPYC, 2 CPUs", None, 10**10, 10**10)
BF16_CPU = replace(CPU, name="Xeon, 2 CPUs", bf16_flags=("avx512_bf16",), bf16_speedups={"small": 1.19, "large": 1.2})


def gpu(name: str, capability: tuple[int, int] | None) -> DeviceProfile:
    return DeviceProfile(0, "cuda", name, capability, 10**10, 10**10)


# Compute capabilities: developer.nvidia.com/cuda-gpus.
GPUS = [
    (gpu("NVIDIA GeForce GTX 1650", (7, 5)), "fp16"),
    (gpu("Tesla P4", (6, 1)), "fp32"),
    (gpu("Tesla P100-PCIE-16GB", (6, 0)), "fp32"),
    (gpu("Tesla V100-SXM2-16GB", (7, 0)), "fp16"),
    (gpu("Tesla T4", (7, 5)), "fp16"),
    (gpu("NVIDIA A100-SXM4-40GB", (8, 0)), "bf16"),
    (gpu("NVIDIA GeForce RTX 4090", (8, 9)), "bf16"),
    (gpu("NVIDIA H200", (9, 0)), "bf16"),
    (gpu("NVIDIA GeForce RTX 5090", (12, 0)), "bf16"),
    (gpu("of unknown capability", None), "fp16"),
]


@pytest.mark.parametrize(("device", "expected"), [*GPUS, (CPU, "fp32")], ids=lambda item: getattr(item, "name", item))
def test_auto_takes_the_best_format_of_the_silicon(device, expected):
    precision = choose_precision(device)
    assert precision.name == expected
    assert precision.reason.startswith(f"{expected}: ") and device.name in precision.reason
    assert (precision.bf16, precision.fp16) == (expected == "bf16", expected == "fp16")
    if expected == "bf16":
        assert "compute capability {}.{}".format(*device.compute_capability) in precision.reason


@pytest.mark.parametrize(
    ("device", "requested", "message"),
    [
        (gpu("Tesla T4", (7, 5)), "bf16", r"got bf16: compute capability 7\.5 only emulates it .*precision: auto"),
        (gpu("Tesla V100-SXM2-16GB", (7, 0)), "bf16", r"got bf16: compute capability 7\.0"),
        (CPU, "bf16", "auto or fp32 on a CPU without bf16 units, got bf16"),
        (CPU, "fp16", "auto or fp32 on a CPU without bf16 units, got fp16"),
        (BF16_CPU, "fp16", "auto, bf16 or fp32 on a CPU, got fp16"),
        (
            replace(CPU, held_precision="bf16"),
            "auto",
            "^QLORA_RAY_PRECISION.* must be fp32 on a CPU without.*, got bf16",
        ),
        (replace(BF16_CPU, held_precision="fp16"), "auto", "^QLORA_RAY_PRECISION.* must be bf16 or fp32 on a CPU, got"),
        (replace(gpu("Tesla T4", (7, 5)), held_precision="bf16"), "auto", "^QLORA_RAY.* must be fp16 or fp32 on Tesla"),
        (replace(CPU, held_precision="fp8"), "auto", "QLORA_RAY_PRECISION of a node must be bf16, fp16 or fp32, got"),
        (replace(BF16_CPU, held_precision="fp32"), "bf16", "auto or fp32 on Xeon.* holds to fp32, got bf16"),
        (CPU, "fp8", "must be auto, bf16, fp16 or fp32, got 'fp8'"),
    ],
)
def test_a_format_that_the_device_or_the_config_lacks_is_refused(device, requested, message):
    with pytest.raises(PlacementError, match=message):
        choose_precision(device, requested=requested)


@pytest.mark.parametrize("device", [CPU, *(device for device, _ in GPUS)], ids=lambda device: device.name)
def test_fp32_is_allowed_everywhere(device):
    assert choose_precision(device, requested="fp32").name == "fp32"


def test_fp16_may_be_asked_for_where_bf16_is():
    assert choose_precision(gpu("NVIDIA H200", (9, 0)), requested="fp16").fp16


@pytest.mark.parametrize(
    ("step", "expected", "reason"),
    [
        (None, "fp32", "fp32: Xeon, 2 CPUs is a CPU, on which bf16 is not yet measured"),
        ("of another base", "fp32", "fp32: Xeon, 2 CPUs is a CPU, on which bf16 is not yet measured"),
        (
            "small",
            "fp32",
            "fp32: bf16 measured 1.19x fp32 on this processor at this base's widths",
        ),
        ("large", "bf16", "bf16: measured 1.20x fp32 on this processor at this base's widths"),
    ],
)
def test_a_processor_computes_in_bf16_where_that_was_measured_to_gain_enough(step, expected, reason):
    choice = choose_precision(BF16_CPU, step=step)
    assert (choice.name, choice.reason.removesuffix(", and 1.2x is asked for")) == (expected, reason)


def test_a_processor_without_the_flags_computes_in_fp32_whatever_was_measured():
    assert choose_precision(replace(BF16_CPU, bf16_flags=()), step="large").name == "fp32"


def test_bf16_may_be_insisted_on_where_the_processor_has_it():
    choice = choose_precision(BF16_CPU, requested="bf16")
    assert (choice.name, choice.reason) == ("bf16", "bf16: the config asks for it")


@pytest.mark.parametrize(("device", "held"), [(BF16_CPU, "bf16"), (CPU, "fp32"), (gpu("NVIDIA H200", (9, 0)), "fp16")])
def test_a_node_is_held_to_a_format_by_its_environment(device, held):
    choice = choose_precision(replace(device, held_precision=held))
    assert (choice.name, choice.reason) == (held, f"{held}: QLORA_RAY_PRECISION holds its node to it")
