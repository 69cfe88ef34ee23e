"""Adapters and bundles that lie on the hub."""

from __future__ import annotations

from pathlib import Path

from qlora_ray.modeling.identity import ADAPTER_CONFIG

# Of a repository: no pickles. A bundle's config is YAML.
DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.yaml")


def download_adapter(repository: str) -> Path | None:
    """The folder of a repository that holds an adapter or a bundle; None if it holds neither, or cannot be asked."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    for name in (ADAPTER_CONFIG, f"adapter/{ADAPTER_CONFIG}"):
        try:
            hf_hub_download(repository, name)
            return Path(snapshot_download(repository, allow_patterns=list(DOWNLOADED)))
        except LocalEntryNotFoundError:
            # Nothing is known of the repository: the hub cannot be reached.
            break
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError):
            break
    # Not an adapter; what else is wrong with the name is said where the model is loaded.
    return None
