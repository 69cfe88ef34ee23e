"""Merged models are measured as they were written, on the CPU where the device has no room, and quantized again."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from qlora_ray.exporting.merge import merged_models
from qlora_ray.exporting.merge.measure import Runner, choose_rows, measure_reference
from qlora_ray.exporting.merge.merged_models import MergedModels
from qlora_ray.exporting.merge.plan import MergePlan
from tests.unit.merge_fixtures import SPLIT, as_model, loaded, merge_only, save_adapter, save_base

pytestmark = pytest.mark.slow

PLAN = MergePlan({}, "fp32", "fp32", "separate", "fp32", 0)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """A dequantized merge, and the models it is held against: those of its base and adapter."""
    folder = tmp_path_factory.mktemp("merged")
    base = save_base(folder / "base", "llama")
    adapter = save_adapter(folder / "adapter", base)
    candidate = merge_only(base, adapter, folder / "dequant", method="nf4", rule="dequant")
    scratch = folder / "scratch"
    scratch.mkdir()
    with loaded(base, adapter, "nf4") as one:
        rows = choose_rows(SPLIT, vocab_size=259)
        runner = Runner(one.tuned, one.tokenizer, "fp32")
        reference = measure_reference(runner, rows, name="nf4 + adapter", dtype="nf4", folder=scratch)
    return candidate, reference, as_model(base, "nf4")


def models(merged, *, device="cpu", **changes):
    _, reference, (model, quantization) = merged
    return MergedModels(model, changes.get("quantization", quantization), reference, PLAN, device)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_candidate_is_measured_as_it_was_written_and_on_the_cpu_where_it_does_not_fit(merged, monkeypatch, device):
    load = merged_models.load_base

    def load_or_run_out(model, *, quantization, device):
        if device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(model, quantization=quantization, device=device)

    monkeypatch.setattr(merged_models, "load_base", load_or_run_out)
    candidate, found = merged[0], models(merged, device=device)
    figures = found.measure(candidate)
    assert (figures.name, figures.dtype, figures.num_shards) == ("dequant", "fp32", 1)
    assert figures.changed_share == candidate.changed_share
    assert figures.kl < 1e-7
    assert figures.token_agreement == figures.answer_agreement == 1.0
    assert len(found.notes) == (device != "cpu")
    assert all(note.startswith("dequant: ") and "cuda:0" in note for note in found.notes)


def test_a_model_that_fits_nowhere_is_an_error(merged, monkeypatch):
    def run_out(model, *, quantization, device):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(merged_models, "load_base", run_out)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        models(merged).measure(merged[0])


def test_the_quantized_copy_loads_by_itself_as_what_was_measured(merged, tmp_path):
    figures = models(merged).quantize_again(merged[0], tmp_path, max_shard_bytes=10**9)

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert config["use_cache"] is True
    assert (figures.name, figures.dtype, figures.num_shards) == ("nf4 copy", "nf4", 1)
    assert figures.num_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert 0 < figures.kl < 1
    copy = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(copy.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    assert copy.lm_head.weight.dtype == torch.float32


def test_a_base_of_another_kind_is_copied_as_nf4(merged, tmp_path):
    _, int8 = as_model(tmp_path, "int8")
    figures = models(merged, quantization=int8).quantize_again(merged[0], tmp_path, max_shard_bytes=10**9)
    assert figures.dtype == "nf4"
