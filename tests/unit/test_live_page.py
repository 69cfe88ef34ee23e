"""The server of `sweep --dashboard`: it is there before the sweep's folder, and ends with the sweep."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from qlora_ray.orchestration import live_page as module
from qlora_ray.orchestration.live_page import live_page


def test_the_page_is_served_while_the_block_runs(tmp_path: Path) -> None:
    with live_page(tmp_path / "soon") as page:
        words, url = page.describe().split(" ", 1)
        assert words == "dashboard:"
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url)


def test_a_server_that_cannot_be_started_does_not_stop_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with live_page(tmp_path / "a sweep") as page:
        told = page.describe()
    assert told == f"dashboard: it could not be started. Try: python -m qlora_ray.dashboard '{tmp_path}/a sweep'"


def test_a_system_without_room_for_a_process_does_not_stop_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(module.subprocess, "Popen", fail)
    with live_page(tmp_path / "s") as page:
        assert page.describe().startswith("dashboard: it could not be started.")


def test_a_server_that_hangs_does_not_keep_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "hanging"
    # It says nothing until its stdin ends.
    hanging.write_text("#!/bin/sh\nexec cat\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(hanging))
    monkeypatch.setattr(module, "START_S", 0.05)
    with live_page(tmp_path / "s") as page:
        assert page.describe().startswith("dashboard: it could not be started.")
