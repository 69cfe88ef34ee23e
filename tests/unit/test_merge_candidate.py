"""Merged weights are what PEFT merges on an unquantized base, and what was trained on a quantized one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError
from qlora_ray.exporting.merge.candidate import write_side_files
from qlora_ray.exporting.merge.checkpoint import open_checkpoint
from tests.unit.hub_fixtures import FIRST, SECOND, use_download_hub, use_modules_cache
from tests.unit.merge_fixtures import load_merged, loaded, merge_only, merged_by_peft, save_adapter, save_base

TOKENS = torch.arange(3, 43)[None]
# fp32 sums of some hundred products, in another order: a few of the last bits.
TOLERANCE = 1e-6
ADAPTERS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def make(kind, dtype=torch.float32):
        if (kind, dtype) not in made:
            made[kind, dtype] = save_base(tmp_path_factory.mktemp(kind) / "base", kind, dtype=dtype)
        return made[kind, dtype]

    return make


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def trained_logits(base, adapter, method="none"):
    with loaded(base, adapter, method) as trained:
        return logits(trained.tuned)


def assert_same_weights(found, expected):
    state, wanted = found.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(state[name], tensor, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("adapter_kind", ADAPTERS)
def test_the_merge_on_an_unquantized_base_is_pefts(kind, adapter_kind, bases, tmp_path):
    options = ADAPTERS[adapter_kind]
    if kind == "gpt2" and "rank_pattern" in options:
        options = {"rank_pattern": {"h.0.attn.c_proj": 2}, "alpha_pattern": {"c_attn": 3}}
    adapter = save_adapter(tmp_path / "adapter", bases(kind), kind=kind, **options)

    candidate = merge_only(bases(kind), adapter, tmp_path / "merged")

    merged = load_merged(tmp_path / "merged")
    assert_same_weights(merged, merged_by_peft(bases(kind), adapter))
    assert not torch.allclose(logits(merged), logits(load_merged(bases(kind))), atol=0.1)
    assert candidate.changed_share > 0.9


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("adapter_kind", ["lora", "dora"])
def test_the_dequantized_merge_says_what_the_trained_model_says(kind, method, adapter_kind, bases, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", bases(kind), kind=kind, **ADAPTERS[adapter_kind])
    merge_only(bases(kind), adapter, tmp_path / "merged", method=method, rule="dequant")

    expected = trained_logits(bases(kind), adapter, method)
    distance = (logits(load_merged(tmp_path / "merged")) - expected).abs().max()
    from_base = (logits(load_merged(bases(kind))) - expected).abs().max()
    # LLM.int8() rounds activations too, which no merged weight can.
    assert distance < (0.05 * from_base if method == "int8" else 1e-4)


def test_dequantized_layers_that_the_adapter_leaves_alone_are_as_the_adapter_was_trained_on(bases, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", bases("llama"), target_modules=["q_proj"])
    merge_only(bases("llama"), adapter, tmp_path / "merged", method="nf4", rule="dequant")

    merged = load_file(tmp_path / "merged" / "model.safetensors")
    with loaded(bases("llama"), adapter, "nf4") as trained:
        layer = trained.tuned.get_base_model().model.layers[0].mlp.up_proj
        # A layer's rows are what it makes of the unit vectors.
        rows = layer(torch.eye(64)).T
    torch.testing.assert_close(merged["model.layers.0.mlp.up_proj.weight"], rows.detach(), atol=1e-6, rtol=0)


def test_with_w16_tensors_that_the_adapter_leaves_alone_keep_their_bytes(bases, tmp_path):
    base = bases("qwen2", torch.bfloat16)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    merge_only(base, adapter, tmp_path / "merged", method="nf4")

    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {
        name for name, one in before.items() if not torch.equal(one.view(torch.int16), after[name].view(torch.int16))
    }
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


@pytest.mark.parametrize(
    ("options", "is_tied"),
    [
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"modules_to_save": ["lm_head", "model.norm"]}, False),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, False),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
    ],
)
def test_a_tied_pair_is_written_apart_unless_it_was_trained_as_one(options, is_tied, bases, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", bases("qwen2"), **options)
    merge_only(bases("qwen2"), adapter, tmp_path / "merged", max_shard_bytes=50_000)

    merged = load_merged(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), trained_logits(bases("qwen2"), adapter), atol=1e-4, rtol=0)
    assert merged.config.tie_word_embeddings is is_tied
    names = {name for file in (tmp_path / "merged").glob("*.safetensors") for name in load_file(file)}
    assert ("lm_head.weight" in names) is not is_tied


def test_a_tied_pair_stays_one_tensor_where_the_adapter_leaves_it_alone(bases, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", bases("llama-tied"))
    merge_only(bases("llama-tied"), adapter, tmp_path / "merged", head_dtype="bf16")

    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert tensors["model.norm.weight"].dtype == torch.float32


def test_the_head_can_be_kept_in_another_dtype_than_the_rest(bases, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", bases("llama"))
    merge_only(bases("llama"), adapter, tmp_path / "merged", dtype="bf16", head_dtype="fp32")

    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert tensors["lm_head.weight"].dtype == torch.float32
    assert {tensor.dtype for name, tensor in tensors.items() if name != "lm_head.weight"} == {torch.bfloat16}
    # As the report's note says: from_pretrained goes by config.json.
    assert load_merged(tmp_path / "merged").lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (300.0, r"model\.layers\.\d\.\S+ must fit torch.float16 \(at most 65504\), got .*bf16"),
        (float("nan"), "must be finite, got NaN or infinity"),
    ],
)
def test_a_merge_that_overflows_or_has_nan_is_refused(scale, message, bases, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", bases("llama"), scale=scale)
    with pytest.raises(ModelError, match=message):
        merge_only(bases("llama"), adapter, tmp_path / "merged", dtype="fp16")


def test_older_configs_keep_their_name_for_the_dtype_and_custom_code_comes_along(tmp_path):
    base = save_base(tmp_path / "base", "llama")
    config = json.loads((base / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    config["auto_map"] = {"AutoConfig": "configuration_own.OwnConfig"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "configuration_own.py").write_text("# a base's own code\n")
    adapter = save_adapter(tmp_path / "adapter", base)
    merge_only(base, adapter, tmp_path / "merged", dtype="bf16")

    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert written == {**config, "torch_dtype": "bfloat16"}
    assert (tmp_path / "merged" / "configuration_own.py").is_file()
    generation = [(folder / "generation_config.json").read_bytes() for folder in (base, tmp_path / "merged")]
    assert generation[0] == generation[1]
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_the_own_code_of_a_hub_base_is_that_of_the_pinned_commit(tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(save_base(tmp_path / "plain", "llama"))

    def write_base(folder, origin):
        save_base(folder, "llama")
        config = json.loads((folder / "config.json").read_text())
        config |= {
            "model_type": "own",
            "auto_map": {
                "AutoConfig": "configuration_own.OwnConfig",
                "AutoModel": "org/code--modeling_own.OwnModel",
                "AutoTokenizer": ["org/other--tokenization_theirs.Tokenizer", None],
            },
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "configuration_own.py").write_text(
            "from transformers import LlamaConfig\nfrom .origin_own import ORIGIN\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n    origin = ORIGIN\n"
        )
        (folder / "origin_own.py").write_text(f"ORIGIN = {origin!r}\n")
        (folder / "modeling_own.py").write_text("class OwnModel: ...\n")
        (folder / "setup.py").write_text("# not what the config names\n")
        return folder

    modules = use_modules_cache(tmp_path / "modules", monkeypatch)
    with modules, use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.publish("org/code", FIRST, write_base(tmp_path / "first", "reviewed"))
        checkpoint = open_checkpoint(Model(name="org/code", revision=FIRST))
        hub.publish("org/code", SECOND, write_base(tmp_path / "second", "moved since"))
        merged = tmp_path / "merged"
        merged.mkdir()
        write_side_files(
            merged,
            checkpoint=checkpoint,
            plan=SimpleNamespace(dtype="fp32", tying="not tied"),
            tokenizer=tokenizer,
        )
        assert AutoConfig.from_pretrained(merged, trust_remote_code=True).origin == "reviewed"
    assert {path.stem for path in merged.glob("*.py")} == {"configuration_own", "modeling_own", "origin_own"}
    assert json.loads((merged / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModel": "modeling_own.OwnModel",
        "AutoTokenizer": ["org/other--tokenization_theirs.Tokenizer", None],
    }


def test_a_base_that_knows_no_end_keeps_its_generation_config(tmp_path):
    base = save_base(tmp_path / "base", "llama")
    (base / "generation_config.json").write_text('{"temperature": 0.5}')
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = tokenizer.chat_template = None
    merged = tmp_path / "merged"
    merged.mkdir()
    plan = SimpleNamespace(dtype="fp32", tying="not tied")
    write_side_files(merged, checkpoint=open_checkpoint(Model(name=str(base))), plan=plan, tokenizer=tokenizer)
    assert (merged / "generation_config.json").read_text() == '{"temperature": 0.5}'


def test_the_merged_model_ends_with_what_answers_were_trained_to_end_with(tmp_path):
    base = save_base(tmp_path / "base", "llama")
    tokenizer = AutoTokenizer.from_pretrained(base)
    own = tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(70)]})
    (tmp_path / "merged").mkdir()
    write_side_files(
        tmp_path / "merged",
        checkpoint=open_checkpoint(Model(name=str(base))),
        plan=SimpleNamespace(dtype="fp32", tying="not tied"),
        tokenizer=tokenizer,
        end=70,
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token_id == 70
    assert tokenizer.eos_token == own
    written = GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id
    assert set(written) == {70, tokenizer.eos_token_id}
