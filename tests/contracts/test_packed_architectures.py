"""The `packed` engine on every architecture it is meant for: two trials in a pack are what `single` makes of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from qlora_ray.config.schema import Data, Model
from qlora_ray.data import PreparedData, prepare_data
from qlora_ray.modeling.adapters import saved_adapter
from qlora_ray.modeling.loading import LoadedBase, load_tokenizer
from qlora_ray.training.engine import Report, TrainingData, TrialSpec
from qlora_ray.training.packed.engine import PackedEngine
from qlora_ray.training.single.engine import SingleEngine
from tests.contracts.bench import make_spec, run_trial
from tests.contracts.packed_models import ARCHITECTURES, GPT2, load_saved_base, save_random_base
from tests.contracts.plain_torch import plain_validation_loss

NUM_STEPS = 4


def make_short_spec(trial_id: str, *, r: int, learning_rate: float) -> TrialSpec:
    """Four steps of two rows, a report after each."""
    return make_spec(
        trial_id,
        lora={"r": r, "lora_dropout": 0.0},
        num_reports=NUM_STEPS,
        learning_rate=learning_rate,
        per_device_train_batch_size=2,
        max_samples=2 * NUM_STEPS,
    )


SPECS = [make_short_spec("0000", r=8, learning_rate=2e-3), make_short_spec("0001", r=12, learning_rate=5e-4)]


@dataclass
class Run:
    """What became of the trials in a pack and each alone: reports, and adapters saved, by trial."""

    base: Path
    packed: dict[str, list[Report]]
    alone: dict[str, list[Report]]
    packed_adapters: Path
    alone_adapters: Path


@pytest.fixture(scope="module")
def data() -> PreparedData:
    """40 training rows and 4 validation rows in the embedded tokenizer's tokens."""
    torch.set_num_threads(1)
    rows = Data(max_train_rows=40, max_validation_rows=4)
    return prepare_data(rows, tokenizer=load_tokenizer(Model()), data_seed=7)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def run(request: pytest.FixtureRequest, data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Both trials trained in a pack on one base, and by `single` one after the other."""
    folder = tmp_path_factory.mktemp(request.param)
    save_random_base(*ARCHITECTURES[request.param], folder / "base")
    base = load_saved_base(folder / "base")
    packed = run_pack(make_fused(base, data), SPECS, folder / "packed")
    single = SingleEngine(base, TrainingData(data.train, data.validation), max_micro_batch=8)
    alone = {}
    for spec in SPECS:
        alone[spec.trial_id] = run_trial(single, spec, num_reports=NUM_STEPS)
        single.save_adapter(spec.trial_id, folder / "alone" / spec.trial_id)
        single.evict(spec.trial_id)
    return Run(folder / "base", packed, alone, folder / "packed", folder / "alone")


def make_fused(base: LoadedBase, data: PreparedData) -> PackedEngine:
    return PackedEngine(base, TrainingData(data.train, data.validation), slots=2, max_tokens_per_micro_batch=2048)


def run_pack(engine: PackedEngine, specs: list[TrialSpec], adapters: Path) -> dict[str, list[Report]]:
    """Trains trials together to their ends, and saves those adapters that have one."""
    for spec in specs:
        engine.admit(spec)
    seen: dict[str, list[Report]] = {spec.trial_id: [] for spec in specs}
    while reports := engine.advance():
        for report in reports:
            seen[report.trial_id].append(report)
            if report.is_final and report.failure is None:
                engine.save_adapter(report.trial_id, adapters / report.trial_id)
            if report.is_final:
                engine.evict(report.trial_id)
            else:
                engine.proceed(report.trial_id)
    return seen


def logits_of(base: LoadedBase, data: PreparedData) -> torch.Tensor:
    """A validation row's logits."""
    base.model.eval()
    with torch.no_grad():
        logits: torch.Tensor = base.model(input_ids=torch.tensor([data.validation.input_ids[0]])).logits
    return logits


def test_every_steps_loss_is_that_of_sft(run: Run) -> None:
    for spec in SPECS:
        packed, alone = run.packed[spec.trial_id], run.alone[spec.trial_id]
        assert [report.failure for report in packed + alone] == [None] * 2 * NUM_STEPS
        for name in ("train_loss", "eval_loss"):
            got = [report.metrics[name] for report in packed]
            assert got == pytest.approx([report.metrics[name] for report in alone], rel=1e-4)


def test_the_saved_adapters_have_the_logits_of_sfts_and_the_packs_loss(run: Run, data: PreparedData) -> None:
    fresh = load_saved_base(run.base)
    bare = logits_of(fresh, data)
    for spec in SPECS:
        with saved_adapter(fresh, run.alone_adapters / spec.trial_id):
            expected = logits_of(fresh, data)
        with saved_adapter(fresh, run.packed_adapters / spec.trial_id) as model:
            torch.testing.assert_close(logits_of(fresh, data), expected, rtol=1e-4, atol=1e-4)
            loss = plain_validation_loss(model, data)
        assert loss == pytest.approx(run.packed[spec.trial_id][-1].metrics["eval_loss"], abs=1e-4)
        # Training has moved them by far more than the bound.
        assert (expected - bare).abs().max().item() > 1e-2


def test_transposed_layers_that_no_quantization_has_made_linear_are_refused_by_name(
    data: PreparedData, tmp_path: Path
) -> None:
    base = load_saved_base(save_random_base("GPT2Config", GPT2, tmp_path / "base"), method="none")
    before = logits_of(base, data)
    packed = run_pack(make_fused(base, data), SPECS, tmp_path / "adapters")
    for spec in SPECS:
        (report,) = packed[spec.trial_id]
        assert report.failure is not None
        assert report.failure.cause == "error"
        assert "lora.target_modules: transformer.h.0.attn.c_attn" in report.failure.message
        assert "cluster.packing: single" in report.failure.message
    assert torch.equal(logits_of(base, data), before)
