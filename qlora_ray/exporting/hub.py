"""A bundle's upload to the Hugging Face hub, resumable. `hub_plan` says before whether it can go there."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from qlora_ray.exporting.hub_client import STALL_TIMEOUT_S, answers_within, explained, make_api
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


def _explained(plan: PushPlan, what: str, folder: Path) -> AbstractContextManager[None]:
    """Turns whatever the hub and its client raise into one message that says how to go on."""
    command = ["python", "-m", "qlora_ray.export", str(folder), "--push", plan.repo_id]
    again = f"The bundle is whole; go on with: {shlex.join([*command, *(['--public'] if plan.is_public else [])])}"
    whole = f"The bundle itself is whole: {folder}"
    return explained(f"--push {plan.repo_id}", what, token=plan.token, again=again, whole=whole)
