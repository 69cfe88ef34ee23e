"""The `packed` engine against the engine contract, and what is its alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from qlora_ray.data import PreparedData
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import EngineEvent, Preemption, TrainingData
from qlora_ray.training.packed.engine import PackedEngine
from qlora_ray.training.packed.schedule import INITIAL_SCALE
from qlora_ray.training.packed.step import StepOutcome, StepRunner
from qlora_ray.training.packed.trial import PackedTrial
from tests.contracts.bench import Bench, bench, load_nf4, losses, make_spec, run_trial
from tests.contracts.engine_contract import EngineContract
from tests.contracts.head_contract import HeadContract
from tests.contracts.packs import MIXED_RANKS, assert_close, run_pack
from tests.contracts.precision_contract import PrecisionContract
from tests.contracts.state_contract import StateContract

__all__ = ["bench"]


class TestPackedEngine(EngineContract, PrecisionContract, StateContract, HeadContract):
    """The contract suite on PackedEngine."""

    def make_engine(self, base: LoadedBase, data: PreparedData, *, max_micro_batch: int = 8) -> PackedEngine:
        """An engine of four slots."""
        return PackedEngine(
            base, TrainingData(data.train, data.validation), slots=4, max_tokens_per_micro_batch=256 * max_micro_batch
        )

    def watch_steps(self, monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]) -> None:
        """By the runs of the pack's steps."""
        run = StepRunner.run

        def watch(runner: StepRunner, trials: Sequence[PackedTrial], *, max_tokens: int) -> StepOutcome:
            for trial in trials:
                do(trial.step + 1)
            return run(runner, trials, max_tokens=max_tokens)

        monkeypatch.setattr(StepRunner, "run", watch)

    def test_a_trial_that_is_asked_to_leave_disturbs_no_neighbour(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = self.make_engine(bench.base, bench.data)
        specs = [make_spec("0000"), make_spec("0001", seed=3)]
        expected = run_pack(engine, specs)
        slots = engine.slots
        self.watch_steps(
            monkeypatch, lambda step: engine.request_preemption("0001", "it leaves") if step == 5 else None
        )
        out: list[TrialState | None] = []
        packed = run_pack(engine, specs, on_event=lambda event: out.extend(_snapshot_of_preempted(engine, event)))
        (state,) = out
        assert state is not None and state.step == 5
        # Room in memory had nothing to do with it.
        assert engine.slots == slots
        rest = run_trial(engine, specs[1], state=state, num_reports=2)
        engine.evict("0001")
        assert_close(losses(packed["0000"]), losses(expected["0000"]), rel=MIXED_RANKS)
        assert_close(losses(packed["0001"] + rest), losses(expected["0001"]), rel=MIXED_RANKS)

    def test_each_trial_of_an_fp16_pack_has_a_loss_scale_of_its_own(self, bench: Bench) -> None:
        base = load_nf4("fp16")
        spec = make_spec("0001", lora={"lora_dropout": 0.0})
        alone = self.make_engine(base, bench.data)
        expected = run_trial(alone, spec)
        begun = run_trial(alone, make_spec("0000"), num_reports=1)
        state = alone.snapshot("0000")
        alone.evict("0000")
        alone.evict("0001")
        assert begun[0].failure is None and state is not None
        # So large that its gradients overflow fp16 at every step to come.
        state.loss_scale["scale"] = 2.0**60
        engine = self.make_engine(base, bench.data)
        engine.admit(make_spec("0000"), state)
        reports = run_trial(engine, spec)
        overflowing, calm = engine.snapshot("0000"), engine.snapshot("0001")
        engine.evict("0000")
        engine.evict("0001")
        neighbour = [report for report in reports if report.trial_id == "0000"]
        assert [report.failure for report in neighbour] == [None] * len(neighbour)
        assert overflowing is not None and calm is not None
        num_steps = overflowing.step - state.step
        assert num_steps > 0
        assert overflowing.loss_scale["scale"] == 2.0 ** (60 - num_steps)
        # A step that overflowed moved neither the adapter nor the schedule.
        assert overflowing.schedule_step == state.schedule_step
        assert all(torch.equal(tensor, state.adapter[name]) for name, tensor in overflowing.adapter.items())
        assert calm.loss_scale["scale"] == INITIAL_SCALE
        got = [report for report in reports if report.trial_id == "0001"]
        for (eval_a, train_a), (eval_b, train_b) in zip(losses(got), losses(expected), strict=False):
            assert (eval_b, train_b) == pytest.approx((eval_a, train_a), rel=1e-3)


def _snapshot_of_preempted(engine: PackedEngine, event: EngineEvent) -> list[TrialState | None]:
    return [engine.snapshot(event.trial_id)] if isinstance(event, Preemption) else []
