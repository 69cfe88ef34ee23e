"""The hub's token: where it is found, and how it is kept out of messages."""

from __future__ import annotations

from qlora_ray.env_file import check_token, find_in_env_file, find_in_environment
from qlora_ray.errors import ConfigError


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
