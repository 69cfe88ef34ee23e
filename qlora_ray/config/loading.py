"""From a YAML file and `--set` values to one validated SweepConfig."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qlora_ray.config.aliases import ALIASES
from qlora_ray.config.documents import Document, parse_yaml_value, read_document, show
from qlora_ray.config.foreign import refuse_foreign
from qlora_ray.config.key_paths import known_paths, leaf_paths, name_paths
from qlora_ray.config.presets import read_preset
from qlora_ray.config.schema import SweepConfig
from qlora_ray.config.yaml_text import KeyPath
from qlora_ray.errors import MAX_PROBLEMS, ConfigError, shorten_problems


# Keys of TrainingArguments and of peer tools that users try here, and what this project calls them.
def parse_override(text: str) -> tuple[str, Any]:
    """Splits `a.b=value`; the value is YAML.

    Raises:
        ConfigError: If there is no `=`, no key, or the value is not YAML.
    """
    dotted, equals, value = text.partition("=")
    dotted = dotted.strip()
    if not equals or not dotted or not all(dotted.split(".")):
        raise ConfigError(f"--set {text}: must be section.key=value, e.g. --set training.learning_rate=1e-4.")
    return dotted, parse_yaml_value(value, source=f"--set {dotted}")


def load_config(path: Path | None, *, overrides: list[str] | None = None, preset: str | None = None) -> SweepConfig:
    """Reads, overrides and validates a config.

    Args:
        path: The YAML file; None starts from the defaults.
        overrides: `a.b=value` texts, applied in order.
        preset: The name of a preset that the file stands over.

    Returns:
        The validated config.

    Raises:
        ConfigError: With every problem found, one line each.
    """
    document = read_document(find_shipped(path)) if path is not None else Document("defaults", {})
    refuse_foreign(document, is_space=False)
    if preset is not None:
        document = document.put_over(read_preset(preset))
    apply_overrides(document, overrides or [])
    return validate_document(document)


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Sets each `a.b=value` in a document.

    Raises:
        ConfigError: With every text that is none, one line each.
    """
    problems: list[str] = []
    for text in overrides:
        try:
            document.set(*parse_override(text))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(shorten_problems(problems))


def find_shipped(path: Path) -> Path:
    """A path as given, or, where there is no such file, the one of that name beside the package."""
    beside = Path(__file__).parents[2] / path
    # os.path's: a name that no file system takes is one that is not there.
    return beside if not path.is_absolute() and not os.path.exists(path) and os.path.exists(beside) else path  # noqa: PTH110


def validate_document(document: Document) -> SweepConfig:
    """Validates a document as a SweepConfig; raises ConfigError with all its problems."""
    document.check()
    try:
        return SweepConfig.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(shorten_problems(_problems_of(error, document))) from None


def describe_error(details: Any) -> str:
    """What one pydantic error says, as `rule, got value`."""
    if details["type"] == "missing":
        return "is required and not given"
    if details["type"] == "model_type":
        return f"must be a section with keys of its own, got {show(details['input'])}"
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "value_error":
        return message if "got" in message else f"{message}, got {show(details['input'])}"
    # "Input should be ...", "String should match ...", "Keys should be ...".
    message = re.sub(r"^\w+ should ", "", message)
    symbols = (
        ("greater than or equal to", ">="),
        ("less than or equal to", "<="),
        ("greater than", ">"),
        ("less than", "<"),
    )
    for words, symbol in symbols:
        message = message.replace(words, symbol)
    return f"must {message}, got {show(details['input'])}"


def describe_problem(dotted: str, details: Any) -> str:
    """A key and what one pydantic error says of it; a section's own rules name their keys themselves."""
    if details["type"] == "value_error" and isinstance(details["input"], dict):
        return f"{dotted}: {details['msg'].removeprefix('Value error, ')}"
    return f"{dotted} {describe_error(details)}"


def _problems_of(error: ValidationError, document: Document) -> list[str]:
    problems: dict[str, str] = {}
    others: set[str] = set()
    for details in error.errors():
        path = _written_path(details["loc"], document.data)
        dotted = ".".join(map(str, path)) or "config"
        if len(problems) >= MAX_PROBLEMS and dotted not in problems:
            # It is only counted: what a key may have meant takes milliseconds to find.
            others.add(dotted)
            continue
        where = document.place(path)
        if details["type"] == "extra_forbidden":
            problems[dotted] = f"{where}: {dotted} is not a known key.{_suggest(path)}"
        elif dotted in problems:
            problems[dotted] += f", or {describe_error(details).split(', got')[0]}"
        else:
            problems[dotted] = f"{where}: {describe_problem(dotted, details)}"
    return [*problems.values(), *others]


def _written_path(location: KeyPath, data: Any) -> KeyPath:
    """Drops pydantic's union tags from a location, keeping the keys that are in the data."""
    path: list[str | int] = []
    node = data
    for step in location:
        known = (isinstance(node, dict) and step in node) or (
            isinstance(node, list) and isinstance(step, int) and step < len(node)
        )
        if not known:
            # A section's missing required key is named even though it is not written.
            if isinstance(node, dict) and isinstance(step, str) and step == location[-1] and "[" not in step:
                path.append(step)
            continue
        path.append(step)
        node = node[step]
    return tuple(path)


def _suggest(path: KeyPath) -> str:
    dotted = ".".join(map(str, path))
    return suggest_key(dotted) or " `--print-config` lists the known ones."


def suggest_key(dotted: str, *, prefixes: tuple[str, ...] = ()) -> str:
    """What to write in place of a key that is not known, as a sentence behind a blank; empty where nothing is like it.

    Args:
        dotted: The key as it was written.
        prefixes: Sections that may be answered with; empty: all.
    """
    near = closest_path(dotted, prefixes=prefixes, in_section=True)
    alias = ALIASES.get(_last(dotted).replace("-", "_"))
    if near is not None and (alias is None or (near == alias.key and not alias.words)):
        return f" Did you mean {near}?"
    if alias is not None and (alias.key is None or not prefixes or alias.key.startswith(prefixes)):
        return f" {alias}"
    near = closest_path(dotted, prefixes=prefixes)
    return f" Did you mean {near}?" if near else ""


def closest_path(dotted: str, *, prefixes: tuple[str, ...] = (), in_section: bool = False) -> str | None:
    """The known config path nearest to a written one, by the last part of both; a section only in its own place.

    Args:
        dotted: The path as it was written.
        prefixes: Sections that may be answered with; empty: all.
        in_section: Only paths of the same section.
    """
    section = dotted.rpartition(".")[0]
    known = name_paths(known_paths(SweepConfig), dotted)
    if dotted in known:
        return dotted
    if section in known and not any(path.startswith(f"{section}.") for path in known):
        # A part too many.
        return section
    if in_section:
        paths = [path for path in known if path.rpartition(".")[0] == section]
    else:
        paths = leaf_paths(known)
    paths = [path for path in paths if not prefixes or path.startswith(prefixes)]
    by_key: dict[str, list[str]] = {}
    for path in paths:
        by_key.setdefault(_last(path), []).append(path)
    near = difflib.get_close_matches(_last(dotted), by_key, n=1, cutoff=0.6)
    return by_key[near[0]][0] if near else None


def _last(dotted: str) -> str:
    return dotted.rsplit(".", 1)[-1]
