"""Tokens and keys stand in no file that a sweep leaves, nor in a log, whether it fails or pushes to the hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.sweeps import run_sweep, write_config
from tests.fake_hub import FakeHub, running_hub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Of the kinds that a user has in the environment.
GIVEN = {"RAY_AUTH_TOKEN": "7e" * 32, "WANDB_API_KEY": "5b" * 20}
PAGE = re.compile(r"dashboard: http://127\.0\.0\.1:\d+/\S*token=([\w-]{20,})")


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray keeps its logs; its sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        secrets = {**GIVEN, "HF_TOKEN": hub.token, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        for name, value in {**secrets, "HF_HUB_DISABLE_XET": "1", "WANDB_MODE": "offline"}.items():
            monkeypatch.setenv(name, value)
        yield hub


def find_tokens(tokens: dict[str, str], *folders: Path) -> list[str]:
    """The files below these folders that hold a token, with its name."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    # Ray's own logs are among them.
    assert any(path.name == "raylet.out" for path in files)
    return [
        f"{name} in {path}" for path in files for name, token in tokens.items() if token.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize("fails", [True, False], ids=["failed", "pushed"])
def test_no_token_is_in_any_file_or_line_of_a_sweep(
    tmp_path: Path, ray_folder: Path, hub: FakeHub, fails: bool
) -> None:
    config = write_config(
        tmp_path,
        search={
            "space": {"training.learning_rate": {"low": 1e-3, "high": 1e9 if fails else 2e-3, "log": True}}
            | {"points_to_evaluate": [{"training.learning_rate": 1e9 if fails else 2e-3}]},
            "num_trials": 1,
            "num_reports": 2,
        },
        training={"max_samples": 32},
        results={"name": "s", "report_to": ["wandb"]},
        export={"push_every": "save"},
    )
    run = run_sweep("--config", config, "--dashboard", cwd=tmp_path)
    assert run.returncode == (1 if fails else 0), run.stdout + run.stderr
    assert bool(hub.repositories) is not fails
    (page_token,) = PAGE.findall(run.stdout)
    # It is told to the user, once.
    assert (run.stdout + run.stderr).count(page_token) == 1
    tokens = {**GIVEN, "HF_TOKEN": hub.token}
    assert not [name for name, token in tokens.items() if token in run.stdout + run.stderr]
    assert not find_tokens({**tokens, "page": page_token}, tmp_path, ray_folder)
