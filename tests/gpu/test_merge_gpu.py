"""The merge on a GPU: what was trained in bf16 on NF4 there is what the merged model says."""

from __future__ import annotations

import pytest
import torch

from qlora_ray.config.schema import Data, Lora, Model
from qlora_ray.data import prepare_data
from qlora_ray.exporting.merge.options import MergeOptions
from qlora_ray.exporting.merge.run import merge_adapter
from qlora_ray.modeling.adapters import attach_adapter, save_adapter
from qlora_ray.modeling.loading import load_base, load_tokenizer
from qlora_ray.modeling.quantization import specify_quantization

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda:0"
# Moves the embedded base well away from itself; the test holds it to MIN_EFFECT. Activations in bf16 alone put the
# trained model and an exact merge 1e-4 nats apart (measured on a CPU), which a weak adapter would not stand out from.
NOISE = 0.1
MIN_EFFECT = 0.1


@pytest.fixture(scope="module")
def precision():
    return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"


@pytest.fixture(scope="module")
def validation():
    return prepare_data(Data(max_length=256), tokenizer=load_tokenizer(Model()), data_seed=7).validation


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_merge_kept_on_a_gpu_is_close_to_the_trained_model(use_dora, precision, validation, tmp_path):
    model = Model()
    quantization = specify_quantization(model.quantization, compute_dtype=precision)
    base = load_base(model, quantization=quantization, device=DEVICE)
    tuned = attach_adapter(base, Lora(r=8, use_dora=use_dora, modules_to_save=["lm_head"]), seed=7)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += NOISE * torch.randn_like(parameter)
    save_adapter(tuned, tmp_path / "adapter")
    del base, tuned

    report = merge_adapter(
        tmp_path / "adapter",
        model=model,
        quantization=quantization,
        held_out=validation,
        to=tmp_path / "merged",
        options=MergeOptions(dtype="fp32", nf4_copy=True, max_shard_bytes=10**6),
        device=DEVICE,
        tell=lambda line: None,
    )

    trained, of_base, *_ = report.models
    assert not any("on the CPU" in note for note in report.notes)
    assert report.tying == "untied by the merge"
    assert of_base.kl > MIN_EFFECT
    # The trained model computes in 16 bits, the merged one in fp32: rounding of activations is what is left.
    assert report.kept.kl < 0.02 * of_base.kl
    assert abs(report.kept.loss_difference) < 0.02 * abs(of_base.loss_difference) + 0.01
    assert report.kept.num_shards > 1
    assert trained.kl == 0
