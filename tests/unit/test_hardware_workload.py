"""What a pack takes by the memory model, against tensors that a real one makes and constants of the real engine."""

from __future__ import annotations

import random
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qlora_ray.config.schema import Lora, Training
from qlora_ray.data import TokenizedSplit
from qlora_ray.hardware import ModelShape, Workload, estimate_memory
from qlora_ray.hardware.memory_counts import pad_rank
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.modeling.quantization import QuantizationSpec
from qlora_ray.training.budget import make_budget
from qlora_ray.training.engine import TrainingData, TrialSpec
from qlora_ray.training.packed.engine import PackedEngine
from tests.unit.hardware_fixtures import LLAMA_8B
from tests.unit.model_fixtures import CONFIGS

NUM_TRIALS, BATCH, TOKENS, VOCABULARY = 3, 4, 96, 512
# As of the measured rows in test_hardware_memory.py: tensors within a tenth, never more than a twentieth under.
MOST_UNDER, MOST_OVER = 0.05, 0.10


class PeakMeter(TorchDispatchMode):
    """The most bytes of tensors that operators made and nobody let go of yet, but for a model's own."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.peak_bytes = self._bytes = 0
        self._sizes: dict[int, int] = {}
        self._model = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes or key in self._model:
            return
        self._sizes[key] = storage.nbytes()
        self._bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self._bytes -= self._sizes.pop(key)


def build_base() -> tuple[LoadedBase, ModelShape]:
    """A llama of six layers, unquantized, wide enough that its activations outweigh everything else."""
    import transformers

    name, sizes = CONFIGS["llama"]
    sizes = {**sizes, "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6}
    config = getattr(transformers, name)(**{**sizes, "num_key_value_heads": 4})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)
    model.config.use_cache = False
    spec = QuantizationSpec("none", 32, "torch", None, False, "fp32")
    return LoadedBase(model, SimpleNamespace(pad_token_id=0), spec, "cpu"), ModelShape.from_hf_config(config.to_dict())


def make_split(name: str, num_rows: int) -> TokenizedSplit:
    """Rows of TOKENS tokens, each an answer but for its first."""
    drawn = random.Random(0)
    ids = [[drawn.randrange(1, VOCABULARY) for _ in range(TOKENS)] for _ in range(num_rows)]
    return TokenizedSplit.of(name, ids, [[0, *[1] * (TOKENS - 1)]] * num_rows, [[1]] * num_rows, [""] * num_rows)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("targets", ["all-linear", "attention-qv"])
def test_a_pack_takes_the_memory_that_is_counted(targets, dropout, checkpointing):
    base, shape = build_base()
    data = TrainingData(make_split("train", 2 * BATCH), make_split("validation", 1))
    tokens = NUM_TRIALS * BATCH * TOKENS
    engine = PackedEngine(base, data, slots=NUM_TRIALS, max_tokens_per_micro_batch=tokens)
    training = Training(
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        max_samples=2 * BATCH,  # the second step has moments too
        optim="adamw_torch",
        gradient_checkpointing=checkpointing,
    )
    budget = make_budget(training, num_train_rows=len(data.train), num_reports=1)
    lora = Lora(r=8, lora_dropout=dropout, target_modules=targets)
    for number in range(NUM_TRIALS):
        engine.admit(TrialSpec(str(number), lora, training, budget))
    with PeakMeter(base.model) as meter:
        reports = engine.advance()
    assert [report.failure for report in reports] == [None] * NUM_TRIALS
    estimate = estimate_memory(
        shape,
        Workload(
            engine="packed",
            loss="labels",
            method="none",
            targets=targets,
            r=8,
            optim="adamw_torch",
            precision="fp32",
            seq_length=TOKENS,
            micro_batch_tokens=tokens,
            gradient_checkpointing=checkpointing,
            device_kind="cpu",
            lora_dropout=dropout,
            num_trials=NUM_TRIALS,
        ),
    )
    counted_bytes = estimate.adapter_bytes + estimate.activations_bytes + estimate.logits_bytes
    assert (1 - MOST_UNDER) * meter.peak_bytes <= counted_bytes <= (1 + MOST_OVER) * meter.peak_bytes


def test_a_pack_has_what_is_shared_once_and_an_adapter_per_trial():
    pack = Workload(engine="packed", loss="labels", micro_batch_tokens=2048)
    alone, eight = (estimate_memory(LLAMA_8B, replace(pack, num_trials=count)).to_dict() for count in (1, 8))
    assert eight["adapter_bytes"] == 8 * alone["adapter_bytes"]
    for part in ("base_bytes", "logits_bytes", "context_bytes", "dequantized_bytes"):
        assert eight[part] == alone[part]


def test_a_joining_trial_has_room_for_the_copy_of_the_stack():
    short = Workload(engine="packed", loss="labels", micro_batch_tokens=16, seq_length=16, num_trials=16, r=64)
    estimate = estimate_memory(LLAMA_8B, short)
    copied_bytes = 16 * 8 * LLAMA_8B.num_adapter_parameters("all-linear", 64)
    assert estimate.activations_bytes + estimate.logits_bytes == copied_bytes


def test_ranks_are_padded_to_powers_of_two_from_eight_on():
    assert [pad_rank(r) for r in (1, 4, 8, 9, 12, 16, 24, 64, 65)] == [8, 8, 8, 16, 16, 16, 32, 64, 128]
