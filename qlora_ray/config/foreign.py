"""Configs and search spaces of other tools: recognized, and answered with the same in our words, ready to be pasted.

W&B sweeps (docs.wandb.ai, "Sweep configuration"), axolotl's configs and its sweep files (`axolotl train --sweep`), and
flat configs of LLaMA-Factory, TRL and Hugging Face's trainers. Keys go by config/aliases.py; a value that our config
does not take stands as a comment with the reason, as does a key that has no counterpart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from qlora_ray.config.aliases import ALIASES
from qlora_ray.config.conversion import Converted, find_path, shorten
from qlora_ray.config.documents import Document
from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import ConfigError

# So many keys of other tools make a file one of theirs; fewer are answered one by one.
MIN_KEYS = 3
WANDB, AXOLOTL_SWEEP, AXOLOTL = "a W&B sweep", "an axolotl sweep", "an axolotl config"
# How W&B starts a script of one's own.
WANDB_OWN = ("program", "command", "name", "description", "project", "entity", "job", "imageuri")
WANDB_METHODS = {"bayes": "tpe", "random": "random", "grid": "grid"}
WANDB_LOG = ("log_uniform", "log_uniform_values", "q_log_uniform", "q_log_uniform_values")
WANDB_RANGES = ("uniform", "int_uniform", "q_uniform", *WANDB_LOG)


def refuse_foreign(document: Document, *, is_space: bool) -> None:
    """Raises ConfigError for a file of another tool, with the same in our words; returns for any other.

    Args:
        document: A config, or a search space.
        is_space: It was given as `search.space`.
    """
    found = _recognize(document.data)
    if found is None:
        return
    kind, converted = found
    ours = "a search space" if is_space else "a config of sections"
    first = f"{document.source}: must be {ours}, got {kind}. The same in our words, to be pasted:"
    raise ConfigError([first, *_render(converted, is_space=is_space and bool(converted.space))])


def _recognize(data: Mapping[str, Any]) -> tuple[str, Converted] | None:
    parameters = data.get("parameters")
    if isinstance(parameters, dict) and parameters and all(isinstance(words, dict) for words in parameters.values()):
        return WANDB, _convert_wandb(data)
    keys = [str(key) for key in data]
    if set(keys) & set(SweepConfig.model_fields) or any("." in key for key in keys):
        return None
    is_known = [key == "_" or find_path(key)[0] != "" or key in ALIASES for key in keys]
    is_sweep = all(isinstance(value, list) for value in data.values()) and all(is_known)
    if keys and is_sweep:
        converted = Converted()
        for name, choices in data.items():
            if name == "_":
                converted.notes.append("_: values that belong together are no space; see points_to_evaluate")
            else:
                converted.add_parameter(str(name), {"choices": choices})
        return AXOLOTL_SWEEP, converted
    if sum(is_known) < MIN_KEYS:
        return None
    converted = Converted()
    is_llama_factory = "finetuning_type" in data
    for name, value in data.items():
        # Its max_samples are rows of the data set, not samples of a training.
        converted.add_value("max_train_samples" if is_llama_factory and name == "max_samples" else str(name), value)
    if "base_model" in data:
        return AXOLOTL, converted
    return "a LLaMA-Factory config" if is_llama_factory else "a flat config of another trainer", converted


def _convert_wandb(data: Mapping[str, Any]) -> Converted:
    converted = Converted()
    for name, value in data.items():
        if name == "method" and value in WANDB_METHODS:
            converted.values["search.sampler"] = WANDB_METHODS[value]
        elif name == "early_terminate" and isinstance(value, dict):
            converted.values["search.scheduler"] = "hyperband"
            if value.get("eta"):
                converted.values["search.reduction_factor"] = float(value["eta"])
            if "min_iter" in value:
                words = "here search.grace_reports, in reports of a trial"
                converted.notes.append(f"early_terminate.min_iter: {shorten(value['min_iter'])}: {words}")
        elif name == "metric":
            converted.notes.append("metric: trials are compared by their validation loss, eval_loss: min")
        elif name not in ("parameters", *WANDB_OWN):
            converted.add_value(str(name), value)
    _add_wandb(data["parameters"], converted)
    return converted


def _add_wandb(parameters: Mapping[str, Any], converted: Converted) -> None:
    for name, words in parameters.items():
        if not isinstance(words, dict):
            converted.notes.append(f"{name}: {shorten(words)}: must have values, or min and max")
        elif isinstance(words.get("parameters"), dict):
            _add_wandb(words["parameters"], converted)
        elif "value" in words:
            converted.add_value(str(name), words["value"])
        elif isinstance(words.get("values"), list):
            converted.add_parameter(str(name), {"choices": words["values"]})
            if "probabilities" in words:
                converted.notes.append(f"{name}: choices are drawn alike, without probabilities")
        else:
            _add_wandb_range(str(name), words, converted)


def _add_wandb_range(name: str, words: Mapping[str, Any], converted: Converted) -> None:
    low, high, kind = words.get("min"), words.get("max"), str(words.get("distribution", "uniform"))
    are_numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if not are_numbers or kind not in WANDB_RANGES:
        converted.notes.append(f"{name}: {shorten(dict(words))}: give choices, or low and high with log or step")
        return
    assert low is not None and high is not None
    if kind in ("log_uniform", "q_log_uniform"):
        # Its ends are exponents of e.
        low, high = float(f"{math.exp(low):.6g}"), float(f"{math.exp(high):.6g}")
    ours: dict[str, Any] = {"low": low, "high": high}
    if kind in WANDB_LOG:
        ours["log"] = True
    elif "q" in words:
        ours["step"] = words["q"]
    converted.add_parameter(name, ours)


class _Section(dict[str, Any]):
    """What is written over several lines; any other mapping is one value."""


def _render(converted: Converted, *, is_space: bool) -> list[str]:
    values = dict(converted.values)
    if converted.space and not is_space:
        values["search.space"] = _Section(converted.space)
    config = _Section()
    for path, value in values.items():
        *sections, key = path.split(".")
        node = config
        for section in sections:
            node = node.setdefault(section, _Section())
        node[key] = value
    lines, rest = (_dump(_Section(converted.space)), _dump(config)) if is_space else (_dump(config), [])
    lines += ["# and in the config:", *(f"# {line}" for line in rest)] if rest else []
    return lines + [f"# not taken over: {note}" for note in converted.notes]


def _dump(section: _Section, indent: str = "") -> list[str]:
    lines = []
    for key, value in section.items():
        if isinstance(value, _Section):
            lines += [f"{indent}{key}:", *_dump(value, f"{indent}  ")]
        else:
            # In braces, on one line.
            text = yaml.safe_dump({key: value}, default_flow_style=True, sort_keys=False, width=math.inf).strip()
            lines.append(f"{indent}{text[1:-1]}")
    return lines
