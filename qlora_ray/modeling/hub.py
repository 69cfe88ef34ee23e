"""A model's repository on the hub: whether it can be had, and which commit its name stands for.

One short request decides. Where no hub answers, the process goes on with what the library's cache holds and asks no
more: huggingface_hub 2.4 asks six times for each file that the cache lacks, half a minute each.
"""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from qlora_ray.errors import ModelError

# A git commit, in full.
COMMIT = re.compile(r"[0-9a-f]{40}")
# What tells of a model, an adapter or a bundle; one of them is in each repository's cache.
TELLING_FILES = ("config.json", "adapter_config.json", "adapter/adapter_config.json")
OFFLINE = "HF_HUB_OFFLINE"
# Beside it where this package has set it: the processes it starts read both.
GAVE_UP = "QLORA_RAY_HUB_GAVE_UP"
# Ours: a hub that is busy (429) or ill (5xx) is asked again after so many seconds.
RETRY_WAITS_S = (1.0, 2.0)
TOO_MANY_REQUESTS, SERVER_ERRORS = 429, 500


def find_commit(name: str, *, revision: str | None, where: str = "model.name") -> str:
    """The commit of a model on the hub: today's, or the cached one where the hub cannot be reached.

    Args:
        name: The model's hub id, as `Qwen/Qwen2.5-0.5B`.
        revision: A branch, tag or commit; None stands for `main`.
        where: The config key or argument that error messages begin with.

    Raises:
        ModelError: If there is no such model, or it is neither to be reached nor in the cache.
    """
    if revision is not None and is_commit(revision):
        return revision
    is_there = reach_repository(name, revision=revision, where=where)
    from huggingface_hub import hf_hub_download

    try:
        # It also notes in the cache what the revision stands for, by which a run without a network finds it again.
        file = hf_hub_download(name, TELLING_FILES[0], revision=revision, local_files_only=not is_there)
    except Exception as error:
        what = f"{name} cannot be read: {first_line(error)}"
        raise ModelError(_say(where, what, "check that it is a model; for a gated one set HF_TOKEN")) from None
    return _commit_of(Path(file))


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit in full: it needs no hub to be known."""
    return COMMIT.fullmatch(revision) is not None


def reach_repository(name: str, *, revision: str | None, where: str) -> bool:
    """Asks the hub whether there is such a repository; without an answer, turns to the cache.

    The wait is HF_HUB_ETAG_TIMEOUT, the library's own setting (10 s): a slow network may have a longer one. A hub that
    answers that it is busy or ill is asked again; then the cache has to do for this model, and only for it.

    Args:
        name: The repository's hub id.
        revision: A branch, tag or commit; None stands for `main`.
        where: The config key or argument that error messages begin with.

    Returns:
        Whether the hub has it to give; else it is to be read with `local_files_only`.

    Raises:
        ModelError: If the hub has no such repository or refuses it, or does not tell and the cache has none either.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    cached = find_cached(name, revision=revision)
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            reason = f"{constants.ENDPOINT} could not be reached" if gave_up() else f"{OFFLINE} is set"
            advice = "check the name and the network" if gave_up() else "check the name, or unset it"
            raise ModelError(_say(where, f"{name} is neither a folder here nor in the cache, and {reason}", advice))
        return False
    try:
        _ask(name, revision)
        return True
    except HFValidationError as error:
        raise ModelError(_say(where, f"{name} is no name of the hub: {first_line(error)}", "correct it")) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status != TOO_MANY_REQUESTS and status < SERVER_ERRORS:
            what, advice = _explain_refusal(error, name, revision)
            if cached is not None:
                advice += f"; {OFFLINE}=1 uses the cached one"
            raise ModelError(_say(where, what, advice)) from None
        reason = f"{constants.ENDPOINT} answers {status}"
        if cached is None:
            words = f"{name} is neither a folder here nor in the cache, and {reason}"
            raise ModelError(_say(where, words, "try again later")) from None
        _warn(f"{reason}: {name} is read from the cache")
    # The HTTP client's own errors have no class in common with those of its predecessors.
    except Exception as error:
        if _quotes_token(error):
            words = f"the hub cannot be asked for {name}: {first_line(error)}"
            raise ModelError(_say(where, words, "copy HF_TOKEN again, or log in again by hf auth")) from None
        reason = f"{constants.ENDPOINT} cannot be reached"
        if cached is None:
            words = f"{name} is neither a folder here nor in the cache, and {reason}: {first_line(error)}"
            raise ModelError(_say(where, words, "check the name and the network")) from None
        _go_offline(f"{reason} ({first_line(error)}): {name} is read from the cache")
    return False


def gave_up() -> bool:
    """Whether HF_HUB_OFFLINE is set by this package, as no hub answered, and not by the user."""
    return os.environ.get(GAVE_UP) == "1"


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
    """The commit in a cached file's path: .../models--org--name/snapshots/<commit>/...

    What comes before is the cache's folder, as it is set or, with its links resolved, as the library may give it.
    """
    parts = cached.parts
    return parts[len(parts) - parts[::-1].index("snapshots")]


def _ask(name: str, revision: str | None) -> None:
    """The request, made again where the hub is busy or ill; raises what the library does."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    for wait_s in (*RETRY_WAITS_S, None):
        try:
            HfApi().model_info(name, revision=revision, timeout=float(constants.HF_HUB_ETAG_TIMEOUT))
            return
        except HfHubHTTPError as error:
            status = error.response.status_code
            if wait_s is None or (status != TOO_MANY_REQUESTS and status < SERVER_ERRORS):
                raise
        time.sleep(wait_s)


def _explain_refusal(error: Any, name: str, revision: str | None) -> tuple[str, str]:
    """What the hub does not give, and what to do about it."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{name} is gated", "ask for access on its page, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        words = f"{name} is neither a folder here nor a model on the hub"
        return words, "check the name; for a private model set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision}", "correct model.revision"
    status = error.response.status_code
    if status == 401:
        # Also for what anybody may read without a token.
        words = f"the hub does not know the token that it was sent for {name} (401)"
        return words, "renew HF_TOKEN or the login of hf auth; a public model needs none, so that it can be unset"
    if status == 403:
        return f"the hub does not let the token read {name} (403)", "ask for access, or set another HF_TOKEN"
    return f"{name} cannot be had, the hub answers {status}: {first_line(error)}", "check the name and the network"


def _go_offline(reason: str) -> None:
    """Makes this process, and those it starts, use the cache alone, by huggingface_hub's own switch."""
    from huggingface_hub import constants

    os.environ[OFFLINE] = os.environ[GAVE_UP] = "1"
    # The library has read the variable by now.
    constants.HF_HUB_OFFLINE = True
    _warn(reason)


def _warn(reason: str) -> None:
    logging.getLogger(__name__).warning("%s", reason)


def _say(where: str, what: str, advice: str) -> str:
    return f"{where}: {what}. {advice[0].upper()}{advice[1:]}; without a network, give a local folder."


def first_line(error: Exception) -> str:
    """An error's first line, without the token, which the HTTP client quotes if it cannot be sent."""
    if _quotes_token(error):
        return "the token has characters that cannot be sent"
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(" .:")


def _quotes_token(error: Exception) -> bool:
    return "Bearer" in str(error)
