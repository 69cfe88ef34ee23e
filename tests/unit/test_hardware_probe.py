"""The probe tells what this machine is, keeps to cgroup and affinity, and says so without torch at import."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlora_ray.hardware import DeviceProfile, NodeProfile, probe, probe_node

GIB = 1024**3


@pytest.fixture(scope="module")
def node() -> NodeProfile:
    return probe_node()


def make_gpu(name: str = "Tesla T4", total_bytes: int = 15_636_365_312) -> DeviceProfile:
    return DeviceProfile(0, "cuda", name, (7, 5), total_bytes, total_bytes)


def test_a_node_is_what_this_process_may_use_of_the_machine(node):
    kinds = {device.kind for device in node.devices}
    assert kinds in ({"cuda"}, {"cpu"})
    assert node.has_gpu == (kinds == {"cuda"})
    assert 1 <= node.num_cpus <= len(os.sched_getaffinity(0))
    assert 0 < node.available_ram_bytes <= node.ram_bytes
    assert all(0 < device.free_memory_bytes <= device.total_memory_bytes for device in node.devices)


def test_versions_are_those_of_the_packages_that_decide_results(node):
    assert set(node.packages) == set(probe.PACKAGES)
    assert node.packages["torch"] is not None and node.python_version.startswith("3.")


def test_profiles_survive_json_and_pickle(node):
    assert NodeProfile.from_dict(json.loads(json.dumps(node.to_dict()))) == node
    assert pickle.loads(pickle.dumps(node)) == node
    gpu = make_gpu()
    assert DeviceProfile.from_dict(json.loads(json.dumps(gpu.to_dict()))) == gpu


def test_the_class_key_groups_equal_gpus_and_parts_unequal_ones():
    assert make_gpu().class_key == "Tesla T4 14.6 GiB cc7.5"
    other_node = DeviceProfile.from_dict({**make_gpu().to_dict(), "index": 3, "free_memory_bytes": 5, "uuid": "x"})
    assert other_node.class_key == make_gpu().class_key
    assert make_gpu(total_bytes=80 * GIB).class_key != make_gpu(total_bytes=40 * GIB).class_key


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce GTX 1650", "GTX 1650"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
    ],
)
def test_short_names_are_those_people_use(name, short):
    assert make_gpu(name).short_name == short


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((7, 5), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 6), ["sm_75", "sm_80", "sm_90"], True),  # binary kernels run on later minors of their major
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((6, 1), ["sm_75", "sm_80"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),  # PTX is compiled for later GPUs on the spot
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((7, 5), [], True),  # unknown: no reason to refuse
    ],
)
def test_a_gpu_that_torch_has_no_kernels_for_is_a_problem(capability, built_for, runs):
    problem = probe._find_kernel_problem(capability, built_for)
    assert (problem is None) == runs
    if problem:
        assert f"{capability[0]}.{capability[1]}" in problem


def test_a_gpu_is_read_through_torch_and_a_busy_one_is_named():
    properties = SimpleNamespace(name="Tesla T4", major=7, minor=5, total_memory=15 * GIB, uuid="GPU-1")

    def refuse(index):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore")

    cuda = SimpleNamespace(
        get_device_properties=lambda index: properties,
        get_arch_list=lambda: ["sm_75"],
        mem_get_info=lambda index: (14 * GIB, 15 * GIB),
    )
    gpu = probe._read_gpu(SimpleNamespace(cuda=cuda), 0)
    assert (gpu.compute_capability, gpu.free_memory_bytes, gpu.problem) == ((7, 5), 14 * GIB, None)
    cuda.mem_get_info = refuse
    assert "busy or unavailable" in (probe._read_gpu(SimpleNamespace(cuda=cuda), 0).problem or "")


def write_files(monkeypatch, files: dict[str, str]) -> None:
    def read_text(self: Path) -> str:
        if str(self) not in files:
            raise FileNotFoundError(self)
        return files[str(self)]

    monkeypatch.setattr(Path, "read_text", read_text)


MEMINFO = {"/proc/meminfo": "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max\n"}, (16 * GIB, 8 * GIB)),  # no limit: the machine's own
        (
            {
                "memory.max": str(4 * GIB),
                "memory.current": str(3 * GIB),
                "memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n",
            },
            (4 * GIB, 3 * GIB),
        ),
    ],
)
def test_ram_is_what_the_cgroup_allows_and_file_cache_counts_as_free(monkeypatch, files, expected):
    write_files(monkeypatch, MEMINFO | {f"/sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert probe.read_ram() == expected


@pytest.mark.parametrize(("quota", "expected"), [("100000 100000", 1), ("250000 100000", 2), ("max 100000", 4)])
def test_cpus_are_what_the_cgroup_allows(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    write_files(monkeypatch, {"/sys/fs/cgroup/cpu.max": quota})
    assert probe.count_cpus() == expected


def test_no_driver_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert probe._ask_nvidia_smi("driver_version") is None


def test_importing_the_room_imports_no_torch_transformers_or_ray():
    code = (
        "import sys, qlora_ray.hardware; "
        "print([name for name in ('torch', 'transformers', 'ray') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
