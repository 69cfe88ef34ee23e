"""The pushes that a sweep could not make while it ran, made by a command of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qlora_ray.config.outputs import Export
from qlora_ray.errors import ConfigError
from qlora_ray.exporting.adapter_pushes import AdapterPushes
from qlora_ray.formats import plural
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.artifacts import renew_sweep_artifacts
from qlora_ray.runs.records import Manifest, read_record


def push_waiting(paths: SweepPaths, *, tell: Callable[[str], None]) -> AdapterPushes:
    """Pushes what a sweep that does not run has not pushed, as its own config says.

    Args:
        paths: The sweep's folder.
        tell: Takes lines for the user.

    Raises:
        ConfigError: If the sweep pushes nothing.
        RunError: If the folder is no sweep's, or a process holds it; or if a push does not work.
    """
    written = read_record(paths.manifest, Manifest).config.get("export")
    export = Export.model_validate(written if isinstance(written, Mapping) else {})
    if export.push_every == "never":
        raise ConfigError(
            "--push-adapters: needs a sweep with export.push_every best, trial or save, got never. Push a bundle with "
            "--to DIR --push USER."
        )
    with paths.lock():
        pushes = AdapterPushes(export, paths)
        try:
            while (line := pushes.push_next()) is not None:
                tell(line)
        finally:
            # What was pushed is in events.jsonl.
            renew_sweep_artifacts(paths.root)
    tell(f"on the hub  {plural(pushes.num_pushed, 'adapter')} of {paths.name}")
    return pushes
