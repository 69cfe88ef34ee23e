"""What a processor has for bf16, what was measured on it, and where that is kept."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from qlora_ray.config.schema import Model, SweepConfig
from qlora_ray.hardware import DeviceProfile, NodeProfile, probe_node
from qlora_ray.hardware.cpu_bf16 import (
    cache_path,
    find_bf16_flags,
    find_speedup,
    name_processor,
    name_step,
    read_bf16_flags,
    read_speedups,
)
from qlora_ray.modeling.bf16_step import measure_bf16_speedup
from qlora_ray.modeling.loading import read_shape
from qlora_ray.orchestration.executor.node_precision import find_precision

FLAGS = ("avx512_bf16", "amx_bf16")
SHAPE = read_shape(Model())
STEP = name_step(SHAPE, num_threads=1)


def never() -> float:
    raise AssertionError("measured again")


def make_node(**device: object) -> NodeProfile:
    profile = DeviceProfile(0, "cpu", "Some CPU, 2 CPUs", None, 10**10, 10**10, **device)
    return NodeProfile("node", (profile,), "Some CPU", 2, 10**10, 10**10)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_RAY_CACHE", str(tmp_path / "cache"))
    return cache_path()


# Lines of real processors: EPYC 7763 (Milan), Xeon 8480 (Sapphire Rapids), EPYC 9654 (Genoa), a Graviton.
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 sha_ni", ()),
        ("flags\t\t: avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8", FLAGS),
        ("flags\t\t: avx512f avx512_bf16 avx512vbmi", ("avx512_bf16",)),
        ("Features\t: fp asimd bf16", ()),
        ("", ()),
    ],
)
def test_the_flags_for_bf16_are_those_of_cpuinfo(line: str, expected: tuple[str, ...]) -> None:
    assert find_bf16_flags(f"processor\t: 0\n{line}\npower management:\n") == expected


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo here")
def test_this_processors_flags_are_those_that_torch_finds() -> None:
    # oneDNN emulates bf16 from AVX-512 BW on, so that flags imply its support and not the other way round.
    if read_bf16_flags():
        assert torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert ("amx_bf16" in read_bf16_flags()) <= torch.cpu._is_amx_tile_supported()


def test_a_step_is_measured_once_and_its_answer_kept(cache: Path) -> None:
    assert find_speedup("A", "one", measure=lambda: 1.5) == 1.5
    assert find_speedup("A", "two", measure=lambda: 0.5) == 0.5
    assert find_speedup("A", "one", measure=never) == 1.5
    assert find_speedup("B", "one", measure=lambda: 3.0) == 3.0
    assert read_speedups("A") == {"one": 1.5, "two": 0.5}
    assert json.loads(cache.read_text()) == {"A": {"one": 1.5, "two": 0.5}, "B": {"one": 3.0}}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"A": 3}', '{"A": {"one": "fast"}}', '{"A": {"one": -1}}', '{"A": {"one": null}}', "\x00"]
)
def test_a_damaged_cache_is_measured_again(cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text)
    assert read_speedups("A") == {}
    assert find_speedup("A", "one", measure=lambda: 1.5) == 1.5
    assert read_speedups("A") == {"one": 1.5}


def test_a_cache_that_cannot_be_written_costs_a_measurement_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "cache.json"
    assert find_speedup("A", "one", measure=lambda: 1.5, path=path) == 1.5
    assert read_speedups("A", path=path) == {}


def test_executors_that_start_together_share_one_measurement() -> None:
    measured, answers = [], []
    begun = threading.Event()

    def measure() -> float:
        measured.append(1)
        begun.set()
        second.start()
        second.join(0.2)
        return 1.5

    second = threading.Thread(target=lambda: answers.append(find_speedup("A", "one", measure=never)))
    assert find_speedup("A", "one", measure=measure) == 1.5
    second.join()
    assert (measured, answers) == ([1], [1.5])


def test_an_executor_measures_where_that_decides_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "qlora_ray.orchestration.executor.node_precision.measure_bf16_speedup"
    node, config = make_node(bf16_flags=FLAGS), SweepConfig()
    monkeypatch.setattr(module, lambda shape: 1.58)
    found = find_precision(node, config, num_threads=1)
    assert (found.name, found.reason) == (
        "bf16",
        "bf16: measured 1.58x fp32 on this processor at this base's widths",
    )
    monkeypatch.setattr(module, lambda shape: 1.05)
    # Another number of threads is another measurement, and the first one is kept.
    assert find_precision(node, config, num_threads=2).name == "fp32"
    assert find_precision(node, config, num_threads=1).name == "bf16"
    processor = name_processor("Some CPU", FLAGS)
    assert read_speedups(processor) == {STEP: 1.58, name_step(SHAPE, num_threads=2): 1.05}


@pytest.mark.parametrize(
    ("device", "requested", "expected"),
    [
        ({}, "auto", "fp32"),
        ({"bf16_flags": FLAGS, "held_precision": "fp32"}, "auto", "fp32"),
        ({"bf16_flags": FLAGS, "held_precision": "bf16"}, "auto", "bf16"),
        ({"bf16_flags": FLAGS}, "fp32", "fp32"),
        ({"bf16_flags": FLAGS}, "bf16", "bf16"),
    ],
)
def test_nothing_is_measured_where_the_answer_is_known(
    monkeypatch: pytest.MonkeyPatch, device: dict[str, object], requested: str, expected: str
) -> None:
    monkeypatch.setattr("qlora_ray.orchestration.executor.node_precision.measure_bf16_speedup", lambda shape: never())
    config = SweepConfig(training={"precision": requested})
    assert find_precision(make_node(**device), config, num_threads=1).name == expected


def test_the_probe_tells_what_a_node_is_held_to_and_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_ray.hardware.probe.read_bf16_flags", lambda: FLAGS)
    monkeypatch.setattr("qlora_ray.hardware.probe._find_gpus", lambda: ([], None))
    free = probe_node()
    find_speedup(name_processor(free.cpu_name, FLAGS), STEP, measure=lambda: 1.5)
    monkeypatch.setenv("QLORA_RAY_PRECISION", "fp32")
    held = NodeProfile.from_dict(json.loads(json.dumps(probe_node().to_dict())))
    (device,) = held.devices
    assert (device.bf16_flags, device.held_precision) == (FLAGS, "fp32")
    assert device.bf16_speedups == {STEP: 1.5}
    assert free.devices[0].held_precision is None
    # Another class: it has a placement of its own.
    assert device.class_key != free.devices[0].class_key


def test_a_step_is_measured_without_touching_the_processes_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert measure_bf16_speedup(SHAPE) > 0
    assert torch.equal(torch.rand(1), expected)
