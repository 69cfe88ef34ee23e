"""A bundle's name: what it was made of and how, in one tag."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from qlora_ray.config.data_names import list_names
from qlora_ray.modeling.loading import EMBEDDED
from qlora_ray.modeling.quantization import QuantizationSpec
from qlora_ray.runs.record_parts import LoraRecord

# What the shipped rows are about (qlora_ray.embedded).
EMBEDDED_TASK = "classicmodels"
# A repository's name on the Hugging Face hub has at most 96 characters (huggingface_hub's validate_repo_id).
MAX_NAME_LENGTH = 96
_TAG = re.compile(
    r"(?P<stem>.+)_SFT_(?P<rs>rs)?(?P<kind>LoRa|DoRa)(?P<r>\d+)_(?P<loading>QLORA|LORA|GPTQ|AWQ)"
    r"_w(?P<bits>2|3|4|8|16|32)(?P<fp4>fp4)?_head(?P<head>bf16|fp16|fp32)"
)
# Of what bitsandbytes holds it is QLORA.
_LOADINGS = {"none": "LORA", "gptq": "GPTQ", "awq": "AWQ"}
_METHODS = {4: "nf4", 8: "int8", 16: "none", 32: "none"}


@dataclass(frozen=True)
class BundleName:
    """A bundle's name, taken apart.

    The rule: `<base>-<dataset>_SFT_<adapter><r>_<loading>_w<bits>_head<dtype>`, as in
    `Qwen3-0.6B-openmath_SFT_LoRa64_QLORA_w4_headbf16`.

    - `<base>`, `<dataset>`: the last part of a hub id or path, without a config name or a file's ending.
    - `SFT`: supervised fine-tuning, which is all that is done here.
    - `<adapter>`: `LoRa` or `DoRa`, with `rs` in front for rank-stabilized scaling; `<r>` is the rank.
    - `<loading>`: `QLORA` where bitsandbytes held the base quantized while it trained, `LORA` where it was not
      quantized, `GPTQ` or `AWQ` where its files are.
    - `<bits>`: bits of a base weight as it trained: `4` for NF4, `4fp4` for FP4, `8` for int8, `16` or `32` for none.
    - `<dtype>`: what the output head is in: the merged model's, or, in a bundle without one, what trials computed in.

    What a hub name may not hold becomes `-`, and a base and dataset that are too long are cut.

    Attributes:
        stem: Base and dataset; where one ends and the other begins cannot be read back.
        method: nf4, fp4, int8, none, gptq or awq.
        bits: Bits of a base weight.
        head_dtype: bf16, fp16 or fp32.
    """

    stem: str
    r: int
    method: str
    bits: int
    head_dtype: str
    use_dora: bool = False
    use_rslora: bool = False

    def __str__(self) -> str:
        adapter = ("rs" if self.use_rslora else "") + ("DoRa" if self.use_dora else "LoRa")
        loading = _LOADINGS.get(self.method, "QLORA")
        bits = f"{self.bits}fp4" if self.method == "fp4" else str(self.bits)
        tag = f"_SFT_{adapter}{self.r}_{loading}_w{bits}_head{self.head_dtype}"
        return self.stem[: MAX_NAME_LENGTH - len(tag)].rstrip("-._") + tag


def name_bundle(
    *, base: str, dataset: object, lora: LoraRecord, quantization: QuantizationSpec, head_dtype: str
) -> BundleName:
    """The name of a bundle.

    Args:
        base: The config's model.name.
        dataset: The config's data.train.
        lora: The adapter as it ran.
        quantization: The base as it ran.
        head_dtype: What the output head is in.
    """
    return BundleName(
        _clean(f"{shorten_source(base)}-{shorten_datasets(dataset)}"),
        lora.r or 0,
        quantization.method,
        quantization.bits,
        head_dtype,
        bool(lora.use_dora),
        bool(lora.use_rslora),
    )


def parse_name(text: str) -> BundleName | None:
    """The inverse of a bundle's name; None if the text is none."""
    found = _TAG.fullmatch(text)
    if found is None:
        return None
    bits = int(found["bits"])
    is_own = found["loading"] in ("GPTQ", "AWQ")
    if (found["loading"] == "LORA") != (bits > 8) or (found["fp4"] and bits != 4) or (bits > 8 if is_own else bits < 4):
        return None
    method = found["loading"].lower() if is_own else _METHODS[bits]
    return BundleName(
        found["stem"],
        int(found["r"]),
        "fp4" if found["fp4"] else method,
        bits,
        found["head"],
        found["kind"] == "DoRa",
        found["rs"] is not None,
    )


def shorten_source(name: str) -> str:
    """The last part of a hub id or of a path."""
    return PurePosixPath(name.rstrip("/")).name or name


def shorten_dataset(name: str) -> str:
    """A dataset in a word: of a hub id the name, of a file its name without the ending."""
    if name == EMBEDDED:
        return EMBEDDED_TASK
    name = name.partition("[")[0]
    short = shorten_source(name)
    if "/" in name or "." not in short:
        short = short.partition(":")[0]
    return re.sub(r"\.(jsonl?|csv|parquet)$", "", short)


def shorten_datasets(train: object) -> str:
    """What rows were trained on, in a word for each source: of `data.train` as a config has it."""
    return "+".join(dict.fromkeys(map(shorten_dataset, list_names(train)))) or str(train)


def _clean(text: str) -> str:
    """Only what a hub name may hold: letters, digits, `-`, `_` and `.`, no `--` or `..`, none of them at the start."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return re.sub(r"([-.])\1+", r"\1", text).strip("-._")
