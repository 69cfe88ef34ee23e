"""The catalogue of GPUs against tables that NVIDIA publishes, and the names that people give them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_ray.errors import ConfigError
from qlora_ray.hardware import choose_precision
from qlora_ray.hardware.catalogue import CATALOGUE, MAX_GPUS, find_class, is_called, parse_gpus, recognize

# developer.nvidia.com/cuda-gpus and /cuda-legacy-gpus ("CUDA GPU Compute Capability"), and the memory of the data
# sheets in GB. A name here is the one in those tables.
PUBLISHED = {
    "Tesla P4": ((6, 1), 8),
    "Tesla P100": ((6, 0), 16),
    "GeForce GTX 1080 Ti": ((6, 1), 11),
    "Tesla V100 16": ((7, 0), 16),
    "Tesla V100 32": ((7, 0), 32),
    "T4": ((7, 5), 16),
    "GeForce GTX 1650": ((7, 5), 4),
    "GeForce GTX 1660": ((7, 5), 6),
    "GeForce RTX 2080 Ti": ((7, 5), 11),
    "A100 40": ((8, 0), 40),
    "A100 80": ((8, 0), 80),
    "GeForce RTX 3060": ((8, 6), 12),
    "GeForce RTX 3090": ((8, 6), 24),
    "A10": ((8, 6), 24),
    "A10G": ((8, 6), 24),
    "A40": ((8, 6), 48),
    "RTX A6000": ((8, 6), 48),
    "GeForce RTX 4060": ((8, 9), 8),
    "GeForce RTX 4090": ((8, 9), 24),
    "L4": ((8, 9), 24),
    "L40S": ((8, 9), 48),
    "H100": ((9, 0), 80),
    "H200": ((9, 0), 141),
    "B200": ((10, 0), 180),
    "GeForce RTX 5090": ((12, 0), 32),
}
# More digits than Python reads.
MANY_DIGITS = "9" * 5000
# What the driver and ECC keep of the nominal memory: a T4 keeps most (14.56 of 16).
LEAST_SHARE = 0.90


@pytest.mark.parametrize("published", PUBLISHED)
def test_capability_and_memory_are_what_nvidia_publishes(published):
    capability, gigabytes = PUBLISHED[published]
    gpu = find_class(published)
    assert gpu.compute_capability == capability
    assert gpu.nominal_gib == gigabytes
    assert LEAST_SHARE <= gpu.total_memory_mib / 1024 / gigabytes <= 1.0


def test_every_class_is_held_against_the_published_table_and_says_its_sources():
    assert {find_class(name).name for name in PUBLISHED} == {gpu.name for gpu in CATALOGUE}
    assert len(CATALOGUE) == len(PUBLISHED)
    assert all(gpu.memory_source and gpu.sheet for gpu in CATALOGUE)
    # A peak of tensor cores is never below fp32's own, and a GPU moves at least 100 GB/s.
    assert all(gpu.half_tflops >= gpu.fp32_tflops and gpu.bandwidth_gb_s > 100 for gpu in CATALOGUE)


@pytest.mark.parametrize("gpu", CATALOGUE, ids=lambda gpu: gpu.name)
def test_a_device_is_recognized_by_the_name_that_torch_reports(gpu):
    device = gpu.to_device(index=3)
    assert (device.index, device.kind, device.is_simulated) == (3, "cuda", False)
    assert 0 < device.free_memory_bytes < device.total_memory_bytes
    assert recognize(device) is gpu


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("tesla-t4", "T4"),
        ("A100", "A100-40"),
        ("A100-80G", "A100-80"),
        ("A100-40GB", "A100-40"),
        ("NVIDIA A100 80GB PCIe", "A100-80"),
        ("GeForce-RTX-3090", "RTX3090"),
        ("rtx 4090", "RTX4090"),
        ("V100", "V100-16"),
        ("a10g", "A10G"),
        ("H100-80GB", "H100"),
    ],
)
def test_names_are_read_as_people_and_ray_write_them(typed, name):
    assert find_class(typed).name == name


def test_an_unknown_name_is_an_error_with_the_nearest():
    with pytest.raises(ConfigError, match=r"got 'RTX3900'\. Did you mean RTX3090\?"):
        find_class("RTX3900")


def test_a_list_of_gpus_is_read_with_its_numbers():
    assert [(gpu.name, number) for gpu, number in parse_gpus("T4:2, A100-40:1,GTX1650,T4")] == [
        ("T4", 3),
        ("A100-40", 1),
        ("GTX1650", 1),
    ]


@pytest.mark.parametrize("text", ["T4:x", "T4:0", "T4:-1", "T4:1.5"])
def test_a_number_that_is_none_is_an_error(text):
    with pytest.raises(ConfigError, match=r"must be like T4:2,A100-40:1, got 'T4:"):
        parse_gpus(text)
    with pytest.raises(ConfigError, match="must name at least one GPU"):
        parse_gpus(" , ")


def test_a_name_without_a_size_is_any_size_and_a_card_that_is_not_listed_is_known_by_its_own_name():
    a100_40, a100_80, t4 = (find_class(name).to_device() for name in ("A100-40", "A100-80", "T4"))
    assert is_called(a100_40, "A100") and is_called(a100_80, "A100") and not is_called(t4, "A100")
    assert is_called(a100_40, "A100-40") and not is_called(a100_80, "A100-40")
    newcomer = replace(t4, name="NVIDIA RTX PRO 6000", total_memory_bytes=96 * 2**30)
    assert recognize(newcomer) is None
    assert is_called(newcomer, "rtx pro 6000") and not is_called(newcomer, "T4")


@pytest.mark.parametrize("gpu", CATALOGUE, ids=lambda gpu: gpu.name)
def test_pascal_trains_in_fp32_volta_and_turing_in_fp16_and_later_ones_in_bf16(gpu):
    expected = {6: "fp32", 7: "fp16"}.get(gpu.compute_capability[0], "bf16")
    assert choose_precision(gpu.to_device()).name == expected


@pytest.mark.parametrize("text", [f"T4:{MAX_GPUS + 1}", f"T4:{MAX_GPUS},L4:1", f"T4:{MANY_DIGITS}"])
def test_more_gpus_than_a_plan_is_made_for_are_refused_at_once(text):
    with pytest.raises(ConfigError, match=r"^--gpus: must be at most 10,000 GPUs in all, got 'T4:") as caught:
        parse_gpus(text)
    assert len(str(caught.value)) < 200
    assert parse_gpus(f"T4:0{MAX_GPUS}") == [(find_class("T4"), MAX_GPUS)]


def test_a_class_that_is_not_known_is_said_of_the_option():
    with pytest.raises(ConfigError, match=r"^--gpus: must be one of P4, .* got '2xT4'\. Did you mean T4\?"):
        parse_gpus("2xT4:1")
