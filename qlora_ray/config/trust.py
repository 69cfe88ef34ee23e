"""What a config that came with a folder may do only where the folder is the user's own, or the user says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_ray.config.reuse import TRUST, is_overridden
from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import ConfigError
from qlora_ray.runs.ownership import is_own
from qlora_ray.runs.records import Manifest


@dataclass(frozen=True)
class _Power:
    """A config key by which a manifest chooses code that runs, a host that is spoken to, or what leaves it.

    Attributes:
        is_used: Whether a value uses the power.
        harmless: What the user sets instead to go on without it.
        what: What it would do.
    """

    key: str
    is_used: Callable[[Any], bool]
    harmless: str
    what: str


# These write files beside the trials; the others go where the user's environment says.
LOCAL_TRACKERS = frozenset(("tensorboard",))
POWERS = (
    _Power(TRUST, bool, "false", "runs code that comes with the base"),
    _Power("cluster.address", lambda value: value is not None, "null", "joins that Ray cluster"),
    _Power(
        "results.report_to",
        lambda names: not LOCAL_TRACKERS.issuperset(names),
        "[]",
        "sends its figures to your accounts",
    ),
    _Power("export.push_every", lambda value: value != "never", "never", "uploads its adapters with your token"),
)


def check_trust(
    config: SweepConfig, manifest: Manifest, *, folder: str, overrides: Sequence[str], is_trusted: bool
) -> None:
    """Refuses what a stranger's manifest asks for that runs code, joins a cluster or uploads.

    Args:
        config: The config that came with the folder, with the overrides in it.
        manifest: The folder's manifest.
        folder: The folder as the user named it.
        overrides: The user's `--set` values: what they set is the user's own.
        is_trusted: The user said that the folder is to be trusted.

    Raises:
        ConfigError: With a line for each such key.
    """
    if is_trusted:
        return
    values = {key: _value_at(config, key) for key in (power.key for power in POWERS)}
    asked = [power for power in POWERS if power.is_used(values[power.key]) and not is_overridden(overrides, power.key)]
    if not asked or is_own(manifest):
        return
    raise ConfigError(
        [
            f"{folder}: a sweep that this user did not start here must not choose code, clusters or uploads, got "
            f"{power.key}: {values[power.key]}, which {power.what}. If you trust where the folder is "
            f"from, add --trust-folder; else go on with --set {power.key}={power.harmless}."
            for power in asked
        ]
    )


def _value_at(config: SweepConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
