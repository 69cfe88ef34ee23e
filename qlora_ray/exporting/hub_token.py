"""The hub's token: where it is found, what one may look like, and how it is kept out of messages."""

from __future__ import annotations

import os
import re

from qlora_ray.errors import ConfigError

TOKEN_NAME = "HF_TOKEN"
# What an HTTP header can carry without being quoted back: printable ASCII, no spaces (RFC 9110, token68 is narrower).
_TOKEN = re.compile(r"[\x21-\x7e]+")


def find_token() -> str | None:
    """The hub's token: of HF_TOKEN, else of .env in this folder, else of `hf auth login`. It is never printed.

    Raises:
        ConfigError: If what is found cannot be a token, or a file cannot be read.
    """
    from huggingface_hub import get_token

    found = (os.environ.get(TOKEN_NAME) or "").strip()
    if found:
        return check_token(found, where=f"{TOKEN_NAME} in the environment")
    found = _read_env_file()
    if found:
        return check_token(found, where=f"{TOKEN_NAME} in .env")
    try:
        found = (get_token() or "").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError("hf auth login: its token file cannot be read. Log in again.") from None
    return check_token(found, where="the token of hf auth login") if found else None


def check_token(token: str, *, where: str) -> str:
    """Returns the token, or raises ConfigError, which does not quote it, if it is more than printable ASCII.

    An HTTP client quotes a header that it cannot send, and with it the token.
    """
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"{where}: must be one line of printable ASCII without spaces, got other characters. Copy the token again."
        )
    return token


def hide_token(text: str, token: str) -> str:
    """A text without the token: as it is, as Python quotes it, or any line of it."""
    forms = {token, repr(token)[1:-1], *token.splitlines()}
    for form in sorted(filter(str.strip, forms), key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def _read_env_file() -> str:
    from dotenv import dotenv_values

    try:
        return (dotenv_values(".env", interpolate=False).get(TOKEN_NAME) or "").strip()
    except UnicodeDecodeError:
        raise ConfigError(".env: must be UTF-8 text, got other bytes. Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f".env: cannot be read: {error.strerror}. Correct it, or set {TOKEN_NAME}.") from None
