"""YAML text to plain data, within limits: a few lines of it can nest, or stand for more values than any memory holds.

What is read is texts, numbers, booleans, null, lists, and mappings whose keys are texts; nothing else has a meaning in
a config. Dates are texts, as branches and folders are called by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from qlora_ray.errors import ConfigError, shorten_problems

KeyPath = tuple[str | int, ...]
# Far above what a config or a space needs: ours go five deep, and a thousand points to begin with are 200 KB.
MAX_BYTES = 2**20
MAX_DEPTH = 40
MAX_VALUES = 100_000
# Of a number: a float has 17, and 2**63 has 19.
MAX_DIGITS = 100
_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_SCALARS = (f"{_TAG}str", *_NUMBERS, f"{_TAG}bool", f"{_TAG}null")
_KEYS = (f"{_TAG}str", f"{_TAG}merge")


@dataclass(frozen=True)
class YamlText:
    """What a text says; `lines` has that of each key and list item, the first being 1."""

    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)


def read_yaml(text: str, *, source: str, has_lines: bool = True) -> YamlText:
    """Reads one document.

    Args:
        text: YAML 1.1, but for 1e-4, which is a number as in YAML 1.2, and for dates, which are texts.
        source: Named in messages.
        has_lines: Whether messages name the line.

    Raises:
        ConfigError: If it is not YAML, is larger, deeper or holds more values than the limits allow, an alias stands
            inside its own anchor, a key is no text or stands twice, or a value is of a kind that configs do not have.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source}: must have at most {MAX_BYTES:,} letters, got {len(text):,}. Is it the right one?")
    where = _Place(source, has_lines)
    loader = None
    try:
        loader = _Loader(text, where)
        root = loader.get_single_node()
        if root is None:
            return YamlText()
        _Count(where).check(root)
        lines: dict[KeyPath, int] = {}
        problems = list(_collect_lines(root, (), where, lines))
        if problems:
            raise ConfigError(shorten_problems(problems))
        return YamlText(_unshare(loader.construct_document(root)), lines)
    except (yaml.YAMLError, ValueError, LookupError, ArithmeticError) as error:  # Not only YAML's: `!!bool x`.
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or error
        raise ConfigError(f"{where.at(mark)}: not valid YAML: {said}.") from None
    finally:
        if loader is not None:
            loader.dispose()


@dataclass(frozen=True)
class _Place:
    source: str
    has_lines: bool

    def at(self, mark: yaml.Mark | None) -> str:
        return f"{self.source}:{mark.line + 1}" if mark is not None and self.has_lines else self.source

    def problem(self, node: yaml.Node, said: str) -> ConfigError:
        return ConfigError(f"{self.at(node.start_mark)}: {said}.")

    def check_depth(self, depth: int, mark: yaml.Mark | None) -> None:
        if depth > MAX_DEPTH:
            raise ConfigError(f"{self.at(mark)}: must be nested at most {MAX_DEPTH} deep, got more. Write it flatter.")


class _Loader(yaml.SafeLoader):
    """A safe loader that goes no deeper than MAX_DEPTH while it composes."""

    def __init__(self, text: str, where: _Place) -> None:
        super().__init__(text)
        self._where = where
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._where.check_depth(self._depth, self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in (f"{_TAG}float", f"{_TAG}timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"^[-+]?(?:(?:\d[\d_]*)?\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*\.(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
        r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


class _Count:
    """How many values nodes stand for with those of all aliases in them, and how deep these go; each counted once."""

    def __init__(self, where: _Place) -> None:
        self._where = where
        self._known: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def check(self, node: yaml.Node) -> tuple[int, int]:
        """Returns both; raises ConfigError beyond the limits, and for what is no plain data.

        Composed nodes are nested at most MAX_DEPTH deep, and an alias leads to a node that came before.
        """
        known = self._known.get(id(node))
        if known is not None:
            return known
        if id(node) in self._open:
            raise self._where.problem(node, "an alias (*name) stands inside its own anchor. Write the value out")
        self._open.add(id(node))
        counts = [self.check(part) for part in self._find_parts(node)]
        size, depth = 1 + sum(size for size, _ in counts), 1 + max((depth for _, depth in counts), default=0)
        if size > MAX_VALUES:
            words = f"stands for more than {MAX_VALUES:,} values, with its aliases (*name). Write fewer"
            raise self._where.problem(node, words)
        self._where.check_depth(depth, node.start_mark)
        self._open.remove(id(node))
        self._known[id(node)] = size, depth
        return size, depth

    def _find_parts(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            for key, _ in node.value:
                self._check_key(key)
            return [value for _, value in node.value]
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return list(node.value)
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
                words = f"a number must have at most {MAX_DIGITS} digits, got {len(node.value):,}. Write a smaller one"
                raise self._where.problem(node, words)
            return []
        tag = node.tag.replace(_TAG, "!!")
        words = f"a value must be a text, number, boolean, list or mapping, got {tag}. Drop the tag"
        raise self._where.problem(node, words)

    def _check_key(self, key: yaml.Node) -> None:
        if not isinstance(key, yaml.ScalarNode):
            words = "a key must be a text, got a list or a mapping. Write one name before the colon"
            raise self._where.problem(key, words)
        if key.tag not in _KEYS:
            raise self._where.problem(key, f"a key must be a text, got {key.value or 'nothing'}. Put it in quotes")


def _collect_lines(node: yaml.Node, path: KeyPath, where: _Place, lines: dict[KeyPath, int]) -> Iterator[str]:
    """Puts the lines of all keys and items below a node into `lines`; gives what is wrong: keys that stand twice."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key: str = key_node.value
            if key in seen:
                dotted = ".".join(map(str, (*path, key)))
                yield f"{where.at(key_node.start_mark)}: {dotted} is written twice. Keep one."
            seen.add(key)
            lines[(*path, key)] = key_node.start_mark.line + 1
            yield from _collect_lines(value_node, (*path, key), where, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            yield from _collect_lines(item, (*path, index), where, lines)


def _unshare(data: Any) -> Any:
    """The data with a copy for each alias: what is set in one place changes no other.

    JSON writes letters beyond 16 bits as two escapes, which YAML reads as two halves: they become one.
    """
    if isinstance(data, str) and not data.isascii():
        return data.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    if isinstance(data, dict):
        return {_unshare(key): _unshare(value) for key, value in data.items()}
    return [_unshare(value) for value in data] if isinstance(data, list) else data
