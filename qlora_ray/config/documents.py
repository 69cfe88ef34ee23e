"""YAML documents that remember the line of every key, so that a problem can be named as file:line."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qlora_ray.errors import ConfigError

KeyPath = tuple[str | int, ...]
# What is one value, though it is written as a section: of two spaces, parts of both would be neither.
WHOLE: frozenset[KeyPath] = frozenset({("search", "space"), ("data", "columns")})


@dataclass
class Document:
    """Plain data and, for each key path in it, where that key was written (`file:line` or `--set key`)."""

    source: str
    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """The place of a key path, or of its nearest written ancestor."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.source

    def set(self, dotted: str, value: Any) -> None:
        """Overrides one dotted key, as `--set` does.

        Raises:
            ConfigError: If the path runs through something that is not a section.
        """
        keys = dotted.split(".")
        node = self.data
        for depth, key in enumerate(keys[:-1], start=1):
            if node.get(key) is None:
                node[key] = {}
                self.places[tuple(keys[:depth])] = f"--set {dotted}"
            child = node[key]
            if not isinstance(child, dict):
                parent = ".".join(keys[:depth])
                raise ConfigError(
                    f"--set {dotted}: {parent} is not a section, it is {child!r}. Name a key that exists."
                )
            node = child
        node[keys[-1]] = value
        path = tuple(keys)
        self.places = {known: where for known, where in self.places.items() if known[: len(path)] != path}
        self.places[path] = f"--set {dotted}"

    def put_over(self, below: Document) -> Document:
        """Returns this document over another one: sections are joined, other values replace those below."""
        data, places = copy.deepcopy(below.data), dict(below.places)
        _put_over(self.data, data, (), places)
        return Document(self.source, data, {**places, **self.places})


def _put_over(above: dict[str, Any], below: dict[str, Any], path: KeyPath, places: dict[KeyPath, str]) -> None:
    for key, value in above.items():
        here = (*path, key)
        if here not in WHOLE and isinstance(value, dict) and isinstance(below.get(key), dict):
            _put_over(value, below[key], here, places)
            continue
        below[key] = value
        for known in [known for known in places if known[: len(here)] == here]:
            del places[known]


def read_document(path: Path) -> Document:
    """Reads one YAML mapping with the line of each of its keys.

    Raises:
        ConfigError: If the file is missing, unreadable, not YAML, not a mapping, or names a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.load(text, Loader=_NumberLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}.") from None
    if root is None:
        return Document(str(path), {})
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:1: must be a mapping of sections, got {type(data).__name__}.")
    document = Document(str(path), data)
    problems: list[str] = []
    try:
        _collect_places(root, (), str(path), document.places, problems)
    except RecursionError:
        raise ConfigError(f"{path}: an alias (*name) stands inside its own anchor. Write the value out.") from None
    if problems:
        raise ConfigError(problems)
    return document


def parse_yaml_value(text: str) -> Any:
    """One YAML value, with numbers such as 1e-4 read as numbers (YAML 1.1 reads them as text)."""
    return yaml.load(text, Loader=_NumberLoader)


class _NumberLoader(yaml.SafeLoader):
    """A safe loader that reads 1e-4 as a float, as YAML 1.2 and every ML config expects."""


_NumberLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:\d[\d_]*)?\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*\.(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
        r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _collect_places(
    node: yaml.Node, path: KeyPath, source: str, places: dict[KeyPath, str], problems: list[str]
) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = key_node.value
            where = f"{source}:{key_node.start_mark.line + 1}"
            if key in seen:
                problems.append(f"{where}: {'.'.join(map(str, (*path, key)))} is written twice. Keep one.")
            seen.add(key)
            places[(*path, key)] = where
            _collect_places(value_node, (*path, key), source, places, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*path, index)] = f"{source}:{item.start_mark.line + 1}"
            _collect_places(item, (*path, index), source, places, problems)
