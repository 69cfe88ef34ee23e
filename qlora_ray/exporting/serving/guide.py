"""Commands that serve a bundle: the merged model or the adapter by vLLM, a GGUF by llama.cpp and Ollama.

Sources: vLLM 0.22, vllm/config/lora.py (MaxLoRARanks) and vllm/lora/peft_helper.py (what it refuses); llama.cpp's
convert_hf_to_gguf.py and convert_lora_to_gguf.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from qlora_ray.data.templates import INSTRUCTION_PROMPT
from qlora_ray.exporting.naming import shorten_source
from qlora_ray.exporting.selection import Selection
from qlora_ray.exporting.serving.modelfile import GGUF, MODELFILE
from qlora_ray.runs.record_parts import LoraRecord

# What --max-lora-rank takes; its default is 16.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
CHAT = "chat"
# What the raw template makes of a prompt that does not end in a blank.
RAW_PROMPT = "{prompt}\n"


def find_vllm_rank(r: int) -> int | None:
    """The least --max-lora-rank that an adapter of this rank loads with; None where vLLM has none so large."""
    return next((rank for rank in VLLM_RANKS if rank >= r), None)


def find_vllm_problem(lora: LoraRecord) -> str | None:
    """Why vLLM does not load this adapter, or None. rsLoRA it does load, with its own scaling."""
    if lora.use_dora:
        return "vLLM loads no DoRA adapter"
    if lora.modules_to_save:
        return f"vLLM loads no adapter with whole modules in it (modules_to_save: {', '.join(lora.modules_to_save)})"
    if lora.bias not in (None, "none"):
        return f"vLLM loads no adapter with biases (bias: {lora.bias})"
    if lora.r is not None and find_vllm_rank(lora.r) is None:
        return f"vLLM loads no adapter of a rank over {VLLM_RANKS[-1]}, and this one's is {lora.r}"
    return None


def find_gguf_problem(lora: LoraRecord) -> str | None:
    """Why llama.cpp does not load this adapter as it was trained, or None."""
    if lora.use_dora or lora.modules_to_save or lora.bias not in (None, "none"):
        return "llama.cpp converts low-rank factors only: of this adapter it takes the merged model"
    if lora.use_rslora and lora.r:
        return (
            "llama.cpp scales by alpha / r, and this adapter is scaled by alpha / sqrt(r) (rsLoRA): give it as "
            f"`--lora-scaled adapter.gguf:{lora.r**0.5:.6g}`"
        )
    return None


def guide_serving(selection: Selection, *, name: str, has_merged: bool, ends: Mapping[int, str]) -> str:
    """Markdown with the commands that serve the bundle, run from inside its folder.

    Args:
        selection: The trial.
        name: What the model is called there.
        has_merged: Whether the bundle has a merged model.
        ends: The tokens that end an answer, by id.
    """
    parts = [_transformers(selection), _vllm(selection, name=name, has_merged=has_merged, ends=ends)]
    if _find_prompt(selection) is not None:
        parts.append("Ask servers by `/v1/completions`, with prompts written as above: no chat template was trained.")
    parts.append(_llama_cpp(selection, has_merged=has_merged))
    if has_merged:
        parts.append(_ollama(name))
    return "\n\n".join(parts)


def _transformers(selection: Selection) -> str:
    prompt = _find_prompt(selection)
    if prompt is None:
        asked = [
            'messages = [{"role": "user", "content": question}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ").to(model.device)",
        ]
    else:
        asked = [
            f'prompt = {prompt!r}.replace("{{prompt}}", question)',
            'inputs = tokenizer(prompt, return_tensors="pt").to(model.device)',
        ]
    lines = [
        "**transformers**, with `model` and `tokenizer` loaded as above:",
        "",
        "```python",
        'question = "How many orders are there?"',
        *asked,
        "answer = model.generate(**inputs, max_new_tokens=256, do_sample=False)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        "```",
    ]
    return "\n".join(lines)


def _find_prompt(selection: Selection) -> str | None:
    """The text around {prompt} that rows were rendered by in training; None where the chat template did it."""
    template = selection.data.template or CHAT
    prompts = {"instruction": INSTRUCTION_PROMPT, "raw": RAW_PROMPT}
    if template == "custom":
        return selection.config.data.template.replace("{system}", "")
    return prompts.get(template)


def _vllm(selection: Selection, *, name: str, has_merged: bool, ends: Mapping[int, str]) -> str:
    lora = selection.lora
    trust = " --trust-remote-code" if selection.needs_code else ""
    lines = ["**vLLM**:", ""]
    commands = [f"vllm serve merged --served-model-name {name}{trust}"] if has_merged else []
    problem = find_vllm_problem(lora)
    if problem is None:
        revision = selection.record.base.revision
        at = f" --revision {revision}" if revision else ""
        commands.append(
            f"vllm serve {shlex.quote(base_source(selection))}{at}{trust} --enable-lora "
            f"--max-lora-rank {find_vllm_rank(lora.r or 1)} --lora-modules {name}=adapter"
        )
    if commands:
        lines += ["```bash", *commands, "```"]
    if problem is not None:
        lines += ["", f"{problem}: {'serve `merged`' if has_merged else 'export with a merged model'}."]
        return "\n".join(lines)
    if selection.quantization.method != "none" and not selection.quantization.is_stored:
        which = "The second one" if has_merged else "It"
        changes = ": what that changes is in the merge's table, in the line `w16`" if has_merged else ""
        lines += [
            "",
            f"{which} puts the adapter on the base as its checkpoint has it, which is not the quantized one that it "
            f"was trained on{changes}.",
        ]
    if len(ends) > 1:
        lines += [
            "",
            f'The base alone does not know all that answers end with: send `"stop_token_ids": {list(ends)}` with each '
            "request for the adapter.",
        ]
    return "\n".join(lines)


def _llama_cpp(selection: Selection, *, has_merged: bool) -> str:
    problem = find_gguf_problem(selection.lora)
    takes_adapter = problem is None or selection.lora.use_rslora
    config = "merged" if has_merged else base_source(selection)
    commands = []
    if has_merged:
        commands.append(f"python llama.cpp/convert_hf_to_gguf.py merged --outfile {GGUF}")
    if takes_adapter:
        commands.append(
            f"python llama.cpp/convert_lora_to_gguf.py adapter --base {shlex.quote(config)} --outfile adapter.gguf"
        )
    lines = ["**llama.cpp**, by its own converters:", ""]
    if commands:
        lines += ["```bash", *commands, "```"]
    if problem is not None:
        lines += ["", f"{problem}."]
    return "\n".join(lines)


def _ollama(name: str) -> str:
    model = name.lower()
    return (
        f"**Ollama**, of that `{GGUF}`, by this folder's `{MODELFILE}`, which has the template and the tokens that "
        f"answers end with:\n\n```bash\nollama create {model} -f {MODELFILE}\nollama run {model}\n```"
    )


def base_source(selection: Selection) -> str:
    """The base for a command: its hub id, or a path to be put in."""
    name = selection.base_name
    return name if selection.base_is_on_hub else f"path/to/{shorten_source(name)}"
