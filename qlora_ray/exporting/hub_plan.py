"""Where a bundle goes on the hub, and all that would stop it, found out before anything is merged or written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qlora_ray.env_file import TOKEN_NAME, check_token
from qlora_ray.errors import ConfigError, RunError
from qlora_ray.exporting.hub_client import (
    PUSH_LATER,
    REACH_TIMEOUT_S,
    answers_within,
    explain_refusal,
    explain_silence,
    find_token,
    make_api,
)
from qlora_ray.exporting.inventory import BUNDLE_FILES, BUNDLE_FOLDERS
from qlora_ray.modeling.hub import gave_up

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The hub makes it, and no bundle has one.
HUB_FILE = ".gitattributes"


@dataclass(frozen=True)
class PushPlan:
    """Where a bundle goes.

    Attributes:
        repo_id: The repository on the hub, as `user/repository`.
        is_public: Whether a repository that is made is public.
        exists: Whether the repository is there already.
        endpoint: The hub's address.
    """

    repo_id: str
    is_public: bool
    exists: bool
    endpoint: str
    token: str = field(repr=False)

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{self.endpoint}/{self.repo_id}"


def plan_push(
    repo_id: str,
    *,
    is_public: bool,
    tell: Callable[[str], None],
    token: str | None = None,
    endpoint: str | None = None,
) -> PushPlan:
    """Checks all that a push needs; changes nothing.

    Args:
        repo_id: `user/repository`.
        is_public: Whether a repository that is made is public.
        tell: Takes lines for the user.
        token: The hub's token; None: `find_token`.
        endpoint: The hub's address; None: HF_ENDPOINT, else the public hub.

    Raises:
        ConfigError: If the name is none, no token is to be found, or it cannot be one.
        RunError: If the hub cannot be reached, does not take the token, or the name is taken.
    """
    check_repo_id(repo_id)
    where = f"--push {repo_id}"
    endpoint, token = find_access(where, token=token, endpoint=endpoint)
    api = make_api(endpoint, token)
    with answers_within(REACH_TIMEOUT_S):
        info = find_repository(api, repo_id, where=where, token=token)
        account = find_account(api, where=where, token=token)
    namespace, _, name = repo_id.partition("/")
    if not account.may_write(namespace):
        raise RunError(
            f"{where}: must be a name that your token may write to, got another's: the token is of {account.user}. "
            f"Try {account.user}/{name}."
        )
    if info is not None:
        _check_repository(info, repo_id, is_public=is_public, tell=tell)
    return PushPlan(repo_id, is_public, info is not None, endpoint, token)


def check_user(user: str, *, token: str | None = None, endpoint: str | None = None) -> None:
    """Checks what a push to a user needs while the repository's name is not known yet; raises as `plan_push`.

    Args:
        user: The user or organization.
        token: The hub's token; None: `find_token`.
        endpoint: The hub's address; None: HF_ENDPOINT, else the public hub.
    """
    where = f"--push {user}"
    check_repo_id(f"{user}/x")
    endpoint, token = find_access(where, token=token, endpoint=endpoint)
    with answers_within(REACH_TIMEOUT_S):
        account = find_account(make_api(endpoint, token), where=where, token=token)
    if not account.may_write(user):
        raise RunError(
            f"{where}: must be a user that your token may write to, got another: the token is of {account.user}. "
            f"Try {account.user}, or {account.user}/REPO."
        )


def name_repository(asked: str, *, name: str) -> str:
    """`USER/REPO` as it is; for `USER` alone, the user's repository that has the bundle's name."""
    return asked if "/" in asked else f"{asked}/{name}"


def check_repo_id(repo_id: str, *, where: str = "--push") -> None:
    """Raises ConfigError unless the text is `user/repository` as the hub has names."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    problem = None if "/" in repo_id[1:] else "there is no user in it"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        problem = problem or str(error).split(f": '{repo_id}'")[0].rstrip(".")
    if problem:
        raise ConfigError(f"{where}: must be USER/REPO, got {repo_id!r}: {problem}. Choose another name.")


def find_access(
    where: str, *, token: str | None = None, endpoint: str | None = None, later: str = PUSH_LATER
) -> tuple[str, str]:
    """The hub's address, and a token for it. Asks no network.

    Args:
        where: The option that messages begin with.
        token: The hub's token; None: `find_token`.
        endpoint: The hub's address; None: HF_ENDPOINT, else the public hub.
        later: What can be done without a network.

    Raises:
        ConfigError: If there is no token, or it cannot be one.
        RunError: If the library is not to use the network.
    """
    from huggingface_hub import constants

    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if constants.HF_HUB_OFFLINE and gave_up():
        raise RunError(
            f"{where}: needs the network, got no answer from {constants.ENDPOINT} where the base was looked for. Check "
            f"the network, or {later}."
        )
    if constants.HF_HUB_OFFLINE:
        raise RunError(f"{where}: needs the network, got HF_HUB_OFFLINE=1. Unset it, or {later}.")
    token = check_token(token, where=f"{where}: the token") if token else find_token()
    if token is None:
        raise ConfigError(
            f"{where}: needs a token, got none. Set {TOKEN_NAME} in the environment or in .env (a token with "
            f"write access, from {endpoint}/settings/tokens)."
        )
    return endpoint, token


def find_repository(api: HfApi, repo_id: str, *, where: str, token: str, later: str = PUSH_LATER) -> Any | None:
    """The repository as the hub describes it; None if there is none that this token may see. Raises RunError."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        return api.model_info(repo_id, timeout=REACH_TIMEOUT_S)
    except RepositoryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise explain_refusal(error, where=where, token=token) from None
    # The HTTP client's own errors have no class in common with those of its predecessors.
    except Exception as error:
        raise explain_silence(error, api, where=where, token=token, later=later) from None


@dataclass(frozen=True)
class Account:
    """Whose a token is.

    Attributes:
        user: The user's name.
        namespaces: Where the user may have repositories, as far as the hub tells.
        has_own_rules: A fine-grained token, which may write where its owner is no member.
    """

    user: str
    namespaces: frozenset[str]
    has_own_rules: bool

    def may_write(self, namespace: str) -> bool:
        """Whether nothing speaks against a push there."""
        return namespace in self.namespaces or self.has_own_rules


def find_account(api: HfApi, *, where: str, token: str, later: str = PUSH_LATER) -> Account:
    """Whose the token is; raises RunError where it may only read, or the hub does not take it or does not answer."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        who = api.whoami()
    except HfHubHTTPError as error:
        raise explain_refusal(error, where=where, token=token) from None
    except Exception as error:
        raise explain_silence(error, api, where=where, token=token, later=later) from None
    user = str(who.get("name"))
    role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise RunError(f"{where}: needs a token that may write, got one that may read. Make another.")
    teams = (str(organization.get("name")) for organization in who.get("orgs") or [])
    return Account(user, frozenset({user, *teams}), role == "fineGrained")


def _check_repository(info: Any, repo_id: str, *, is_public: bool, tell: Callable[[str], None]) -> None:
    names = [sibling.rfilename for sibling in info.siblings or []]
    foreign = [name for name in names if name not in (*BUNDLE_FILES, HUB_FILE) and not name.startswith(BUNDLE_FOLDERS)]
    if foreign:
        raise RunError(
            f"--push {repo_id}: the name must be new or hold an earlier bundle, got a repository with {foreign[0]}. "
            "Choose another name."
        )
    if info.private is False and not is_public:
        raise RunError(
            f"--push {repo_id}: the repository is there and public, and a push is private unless said otherwise. "
            "Add --public, or choose another name."
        )
    if info.private and is_public:
        tell(f"{repo_id} is there and private: it stays so. Its settings page makes it public.")
