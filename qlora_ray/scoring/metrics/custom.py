"""A metric of your own: one class in one Python file, named on the command line.

Only there: a config never names code to run. The class needs no argument to be made, and has what
`qlora_ray.scoring.metrics.metric.Metric` has:

    class AnswerLength:
        name = "answer_length"
        higher_is_better = False
        needs_references = False  # also scores prompt files without references; True if left out

        def score(self, predictions, references):
            return [float(len(prediction)) for prediction in predictions]
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from qlora_ray.errors import ConfigError
from qlora_ray.scoring.metrics.metric import Metric


def load_metric(place: str) -> Metric:
    """Returns a metric made from the class at `path/to/file.py:ClassName`. Runs the file.

    Raises:
        ConfigError: no such file or class, an exception in either, or a class that is no metric.
    """
    file, separator, name = place.rpartition(":")
    if not separator or not name.isidentifier():
        raise ConfigError(f"metric: must be path/to/file.py:ClassName, got {place}. Name the file and its class.")
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(f"metric {place}: must name a Python file, got {path} (no such file). Correct the path.")
    module = _run(path, place)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(
            f"metric {place}: must name a class of the file, got {name}. It has: {', '.join(classes) or 'none'}."
        )
    try:
        metric = found()
    except (Exception, SystemExit) as error:
        raise _failed(place, path, f"{name}() must need no argument", error) from error
    _check(metric, place)
    return cast(Metric, metric)


def _run(path: Path, place: str) -> ModuleType:
    """Returns the module of the file, which gets a name of its own so that it hides no other."""
    name = f"_metric_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"metric {place}: must name a Python file, got {path.name}. Give it the ending .py.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(place, path, "the file must run", error) from error
    return module


def _check(metric: Any, place: str) -> None:
    """Raises ConfigError with all that the object lacks of a metric."""
    lacks = []
    name = getattr(metric, "name", None)
    if not isinstance(name, str) or not name.isidentifier():
        lacks.append(f"name must be a word, got {name!r}")
    if not isinstance(getattr(metric, "higher_is_better", None), bool):
        lacks.append(f"higher_is_better must be True or False, got {getattr(metric, 'higher_is_better', None)!r}")
    if not isinstance(getattr(metric, "needs_references", True), bool):
        lacks.append(f"needs_references must be True or False, got {metric.needs_references!r}")
    if not callable(getattr(metric, "score", None)):
        lacks.append("score(predictions, references) must be a method, got none")
    if lacks:
        raise ConfigError(f"metric {place}: {'; '.join(lacks)}. Add what lacks to the class.")


def _failed(place: str, path: Path, rule: str, error: BaseException) -> ConfigError:
    # The import system makes paths absolute.
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    where = f" (line {lines[-1]})" if lines else ""
    return ConfigError(f"metric {place}: {rule}, got {type(error).__name__}: {error}{where}. Correct it.")
