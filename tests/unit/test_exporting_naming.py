"""Names of bundles: the rule's own example, its other cases, and the way back."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from huggingface_hub.utils import validate_repo_id

from qlora_ray.config.schema import Quantization
from qlora_ray.exporting.naming import BundleName, name_bundle, parse_name, shorten_dataset
from qlora_ray.modeling.quantization import specify_quantization
from qlora_ray.runs.record_parts import LoraRecord

NF4 = specify_quantization(Quantization(), compute_dtype="bf16")


def name(**changes):
    facts = {
        "base": "Qwen/Qwen3-0.6B",
        "dataset": "someone/openmath",
        "lora": LoraRecord(r=64),
        "quantization": NF4,
        "head_dtype": "bf16",
    }
    return str(name_bundle(**{**facts, **changes}))


def held(method, compute_dtype="bf16"):
    return specify_quantization(Quantization(method=method), compute_dtype=compute_dtype)


@pytest.mark.parametrize(
    ("changes", "tag"),
    [
        # The name that one of this project's ancestors gave its models.
        ({}, "LoRa64_QLORA_w4_headbf16"),
        ({"lora": LoraRecord(r=8, use_dora=True)}, "DoRa8_QLORA_w4_headbf16"),
        ({"lora": LoraRecord(r=8, use_rslora=True)}, "rsLoRa8_QLORA_w4_headbf16"),
        ({"lora": LoraRecord(r=8, use_dora=True, use_rslora=True)}, "rsDoRa8_QLORA_w4_headbf16"),
        ({"quantization": held("fp4")}, "LoRa64_QLORA_w4fp4_headbf16"),
        ({"quantization": held("int8")}, "LoRa64_QLORA_w8_headbf16"),
        ({"quantization": held("none")}, "LoRa64_LORA_w16_headbf16"),
        ({"quantization": replace(NF4, method="gptq", bits=3, is_stored=True)}, "LoRa64_GPTQ_w3_headbf16"),
        ({"quantization": replace(NF4, method="awq", is_stored=True)}, "LoRa64_AWQ_w4_headbf16"),
        ({"quantization": held("none", "fp32"), "head_dtype": "fp32"}, "LoRa64_LORA_w32_headfp32"),
    ],
)
def test_every_way_of_training_has_its_tag(changes, tag):
    assert name(**changes) == f"Qwen3-0.6B-openmath_SFT_{tag}"


@pytest.mark.parametrize(
    ("dataset", "short"),
    [
        ("embedded", "classicmodels"),
        ("data/train/classicmodels_train_200.jsonl", "classicmodels_train_200"),
        ("rows.json", "rows"),
        ("openai/gsm8k:main", "gsm8k"),
        ("b-mc2/sql-create-context", "sql-create-context"),
        ("/home/ann/rows.v2.csv", "rows.v2"),
        ("some/folder/", "folder"),
    ],
)
def test_a_dataset_is_called_by_its_own_name(dataset, short):
    assert shorten_dataset(dataset) == short


def test_the_hub_takes_every_name():
    bases = ["Qwen/Qwen3-0.6B", "~/models/my base (1)", "a/--x..y--", "o/" + "long" * 40]
    datasets = ["embedded", "some rows.jsonl", "x/" + "y" * 100, "dir/.hidden.json"]
    for base, dataset in itertools.product(bases, datasets):
        found = name(base=base, dataset=dataset)
        validate_repo_id(f"user/{found}")
        assert found.endswith("_SFT_LoRa64_QLORA_w4_headbf16") and len(found) <= 96


def test_a_name_can_be_read_back():
    methods = [("nf4", 4), ("fp4", 4), ("int8", 8), ("none", 16), ("none", 32), ("gptq", 3), ("awq", 4)]
    flags = (False, True)
    for (method, bits), head, dora, rs in itertools.product(methods, ("bf16", "fp16", "fp32"), flags, flags):
        made = BundleName("Qwen3-0.6B-openmath", 16, method, bits, head, dora, rs)
        assert parse_name(str(made)) == made


@pytest.mark.parametrize(
    "text",
    [
        "Qwen3-0.6B",
        "x_SFT_LoRa_QLORA_w4_headbf16",
        "x_SFT_LoRa8_LORA_w4_headbf16",
        "x_SFT_LoRa8_QLORA_w16_headbf16",
        "x_SFT_LoRa8_QLORA_w8fp4_headbf16",
        "x_SFT_LoRa8_QLORA_w3_headbf16",
        "x_SFT_LoRa8_GPTQ_w16_headbf16",
        "x_SFT_LoRa8_QLORA_w4_headint8",
    ],
)
def test_what_is_no_name_is_none(text):
    assert parse_name(text) is None
