"""The base is loaded frozen, quantized and guarded, or refused with one line that says what to do."""

from __future__ import annotations

import json

import bitsandbytes
import pytest
import torch

from qlora_ray import embedded
from qlora_ray.config.schema import Model, Quantization
from qlora_ray.errors import ModelError
from qlora_ray.modeling.loading import hash_base, load_base, load_tokenizer, read_shape, resolve_model_name
from qlora_ray.modeling.quantization import specify_quantization
from tests.unit.model_fixtures import assert_same_state, clone_state, copy_base

NF4 = specify_quantization(Quantization(), compute_dtype="fp32")
NONE = specify_quantization(Quantization(method="none"), compute_dtype="fp32")
NUM_LAYERS = 4
LINEARS_PER_LAYER = 7  # q, k, v, o, gate, up, down
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def load(name="embedded", spec=NF4):
    return load_base(Model(name=str(name)), quantization=spec, device="cpu")


@pytest.fixture(scope="module")
def base():
    return load()


def linears(base):
    return [module for module in base.model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_every_linear_but_the_head_is_four_bit(base):
    assert len(linears(base)) == NUM_LAYERS * LINEARS_PER_LAYER
    assert not isinstance(base.model.get_output_embeddings(), bitsandbytes.nn.Linear4bit)
    for module in linears(base):
        state = module.weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize, state.state2.blocksize) == ("nf4", True, 64, 256)
        assert module.weight.dtype is torch.uint8
        assert module.weight.numel() * 2 == module.in_features * module.out_features
        assert module.support_avx512bf16_for_cpu is False  # that path repacks weights in place


def test_the_base_is_frozen_keeps_no_cache_and_has_the_shape_that_is_read(base):
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    config = base.model.config
    assert (base.precision, base.device, config.use_cache) == ("fp32", "cpu", False)
    shape = read_shape(Model())
    assert (shape.num_layers, shape.hidden_size) == (NUM_LAYERS, config.hidden_size)
    assert config.num_hidden_layers == NUM_LAYERS


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_forwards_in_eval_mode_leave_every_byte_of_the_base_as_it_was(precision):
    spec = specify_quantization(Quantization(), compute_dtype=precision)
    model = load(spec=spec).model.eval()
    before = clone_state(model)
    with torch.no_grad():
        for num_tokens in (1, 8, 40):
            model(torch.arange(20, 20 + num_tokens)[None])
    assert_same_state(model, before)


def test_nf4_weights_are_the_original_ones_within_the_error_of_four_bits(base):
    plain = load(spec=NONE).model
    name = "model.layers.0.mlp.down_proj"
    module = base.model.get_submodule(name)
    restored = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    original = plain.get_submodule(name).weight
    # NF4's widest gap between neighbours is 0.304 of a block's largest weight (arXiv 2305.14314, appendix E).
    bound = original.abs().reshape(-1, 64).amax(1) * (0.304 / 2 + 0.01)
    assert ((restored - original).reshape(-1, 64).abs().amax(1) <= bound).all()


@pytest.mark.parametrize(("method", "kind"), [("fp4", "Linear4bit"), ("int8", "Linear8bitLt"), ("none", "Linear")])
def test_every_method_loads_what_it_says(method, kind):
    model = load(spec=specify_quantization(Quantization(method=method), compute_dtype="fp32")).model
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == kind
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(20, 30)[None]).logits).all()


def test_the_tokenizer_pads_on_the_right_with_a_pad_token(base):
    assert base.tokenizer.padding_side == "right"
    assert base.tokenizer.pad_token_id == base.model.config.pad_token_id == 1


def test_a_tokenizer_without_a_pad_token_pads_with_its_eos_or_is_refused(tmp_path):
    folder = copy_base(tmp_path / "base")
    edit_json(folder / "tokenizer_config.json", lambda config: config.pop("pad_token"))
    assert load_tokenizer(Model(name=str(folder))).pad_token == "<|end|>"
    edit_json(folder / "tokenizer_config.json", lambda config: config.pop("eos_token"))
    with pytest.raises(ModelError, match="neither a pad nor an eos token"):
        load_tokenizer(Model(name=str(folder)))


def refused(name):
    with pytest.raises(ModelError, match=r"^model\.name: ") as caught:
        load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such", "no/such/folder", "~/no/such/folder"])
def test_a_missing_folder_is_named_before_anything_is_downloaded(name):
    assert "is not a folder" in refused(name)
    with pytest.raises(ModelError, match="is not a folder"):
        read_shape(Model(name=name))


def test_a_folder_without_a_config_is_refused(tmp_path):
    assert f"{tmp_path} cannot be loaded" in refused(tmp_path)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_shape(Model(name=str(tmp_path)))


@pytest.mark.parametrize(
    ("without", "fact"),
    [
        (TOKENIZER_FILES, "the tokenizer of {} cannot be loaded: "),
        (("model.safetensors",), "no file named model.safetensors"),
    ],
)
def test_a_folder_without_a_tokenizer_or_weights_is_refused(tmp_path, without, fact):
    folder = copy_base(tmp_path / "base", without=without)
    assert fact.format(folder) in refused(folder)


def test_an_architecture_that_transformers_lacks_is_refused(tmp_path):
    folder = copy_base(tmp_path / "base")
    edit_json(folder / "config.json", lambda config: config.update(model_type="martian"))
    assert "model type `martian`" in refused(folder)


@pytest.mark.parametrize("content", [b"", b"garbage!" * 100, "cut"], ids=["empty", "garbage", "cut"])
def test_weights_that_are_corrupt_are_refused(tmp_path, content):
    folder = copy_base(tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000] if content == "cut" else content)
    assert refused(folder).startswith(f"model.name: {folder} cannot be loaded: ")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate")]
)
def test_a_machine_without_room_is_not_a_broken_folder(monkeypatch, error):
    def fill(*_, **__):
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fill)
    with pytest.raises(type(error)) as caught:
        load()
    assert caught.value is error


@pytest.mark.parametrize(
    ("content", "message"),
    [("{half", "config.json cannot be read: Expecting"), ("[]", "config.json must be a JSON object, got list")],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        read_shape(Model(name=str(tmp_path)))
    refused(tmp_path)


def test_a_folder_in_the_home_is_found_and_other_names_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    copy_base(tmp_path / "base", without=("model.safetensors",))
    assert resolve_model_name("~/base") == str(tmp_path / "base")
    assert len(load_tokenizer(Model(name="~/base"))) == 1024
    assert resolve_model_name("embedded") == str(embedded.base_path())
    assert resolve_model_name("org/model") == "org/model"


def test_the_hash_is_of_weights_and_config_and_of_nothing_else(tmp_path):
    first = copy_base(tmp_path / "a")
    second = copy_base(tmp_path / "b", without=TOKENIZER_FILES)
    hashes = [hash_base(Model(name=name)) for name in ("embedded", str(first), str(second))]
    assert len(set(hashes)) == 1 and len(hashes[0]) == len("sha256:") + 64
    edit_json(first / "config.json", lambda config: config.update(rms_norm_eps=1e-6))
    weights = bytearray((second / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (second / "model.safetensors").write_bytes(weights)
    assert len({hashes[0], hash_base(Model(name=str(first))), hash_base(Model(name=str(second)))}) == 3


def test_a_hub_model_is_known_by_its_commit():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert hash_base(Model(name="org/model", revision=commit)) == f"hub:org/model@{commit}"
