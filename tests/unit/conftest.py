"""Fixtures that several files share: a hub on this machine, and a sweep of six trials to report on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_ray.reporting.story import Story, read_story
from qlora_ray.runs import SweepPaths
from tests.fake_hub import FakeHub, go_online, running_hub
from tests.sweep_folder import usual_sketches, write_sweep


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets the hub's library speak to a hub on this machine."""
    go_online(monkeypatch, tmp_path)


@pytest.fixture
def hub(online: None) -> Iterator[FakeHub]:
    """A hub that takes uploads."""
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def usual_paths(tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """The sweep of `usual_sketches`, which trial 0003 won; no test changes it."""
    return write_sweep(tmp_path_factory.mktemp("usual") / "s", usual_sketches(), winner=3)


@pytest.fixture(scope="session")
def usual(usual_paths: SweepPaths) -> Story:
    """Its story."""
    return read_story(usual_paths)


@pytest.fixture
def paths(usual_paths: SweepPaths, tmp_path: Path) -> SweepPaths:
    """A copy of it to change."""
    return SweepPaths(shutil.copytree(usual_paths.root, tmp_path / "s"))
