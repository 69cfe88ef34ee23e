"""What a harness task of the user's own is made of: its YAML, and the files that this one names."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from qlora_ray.errors import ConfigError, first_line
from qlora_ray.regular_files import open_regular, read_bytes, resolve_path

EXAMPLE = "docs/lm_eval_task.yaml is an example"


class _Function(str):
    """A value with the harness's `!function` tag: `module.name`, of a file beside the YAML or of a package."""


class _Loader(yaml.SafeLoader):
    """Reads a task without running the code that it names."""


def _construct(loader: _Loader, node: yaml.ScalarNode) -> _Function:
    return _Function(loader.construct_scalar(node))


_Loader.add_constructor("!function", _construct)


def hash_task(path: Path) -> str:
    """Returns the sha256 over all files of a task; paths do not count, so that a task may be moved.

    Raises:
        ConfigError: As `find_task_files` does.
    """
    digest = hashlib.sha256()
    for file in find_task_files(path):
        with open_regular(file) as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def find_task_files(path: Path) -> list[Path]:
    """Returns the YAML, those it includes, the Python files beside them that `!function` names, and local data files.

    Of a group, whose tasks are found by their names, these are all YAML and Python files of its folder. What Python
    files import is not followed.

    Raises:
        ConfigError: If a YAML or one that it includes cannot be read, or includes itself.
    """
    return list(dict.fromkeys(_walk(resolve_path(path.expanduser()), ())))


def _walk(path: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    if path in above:
        raise ConfigError(f"lm-eval: {path} must not include itself, got it by {above[-1]}. Take the include out.")
    values = _read(path, above)
    yield path
    included = values.get("include", [])
    # As the harness has it (lm_eval 0.4.13, tasks/_yaml_loader.py): one or several, seen from the file itself.
    for name in included if isinstance(included, list) else [included]:
        yield from _walk(resolve_path(path.parent / str(name)), (*above, path))
    for text in _texts(values):
        if isinstance(text, _Function):
            module = path.parent / f"{text.rpartition('.')[0].replace('.', '/')}.py"
            if module.is_file():
                yield module.resolve()
    yield from _find_data(values)
    if "group" in values:
        yield from sorted(file for file in path.parent.rglob("*") if file.suffix in (".yaml", ".py") and file.is_file())


def _find_data(values: Mapping[str, Any]) -> Iterator[Path]:
    """The local files behind paths and patterns, and all of a local folder but what is hidden, as `datasets` has it."""
    named = values.get("dataset_kwargs")
    for folder in (values.get("dataset_path"), named.get("data_dir") if isinstance(named, dict) else None):
        if isinstance(folder, str) and Path(folder).is_dir():
            inside = (file for file in Path(folder).rglob("*") if not _is_hidden(file.relative_to(folder)))
            yield from sorted(file.resolve() for file in inside if file.is_file())
    for pattern in _texts([values.get("dataset_path"), named]):
        # Path.glob takes no absolute pattern, and finds hidden files too.
        found = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        yield from (Path(file).resolve() for file in found if Path(file).is_file())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    named = f", which {above[-1].name} includes," if above else ""
    try:
        values = yaml.load(read_bytes(path), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"lm-eval: {path}{named} cannot be read: {error.strerror}. Check the path.") from None
    except yaml.YAMLError as error:
        line = first_line(error).rstrip(".")
        raise ConfigError(f"lm-eval: {path}{named} must be a YAML file, got {line}. {EXAMPLE}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"lm-eval: {path}{named} must have keys and values, got neither. {EXAMPLE}.")
    return values


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
