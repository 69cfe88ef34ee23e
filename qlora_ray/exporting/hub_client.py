"""The hub's client, and how long it waits: the library itself waits without end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Ours: a network that has not answered by then is not there.
REACH_TIMEOUT_S = 10.0
# Ours: a hub that takes no byte and says no word for so long while it is sent a bundle is stuck. Making a commit of
# many large files takes it a minute and more.
STALL_TIMEOUT_S = 300.0


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
