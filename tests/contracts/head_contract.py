"""What every engine promises of auxiliary heads. Taken beside EngineContract."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qlora_ray.config.heads import Pooling
from qlora_ray.data import PreparedData, TokenizedSplit
from qlora_ray.modeling.auxiliary_heads import HeadSpec, load_heads
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.runs.paths import ADAPTER_WEIGHTS, HEADS_WEIGHTS
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import Engine, TrialSpec
from tests.contracts.bench import Bench, load_nf4, losses, make_spec, run_trial, save_both_ways
from tests.contracts.plain_torch import plain_head_answers, plain_training

# Relative, of losses and of the heads' matrices.
PLAIN_LOOP = 1e-5
# Of the adapter's: 3e-5 without heads too, as the engines' sums have another order and AdamW divides by small numbers.
PLAIN_ADAPTER = 1e-4
CLASSES = {"length": ("long", "middle", "short"), "aggregate": ("no", "yes")}


def label(data: PreparedData) -> PreparedData:
    """The rows with labels for two heads: how long their prompts are, and whether their SQL counts; some have none."""

    def with_labels(split: TokenizedSplit) -> TokenizedSplit:
        lengths = split.prompt_ids.lengths.tolist()
        ranked = sorted(lengths)
        bounds = ranked[len(ranked) // 3], ranked[2 * len(ranked) // 3]
        sizes = [2 if length <= bounds[0] else 1 if length <= bounds[1] else 0 for length in lengths]
        counts = [int("COUNT" in text.upper() or "SUM" in text.upper()) for text in split.references]
        return TokenizedSplit.of(
            split.name,
            split.input_ids,
            split.completion_mask,
            split.prompt_ids,
            split.references,
            split.alternatives,
            {
                "length": [-1 if row % 5 == 0 else size for row, size in enumerate(sizes)],
                # Most steps of four rows have fewer than four labels, and some have none.
                "aggregate": [count if row % 3 == 0 else -1 for row, count in enumerate(counts)],
            },
        )

    return dataclasses.replace(data, train=with_labels(data.train), validation=with_labels(data.validation))


def head(name: str, *, weight: float = 0.5, pooling: Pooling = "prompt") -> HeadSpec:
    """One of the heads that `label` has labels for."""
    return HeadSpec(name, name, CLASSES[name], pooling, weight)


def with_heads(spec: TrialSpec, *heads: HeadSpec) -> TrialSpec:
    """A trial with heads."""
    return dataclasses.replace(spec, heads=heads)


def head_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """What a report says of heads."""
    return {name: value for name, value in metrics.items() if name.startswith("heads.")}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far apart two tensors are, beside the second."""
    return float((one - other).norm() / other.norm())


class HeadContract:
    """Each clause a test."""

    def make_engine(self, base: LoadedBase, data: PreparedData, *, max_micro_batch: int = 8) -> Engine:
        """The engine under test on a base."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def labelled(self, bench: Bench) -> PreparedData:
        """The bench's rows with labels."""
        return label(bench.data)

    @pytest.mark.parametrize(("pooling", "max_micro_batch"), [("prompt", 1), ("last", 4), ("mean", 1)])
    def test_heads_and_adapter_train_as_in_a_plain_torch_loop(
        self, bench: Bench, labelled: PreparedData, pooling: Pooling, max_micro_batch: int
    ) -> None:
        spec = with_heads(
            make_spec(
                lora={"lora_dropout": 0.0},
                lr_scheduler_type="cosine",
                learning_rate=2e-2,
                adam_epsilon=1e-3,
                weight_decay=0.01,
                logging_steps=1,
            ),
            head("length", weight=0.3, pooling=pooling),
            head("aggregate", weight=2.0, pooling="last"),
        )
        engine = self.make_engine(bench.base, labelled, max_micro_batch=max_micro_batch)
        reports = run_trial(engine, spec)
        state = engine.snapshot("0000")
        engine.evict("0000")
        assert state is not None
        plain = plain_training(spec, bench.base, labelled)
        seen = [loss for report in reports for _, loss in report.train_losses]
        assert seen == pytest.approx(plain.losses, rel=PLAIN_LOOP)
        assert state.adapter.keys() == plain.weights.keys()
        heads = [one.parameter_name for one in spec.heads]
        for name, tensor in plain.weights.items():
            assert distance(state.adapter[name], tensor) < (PLAIN_LOOP if name in heads else PLAIN_ADAPTER), name
        assert all(state.adapter[name].abs().max() > 0.01 for name in heads)
        expected = plain_head_answers(spec, plain.weights, bench.base, labelled.validation)
        for name, (accuracy, loss) in expected.items():
            assert reports[-1].metrics[f"heads.{name}.accuracy"] == pytest.approx(accuracy)
            assert reports[-1].metrics[f"heads.{name}.loss"] == pytest.approx(loss, rel=1e-4)

    def test_eval_loss_is_the_language_models_and_a_trial_without_heads_is_as_it_was(
        self, bench: Bench, labelled: PreparedData
    ) -> None:
        unlabelled = self.make_engine(bench.base, bench.data)
        plain = run_trial(unlabelled, make_spec())
        unlabelled.evict("0000")
        engine = self.make_engine(bench.base, labelled)
        without = run_trial(engine, make_spec())
        engine.evict("0000")
        # A head of no weight to speak of moves nothing, and its own loss is in no loss that is reported.
        light = run_trial(engine, with_heads(make_spec(), head("length", weight=1e-12)))
        engine.evict("0000")
        assert losses(without) == losses(plain)
        assert head_metrics(without[-1].metrics) == {}
        for (eval_a, train_a), (eval_b, train_b) in zip(losses(light), losses(plain), strict=True):
            assert eval_a == pytest.approx(eval_b, rel=1e-5)
            assert train_a == pytest.approx(train_b, rel=1e-5)

    @pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit"])
    def test_heads_go_on_from_a_state_as_if_nothing_had_happened(
        self, bench: Bench, labelled: PreparedData, tmp_path: Path, optim: str
    ) -> None:
        spec = with_heads(make_spec(optim=optim), head("length"), head("aggregate", pooling="mean"))
        engine = self.make_engine(bench.base, labelled)
        whole = run_trial(engine, spec)
        engine.evict("0000")
        first = run_trial(engine, spec, num_reports=1)
        state = engine.snapshot("0000")
        assert state is not None
        state.save(tmp_path / "state")
        engine.evict("0000")
        other = self.make_engine(load_nf4(), labelled)
        rest = run_trial(other, spec, state=TrialState.load(tmp_path / "state"))
        other.evict("0000")
        assert losses(first + rest) == losses(whole)
        assert [head_metrics(one.metrics) for one in first + rest] == [head_metrics(one.metrics) for one in whole]

    def test_saved_heads_have_the_reported_scores_and_say_what_they_are(
        self, bench: Bench, labelled: PreparedData, tmp_path: Path
    ) -> None:
        spec = with_heads(make_spec(), head("length"), head("aggregate", weight=0.3, pooling="last"))
        engine = self.make_engine(bench.base, labelled)
        reports = run_trial(engine, spec)
        engine.save_adapter("0000", tmp_path / "adapter")
        engine.evict("0000")
        assert tuple(one.spec for one in load_heads(tmp_path / "adapter")) == spec.heads
        scores = engine.score({"base": None, "0000": tmp_path / "adapter"}, labelled.validation, with_answers=False)
        assert scores["base"].heads == {}
        assert scores["0000"].heads.keys() == CLASSES.keys()
        for name, found in scores["0000"].heads.items():
            assert found.num_rows == sum(label >= 0 for label in labelled.validation.labels(name))
            assert found.accuracy == reports[-1].metrics[f"heads.{name}.accuracy"]
            assert found.loss == pytest.approx(reports[-1].metrics[f"heads.{name}.loss"], rel=1e-5)

    def test_heads_and_adapter_that_are_taken_out_of_a_state_are_those_that_the_engine_saves(
        self, bench: Bench, labelled: PreparedData, tmp_path: Path
    ) -> None:
        spec = with_heads(make_spec(), head("length"), head("aggregate", weight=0.3, pooling="last"))
        engine = self.make_engine(bench.base, labelled)
        run_trial(engine, spec, num_reports=1)
        save_both_ways(engine, tmp_path)
        assert tuple(one.spec for one in load_heads(tmp_path / "taken")) == spec.heads
        for name in (ADAPTER_WEIGHTS, HEADS_WEIGHTS):
            saved, taken = (load_file(tmp_path / folder / name) for folder in ("saved", "taken"))
            assert saved.keys() == taken.keys() and all(torch.equal(saved[one], taken[one]) for one in saved)
