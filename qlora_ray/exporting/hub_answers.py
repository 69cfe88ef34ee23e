"""What the hub, or the network before it, answered in place of doing it, in one message without the token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qlora_ray.env_file import TOKEN_NAME
from qlora_ray.errors import RunError
from qlora_ray.exporting.hub_token import hide_token

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def explain_silence(error: Exception, api: HfApi, *, where: str, token: str) -> RunError:
    """The hub cannot be reached, or does not answer."""
    return RunError(
        f"{where}: {api.endpoint} cannot be reached: {first_line(error, token)}. Check the network, or export without "
        "--push now and push the bundle later."
    )


def explain_refusal(error: Any, *, where: str, token: str) -> RunError:
    """What the hub does not allow, by its status."""
    messages = {
        401: f"the hub does not know the token. Check {TOKEN_NAME}.",
        403: "the token may not write there: the name is another's, or the token may only read. Choose another name.",
        409: "the name is taken by a repository that this token may not see. Choose another name.",
    }
    status = error.response.status_code
    return RunError(f"{where}: {messages.get(status) or f'the hub answered {status}: {first_line(error, token)}.'}")


def first_line(error: BaseException, token: str) -> str:
    """An error's first line, without the token."""
    # Hidden first: a token of two lines would be cut in two.
    lines = [line.strip() for line in hide_token(str(error), token).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(" .:")
