"""Adapters and bundles that lie on the hub."""

from __future__ import annotations

from pathlib import Path

from qlora_ray.modeling.hub import reach_repository
from qlora_ray.modeling.identity import ADAPTER_CONFIG

# Of a repository: no pickles. A bundle's config is YAML.
DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.yaml")


def download_adapter(repository: str) -> Path | None:
    """The folder of a repository that holds an adapter or a bundle; None if it holds neither.

    Raises:
        ModelError: If there is no such repository, or it is neither to be reached nor in the cache.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    reach_repository(repository, revision=None, where="target")
    for name in (ADAPTER_CONFIG, f"adapter/{ADAPTER_CONFIG}"):
        try:
            hf_hub_download(repository, name)
            return Path(snapshot_download(repository, allow_patterns=list(DOWNLOADED)))
        except EntryNotFoundError:
            # Also where only the cache is asked, and lacks it.
            continue
        except (HfHubHTTPError, HFValidationError, OSError):
            break
    # Not an adapter; what else is wrong with it is said where the model is loaded.
    return None
