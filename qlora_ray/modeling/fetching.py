"""The weights of a hub's model brought into the cache of this machine, without loading them.

huggingface_hub's own file locks let one process of a machine download a file while the others wait; but on some shared
file systems a lock is granted to everybody (huggingface_hub 2.4, file_download.py), and then each process downloads it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qlora_ray.config.schema import Model
from qlora_ray.modeling.loading import find_source, resolve_model_name
from qlora_ray.regular_files import load_json

# As transformers 5 looks for them: safetensors before pickles, one file before shards.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"


def is_on_hub(model: Model) -> bool:
    """Whether the base is a hub's, and may have to be downloaded."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and not Path(resolve_model_name(model.name)).is_dir()


def fetch_weights(model: Model) -> list[str]:
    """Downloads the weights that `load_base` reads, where the cache lacks them.

    The small files are left to the loading itself: which ones it reads is the library's business.

    Returns:
        The names of the files, downloaded now or before; none for a folder, and where the cache must do.

    Raises:
        ModelError: If there is no such model, or it is neither to be reached nor in the cache.
    """
    if not is_on_hub(model):
        return []
    name, source = resolve_model_name(model.name), find_source(model)
    if source["local_files_only"]:
        return []
    from huggingface_hub import HfApi, hf_hub_download

    revision = source["revision"]
    files = HfApi().list_repo_files(name, revision=revision)
    found = find_weights(files)
    if found is not None and found.endswith(INDEX_SUFFIX):
        index = load_json(Path(hf_hub_download(name, found, revision=revision)))
        # What it names and the repository lacks is for the loading to say.
        weights = sorted(set(index["weight_map"].values()) & set(files))
    else:
        weights = [] if found is None else [found]
    for file in weights:
        hf_hub_download(name, file, revision=revision)
    return weights


def find_weights(files: Collection[str]) -> str | None:
    """The file of a repository with the weights, or with the index of their shards; None if it has neither."""
    names = [name for weights in WEIGHTS for name in (weights, weights + INDEX_SUFFIX)]
    return next((name for name in names if name in files), None)
