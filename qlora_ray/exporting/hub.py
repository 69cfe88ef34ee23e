"""A bundle on the Hugging Face hub: private unless said otherwise, and resumable.

What would stop an upload (a bad name, no token, no network, a name that is taken) is found out by `plan_push`, before
anything is merged or written.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.errors import ConfigError, RunError
from qlora_ray.exporting.hub_token import TOKEN_NAME, check_token, find_token, hide_token
from qlora_ray.exporting.inventory import INVENTORY, Bundle

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Ours: a network that has not answered by then is not there. The library itself waits without end.
REACH_TIMEOUT_S = 10.0
# What a bundle has at its top. A repository with only these is one of ours, or was left by an upload that broke.
BUNDLE_FOLDERS = ("adapter/", "merged/", "merged-nf4/", "evaluation/")
# The hub makes it, and no bundle has one.
HUB_FILE = ".gitattributes"
BUNDLE_FILES = (
    "README.md",
    "RUN_RECORD.md",
    "bundle.json",
    "record.json",
    "report.html",
    "scores.json",
    "sweep.yaml",
    "trial.yaml",
)


@dataclass(frozen=True)
class PushPlan:
    """Where a bundle goes.

    Attributes:
        repo_id: `user/repository`.
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
    from huggingface_hub import constants

    check_repo_id(repo_id)
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if constants.HF_HUB_OFFLINE:
        raise RunError(
            f"--push {repo_id}: needs the network, got HF_HUB_OFFLINE=1. Unset it, or export without --push now and "
            "push the bundle later."
        )
    token = check_token(token, where=f"--push {repo_id}: the token") if token else find_token()
    if token is None:
        raise ConfigError(
            f"--push {repo_id}: needs a token, got none. Set {TOKEN_NAME} in the environment or in .env (a token with "
            f"write access, from {endpoint}/settings/tokens)."
        )
    api = _make_api(endpoint, token)
    info = _find_repository(api, repo_id, token=token)
    _check_namespace(api, repo_id, token=token)
    if info is None:
        return PushPlan(repo_id, is_public, False, endpoint, token)
    _check_repository(info, repo_id, is_public=is_public, tell=tell)
    return PushPlan(repo_id, is_public, True, endpoint, token)


def push_bundle(bundle: Bundle, *, plan: PushPlan, tell: Callable[[str], None]) -> str:
    """Uploads a bundle's own files, and returns the repository's address.

    What an earlier push has sent already is not sent again.

    Raises:
        RunError: If the repository cannot be made, or the upload breaks.
    """
    folder = bundle.folder
    api = _make_api(plan.endpoint, plan.token)
    if not plan.exists:
        with _explained(plan, "the repository cannot be made", folder):
            api.create_repo(plan.repo_id, private=not plan.is_public)
        tell(f"made {plan.url}, {'public' if plan.is_public else 'private'}")
    with _explained(plan, "the upload broke", folder):
        api.upload_folder(
            repo_id=plan.repo_id,
            folder_path=folder,
            # Whatever else lies there, as the results of training again, is not the bundle.
            allow_patterns=[*(glob.escape(file["path"]) for file in bundle.inventory["files"]), INVENTORY],
            commit_message="Upload a qlora_ray bundle",
            # Shards of an earlier bundle would be loaded with this one's, and its verdict be read as this one's.
            delete_patterns=[*(f"{name}*" for name in BUNDLE_FOLDERS), *BUNDLE_FILES] if plan.exists else None,
        )
    return plan.url


def check_repo_id(repo_id: str) -> None:
    """Raises ConfigError unless the text is `user/repository` as the hub has names."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    problem = "there is no user in it" if "/" not in repo_id else None
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        problem = str(error).split(f": '{repo_id}'")[0].rstrip(".")
    if problem:
        raise ConfigError(f"--push: must be USER/REPO, got {repo_id!r}: {problem}. Choose another name.")


def _make_api(endpoint: str, token: str) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=token, library_name="qlora_ray")


def _find_repository(api: HfApi, repo_id: str, *, token: str) -> Any | None:
    """The repository as the hub describes it; None if there is none that this token may see."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    where = f"--push {repo_id}"
    try:
        return api.model_info(repo_id, timeout=REACH_TIMEOUT_S)
    except RepositoryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise _refused(error, where=where, token=token) from None
    # The HTTP client's own errors have no class in common with those of its predecessors.
    except Exception as error:
        raise _unreachable(error, api, where=where, token=token) from None


def _check_namespace(api: HfApi, repo_id: str, *, token: str) -> None:
    """Says before the work that a token cannot write there, as far as the hub tells."""
    from huggingface_hub.errors import HfHubHTTPError

    where = f"--push {repo_id}"
    try:
        # It takes no timeout (huggingface_hub 2.4); the hub has answered once by now.
        who = api.whoami()
    except HfHubHTTPError as error:
        raise _refused(error, where=where, token=token) from None
    except Exception as error:
        raise _unreachable(error, api, where=where, token=token) from None
    user = str(who.get("name"))
    mine = {user, *(one.get("name") for one in who.get("orgs") or [])}
    role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise RunError(f"--push {repo_id}: needs a token that may write, got one that may read. Make another.")
    # A fine-grained token may write where its owner is no member.
    if repo_id.partition("/")[0] not in mine and role != "fineGrained":
        name = repo_id.partition("/")[2]
        raise RunError(
            f"--push {repo_id}: must be a name that your token may write to, got another's: the token is of {user}. "
            f"Try {user}/{name}."
        )


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


@contextmanager
def _explained(plan: PushPlan, what: str, folder: Path) -> Iterator[None]:
    """Turns whatever the hub and its client raise into one message without the token."""
    from huggingface_hub.errors import HfHubHTTPError

    again = f"The bundle is whole; go on with: python -m qlora_ray.export {folder} --push {plan.repo_id}"
    again += " --public" if plan.is_public else ""
    try:
        yield
    except Exception as error:
        source = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        where = f"--push {plan.repo_id}"
        if isinstance(source, HfHubHTTPError) and source.response.status_code in (401, 403, 409):
            refused = _refused(source, where=where, token=plan.token)
            raise RunError(f"{refused} The bundle itself is whole: {folder}") from None
        raise RunError(f"{where}: {what}: {_cause(source, plan.token)}. {again}") from None


def _unreachable(error: Exception, api: HfApi, *, where: str, token: str) -> RunError:
    return RunError(
        f"{where}: {api.endpoint} cannot be reached: {_cause(error, token)}. Check the network, or export without "
        "--push now and push the bundle later."
    )


def _refused(error: Any, *, where: str, token: str) -> RunError:
    """What the hub does not allow, by its status."""
    messages = {
        401: f"the hub does not know the token. Check {TOKEN_NAME}.",
        403: "the token may not write there: the name is another's, or the token may only read. Choose another name.",
        409: "the name is taken by a repository that this token may not see. Choose another name.",
    }
    status = error.response.status_code
    return RunError(f"{where}: {messages.get(status) or f'the hub answered {status}: {_cause(error, token)}.'}")


def _cause(error: BaseException, token: str) -> str:
    """An error's first line, without the token."""
    # Hidden first: a token of two lines would be cut in two.
    lines = [line.strip() for line in hide_token(str(error), token).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(" .:")
