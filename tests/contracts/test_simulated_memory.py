"""The ladder of a device that runs out of memory: real engines on a simulated device of a given size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_ray.config.schema import Model
from qlora_ray.hardware import Workload, estimate_memory
from qlora_ray.modeling.loading import read_shape
from qlora_ray.modeling.shape import count_shape
from qlora_ray.modeling.targets import build_skeleton
from qlora_ray.training.engine import Preemption, TrainingData
from qlora_ray.training.simulated_memory import SimulatedMemory
from qlora_ray.training.single.engine import SingleEngine
from tests.contracts.bench import NUM_STEPS, Bench, bench, losses, make_spec, run_trial
from tests.contracts.packs import MIXED_RANKS, assert_close, make_engine, run_pack

__all__ = ["bench"]

# Validation rows one at a time, so that it is training which needs the most.
KEEPING = {"gradient_checkpointing": False, "per_device_eval_batch_size": 1}
SPECS = [make_spec("0000", **KEEPING), make_spec("0001", seed=3, **KEEPING)]


def make_memory(*, num_tokens: int, num_trials: int = 1, recomputes: bool = False, **workload: Any) -> SimulatedMemory:
    """A device with exactly the room for these micro-batches beside so many trials."""
    model = Model()
    shape = count_shape(build_skeleton(model), read_shape(model))
    planned = Workload(
        **{
            "engine": "packed",
            "r": 8,
            "loss": "labels",
            "lora_dropout": 0.1,
            "optim": "adamw_torch",
            "precision": "fp16",
            "seq_length": 128,
            "micro_batch_tokens": num_tokens,
            "num_trials": num_trials,
            "gradient_checkpointing": recomputes,
            **workload,
        }
    )
    limit_bytes = estimate_memory(shape, planned).total_bytes
    return SimulatedMemory(shape, planned, limit_bytes=limit_bytes, device_name="Tesla T4 (simulated)")


def longest_row(bench: Bench) -> int:
    return max(map(len, [*bench.data.train.input_ids, *bench.data.validation.input_ids]))


def test_micro_batches_are_halved_until_they_fit_and_the_losses_are_the_same(bench: Bench) -> None:
    expected = run_pack(make_engine(bench.base, bench.data), SPECS)
    memory = make_memory(num_tokens=2 * longest_row(bench), num_trials=2)
    packed = run_pack(make_engine(bench.base, bench.data, memory=memory), SPECS)
    for spec in SPECS:
        assert packed[spec.trial_id][-1].facts["max_tokens_per_micro_batch"] < 1024
        assert_close(losses(packed[spec.trial_id]), losses(expected[spec.trial_id]), rel=MIXED_RANKS)


def test_activations_are_recomputed_before_a_trial_that_leaves_it_open_is_preempted(bench: Bench) -> None:
    spec = make_spec(per_device_eval_batch_size=1)
    expected = run_pack(make_engine(bench.base, bench.data), [spec])[spec.trial_id]
    room = {"num_tokens": longest_row(bench), "recomputes": True}
    packed = run_pack(make_engine(bench.base, bench.data, memory=make_memory(**room)), [spec])[spec.trial_id]
    assert [report.facts["training"]["gradient_checkpointing"] for report in packed] == [True, True, True]
    assert_close(losses(packed), losses(expected), rel=MIXED_RANKS)
    insists = make_spec(**KEEPING)
    (failed,) = run_pack(make_engine(bench.base, bench.data, memory=make_memory(**room)), [insists])["0000"]
    assert failed.failure is not None and failed.failure.cause == "oom"


def test_a_second_trial_is_preempted_where_only_one_fits_and_goes_on_after_it(bench: Bench) -> None:
    events = []
    # Adapters that take more than a micro-batch does.
    specs = [replace(spec, lora=spec.lora.model_copy(update={"r": 64})) for spec in SPECS]
    memory = make_memory(num_tokens=longest_row(bench), num_trials=1, r=64)
    engine = make_engine(bench.base, bench.data, memory=memory)
    packed = run_pack(engine, specs, on_event=events.append)
    preempted = [event for event in events if isinstance(event, Preemption)]
    assert [event.trial_id for event in preempted] == ["0001"]
    assert "(simulated)" in preempted[0].reason
    assert packed["0000"][-1].is_final and engine.slots == 1
    alone = run_pack(engine, [specs[1]])["0001"]
    assert alone[-1].is_final and alone[-1].failure is None


@pytest.mark.parametrize("engine_name", ["packed", "single"])
def test_a_trial_that_does_not_fit_alone_fails_for_memory(bench: Bench, engine_name: str) -> None:
    data = TrainingData(bench.data.train, bench.data.validation)
    memory = make_memory(num_tokens=1, engine=engine_name)
    if engine_name == "packed":
        engine: Any = make_engine(bench.base, bench.data, memory=memory)
    else:
        engine = SingleEngine(bench.base, data, max_micro_batch=4, memory=memory)
    (report,) = run_trial(engine, make_spec())
    engine.evict("0000")
    assert report.failure is not None and report.failure.cause == "oom"
    assert report.failure.message.startswith("CUDA out of memory. Tesla T4 (simulated) has ")


def test_the_single_engine_takes_smaller_micro_batches_and_then_recomputes(bench: Bench) -> None:
    data = TrainingData(bench.data.train, bench.data.validation)
    spec = make_spec(lora={"lora_dropout": 0.0}, per_device_eval_batch_size=1)
    plain = SingleEngine(bench.base, data, max_micro_batch=4)
    expected = run_trial(plain, spec)
    plain.evict(spec.trial_id)
    memory = make_memory(num_tokens=longest_row(bench), recomputes=True, engine="single", loss="tiled")
    engine = SingleEngine(bench.base, data, max_micro_batch=4, memory=memory)
    reports = run_trial(engine, spec)
    engine.evict(spec.trial_id)
    facts = reports[-1].facts
    assert (facts["micro_batch"], facts["training"]["gradient_checkpointing"]) == (1, True)
    assert facts["num_steps"] == NUM_STEPS
    assert_close(losses(reports), losses(expected), rel=MIXED_RANKS)
