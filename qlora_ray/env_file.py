"""The hub's token in a .env file of the current folder: what it may look like, and its way into the environment."""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from qlora_ray.errors import ConfigError
from qlora_ray.regular_files import check_regular

ENV_FILE = ".env"
TOKEN_NAME = "HF_TOKEN"
# What the library reads, in its own order (huggingface_hub 2.4): its name of today, and that of before.
_ENVIRONMENT_NAMES = (TOKEN_NAME, "HUGGING_FACE_HUB_TOKEN")
# What an HTTP header can carry without being quoted back: printable ASCII, no spaces (RFC 9110, token68 is narrower).
_TOKEN = re.compile(r"[\x21-\x7e]+")


def load_token() -> None:
    """Takes HF_TOKEN from .env into the environment, where it is not set: the libraries' downloads read it there.

    Nothing else is taken: the file may be another program's. One that cannot be read, or holds no token that can be
    sent, is passed over here; where a token is needed, that is said. Ray's workers on this machine inherit it.

    Raises:
        ConfigError: If the environment's own cannot be sent: every request would fail, and some quote it.
    """
    if find_in_environment() is not None or not Path(ENV_FILE).is_file():
        return
    with suppress(ConfigError):
        token = find_in_env_file()
        if token is not None:
            os.environ[TOKEN_NAME] = token


def find_in_environment() -> str | None:
    """The token that the environment has; None if there is none. Raises ConfigError if it cannot be one."""
    for name in _ENVIRONMENT_NAMES:
        given = os.environ.get(name, "").strip()
        if given:
            return check_token(given, where=f"{name} in the environment")
    return None


def find_in_env_file() -> str | None:
    """The token of .env in this folder, `${NAME}` in it replaced from the environment; None if there is none.

    Raises:
        ConfigError: If it cannot be a token, or the file cannot be read.
    """
    from dotenv import dotenv_values

    # It tells of lines that it cannot parse, which are another program's.
    logging.getLogger("dotenv.main").setLevel(logging.ERROR)
    try:
        check_regular(Path(ENV_FILE))
        found = (dotenv_values(ENV_FILE).get(TOKEN_NAME) or "").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise ConfigError(f"{ENV_FILE}: must be UTF-8 text, got other bytes. Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{ENV_FILE}: cannot be read: {error.strerror}. Correct it, or set {TOKEN_NAME}.") from None
    return check_token(found, where=f"{TOKEN_NAME} in {ENV_FILE}") if found else None


def check_token(token: str, *, where: str) -> str:
    """Returns the token, or raises ConfigError, which does not quote it, if it is more than printable ASCII.

    An HTTP client quotes a header that it cannot send, and with it the token.
    """
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"{where}: must be one line of printable ASCII without spaces, got other characters. Copy the token again."
        )
    return token
