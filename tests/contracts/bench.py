"""The base, rows and trials of the engine contract, and how a test runs one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ray.config.schema import Data, Lora, Model, Precision, Training
from qlora_ray.data import PreparedData, prepare_data
from qlora_ray.exporting.checkpoint_adapter import write_checkpoint_adapter
from qlora_ray.hardware.cpu_bf16 import read_bf16_flags
from qlora_ray.modeling.loading import LoadedBase, load_base, load_tokenizer
from qlora_ray.modeling.quantization import specify_quantization
from qlora_ray.runs.record_parts import BaseRecord
from qlora_ray.training.budget import make_budget
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import Engine, Preemption, Report, TrialSpec

NUM_REPORTS = 3
BATCH = 4
NUM_STEPS = 9
# How far from fp32 the losses of a trial may be in bf16 on a CPU, relative: measured 0.1 to 0.65 % here, in both
# engines. bf16 has 8 bits of significand, so that each product is off by up to 0.4 %.
BF16_TOLERANCE = 0.01
needs_bf16 = pytest.mark.skipif(
    not read_bf16_flags(), reason="this processor has neither avx512_bf16 nor amx_bf16, and would emulate bf16"
)

# What torch 2.13 raises where a GPU and where a CPU has no room, and what a trial's failure says of it.
NO_ROOM = [
    (torch.OutOfMemoryError("CUDA out of memory: 1 GiB."), "CUDA out of memory: 1 GiB."),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
        "DefaultCPUAllocator: can't allocate memory",
    ),
]


@dataclass
class Bench:
    """A base and rows that all tests of a module share."""

    base: LoadedBase
    data: PreparedData


@pytest.fixture(scope="module")
def bench() -> Bench:
    """The embedded base in NF4, 40 training rows and 12 validation rows."""
    torch.set_num_threads(1)
    model = Model()
    data = prepare_data(Data(max_train_rows=40, max_validation_rows=12), tokenizer=load_tokenizer(model), data_seed=7)
    return Bench(load_nf4(), data)


def load_nf4(precision: Precision = "fp32") -> LoadedBase:
    """A fresh embedded base in NF4 with double quantization, computing in this format."""
    model = Model()
    spec = specify_quantization(model.quantization, compute_dtype=precision)
    return load_base(model, quantization=spec, device="cpu")


def make_spec(
    trial_id: str = "0000", *, lora: dict[str, Any] | None = None, num_reports: int = NUM_REPORTS, **training: Any
) -> TrialSpec:
    """A trial of NUM_STEPS steps of BATCH rows and NUM_REPORTS reports."""
    values: dict[str, Any] = {
        "learning_rate": 2e-3,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_samples": NUM_STEPS * BATCH,
        "optim": "adamw_torch",
        **training,
    }
    config = Training(**values)
    budget = make_budget(config, num_train_rows=40, num_reports=num_reports)
    return TrialSpec(trial_id, Lora(**{"r": 8, "lora_dropout": 0.1, **(lora or {})}), config, budget)


def run_trial(
    engine: Engine, spec: TrialSpec, *, state: TrialState | None = None, num_reports: int = NUM_REPORTS
) -> list[Report]:
    """Admits a trial and lets it go on until it ended or reported so often; it is still there afterwards."""
    engine.admit(spec, state)
    reports: list[Report] = []
    while len(reports) < num_reports:
        reports.extend(engine.advance())
        if reports[-1].is_final:
            break
        if len(reports) < num_reports:
            engine.proceed(spec.trial_id)
    return reports


def run_until_preempted(engine: Engine, spec: TrialSpec) -> tuple[list[Report], Preemption]:
    """Admits a trial and lets it go on until it is put off; its reports until then, and why."""
    engine.admit(spec)
    reports: list[Report] = []
    while True:
        for event in engine.advance():
            if isinstance(event, Preemption):
                return reports, event
            assert not event.is_final, event
            reports.append(event)
            engine.proceed(spec.trial_id)


def save_both_ways(engine: Engine, folder: Path) -> None:
    """Ends trial 0000; leaves its adapter as the engine saves it in `saved`, and as it is in its state in `taken`."""
    state = engine.snapshot("0000")
    assert state is not None
    state.save(folder / "state")
    engine.save_adapter("0000", folder / "saved")
    engine.evict("0000")
    (folder / "taken").mkdir()
    step = write_checkpoint_adapter(folder / "state", folder / "taken", base=BaseRecord(name="org/base"))
    assert step == state.step


def losses(reports: list[Report]) -> list[tuple[float, float]]:
    """(eval_loss, train_loss) of each report."""
    return [(report.metrics["eval_loss"], report.metrics["train_loss"]) for report in reports]


def hash_weights(base: LoadedBase) -> str:
    """A digest of every frozen byte: packed weights, and all tensors of their quantization states."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
