"""What `plan` found out of a config before, so that asking again imports no torch and no transformers.

Only where all of it lies on this machine, for a hub's answer may be another one tomorrow. A file counts as the same by
size and time of change, the package's own files too.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import qlora_ray
from qlora_ray.config.data_names import list_names, split_brackets
from qlora_ray.config.schema import SweepConfig
from qlora_ray.data.report import DataReport
from qlora_ray.errors import RunError
from qlora_ray.hardware import ModelShape
from qlora_ray.hardware.probe import find_versions
from qlora_ray.hardware.stored import StoredQuantization
from qlora_ray.modeling.loading import resolve_model_name
from qlora_ray.preflight.planning import PlanFacts
from qlora_ray.runs.files import read_json, write_json
from qlora_ray.runs.paths import default_cache_dir
from qlora_ray.search.space import SearchSpace

FOLDER = "plans"
EMBEDDED = "embedded"
# Of a folder that is looked at; a base has some dozens, and the whole of a disk takes minutes.
MAX_FILES = 10_000
# Sections that change nothing of what is remembered.
OTHER_SECTIONS = {"cluster", "results"}


def recall(config: SweepConfig, space: SearchSpace) -> PlanFacts | None:
    """What was remembered of this config and these files; None if nothing was, or it cannot be read.

    Args:
        config: The sweep's config.
        space: Its search space.
    """
    path = _find_place(config, space)
    if path is None or not path.is_file():
        return None
    # A damaged file is worth a second look at the sweep, and no error.
    with suppress(RunError, KeyError, TypeError, ValueError, AttributeError):
        values = read_json(path)
        return PlanFacts(
            config=config,
            extremes=space.extremes(config),
            shape=_read_shape(values["shape"]),
            report=DataReport.from_dict(values["report"]),
            num_train_rows=int(values["num_train_rows"]),
            single_reason=values["single_reason"],
            notes=tuple(values["notes"]),
        )
    return None


def remember(facts: PlanFacts, space: SearchSpace) -> None:
    """Keeps what was found out, if all of it lies on this machine; a cache that cannot be written is none."""
    path = _find_place(facts.config, space)
    if path is None:
        return
    with suppress(RunError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {
            "shape": asdict(facts.shape),
            "report": facts.report.to_dict(),
            "num_train_rows": facts.num_train_rows,
            "single_reason": facts.single_reason,
            "notes": list(facts.notes),
        }
        write_json(path, values)


def _find_place(config: SweepConfig, space: SearchSpace) -> Path | None:
    """The file for this config and the files that it names; None where one of them is not of this machine."""
    base = Path(resolve_model_name(config.model.name))
    named = [*list_names(config.data.train), config.data.validation, config.data.test, config.evaluate.database]
    places = [split_brackets(name)[0] for name in named if isinstance(name, str) and name != EMBEDDED]
    files = [Path(place).expanduser() for place in places]
    if not (base / "config.json").is_file() or config.model.trust_remote_code:
        return None
    described = _describe_files([base, *files, Path(qlora_ray.__file__).parent])
    if described is None:
        return None
    document = {
        "config": config.model_dump(mode="json", exclude=OTHER_SECTIONS),
        "space": space.to_dict(),
        "versions": find_versions(),
        "files": described,
    }
    digest = hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()
    return default_cache_dir() / FOLDER / f"{digest[:32]}.json"


def _describe_files(roots: list[Path]) -> list[tuple[str, int, int]] | None:
    """Name, size and time of change of each file, those of a folder too; None where one is not there or cannot be
    looked at, or a folder has more files than MAX_FILES."""
    described = []
    try:
        for root in roots:
            found = list(islice(root.rglob("*"), MAX_FILES + 1)) if root.is_dir() else [root]
            if len(found) > MAX_FILES:
                return None
            for path in sorted(found):
                if path.suffix != ".pyc" and not path.is_dir():
                    status = path.stat()
                    described.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
    except (OSError, RuntimeError):  # RuntimeError: links that lead in a circle.
        return None
    return described


def _read_shape(values: dict[str, Any]) -> ModelShape:
    linears = {name: (int(d_in), int(d_out)) for name, (d_in, d_out) in values["linears"].items()}
    presets = {name: tuple(modules) for name, modules in values["presets"].items()}
    stored = values["stored"] and StoredQuantization(
        **{**values["stored"], "skipped": tuple(values["stored"]["skipped"])}
    )
    return ModelShape(**{**values, "linears": linears, "presets": presets, "stored": stored})
