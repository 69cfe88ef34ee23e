"""YAML documents that remember the line of every key, so that a problem can be named as file:line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_ray.config.yaml_text import MAX_BYTES, MAX_DEPTH, KeyPath, read_yaml
from qlora_ray.errors import ConfigError, shorten_problems
from qlora_ray.regular_files import open_regular

# What is one value, though it is written as a section: of two spaces, parts of both would be neither.
WHOLE: frozenset[KeyPath] = frozenset({("search", "space"), ("data", "columns")})
# What other programs and files keep in 64 bits.
MAX_INT = 2**63 - 1


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

    def check(self) -> None:
        """Raises ConfigError, with a line for each, for values that nothing can be done with, whatever they are for.

        A manifest's were not read from YAML, and `--set` makes sections of its own.
        """
        problems = [f"{self.place(path)}: {join(path) or 'it'} {rule}." for path, rule in _find_unfit(self.data, ())]
        if problems:
            raise ConfigError(shorten_problems(problems))

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
    read = read_yaml(_read_file(path), source=str(path))
    if read.data is None:
        return Document(str(path), {})
    if not isinstance(read.data, dict):
        raise ConfigError(f"{path}:1: must be a mapping of sections, got {type(read.data).__name__}.")
    return Document(str(path), read.data, {where: f"{path}:{line}" for where, line in read.lines.items()})


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") if _is_handed_over(path) else open_regular(path) as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: must have at most {MAX_BYTES:,} bytes, got more. Is it the right file?")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Give the path of a YAML file.") from None
    except (OSError, ValueError) as error:  # ValueError: other bytes than UTF-8, or a NUL in the path.
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _is_handed_over(path: Path) -> bool:
    """Whether a path is a pipe that this process was started with, as by `--config <(command)`: it has its writer."""
    is_handed_over = path.as_posix() == "/dev/stdin" or path.parent.as_posix() in ("/dev/fd", "/proc/self/fd")
    return is_handed_over and path.is_fifo()


def parse_yaml_value(text: str, *, source: str = "value") -> Any:
    """One YAML value, with numbers such as 1e-4 read as numbers; raises ConfigError as `read_yaml`."""
    return read_yaml(text, source=source, has_lines=False).data


def join(path: KeyPath) -> str:
    """A key path as messages have it: `search.space`."""
    return ".".join(map(str, path))


def _find_unfit(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if len(path) > MAX_DEPTH:
        yield path, f"must be nested at most {MAX_DEPTH} deep"
    elif isinstance(value, dict):
        for key, below in value.items():
            rule = _find_rule(key) if isinstance(key, str) else f"must have texts as keys, got {key!r}"
            if rule:
                yield path, f"has a key that {rule}" if isinstance(key, str) else rule
            yield from _find_unfit(below, (*path, str(key)))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _find_unfit(below, (*path, index))
    elif rule := _find_rule(value):
        yield path, rule


def _find_rule(value: Any) -> str | None:
    """The rule that a text or number breaks, with what it is; None for a good one."""
    if isinstance(value, int) and not -MAX_INT <= value <= MAX_INT:
        return f"must be a number of at most 64 bits, got one of {value.bit_length():,}"
    if not isinstance(value, str):
        return None
    if "\0" in value:
        return f"must have no NUL characters, got {show(value)}"
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        # An escape of YAML or JSON, or a byte of the command line that is no UTF-8.
        return f"must be text that UTF-8 can write, got {show(value)}"
    return None


def show(value: object, limit: int = 80) -> str:
    """A value as messages quote it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
