"""A bundle's upload to the Hugging Face hub, resumable. `hub_plan` says before whether it can go there."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_ray.errors import RunError
from qlora_ray.exporting.hub_client import STALL_TIMEOUT_S, answers_within, explain_refusal, first_line, make_api
from qlora_ray.exporting.hub_plan import PushPlan
from qlora_ray.exporting.inventory import BUNDLE_FILES, BUNDLE_FOLDERS, INVENTORY, Bundle


def push_bundle(bundle: Bundle, *, plan: PushPlan, tell: Callable[[str], None]) -> str:
    """Uploads a bundle's own files, and returns the repository's address.

    What an earlier push has sent already is not sent again.

    Args:
        bundle: The bundle that was written.
        plan: Where it goes, as `plan_push` checked it.
        tell: Takes lines for the user.

    Raises:
        RunError: If the repository cannot be made, or the upload breaks.
    """
    folder = bundle.folder
    api = make_api(plan.endpoint, plan.token)
    if not plan.exists:
        with answers_within(STALL_TIMEOUT_S), _explained(plan, "the repository cannot be made", folder):
            api.create_repo(plan.repo_id, private=not plan.is_public)
        tell(f"made {plan.url}, {'public' if plan.is_public else 'private'}")
    with answers_within(STALL_TIMEOUT_S), _explained(plan, "the upload broke", folder):
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


@contextmanager
def _explained(plan: PushPlan, what: str, folder: Path) -> Iterator[None]:
    """Turns whatever the hub and its client raise into one message without the token."""
    from huggingface_hub.errors import HfHubHTTPError

    command = ["python", "-m", "qlora_ray.export", str(folder), "--push", plan.repo_id]
    again = f"The bundle is whole; go on with: {shlex.join([*command, *(['--public'] if plan.is_public else [])])}"
    try:
        yield
    except Exception as error:
        source = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        where = f"--push {plan.repo_id}"
        if isinstance(source, HfHubHTTPError) and source.response.status_code in (401, 403, 409):
            refused = explain_refusal(source, where=where, token=plan.token)
            raise RunError(f"{refused} The bundle itself is whole: {folder}") from None
        raise RunError(f"{where}: {what}: {first_line(source, plan.token)}. {again}") from None
