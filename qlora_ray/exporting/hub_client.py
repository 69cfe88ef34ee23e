"""The hub's client, and how long it waits: the library itself waits without end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qlora_ray.env_file import TOKEN_NAME, check_token, find_in_env_file, find_in_environment
from qlora_ray.errors import ConfigError, RunError

if TYPE_CHECKING:
    from huggingface_hub import HfApi


# Ours: a network that has not answered by then is not there.
REACH_TIMEOUT_S = 10.0
# Ours: a hub that takes no byte and says no word for so long while it is sent a bundle is stuck. Making a commit of
# many large files takes it a minute and more.
STALL_TIMEOUT_S = 300.0
# What a user does about a hub that cannot be reached where an export pushes a bundle.
PUSH_LATER = "export without --push now and push the bundle later"


def make_api(endpoint: str, token: str) -> HfApi:
    """A client of the hub at an address."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=token, library_name="qlora_ray")


@contextmanager
def answers_within(seconds: float) -> Iterator[None]:
    """Gives every request of the block so many seconds between two signs of life.

    Not all of the library's calls take a timeout (huggingface_hub 2.4: `whoami` does not), but all go through one
    client.
    """
    from huggingface_hub import get_session

    client = get_session()
    before = client.timeout
    client.timeout = seconds
    try:
        yield
    finally:
        client.timeout = before


def explain_silence(error: Exception, api: HfApi, *, where: str, token: str, later: str = PUSH_LATER) -> RunError:
    """Returns the error for a hub that cannot be reached, or does not answer.

    Args:
        error: What the client raised.
        api: The client, which knows the address.
        where: The option that the message begins with.
        token: The hub's token, which is cut out of what the client said.
        later: What can be done without a network.
    """
    return RunError(
        f"{where}: {api.endpoint} cannot be reached: {first_line(error, token)}. Check the network, or {later}."
    )


def explain_refusal(error: Any, *, where: str, token: str) -> RunError:
    """Returns the error for what the hub refused, in words that fit its HTTP status.

    Args:
        error: The client's HfHubHTTPError.
        where: The option that the message begins with.
        token: The hub's token, which is cut out of what the hub said.
    """
    messages = {
        401: f"the hub does not know the token. Check {TOKEN_NAME}.",
        403: "the token may not write there: the name is another's, or the token may only read. Choose another name.",
        409: "the name is taken by a repository that this token may not see. Choose another name.",
    }
    status = error.response.status_code
    return RunError(f"{where}: {messages.get(status) or f'the hub answered {status}: {first_line(error, token)}.'}")


@contextmanager
def explained(where: str, what: str, *, token: str, again: str, whole: str = "") -> Iterator[None]:
    """Turns whatever the hub and its client raise into one message without the token.

    Args:
        where: The option that the message begins with.
        what: What did not work.
        token: The hub's token, which is cut out of what the hub said.
        again: How to go on after a break.
        whole: What is whole though the hub has refused it.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except Exception as error:
        source = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        if isinstance(source, HfHubHTTPError) and source.response.status_code in (401, 403, 409):
            refused = explain_refusal(source, where=where, token=token)
            raise RunError(f"{refused} {whole}".rstrip()) from None
        raise RunError(f"{where}: {what}: {first_line(source, token)}. {again}".rstrip()) from None


def first_line(error: BaseException, token: str) -> str:
    """An error's first line, without the token."""
    # Hidden first: a token of two lines would be cut in two.
    lines = [line.strip() for line in hide_token(str(error), token).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(" .:")


def find_token() -> str | None:
    """The hub's token: of the environment, else of .env in this folder, else of `hf auth login`. It is never printed.

    Raises:
        ConfigError: If what is found cannot be a token, or a file cannot be read.
    """
    from huggingface_hub import get_token

    given = find_in_environment() or find_in_env_file()
    if given is not None:
        return given
    try:
        found = (get_token() or "").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError("hf auth login: its token file cannot be read. Log in again.") from None
    return check_token(found, where="the token of hf auth login") if found else None


def hide_token(text: str, token: str) -> str:
    """A text without the token: as it is, as Python quotes it, or any line of it."""
    forms = {token, repr(token)[1:-1], *token.splitlines()}
    for form in sorted(filter(str.strip, forms), key=len, reverse=True):
        text = text.replace(form, "***")
    return text
