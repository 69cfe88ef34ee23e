"""The private repository of the hub that a sweep's adapters go to while it runs: found or made, and pushed to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.config.outputs import Export
from qlora_ray.errors import QloraRayError, RunError
from qlora_ray.exporting.hub_client import (
    REACH_TIMEOUT_S,
    STALL_TIMEOUT_S,
    answers_within,
    explained,
    make_api,
)
from qlora_ray.exporting.hub_plan import (
    HUB_FILE,
    check_repo_id,
    find_access,
    find_account,
    find_repository,
)
from qlora_ray.modeling.identity import ADAPTER_ORIGIN
from qlora_ray.runs.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEADS_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from huggingface_hub import HfApi

WHERE = "export.push_every"
LATER = "leave it: the sweep needs no hub, and its adapters can be pushed later"
# The branch that a repository's name alone stands for.
MAIN = "main"
FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_ORIGIN, HEADS_WEIGHTS)


@dataclass(frozen=True)
class AdapterRepository:
    """A repository that this sweep may write to.

    Attributes:
        repo_id: `user/repository`.
        endpoint: The hub's address.
    """

    repo_id: str
    endpoint: str
    token: str = field(repr=False)

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{self.endpoint}/{self.repo_id}"

    def push(self, adapter: Path, *, branch: str, message: str) -> None:
        """Uploads an adapter in one commit; what is there as it is makes none.

        Args:
            adapter: PEFT's folder.
            branch: Where it goes; made where it is missing.
            message: The commit's.

        Raises:
            RunError: If the hub cannot be reached, refuses, or falls silent; the message is without the token.
        """
        api = make_api(self.endpoint, self.token)
        with (
            answers_within(STALL_TIMEOUT_S),
            explained(WHERE, f"{self.repo_id} did not take it", token=self.token, again=""),
        ):
            if branch != MAIN:
                api.create_branch(self.repo_id, branch=branch, exist_ok=True)
            api.upload_folder(
                repo_id=self.repo_id,
                folder_path=adapter,
                allow_patterns=list(FILES),
                # A branch begins as main is: another trial's heads would be taken for this one's.
                delete_patterns=list(FILES),
                commit_message=message,
                revision=branch,
            )


def _check_access() -> None:
    """Raises QloraRayError where it is plain without a network that nothing can be pushed: no token, or offline."""
    find_access(WHERE, later=LATER)


def can_push() -> bool:
    """Whether there is a token and a network may be used, as far as that is known without one."""
    try:
        _check_access()
    except QloraRayError:
        return False
    return True


def describe_pushes(export: Export) -> str | None:
    """What will be pushed, or what is missing for it, in a line; asks no network. None where nothing is to be."""
    if export.push_every == "never":
        if export.push_to is None:
            return None
        return "nothing is pushed to the hub: export.push_to is set, and export.push_every, which says what, is never"
    try:
        _check_access()
    except QloraRayError as error:
        return f"nothing is pushed to the hub for now. {error}"
    owner, _, name = (export.push_to or "").partition("/")
    what = {
        "best": "each new best adapter",
        "trial": "each complete trial's adapter",
        "save": "each trial's adapter at each report",
    }[export.push_every]
    return (
        f"{what} is pushed to a private repository of {owner or 'the user of the token'}, "
        f"under {name or 'the name of the sweep'} (export.push_every)"
    )


def open_repository(
    export: Export, *, name: str, is_ours: Callable[[str], bool], note_made: Callable[[str], None]
) -> AdapterRepository:
    """Finds the sweep's repository, or makes it, private.

    Args:
        export: Says whose it is, and may say its name.
        name: The sweep's, which the repository has otherwise.
        is_ours: Whether this sweep has made or written a repository, by its id.
        note_made: Is told the id of one that was made, before anything else is done.

    Raises:
        QloraRayError: If there is no token, the hub cannot be reached or refuses, or the repository is public, or
            another's, or holds what this sweep has not put there.
    """
    endpoint, token = find_access(WHERE, later=LATER)
    api = make_api(endpoint, token)
    with answers_within(REACH_TIMEOUT_S):
        account = find_account(api, where=WHERE, token=token, later=LATER)
        owner, _, own_name = (export.push_to or account.user).partition("/")
        repo_id = f"{owner}/{own_name or name}"
        check_repo_id(repo_id, where="export.push_to")
        if not account.may_write(owner):
            raise RunError(
                f"export.push_to: must be a user that your token may write to, got {owner}: the token is of "
                f"{account.user}. Set export.push_to to {account.user}, or leave it out."
            )
        has_found = _check_found(api, repo_id, token=token, is_ours=is_ours)
    if not has_found:
        with (
            answers_within(REACH_TIMEOUT_S),
            explained(WHERE, f"{repo_id} cannot be made", token=token, again=""),
        ):
            api.create_repo(repo_id, private=True)
        note_made(repo_id)
    return AdapterRepository(repo_id, endpoint, token)


def _check_found(api: HfApi, repo_id: str, *, token: str, is_ours: Callable[[str], bool]) -> bool:
    """Whether the repository is there; raises RunError if it is no place for adapters of this sweep."""
    info = find_repository(api, repo_id, where=WHERE, token=token, later=LATER)
    if info is None:
        return False
    if info.private is False:
        raise RunError(
            f"{WHERE}: the repository must be private, got {repo_id}, which is public. Choose another name with "
            "export.push_to."
        )
    foreign = [sibling.rfilename for sibling in info.siblings or [] if sibling.rfilename != HUB_FILE]
    if foreign and not is_ours(repo_id):
        raise RunError(
            f"{WHERE}: the repository must be new, got {repo_id}, which holds {foreign[0]} and is not this sweep's. "
            "Choose another name with export.push_to."
        )
    return True
