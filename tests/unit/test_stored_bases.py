"""Bases that are stored quantized: held as they are, never quantized again, merged where their format allows it."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import pytest
import torch
import transformers

from qlora_ray import plan
from qlora_ray.config.schema import Lora, Model, Quantization
from qlora_ray.errors import ModelError
from qlora_ray.exporting.merge.checkpoint import open_checkpoint
from qlora_ray.exporting.merge.options import MergeOptions
from qlora_ray.exporting.merge.run import merge_adapter
from qlora_ray.hardware.memory_counts import count_base_bytes
from qlora_ray.hardware.stored import read_stored
from qlora_ray.hardware.workload import Workload
from qlora_ray.modeling import stored_base
from qlora_ray.modeling.adapters import saved_adapter
from qlora_ray.modeling.loading import load_base, read_config, read_shape, specify_base
from qlora_ray.modeling.packing import find_packing_problem
from qlora_ray.modeling.quantization import specify_quantization
from qlora_ray.modeling.shape import count_shape
from qlora_ray.modeling.stored_base import check_adapters, specify_stored
from qlora_ray.modeling.targets import build_skeleton
from tests.unit.merge_fixtures import SPLIT, load_merged, save_adapter, save_base
from tests.unit.stored_fixtures import AWQ, GPTQ, claim_quantized, save_quantized

IDS = torch.arange(6, 30).reshape(2, 12)


def packed_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The bytes of all layers that bitsandbytes holds."""
    kinds = bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt
    return {name: module.weight.data for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize(("method", "double"), [("nf4", True), ("nf4", False), ("fp4", True), ("int8", True)])
def test_what_bitsandbytes_quantized_is_loaded_byte_by_byte_whatever_the_config_asks(method, double, tmp_path):
    model = Model(name=str(save_quantized(tmp_path / "base", method, double=double)), quantization=Quantization())
    spec = specify_base(model, compute_dtype="fp32")
    expected = specify_quantization(
        Quantization(method=method, double_quantization=double), compute_dtype="fp32"
    ).to_dict()
    assert spec.to_dict() == {**expected, "is_stored": True}
    base = load_base(model, quantization=spec, device="cpu")
    fresh = load_base(
        Model(), quantization=specify_quantization(Quantization(method=method), compute_dtype="bf16"), device="cpu"
    )
    weights, originals = packed_weights(base.model), packed_weights(fresh.model)
    assert len(weights) == 7 * 4 and weights.keys() == originals.keys()
    assert all(torch.equal(weight, originals[name]) for name, weight in weights.items())
    # What products are computed in is this device's, not that of whoever quantized it.
    dtypes = {module.compute_dtype for module in base.model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert dtypes <= {torch.float32}


@pytest.mark.parametrize(
    ("written", "words"), [(GPTQ, "gptq with 4 bits in groups of 32"), (AWQ, "awq with 4 bits in groups of 128")]
)
def test_a_base_whose_library_is_not_there_is_one_line_that_says_what_to_install(written, words, tmp_path, capsys):
    base = claim_quantized(tmp_path / "base", written)
    assert plan.main(["--set", f"model.name={base}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"model.name: {base} is stored in {words}: ")
    assert "pip install 'gptqmodel>=7.0' 'optimum>=1.24'" in line


@pytest.mark.parametrize(
    ("installed", "missing"), [("6.0.3", True), ("7.0.0", False), ("7.6.0", False), ("10.1", False)]
)
def test_the_least_version_is_pefts(installed, missing, monkeypatch):
    found = {"gptqmodel": installed, "optimum": "2.3.0"}
    monkeypatch.setattr(stored_base, "version", found.__getitem__)
    stored = read_stored({"quantization_config": GPTQ})
    if missing:
        with pytest.raises(ModelError, match=r"got no gptqmodel>=7\.0\. Install"):
            specify_stored(stored, compute_dtype="fp16", where="model.name: x")
        return
    spec = specify_stored(stored, compute_dtype="fp16", where="model.name: x").to_dict()
    assert spec == {
        "method": "gptq",
        "bits": 4,
        "backend": "gptqmodel",
        "block_size": 32,
        "double_quantization": False,
        "compute_dtype": "fp16",
        "is_stored": True,
        "symmetric": True,
        "desc_act": False,
        "layout": "gptq",
    }


def test_a_format_that_nothing_here_trains_is_refused(tmp_path):
    model = Model(name=str(claim_quantized(tmp_path / "base", {"quant_method": "fp8"})))
    with pytest.raises(ModelError, match=r"must be unquantized, or stored by bitsandbytes, GPTQ or AWQ, got fp8\."):
        specify_base(model, compute_dtype="bf16")


def test_gptqs_layers_are_not_packed_and_take_no_dora(tmp_path):
    model = Model(name=str(claim_quantized(tmp_path / "base", GPTQ)))
    problem = find_packing_problem(build_skeleton(model), [Lora()])
    assert problem == "model.name: the base is stored in gptq, whose layers packed trials cannot share"
    with pytest.raises(ModelError, match=r"lora\.use_dora must be false on a base that is stored in gptq"):
        check_adapters(read_stored(read_config(model)), [Lora(), Lora(use_dora=True)])


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_a_checkpoints_scales_are_no_weights(method, tmp_path):
    plain = open_checkpoint(Model(name=str(save_base(tmp_path / "plain", "llama"))))
    stored = open_checkpoint(Model(name=str(save_quantized(tmp_path / "base", method, source=plain.name))))
    assert stored.tensors.keys() == plain.tensors.keys()
    assert "quantization_config" not in stored.config
    shapes = {name: tensor.shape for name, tensor in plain.tensors.items() if "proj" in name}
    found = stored.as_dequantized(shapes).tensors
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in plain.tensors.items()
    }
    assert {tensor.dtype for tensor in found.values()} == {"BF16"}


@pytest.mark.slow
def test_a_merge_into_a_base_that_bitsandbytes_stored_computes_what_was_trained(tmp_path):
    plain = save_base(tmp_path / "plain", "llama")
    adapter = save_adapter(tmp_path / "adapter", plain)
    model = Model(name=str(save_quantized(tmp_path / "base", "nf4", source=str(plain))))
    spec = specify_base(model, compute_dtype="fp32")
    report = merge_adapter(
        adapter,
        model=model,
        quantization=spec,
        held_out=SPLIT,
        to=tmp_path / "merged",
        options=MergeOptions(dtype="fp32"),
        device="cpu",
        tell=lambda line: None,
    )
    assert (report.rule, report.quantization) == ("dequant", spec.to_dict())
    merged = load_merged(tmp_path / "merged")
    assert "quantization_config" not in merged.config.to_dict()
    base = load_base(model, quantization=spec, device="cpu")
    with saved_adapter(base, adapter) as tuned, torch.no_grad():
        expected, found = tuned.eval()(input_ids=IDS).logits, merged(input_ids=IDS).logits
    assert torch.allclose(expected, found, atol=1e-4)


def test_original_weights_that_are_not_there_cannot_be_merged_into(tmp_path):
    plain = save_base(tmp_path / "plain", "llama")
    adapter = save_adapter(tmp_path / "adapter", plain)
    model = Model(name=str(save_quantized(tmp_path / "base", "nf4", source=str(plain))))
    with pytest.raises(ModelError, match=r"--merge w16 must have the base's original weights, got .* nf4"):
        merge_adapter(
            adapter,
            model=model,
            quantization=specify_base(model, compute_dtype="fp32"),
            held_out=SPLIT,
            to=tmp_path / "merged",
            options=MergeOptions(rule="w16"),
            device="cpu",
            tell=lambda line: None,
        )


def test_modules_that_were_left_out_are_counted_by_the_compute_dtype(tmp_path: Path):
    # As unsloth's dynamic 4-bit bases leave some out.
    quantized = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head", "model.layers.1.mlp"]
    )
    plain = save_base(tmp_path / "plain", "llama", dtype=torch.bfloat16)
    saved = transformers.AutoModelForCausalLM.from_pretrained(plain, quantization_config=quantized)
    saved.save_pretrained(tmp_path / "base")
    model = Model(name=str(tmp_path / "base"))
    shape = count_shape(build_skeleton(model), read_shape(model))
    sizes = {
        name: module.in_features * module.out_features
        for name, module in saved.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    kept = sum(size for name, size in sizes.items() if name.startswith("layers.1.mlp"))
    assert shape.stored is not None and shape.stored.skipped_share == kept / sum(sizes.values()) > 0.2
    workload = Workload(method="nf4", double_quantization=False, precision="bf16")
    quantized_bytes = (sum(sizes.values()) - kept) * (0.5 + 4 / 64)
    others = sum(
        parameter.numel() for name, parameter in saved.named_parameters() if name.split(".")[-2] not in _last(sizes)
    )
    assert count_base_bytes(shape, workload) == int(quantized_bytes + 2 * kept + 2 * others)


def _last(names: dict[str, int]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def test_transformers_itself_reads_the_folders_as_this_project_does(tmp_path: Path):
    base = save_quantized(tmp_path / "base", "nf4")
    config = transformers.AutoConfig.from_pretrained(base)
    assert read_stored(config.to_dict()) == read_stored(read_config(Model(name=str(base))))
