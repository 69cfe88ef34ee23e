"""What `plan` says a sweep will take: counts that follow from the config, and times within what others measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qlora_ray.config.schema import Search, SweepConfig
from qlora_ray.hardware import Placement
from qlora_ray.hardware.catalogue import find_class
from qlora_ray.hardware.speed import count_flops_per_token, estimate_speed
from qlora_ray.preflight.forecast import Forecast, find_budget_s, least_share
from qlora_ray.preflight.measured_speed import find_speed
from tests.unit.hardware_fixtures import DEMAND, LLAMA_8B, QWEN_HALF_B, TINY, cpu_node, node, plan


def place(gpu: str, **settings) -> Placement:
    (item,) = plan(node("a", find_class(gpu).to_device()), **settings).placements
    return item


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"scheduler": "none"}, 1.0),
        # Rungs of asha with 4 reports: all train 1, a third 2 more, a ninth the last.
        ({"scheduler": "asha"}, (1 + 2 / 3 + 1 / 9) / 4),
        ({"scheduler": "asha", "grace_reports": 4}, 1.0),
        ({"scheduler": "asha", "reduction_factor": 2}, (1 + 1 / 2 + 2 / 4) / 4),
        ({"scheduler": "median"}, (1 + 3 / 2) / 4),
    ],
)
def test_the_fewest_samples_are_those_that_the_schedulers_rungs_leave(settings, share):
    assert least_share(Search(**{"num_reports": 4, **settings})) == pytest.approx(share)


def test_the_operations_of_a_token_are_two_per_weight_and_pass():
    """Kaplan et al. (arXiv 2001.08361): 2 N forward; back to the inputs of a frozen base as many."""
    item = place("H100", model=LLAMA_8B, demand=replace(DEMAND, gradient_checkpointing=False))
    num_weights = 6.98e9 + 128256 * 4096  # Llama-3.1-8B's linears, and its head
    assert count_flops_per_token(LLAMA_8B, item) == pytest.approx(4 * num_weights, rel=0.05)
    recomputing = place("H100", model=LLAMA_8B, demand=DEMAND)
    assert count_flops_per_token(LLAMA_8B, recomputing) == pytest.approx(6 * 6.98e9 + 4 * 128256 * 4096, rel=0.05)


def test_the_rule_holds_what_others_measured_of_an_8b():
    """torchtune's README, "Memory and training speed": QLoRA of Llama 3.1 8B on a 4090, 2 x 2048 tokens, 2,413/s."""
    demand = replace(DEMAND, max_seq_length=2048, per_device_train_batch_size=2, effective_batch=2)
    speed = estimate_speed(LLAMA_8B, place("RTX4090", model=LLAMA_8B, demand=demand))
    assert speed is not None and speed.least < 2413 < speed.most
    assert speed.most / speed.least <= 7


def test_the_rule_for_a_cpu_holds_what_was_measured_on_two_cores():
    """docs/measured.md: 8,438 tokens/s of the packed engine on the embedded base, 2 cores."""
    demand = replace(DEMAND, gradient_checkpointing=False)
    (item,) = plan(cpu_node(num_cpus=2), model=TINY, demand=demand).placements
    speed = estimate_speed(TINY, item)
    assert speed is not None and speed.least < 8438 < speed.most


def test_a_faster_gpu_trains_more_tokens_and_a_small_base_waits_for_its_kernels():
    slow, fast = (estimate_speed(LLAMA_8B, place(name, model=LLAMA_8B)) for name in ("T4", "H100"))
    assert slow is not None and fast is not None and fast.least > 5 * slow.least
    small = estimate_speed(TINY, place("H100", model=TINY))
    assert small is not None and "kernels" in small.source
    assert estimate_speed(QWEN_HALF_B, replace(place("T4"), gpu_class=None)) is None


def write_sweep(root, *, device, tokens_per_s, base="embedded", simulated=False):
    folder = root / "trials" / "0000"
    folder.mkdir(parents=True)
    (root / "manifest.json").write_text(json.dumps({"config": {}, "base": {"name": base}}))
    record = {
        "trial": "0000",
        "state": "complete",
        "tokens_per_s": tokens_per_s,
        "executor": {"device": device, "engine": "packed", "simulated": simulated},
        "ran": {"engine": "packed", "pack": {"mean_trials": 4.0}},
    }
    (folder / "record.json").write_text(json.dumps(record))


def test_a_sweep_of_the_same_base_and_class_is_believed_before_the_rule(tmp_path):
    item = place("T4", model=TINY)
    config = SweepConfig.model_validate({"results": {"dir": str(tmp_path)}})
    assert find_speed(config, item) is None
    write_sweep(tmp_path / "other-base", device="Tesla T4", tokens_per_s=1.0, base="other")
    write_sweep(tmp_path / "other-device", device="NVIDIA L4", tokens_per_s=1.0)
    write_sweep(tmp_path / "simulated", device="Tesla T4", tokens_per_s=1.0, simulated=True)
    assert find_speed(config, item) is None
    write_sweep(tmp_path / "mine", device="Tesla T4", tokens_per_s=250.0)
    (tmp_path / "not-a-sweep").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    speed = find_speed(config, item)
    assert speed is not None and "mine" in speed.source
    # Four trials shared each step.
    assert (speed.least, speed.most) == (750.0, 1250.0)


@pytest.mark.parametrize(
    ("search", "seconds"),
    [
        ({}, None),
        ({"time_budget": "2h"}, 7200),
        ({"gpu_hours": 4.0}, 7200),
        ({"time_budget": "3h", "gpu_hours": 4.0}, 7200),
        ({"time_budget": 60, "gpu_hours": 4.0}, 60),
    ],
)
def test_a_budget_lasts_as_long_as_the_first_of_them(search, seconds):
    two = plan(node("a", find_class("T4").to_device(), find_class("T4").to_device()))
    assert sum(item.num_devices for item in two.placements) == 2
    assert find_budget_s(Search(**search), two) == seconds


@pytest.mark.parametrize(
    ("budget_s", "words"),
    [
        (1_000.0, "the search's budget lasts 16:40: enough for all trials"),
        (100.0, "the search's budget lasts 1:40: 4 to 20 of 40 trials"),
        (1.0, "the search's budget lasts 0:01: 1 of 40 trials"),
        (None, None),
    ],
)
def test_the_plan_says_how_many_trials_a_budget_lets_begin(budget_s, words):
    forecast = Forecast(
        num_trials=40,
        num_seed_trials=0,
        least_steps=10,
        most_steps=10,
        num_samples=80,
        least_tokens=1,
        most_tokens=1,
        evaluation_tokens=1,
        disk_bytes=1,
        least_s=200.0,
        most_s=1_000.0,
        least_gpu_hours=None,
        most_gpu_hours=None,
        classes=(),
        unknown=(),
        budget_s=budget_s,
    )
    assert (words in forecast.render()) if words else ("budget" not in forecast.render())
