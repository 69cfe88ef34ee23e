"""What the card says of servers: vLLM's ranks, what servers refuse, and llama.cpp's names of our tensors."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace

import gguf
import pytest
from safetensors import safe_open

from qlora_ray import embedded
from qlora_ray.config.schema import Data, Lora, Model, Quantization
from qlora_ray.data import prepare_data
from qlora_ray.exporting.selection import select_trial
from qlora_ray.exporting.serving.guide import find_gguf_problem, find_vllm_problem, find_vllm_rank, guide_serving
from qlora_ray.modeling.adapters import attach_adapter, save_adapter
from qlora_ray.modeling.loading import load_base, read_shape
from qlora_ray.modeling.quantization import specify_quantization
from qlora_ray.runs.record_parts import LoraRecord
from tests.exporting_fixtures import write_sweep
from tests.unit.data_tokenizer import build_byte_level

PLAIN = LoraRecord(r=16, bias="none", use_dora=False, use_rslora=False)


@pytest.fixture
def selection(tmp_path):
    return select_trial(write_sweep(tmp_path / "s"))


def commands_of(guide):
    return [
        shlex.split(line) for code in re.findall(r"```bash\n(.+?)\n```", guide, re.DOTALL) for line in code.splitlines()
    ]


@pytest.mark.parametrize(
    ("r", "rank"), [(1, 1), (2, 8), (8, 8), (9, 16), (24, 32), (65, 128), (257, 320), (321, 512), (513, None)]
)
def test_the_rank_is_the_least_that_vllm_takes_and_that_holds_the_adapter(r, rank):
    assert find_vllm_rank(r) == rank


@pytest.mark.parametrize(
    ("change", "vllm", "llama_cpp"),
    [
        ({}, None, None),
        ({"use_rslora": True}, None, "--lora-scaled adapter.gguf:4"),
        ({"use_dora": True}, "DoRA", "merged"),
        ({"modules_to_save": ("lm_head",)}, "lm_head", "merged"),
        ({"bias": "all"}, "bias", "merged"),
        ({"r": 600}, "600", None),
    ],
)
def test_what_a_server_refuses_is_said(change, vllm, llama_cpp):
    lora = replace(PLAIN, **change)
    for found, word in ((find_vllm_problem(lora), vllm), (find_gguf_problem(lora), llama_cpp)):
        assert (found is None) == (word is None)
        assert word is None or word in found


def test_rslora_is_scaled_by_what_llama_cpp_leaves_out():
    """alpha / r, times what is named, is PEFT's alpha / sqrt(r)."""
    named = float(re.search(r"gguf:([\d.]+)", find_gguf_problem(replace(PLAIN, r=24, use_rslora=True)))[1])
    assert 32 / 24 * named == pytest.approx(32 / math.sqrt(24), rel=1e-5)


def test_commands_name_what_the_bundle_has(selection):
    merged, adapter = (
        commands_of(guide_serving(selection, name="Mine", has_merged=has_merged, ends={2: "</s>"}))
        for has_merged in (True, False)
    )
    assert ["vllm", "serve", "merged", "--served-model-name", "Mine"] in merged
    assert ["ollama", "create", "mine", "-f", "Modelfile"] in merged
    assert not any("merged" in word for words in adapter for word in words)
    for words in (merged, adapter):
        (serve,) = [line for line in words if "--enable-lora" in line]
        # The fixture's rank is 4.
        assert serve[serve.index("--max-lora-rank") + 1] == "8" and serve[-1] == "Mine=adapter"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("template", ["chat", "instruction", "raw", "Q: {prompt}\nA: "])
def test_the_cards_own_code_asks_as_rows_were_written_in_training(selection, tmp_path, template, bos):
    question = "How many orders are there?"
    rows = tmp_path / "rows.jsonl"
    asked_rows = [question, *(f"Which order is number {number}?" for number in range(8))]
    rows.write_text("".join(json.dumps({"prompt": one, "completion": "SELECT 1;"}) + "\n" for one in asked_rows))
    tokenizer = build_byte_level(bos=bos)
    data = Data(train=str(rows), template=template, validation=str(rows))
    prepared = prepare_data(data, tokenizer=tokenizer, data_seed=7)
    name = prepared.report.template
    trial = replace(
        selection,
        config=selection.config.model_copy(update={"data": data}),
        manifest=replace(selection.manifest, data=replace(selection.data, template=name)),
    )
    guide = guide_serving(trial, name="Mine", has_merged=True, ends={})
    (code,) = re.findall(r"```python\n(.+?)\n```", guide, re.DOTALL)
    asked = []

    class Model:
        device = "cpu"

        def generate(self, *, input_ids, **settings):
            asked.append(input_ids[0].tolist())
            return input_ids

    exec(code, {"model": Model(), "tokenizer": tokenizer})
    assert len(asked) == 1 and asked[0] in [list(ids) for ids in prepared.train.prompt_ids]
    assert question in tokenizer.decode(asked[0])
    assert ("/v1/completions" in guide) == (template != "chat")


def test_an_adapter_that_vllm_refuses_is_not_served_by_it(selection):
    record = selection.record
    ran = replace(record.ran, lora=replace(record.ran.lora, use_dora=True))
    guide = guide_serving(replace(selection, record=replace(record, ran=ran)), name="Mine", has_merged=True, ends={})
    assert "--enable-lora" not in guide and "convert_lora_to_gguf" not in guide and "vLLM loads no DoRA" in guide


def test_ends_that_the_base_lacks_are_sent_with_requests(selection):
    guide = guide_serving(selection, name="Mine", has_merged=True, ends={2: "</s>", 7: "<|im_end|>"})
    assert '"stop_token_ids": [2, 7]' in guide


@pytest.mark.slow
def test_llama_cpp_knows_every_tensor_of_an_adapter(tmp_path):
    """convert_lora_to_gguf.py looks the base's name of each lora_A and lora_B up in this map."""
    spec = specify_quantization(Quantization(), compute_dtype="fp32")
    base = load_base(Model(name=str(embedded.base_path())), quantization=spec, device="cpu")
    save_adapter(attach_adapter(base, Lora(r=4), seed=1), tmp_path)
    shape = read_shape(Model())
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_layers)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as stream:
        names = list(stream.keys())
    found = set()
    for name in names:
        stored, suffix = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name).groups()
        found.add((known.get_name(f"{stored}.weight", try_suffixes=(".weight",)), suffix))
    assert None not in {name for name, _ in found}
    # Seven linears of each layer, as many tensors as there are names.
    assert len(found) == len(names) == 2 * 7 * shape.num_layers
