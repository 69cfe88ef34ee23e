"""Tiny random bases on disk, adapters with sizeable changes, and merges without measuring, for qlora_ray.exporting."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
import transformers

from qlora_ray.config.schema import Model, Quantization
from qlora_ray.exporting.merge.candidate import Candidate, write_candidate, write_side_files
from qlora_ray.exporting.merge.checkpoint import open_checkpoint
from qlora_ray.exporting.merge.deltas import AdapterChanges, BaseNames
from qlora_ray.exporting.merge.plan import plan_merge
from qlora_ray.modeling.adapters import saved_adapter
from qlora_ray.modeling.loading import load_base
from qlora_ray.modeling.quantization import QuantizationSpec, specify_quantization
from tests.unit.evaluation_fixtures import make_split, make_tokenizer, tiny_sizes

SPLIT = make_split([(8, 6), (5, 9), (7, 3), (6, 7)])
# Wide weights make a random model prefer one token clearly.
WIDE = {"initializer_range": 0.1}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 259, **WIDE}
BASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", tiny_sizes(**WIDE, tie_word_embeddings=False)),
    "llama-tied": ("LlamaConfig", tiny_sizes(**WIDE, tie_word_embeddings=True)),
    # Biases on q, k and v; tied.
    "qwen2": ("Qwen2Config", tiny_sizes(**WIDE, tie_word_embeddings=True)),
    # Conv1D layers, stored [in, out]; attention's output is square; tied.
    "gpt2": ("GPT2Config", {**GPT2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
}
TARGETS = {"gpt2": ["c_attn", "c_proj"]}


def save_base(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB") -> Path:
    """A base with random weights and a byte tokenizer, as save_pretrained writes them."""
    name, sizes = BASES[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**sizes))
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, *, kind: str = "llama", scale: float = 0.1, **options: object) -> Path:
    """An adapter in PEFT's format whose trained parameters are all moved by noise of this scale."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = TARGETS.get(kind, ["q_proj", "v_proj", "o_proj", "down_proj"])
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM", **options}
    )
    tuned = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn_like(parameter)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


def as_model(base: Path, method: str) -> tuple[Model, QuantizationSpec]:
    """A base's config section, and how it is stored with this method, computing in fp32."""
    model = Model(name=str(base), quantization=Quantization(method=method))
    return model, specify_quantization(model.quantization, compute_dtype="fp32")


@dataclass(frozen=True)
class Loaded:
    """A base as trained with its adapter on it, and what the merge knows of both."""

    tuned: peft.PeftModel
    names: BaseNames
    changes: AdapterChanges
    model: Model
    tokenizer: transformers.PreTrainedTokenizerBase


@contextmanager
def loaded(base: Path, adapter: Path, method: str = "none"):
    model, spec = as_model(base, method)
    loaded_base = load_base(model, quantization=spec, device="cpu")
    names = BaseNames(loaded_base.model)
    with saved_adapter(loaded_base, adapter) as tuned:
        yield Loaded(tuned, names, AdapterChanges(tuned, folder=adapter), model, loaded_base.tokenizer)


def merge_only(
    base: Path,
    adapter: Path,
    to: Path,
    *,
    method: str = "none",
    rule: str = "w16",
    dtype: str = "checkpoint",
    head_dtype: str | None = None,
    max_shard_bytes: int = 10**9,
) -> Candidate:
    """One merged model on disk, not measured."""
    with loaded(base, adapter, method) as one:
        checkpoint = open_checkpoint(one.model)
        plan = plan_merge(checkpoint, one.names, one.changes, dtype=dtype, head_dtype=head_dtype)
        candidate = write_candidate(
            to,
            rule=rule,
            plan=plan,
            checkpoint=checkpoint,
            changes=one.changes,
            device="cpu",
            max_shard_bytes=max_shard_bytes,
            tell=lambda line: None,
        )
        write_side_files(to, checkpoint=checkpoint, plan=plan, tokenizer=one.tokenizer)
    return candidate


def load_merged(folder: Path):
    """A merged model as any user loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def merged_by_peft(base: Path, adapter: Path):
    """PEFT's own merge on the base in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
