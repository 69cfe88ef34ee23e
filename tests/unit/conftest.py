"""Fixtures of the tests that speak to a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_hub import FakeHub, go_online, running_hub


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets the hub's library speak to a hub on this machine."""
    go_online(monkeypatch, tmp_path)


@pytest.fixture
def hub(online: None) -> Iterator[FakeHub]:
    """A hub that takes uploads."""
    with running_hub() as hub:
        yield hub
