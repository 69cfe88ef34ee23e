"""A model's repository on the hub: whether it can be had, and which commit its name stands for.

One short request decides. Where the hub does not answer, the process goes on with what the library's cache holds and
asks no more: huggingface_hub 2.4 asks six times for each file that the cache lacks, half a minute each.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from qlora_ray.errors import ModelError

# A git commit, in full.
COMMIT = re.compile(r"[0-9a-f]{40}")
# What tells of a model, an adapter or a bundle; one of them is in each repository's cache.
TELLING_FILES = ("config.json", "adapter_config.json", "adapter/adapter_config.json")
OFFLINE = "HF_HUB_OFFLINE"


def find_commit(name: str, *, revision: str | None, where: str = "model.name") -> str:
    """The commit of a model on the hub: today's, or the cached one where the hub cannot be reached.

    Args:
        name: The hub id.
        revision: A branch, tag or commit; None: main.
        where: What a message begins with.

    Raises:
        ModelError: If there is no such model, or it is neither to be reached nor in the cache.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    reach_repository(name, revision=revision, where=where)
    from huggingface_hub import hf_hub_download

    try:
        # It also notes in the cache what the revision stands for, by which a run without a network finds it again.
        file = hf_hub_download(name, TELLING_FILES[0], revision=revision)
    except Exception as error:
        what = f"{name} cannot be read: {_cause(error)}"
        raise ModelError(_say(where, what, "check that it is a model; for a gated one set HF_TOKEN")) from None
    return _commit_of(Path(file))


def reach_repository(name: str, *, revision: str | None, where: str) -> None:
    """Asks the hub once whether there is such a repository; without an answer, turns to the cache.

    The wait is HF_HUB_ETAG_TIMEOUT, the library's own setting (10 s): a slow network may have a longer one.

    Raises:
        ModelError: If the hub has no such repository, or gives no answer and the cache has none either.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if constants.HF_HUB_OFFLINE:
        if find_cached(name, revision=revision) is None:
            words = f"{name} is neither a folder here nor in the cache, and {OFFLINE} is set"
            raise ModelError(_say(where, words, "check the name, or unset it"))
        return
    try:
        HfApi().model_info(name, revision=revision, timeout=float(constants.HF_HUB_ETAG_TIMEOUT))
    except HFValidationError as error:
        raise ModelError(_say(where, f"{name} is no name of the hub: {_cause(error)}", "correct it")) from None
    except GatedRepoError:
        raise ModelError(_say(where, f"{name} is gated", "ask for access on its page, and set HF_TOKEN")) from None
    except RepositoryNotFoundError:
        words = f"{name} is neither a folder here nor a model on the hub"
        raise ModelError(_say(where, words, "check the name; for a private model set HF_TOKEN")) from None
    except RevisionNotFoundError:
        raise ModelError(_say(where, f"{name} has no revision {revision}", "correct model.revision")) from None
    # The HTTP client's own errors have no class in common with those of its predecessors.
    except Exception as error:
        if find_cached(name, revision=revision) is None:
            words = f"{name} is neither a folder here nor in the cache, and {constants.ENDPOINT} cannot be reached"
            raise ModelError(_say(where, f"{words}: {_cause(error)}", "check the name and the network")) from None
        _go_offline(f"{constants.ENDPOINT} cannot be reached ({_cause(error)}): {name} is read from the cache")


def find_cached(name: str, *, revision: str | None) -> str | None:
    """The commit that the cache has of a repository at a revision; None if it has none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in TELLING_FILES:
        try:
            found = try_to_load_from_cache(name, file, revision=revision)
        except HFValidationError:
            return None
        # It may also be a mark that the repository has no such file.
        if isinstance(found, str):
            return _commit_of(Path(found))
    return None


def _commit_of(cached: Path) -> str:
    """The commit in a cached file's path: models--org--name/snapshots/<commit>/..."""
    from huggingface_hub import constants

    return cached.relative_to(constants.HF_HUB_CACHE).parts[2]


def _go_offline(reason: str) -> None:
    """Makes this process, and those it starts, use the cache alone, by huggingface_hub's own switch."""
    from huggingface_hub import constants

    os.environ[OFFLINE] = "1"
    # The library has read the variable by now.
    constants.HF_HUB_OFFLINE = True
    logging.getLogger(__name__).warning("%s", reason)


def _say(where: str, what: str, advice: str) -> str:
    return f"{where}: {what}. {advice[0].upper()}{advice[1:]}; without a network, give a local folder."


def _cause(error: Exception) -> str:
    """An error's first line, without the token, which the HTTP client quotes if it cannot be sent."""
    text = str(error).strip()
    if "Bearer" in text:
        return "the token has characters that cannot be sent"
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(" .:")
