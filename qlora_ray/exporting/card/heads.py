"""What a card says of auxiliary heads: what they find, how well, and how they are asked."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_ray.config.heads import Pooling
from qlora_ray.exporting.card.figures import CardFacts, score_rows
from qlora_ray.formats import list_first
from qlora_ray.modeling.auxiliary_heads import HeadSpec, load_heads
from qlora_ray.pages.markdown import write_table
from qlora_ray.runs.paths import HEADS_WEIGHTS
from qlora_ray.scoring.details import tabulate_heads

# How many classes a table's cell has room for.
MAX_SHOWN_CLASSES = 12
READS: dict[Pooling, str] = {
    "prompt": "the prompt's last token",
    "last": "the last token of prompt and answer",
    "mean": "the mean over all tokens of prompt and answer",
}
# `model` and `tokenizer` are those of the code that loads them.
CODE = f"""import json

import torch
from safetensors import safe_open

with safe_open("adapter/{HEADS_WEIGHTS}", framework="pt") as file:
    heads = json.loads(file.metadata()["heads"])
    weights = {{name: file.get_tensor(f"{{name}}.weight") for name in heads}}


def ask_heads(prompt, answer=""):
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    prompt_ids, answer_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    ids = torch.tensor([prompt_ids + answer_ids], device=causal.device)
    with torch.no_grad():
        hidden = causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0].float()
    read = {{"prompt": hidden[len(prompt_ids) - 1], "last": hidden[-1], "mean": hidden.mean(0)}}
    found = {{}}
    for name, head in heads.items():
        logits = weights[name].to(hidden.device) @ read[head["pooling"]]
        found[name] = head["classes"][int(logits.argmax())]
    return found"""


def describe_heads(facts: CardFacts) -> str:
    """The card's section on auxiliary heads; empty where the adapter has none."""
    specs = [head.spec for head in load_heads(facts.selection.adapter.folder)]
    if not specs:
        return ""
    scored = [((str(row.model), str(row.prompts)), row.heads) for row in score_rows(facts)]
    table = tabulate_heads(scored, labels=("prompts",))
    scores = "On the rows of the scores above that have a label. `commonest class`: the accuracy of always saying that."
    answer = (
        " Those that read the answer too need it, with its end token, as second argument."
        if any(spec.pooling != "prompt" for spec in specs)
        else ""
    )
    parts = [
        "## Auxiliary heads",
        f"Linear classifiers of the last hidden state, trained beside the language model: `adapter/{HEADS_WEIGHTS}`.",
        write_table([["head", "column", "classes", "reads", "weight of its loss"], *map(_row, specs)]),
        *([write_table(table), scores] if table else []),
        "With `model` and `tokenizer` as loaded below, of the adapter or merged:",
        f"```python\n{CODE}\n```",
        "`prompt` is the text as the template renders it, up to where the answer begins "
        f"(`tokenizer.apply_chat_template(..., tokenize=False, add_generation_prompt=True)`).{answer}",
    ]
    return "\n\n".join(parts)


def _row(spec: HeadSpec) -> Sequence[str]:
    classes = list_first(spec.classes, limit=MAX_SHOWN_CLASSES)
    return [spec.name, spec.column, classes, READS[spec.pooling], f"{spec.weight:g}"]
