"""Where a bundle goes on the hub, and all that would stop it, found out before anything is merged or written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qlora_ray.env_file import TOKEN_NAME, check_token
from qlora_ray.errors import ConfigError, RunError
from qlora_ray.exporting.hub_client import (
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
    endpoint, token = _find_access(where, token=token, endpoint=endpoint)
    api = make_api(endpoint, token)
    with answers_within(REACH_TIMEOUT_S):
        info = _find_repository(api, repo_id, token=token)
        user = _check_namespace(api, repo_id.partition("/")[0], where=where, token=token)
    if user is not None:
        raise RunError(
            f"{where}: must be a name that your token may write to, got another's: the token is of {user}. "
            f"Try {user}/{repo_id.partition('/')[2]}."
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
    endpoint, token = _find_access(where, token=token, endpoint=endpoint)
    with answers_within(REACH_TIMEOUT_S):
        owner = _check_namespace(make_api(endpoint, token), user, where=where, token=token)
    if owner is not None:
        raise RunError(
            f"{where}: must be a user that your token may write to, got another: the token is of {owner}. "
            f"Try {owner}, or {owner}/REPO."
        )


def name_repository(asked: str, *, name: str) -> str:
    """`USER/REPO` as it is; for `USER` alone, the user's repository that has the bundle's name."""
    return asked if "/" in asked else f"{asked}/{name}"


def check_repo_id(repo_id: str) -> None:
    """Raises ConfigError unless the text is `user/repository` as the hub has names."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    problem = None if "/" in repo_id[1:] else "there is no user in it"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        problem = problem or str(error).split(f": '{repo_id}'")[0].rstrip(".")
    if problem:
        raise ConfigError(f"--push: must be USER/REPO, got {repo_id!r}: {problem}. Choose another name.")


def _find_access(where: str, *, token: str | None, endpoint: str | None) -> tuple[str, str]:
    """The hub's address, and a token for it."""
    from huggingface_hub import constants

    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if constants.HF_HUB_OFFLINE and gave_up():
        raise RunError(
            f"{where}: needs the network, got no answer from {constants.ENDPOINT} where the base was looked for. Check "
            "the network, or export without --push now and push the bundle later."
        )
    if constants.HF_HUB_OFFLINE:
        raise RunError(
            f"{where}: needs the network, got HF_HUB_OFFLINE=1. Unset it, or export without --push now and "
            "push the bundle later."
        )
    token = check_token(token, where=f"{where}: the token") if token else find_token()
    if token is None:
        raise ConfigError(
            f"{where}: needs a token, got none. Set {TOKEN_NAME} in the environment or in .env (a token with "
            f"write access, from {endpoint}/settings/tokens)."
        )
    return endpoint, token


def _find_repository(api: HfApi, repo_id: str, *, token: str) -> Any | None:
    """The repository as the hub describes it; None if there is none that this token may see."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    where = f"--push {repo_id}"
    try:
        return api.model_info(repo_id, timeout=REACH_TIMEOUT_S)
    except RepositoryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise explain_refusal(error, where=where, token=token) from None
    # The HTTP client's own errors have no class in common with those of its predecessors.
    except Exception as error:
        raise explain_silence(error, api, where=where, token=token) from None


def _check_namespace(api: HfApi, namespace: str, *, where: str, token: str) -> str | None:
    """Says before the work that a token cannot write there, as far as the hub tells.

    Returns:
        None if it may, else whose token it is.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        who = api.whoami()
    except HfHubHTTPError as error:
        raise explain_refusal(error, where=where, token=token) from None
    except Exception as error:
        raise explain_silence(error, api, where=where, token=token) from None
    user = str(who.get("name"))
    mine = {user, *(organization.get("name") for organization in who.get("orgs") or [])}
    role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise RunError(f"{where}: needs a token that may write, got one that may read. Make another.")
    # A fine-grained token may write where its owner is no member.
    return None if namespace in mine or role == "fineGrained" else user


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
