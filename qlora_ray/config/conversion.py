"""Keys and values of other tools in our words: what our config takes, and why it does not take the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from qlora_ray.config.aliases import ALIASES
from qlora_ray.config.key_paths import NAME, known_paths, leaf_paths
from qlora_ray.config.schema import SweepConfig

# Sections that can be searched.
SEARCHED = ("lora", "training")
# Where several sections have a key of one name, that of the first of these is meant.
SECTIONS = (*SEARCHED, "data", "model")
# Values that are the same under another name, by our key.
VALUES = {
    "training.optim": {"adamw_bnb_8bit": "adamw_8bit", "adamw_torch_fused": "adamw_torch", "adamw": "adamw_torch"},
    "training.lr_scheduler_type": {"constant_with_warmup": "constant"},
    "lora.target_modules": {"all": "all-linear"},
}
# Lists that LLaMA-Factory writes as one text.
COMMA_LISTS = ("lora.target_modules", "lora.modules_to_save")
# Keys whose value says which key it is; false says nothing.
SWITCHES = {
    "load_in_4bit": ("model.quantization.method", "nf4"),
    "load_in_8bit": ("model.quantization.method", "int8"),
    "lora_target_linear": ("lora.target_modules", "all-linear"),
}
# Keys of aliases with words that mean the same all the same, value for value.
SAME_VALUES = ("alpha", "peft_lora_alpha", "val_set_size", "test_size", "val_size", "num_warmup_steps")


@dataclass
class Converted:
    """What a file becomes: values by config path, parameters by config path, and what has no counterpart."""

    values: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_value(self, name: str, value: Any) -> None:
        """Takes a key with one value."""
        if name in SWITCHES:
            path, meant = SWITCHES[name]
            if value is True:
                self.values[path] = meant
            return
        if value is None or value is False or value == "":
            return
        path, why = find_path(name)
        if path == "data.train" and isinstance(value, list):
            value = _name_datasets(value)
        value = _translate(path, value)
        problem = why or _find_problem(path, value)
        if problem:
            self.notes.append(f"{name}: {shorten(value)}: {problem}")
        else:
            self.values[path] = value

    def add_parameter(self, name: str, words: dict[str, Any]) -> None:
        """Takes a key with choices or a range, in our words."""
        path, why = find_path(name)
        section = path.partition(".")[0]
        if not why and section not in SEARCHED:
            why = f"{path} is the same for all trials of a sweep"
        if "choices" in words:
            words = {"choices": _without_repeats([_translate(path, value) for value in words["choices"]])}
        if "choices" in words and not why:
            problems = [(value, _find_problem(path, value)) for value in words["choices"]]
            self.notes += [f"{name}: {shorten(value)}: {problem}" for value, problem in problems if problem]
            words = {"choices": [value for value, problem in problems if not problem]}
            if not words["choices"]:
                return
        elif not why:
            why = next(filter(None, (_find_problem(path, words[end]) for end in ("low", "high"))), "")
        if why:
            self.notes.append(f"{name}: {shorten(words)}: {why}")
        else:
            self.space[path] = words


def find_path(name: str) -> tuple[str, str]:
    """Returns our config path of another tool's key, and why it is not the same; empty where it is."""
    last = name.rsplit(".", 1)[-1].replace("-", "_")
    known = _known_paths()
    own = known.get(last)
    alias = ALIASES.get(last)
    if alias is None or own is not None:
        return (own, "") if own is not None else ("", "no key is like it")
    if alias.key is None:
        return "", alias.words
    words = "" if last in SAME_VALUES else alias.words
    return alias.key, f"here {alias.key}: {words}" if words else ""


def _name_datasets(datasets: list[Any]) -> Any:
    names = [one.get("path") if isinstance(one, dict) else one for one in datasets]
    return names[0] if len(names) == 1 else names


def _translate(path: str, value: Any) -> Any:
    if path in COMMA_LISTS and isinstance(value, str) and "," in value:
        return [name.strip() for name in value.split(",") if name.strip()]
    return VALUES.get(path, {}).get(value, value) if isinstance(value, str) else value


def _find_problem(path: str, value: Any) -> str:
    """Returns why our config does not take a value; empty where it does."""
    *sections, key = path.split(".")
    data: dict[str, Any] = {key: value}
    for section in reversed(sections):
        data = {section: data}
    try:
        SweepConfig.model_validate(data)
    except ValidationError as error:
        return f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
    return ""


def _without_repeats(values: list[Any]) -> list[Any]:
    return [value for at, value in enumerate(values) if value not in values[:at]]


def shorten(value: Any, limit: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _known_paths() -> dict[str, str]:
    """Our paths by their last part, where only one has it; those that can be searched come before others."""
    paths: dict[str, list[str]] = {}
    for path in leaf_paths(known_paths(SweepConfig)):
        if NAME in path.split("."):
            continue
        paths.setdefault(path.rpartition(".")[2], []).append(path)
    found = {}
    for name, several in paths.items():
        ranked = sorted(
            several, key=lambda path: [path.startswith(f"{section}.") for section in SECTIONS], reverse=True
        )
        if len(several) == 1 or ranked[0].startswith(tuple(f"{section}." for section in SECTIONS)):
            found[name] = ranked[0]
    return found
