"""Python that loads a bundle's adapter on the base as it was trained, and its merged model."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_ray.exporting.naming import shorten_source
from qlora_ray.exporting.selection import Selection
from qlora_ray.modeling.loading import EMBEDDED
from qlora_ray.modeling.quantization import QuantizationSpec

_TORCH_DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16", "fp32": "torch.float32"}


def guide_loading(selection: Selection, *, has_merged: bool, end_ids: Sequence[int] = ()) -> str:
    """Markdown with the code that loads the bundle, from inside its folder.

    Args:
        selection: The trial.
        has_merged: Whether the bundle has a merged model.
        end_ids: The tokens that end an answer; several where the base's own end token is another one.
    """
    parts = []
    if has_merged:
        parts += ["Merged, one model as any other:", _fenced(_merged_code(selection))]
    parts += ["The adapter, on the base held as it was while it trained:", _fenced(_adapter_code(selection, end_ids))]
    if not selection.base_is_on_hub and selection.base_name != EMBEDDED:
        parts.append(
            f"The base is a folder, `{shorten_source(selection.base_name)}`, that is not on the hub: put its path in "
            f"above. Its fingerprint is `{selection.record.base.hash}`."
        )
    return "\n\n".join(parts)


def _merged_code(selection: Selection) -> str:
    trust = _trust_code(selection)
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("merged", dtype="auto"{trust})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("merged"{trust})'
    )


def _trust_code(selection: Selection) -> str:
    """The argument without which a base with code of its own does not load."""
    return ", trust_remote_code=True" if selection.needs_code else ""


def _adapter_code(selection: Selection, end_ids: Sequence[int]) -> str:
    quantization = selection.quantization
    dtype = _TORCH_DTYPES[quantization.compute_dtype]
    arguments = [f"dtype={dtype}"]
    revision = selection.record.base.revision
    if revision:
        arguments.append(f'revision="{revision}"')
    config = _config_code(quantization, dtype)
    if config:
        arguments.append("quantization_config=quantization")
    trust = _trust_code(selection)
    imports = ["AutoModelForCausalLM", "AutoTokenizer", *(["BitsAndBytesConfig"] if config else [])]
    lines = [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {', '.join(imports)}",
        "",
        *config,
        f"base = AutoModelForCausalLM.from_pretrained({_base_code(selection)}, {', '.join(arguments)}{trust})",
        'model = PeftModel.from_pretrained(base, "adapter")',
        f'tokenizer = AutoTokenizer.from_pretrained("adapter"{trust})',
    ]
    if len(end_ids) > 1:
        lines += [
            "# The base alone does not know all that its answers were trained to end with.",
            f"model.generation_config.eos_token_id = {list(end_ids)}",
        ]
    if selection.base_name == EMBEDDED:
        lines.insert(3, "from qlora_ray import embedded")
    return "\n".join(lines)


def _config_code(quantization: QuantizationSpec, dtype: str) -> list[str]:
    if quantization.method == "none" or quantization.is_stored:
        # A base whose files are quantized says itself how.
        return []
    if quantization.method == "int8":
        return ["quantization = BitsAndBytesConfig(load_in_8bit=True)"]
    return [
        "quantization = BitsAndBytesConfig(",
        "    load_in_4bit=True,",
        f'    bnb_4bit_quant_type="{quantization.method}",',
        f"    bnb_4bit_use_double_quant={quantization.double_quantization},",
        f"    bnb_4bit_compute_dtype={dtype},",
        ")",
    ]


def _base_code(selection: Selection) -> str:
    if selection.base_name == EMBEDDED:
        return "embedded.base_path()"
    name = selection.base_name if selection.base_is_on_hub else f"path/to/{shorten_source(selection.base_name)}"
    return f'"{name}"'


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"
