"""The merged model's tensors keep the checkpoint's names, and their dtypes are as asked."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_ray.errors import ModelError
from qlora_ray.exporting.merge.checkpoint import open_checkpoint
from qlora_ray.exporting.merge.plan import plan_merge
from tests.unit.merge_fixtures import loaded, save_adapter, save_base


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tied base in bf16 with an adapter, loaded."""
    folder = tmp_path_factory.mktemp("llama")
    base = save_base(folder / "base", "llama-tied", dtype=torch.bfloat16)
    with loaded(base, save_adapter(folder / "adapter", base)) as one:
        yield one


def plan(one, *, dtype="checkpoint", head_dtype=None, checkpoint=None):
    checkpoint = checkpoint or open_checkpoint(one.model)
    return plan_merge(checkpoint, one.names, one.changes, dtype=dtype, head_dtype=head_dtype)


def test_checkpoint_keeps_every_name_dtype_and_size(llama):
    stored = load_file(f"{llama.model.name}/model.safetensors")
    found = plan(llama)

    assert found.tensors.keys() == stored.keys()
    assert {name: one.num_bytes for name, one in found.tensors.items()} == {
        name: tensor.nbytes for name, tensor in stored.items()
    }
    assert (found.dtype, found.head_dtype, found.tying) == ("bf16", "bf16", "tied")
    assert found.num_bytes == sum(tensor.nbytes for tensor in stored.values())


def test_a_dtype_that_is_asked_for_is_every_tensors_and_a_tied_heads_is_the_embeddings(llama):
    found = plan(llama, dtype="fp32", head_dtype="fp16")
    assert (found.stored_dtype, found.stored_bytes) == ("bf16", plan(llama).num_bytes)

    assert found.tensors.pop("model.embed_tokens.weight").dtype == found.head_dtype == "fp16"
    assert {one.dtype for one in found.tensors.values()} == {"fp32"}


def test_a_tensor_that_is_no_parameter_or_no_weight_passes_as_it_is(llama, tmp_path):
    checkpoint = open_checkpoint(llama.model)
    path = tmp_path / "extra.safetensors"
    save_file({"counts": torch.tensor([1, 2]), "rope.inv_freq": torch.tensor([1.0, 0.5])}, path)
    one = next(iter(checkpoint.tensors.values()))
    extra = {
        "counts": dataclasses.replace(one, file=path, dtype="I64", shape=(2,)),
        "rope.inv_freq": dataclasses.replace(one, file=path, dtype="F32", shape=(2,)),
    }
    found = plan(llama, checkpoint=dataclasses.replace(checkpoint, tensors=checkpoint.tensors | extra))

    assert found.tensors["counts"].dtype is None
    assert found.tensors["counts"].num_bytes == 16
    assert found.tensors["rope.inv_freq"].dtype == "fp32"
    assert found.tensors["rope.inv_freq"].parameter is None


def test_a_layer_that_the_checkpoint_stores_under_another_name_is_named(llama):
    checkpoint = open_checkpoint(llama.model)
    fused = {name.replace("layers.1.self_attn.v_proj", "layers.1.qkv"): one for name, one in checkpoint.tensors.items()}
    with pytest.raises(ModelError, match=r"got none for model\.layers\.1\.self_attn\.v_proj\.weight \(1 in all\)"):
        plan(llama, checkpoint=dataclasses.replace(checkpoint, tensors=fused))
